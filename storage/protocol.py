"""The smallest interface that a local folder, S3, GCS and Azure Blob can all keep."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO, Protocol

from storage.errors import InvalidKey

Chunk = bytes | bytearray | memoryview
# What is put: chunks in their order, written one after the other. A caller's memory is read in place.
Source = Chunk | Sequence[Chunk]

MAX_KEY_BYTES = 900  # S3, GCS and Azure allow 1,024; the rest is room for the store's own prefix
MAX_NAME_BYTES = 255  # between two "/": what a file system holds
SCRATCH = ".tmp-"  # names that start so are a store's own unfinished business

# Control characters (some clouds refuse them, XML can't hold them), lone surrogates (no UTF-8), and the backslash,
# which Azure takes for "/".
_UNFIT = re.compile(r"[\x00-\x1f\x7f-\x9f\\\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One object as a store tells of it. With a delimiter, `list` also gives prefixes: keys that end in "/"."""

    key: str
    size: int  # bytes
    modified: float  # seconds since 1970 by the store's clock
    # when the store told this, by the same clock; `get` says it, where the store does. No part of what the object is
    answered: float | None = field(default=None, compare=False)

    @property
    def age_s(self) -> float:
        """For how long the store had it, by the store's clock; by this machine's, where the store didn't say."""
        return max(0.0, (time.time() if self.answered is None else self.answered) - self.modified)

    @property
    def is_prefix(self) -> bool:
        return self.key.endswith("/")


class Store(Protocol):
    """Objects by key. Keys are "/"-separated relative strings; see `check_key`.

    Any call may raise `StoreError`; the subclass says whether trying again can help.
    All methods may be called from several threads at once.
    """

    url: str

    def put(self, key: str, source: Source, *, if_absent: bool = False) -> ObjectInfo:
        """Write one object, atomically and durably: a reader sees the old one, the new one, or none.

        Never raises `NotFound`. What iterating over the source raises passes unchanged, and nothing is written.
        `if_absent` creates it, or raises `AlreadyExists` where there is one; of many callers one wins.
        """

    def get(self, key: str, sink: BinaryIO, *, byte_range: tuple[int, int] | None = None) -> ObjectInfo:
        """Write the object's bytes, or those of [start, stop) that it has, to `sink`. Raises `NotFound`.

        `sink.write` takes all that it is given, and copies what it keeps. On an error `sink` may hold a part of the
        bytes. What the sink itself raises passes unchanged.
        """

    def stat(self, key: str) -> ObjectInfo:
        """Raises `NotFound`."""

    def list(self, prefix: str, *, delimiter: str | None = None) -> Iterator[ObjectInfo]:
        """All objects whose key starts with `prefix`, in the order of their keys' UTF-8 bytes.

        With "/" as delimiter, one level of them: what lies deeper is told as its prefix, once. One that is there
        from the first to the last moment is in the list; one that comes or goes meanwhile may be.
        """

    def delete(self, key: str) -> None:
        """Remove the object; one that isn't there is no error."""

    def free_bytes(self) -> int | None:
        """Room left, in bytes; None where a store doesn't know of an end."""

    def caveat(self) -> str | None:
        """What a user should know before trusting this place with a run, if anything; one line."""


def check_key(key: str) -> str:
    """Return the key if every store can hold it, else raise `InvalidKey`."""
    size = len(key.encode("utf-8", "surrogatepass"))
    if size > MAX_KEY_BYTES or _UNFIT.search(key) or not all(map(_is_name, key.split("/"))):
        raise InvalidKey(f"not a key that a store can hold: {key!a:.200}")
    return key


def _is_name(name: str) -> bool:
    # Azure drops the dot at a name's end; "." and ".." would climb
    return 0 < len(name.encode()) <= MAX_NAME_BYTES and not name.startswith(SCRATCH) and not name.endswith(".")


def check_prefix(prefix: str) -> str:
    """Return the prefix if a key can start with it, else raise `InvalidKey`. One may end in the midst of a name."""
    check_key(prefix + "x")
    return prefix


def is_key(key: str, most: int = MAX_KEY_BYTES) -> bool:
    """Whether a store may hold it, of so many bytes at most; others' objects, such as folder markers, need not fit."""
    try:
        return len(check_key(key).encode()) <= most
    except InvalidKey:
        return False


def views(source: Source) -> Iterator[memoryview]:
    """The source's chunks as bytes where they lie; each is asked for when its turn comes, and none is copied."""
    for chunk in (source,) if isinstance(source, bytes | bytearray | memoryview) else source:
        view = memoryview(chunk)
        yield view.cast("B") if view.nbytes else memoryview(b"")  # an array without elements can't be cast
