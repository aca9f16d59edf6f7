"""Loads torch's native libraries as a C program would, without Python's lock.

That is a fifth of the time that torch's import takes, more from a cold disk, and the import does it with the lock held:
no other thread runs until it is through, neither one that reads the newest checkpoint nor one that listens for notices.
What is loaded already, the import only looks up. The order and the scopes are those of torch/__init__.py.
"""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec

# What of Python's and of each store's SDK is native. The system's loader takes one library at a time, and a module
# that waits for it waits with Python's lock: these come first.
_PYTHONS = (
    *("_asyncio", "_bisect", "_bz2", "_contextvars", "_csv", "_decimal", "_elementtree", "_hashlib", "_lzma"),
    *("_multiprocessing", "_pickle", "_posixshmem", "_posixsubprocess", "_random", "_sha512", "_socket", "_ssl"),
    *("array", "binascii", "fcntl", "mmap", "pyexpat", "select", "termios", "unicodedata", "zlib"),
)
_HTTP = ("requests", "cryptography.hazmat.bindings._rust", "google_crc32c")
_STORES = {"gs": (*_HTTP, "google._upb._message"), "az": _HTTP}


def import_natives(store: str) -> None:
    """The native modules that are needed to reach the store at this URL, as far as they are there."""
    for name in (*_PYTHONS, *_STORES.get(store.partition("://")[0], ())):
        with suppress(ImportError):
            import_module(name)


def load() -> None:
    """Says nothing of what can't be loaded: torch's import does, in its own words."""
    spec = find_spec("torch")
    dlopen = ctypes.CDLL(None).dlopen  # by way of ctypes, which gives up the lock around a foreign function
    dlopen.argtypes, dlopen.restype = (ctypes.c_char_p, ctypes.c_int), ctypes.c_void_p
    for folder in spec.submodule_search_locations or () if spec else ():
        dlopen(os.fsencode(f"{folder}/lib/libtorch_global_deps.so"), os.RTLD_NOW | os.RTLD_GLOBAL)
        dlopen(os.fsencode(f"{folder}/lib/libtorch_python.so"), os.RTLD_NOW)
