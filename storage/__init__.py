"""Where runs live. `open_store` picks the store by the scheme of its URL; a new cloud is one line here."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from importlib import import_module

from storage.errors import InvalidURL
from storage.protocol import ObjectInfo, Store

__all__ = ["ObjectInfo", "Store", "open_store"]

PATIENCE_S = 20.0

# scheme -> module and class; a module, and with it a cloud's SDK, is imported when its scheme is used
_STORES = {
    "file": ("storage.local", "LocalStore"),
    "gs": ("storage.gcs", "GoogleStore"),
    "s3": ("storage.s3", "S3Store"),
    "az": ("storage.azure", "AzureStore"),
}


def open_store(url: str, *, patience: Callable[[], float] = lambda: PATIENCE_S) -> Store:
    """The store at `url`; `patience()` gives the seconds that one request may wait for an answer.

    Raises `InvalidURL`.
    """
    scheme, separator, _ = url.partition("://")
    if scheme != "file" and ("?" in url or "@" in url):
        # KEY:SECRET@bucket, or a signature behind "?", which would be in the log, or in the name of each object
        raise InvalidURL(
            "the store's URL has a '?' or '@' in it, and is not shown, as a secret may stand there: credentials "
            "are given apart from the URL (docs/stores.md); a folder of such a name is written file:///folder"
        )
    if not separator:
        raise InvalidURL(f"{url!r} is no store: write its URL, for example {_meant(url)}")
    if scheme not in _STORES:
        near = difflib.get_close_matches(scheme, _STORES, n=1)
        hint = f"did you mean {near[0]}://?" if near else f"known: {', '.join(f'{name}://' for name in _STORES)}"
        raise InvalidURL(f"{url}: unknown scheme {scheme!r}; {hint}")
    module, name = _STORES[scheme]
    store: Store = getattr(import_module(module), name)(url, patience=patience)
    return store


def _meant(url: str) -> str:
    """What was most likely meant by what has no `://`."""
    scheme, colon, rest = url.partition(":")
    if colon and scheme in _STORES:
        if scheme != "file":
            return f"{scheme}://{rest.lstrip('/')}"
        url = rest
    if url.startswith("/"):  # a folder, most likely
        return f"file:///{url.lstrip('/')} (or is a variable in it unset?)"
    return f"file://{url}" if url.startswith(("./", "../")) else f"file://./{url or 'store'}"
