"""The smallest interface that a local folder, S3, GCS and Azure Blob can all keep."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from storage.errors import InvalidKey

Chunk = bytes | bytearray | memoryview
# What is put: chunks in their order, written one after the other. A caller's memory is read in place.
Source = Chunk | Sequence[Chunk]

MAX_KEY_BYTES = 900  # S3, GCS and Azure allow 1,024; the rest is room for the store's own prefix
SCRATCH = ".tmp-"  # names that start so are a store's own unfinished business


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One object as a store tells of it. With a delimiter, `list` also gives prefixes: keys that end in "/"."""

    key: str
    size: int  # bytes
    modified: float  # seconds since 1970 by the store's clock

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

        `if_absent` creates it, or raises `AlreadyExists` where there is one; of many callers one wins.
        """

    def get(self, key: str, sink: BinaryIO, *, byte_range: tuple[int, int] | None = None) -> ObjectInfo:
        """Write the object's bytes, or those of [start, stop), to `sink`. Raises `NotFound`.

        On an error `sink` may hold a part of the bytes.
        """

    def stat(self, key: str) -> ObjectInfo:
        """Raises `NotFound`."""

    def list(self, prefix: str, *, delimiter: str | None = None) -> Iterator[ObjectInfo]:
        """All objects whose key starts with `prefix`, by key; with "/" as delimiter, one level of them."""

    def delete(self, key: str) -> None:
        """Remove the object; one that isn't there is no error."""

    def free_bytes(self) -> int | None:
        """Room left, in bytes; None where a store doesn't know of an end."""


def check_key(key: str) -> str:
    """Return the key if every store can hold it, else raise `InvalidKey`."""
    parts = key.split("/")
    if (
        any(part in ("", ".", "..") or part.startswith(SCRATCH) for part in parts)
        or any(ord(c) < 32 or c in "\\\x7f" for c in key)
        or len(key.encode("utf-8", "surrogatepass")) > MAX_KEY_BYTES
    ):
        raise InvalidKey(f"not a key that a store can hold: {key!r:.200}")
    return key


def chunks(source: Source) -> Sequence[Chunk]:
    """The source as a sequence of chunks, without copying."""
    return (source,) if isinstance(source, bytes | bytearray | memoryview) else source
