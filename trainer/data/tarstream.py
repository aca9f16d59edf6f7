"""Read a tar once, from front to back, in memory; whatever is odd about it is an error.

Python's own tarfile takes a damaged header, or an archive cut off between two members, for the end and says nothing:
a truncated download would train on part of the data. It also spends longer on the headers of 60,000 small members
than xz does on decompressing them. The format: POSIX pax interchange format; GNU tar manual, "Basic Tar Format".
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from storage.errors import StoreError
from trainer.data.dataset import shown
from trainer.data.pulse import told
from trainer.exits import UserError

BLOCK = 512
MEMBER_LIMIT = 64 << 20  # bytes; the largest in an official archive has 31 MB
TOTAL_LIMIT = 16 << 30  # bytes, decompressed: where a bomb stops
READ = 1 << 20  # bytes decompressed between two looks at `check`

_OPENERS: dict[bytes, Callable[[BinaryIO], object]] = {
    b"\x1f\x8b": lambda raw: gzip.GzipFile(fileobj=raw, mode="rb"),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\x00": lzma.LZMAFile,
}


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file in a tar."""

    parts: tuple[str, ...]  # of its name, without "." and never ".."
    size: int  # bytes
    data: bytes | None  # None where these are more than `MEMBER_LIMIT`: then it is passed over unread

    def whole(self, path: Path) -> bytes:
        """Its data. Raises `UserError`, which names the tar by `path`, where it is too long."""
        if self.data is None:
            name = shown("/".join(self.parts))
            raise UserError(f"{shown(path)}: {name} is {self.size >> 20} MB long; that is no picture")
        return self.data


def is_tar(path: Path) -> bool:
    """Whether this begins as a tar, compressed or not. Raises `UserError` if it can't be read or ends at once."""
    with closing(_Stream(path, lambda: None)) as stream:
        try:
            head = stream.read(BLOCK)
        except _Damaged:
            return False
        return len(head) == BLOCK and _sum_is_right(head)


def members(
    path: Path,
    check: Callable[[], None],
    *,
    opener: Callable[[], BinaryIO] | None = None,
    total_limit: int = 0,
) -> Iterator[Member]:
    """Each regular file in the tar. Raises `UserError` for damage, links, devices and names that climb out, and what
    `opener`'s file raises of a store.

    `opener`: opens it where `path` only names it. `total_limit`: bytes, decompressed; `TOTAL_LIMIT` if 0.
    """
    with closing(_Stream(path, check, opener, total_limit)) as stream:
        try:
            yield from _members(stream)
        except _Damaged as e:
            raise UserError(f"{shown(path)}: damaged ({e}); fetch it again") from e


class _Damaged(Exception):
    pass


class _Stream:
    """The decompressed bytes of a file."""

    def __init__(
        self,
        path: Path,
        check: Callable[[], None],
        opener: Callable[[], BinaryIO] | None = None,
        total_limit: int = 0,
    ) -> None:
        self.path = path
        self._total_limit = total_limit or TOTAL_LIMIT
        self.taken = 0  # bytes, decompressed
        self._check = check
        self._held = b""
        self._at = 0  # in _held
        try:
            self._raw = opener() if opener else path.open("rb")
            magic = self._raw.read(6)
            self._raw.seek(0)
        except StoreError:  # some are OSError too; a store that is away is no damage
            raise
        except OSError as e:
            raise told(e, f"can't read {shown(path)}") from e
        unpacker = next((o for start, o in _OPENERS.items() if magic.startswith(start)), lambda raw: raw)
        self._file = cast(BinaryIO, unpacker(self._raw))

    def close(self) -> None:
        self._file.close()
        self._raw.close()

    def read(self, size: int) -> bytes:
        """`size` bytes, or all that are left."""
        if self._at + size > len(self._held):
            pieces, have = [self._held[self._at :]], len(self._held) - self._at
            while have < size and (piece := self._more()):
                pieces.append(piece)
                have += len(piece)
            self._held, self._at = b"".join(pieces), 0
        data = self._held[self._at : self._at + size]
        self._at += len(data)
        return data

    def _more(self) -> bytes:
        self._check()
        try:
            piece = self._file.read(READ)
        except EOFError as e:
            raise ends_early(self.path) from e
        except (lzma.LZMAError, zlib.error) as e:
            raise _Damaged(str(e)) from e
        except StoreError:
            raise
        except OSError as e:
            if e.errno is None:  # from bz2 and gzip, of their content
                raise _Damaged(str(e)) from e
            raise told(e, f"can't read {shown(self.path)}") from e
        self.taken += len(piece)
        if self.taken > self._total_limit:
            raise UserError(
                f"{shown(self.path)}: holds more than {self._total_limit >> 30} GB; this is no such data set"
            )
        return piece

    def exactly(self, size: int) -> bytes:
        data = self.read(size)
        if len(data) < size:
            raise ends_early(self.path)
        return data

    def skip(self, size: int) -> None:
        while size:
            size -= len(self.exactly(min(size, READ)))


def ends_early(path: Path) -> UserError:
    return UserError(f"{shown(path)}: ends early: truncated download? Fetch it again")


def _members(stream: _Stream) -> Iterator[Member]:
    long_name: bytes | None = None  # from an extension header, for the next member
    long_size: int | None = None
    while any(header := stream.exactly(BLOCK)):
        if not _sum_is_right(header):
            raise _Damaged("a header's checksum is wrong")
        kind = header[156:157]
        size = _number(header[124:136])
        if long_size is not None and kind not in b"LKxg":
            size = long_size
        name = long_name if long_name is not None else _name(header)
        if kind in b"LKxg":  # it tells of the next member
            if size > MEMBER_LIMIT:
                raise _Damaged(f"a header of {size >> 20} MB")
            data = stream.exactly(size)
            stream.skip(-size % BLOCK)
            if kind == b"L":  # GNU: its long name
                long_name = data.rstrip(b"\0")
            if kind == b"x":  # pax: its attributes; those of all members (g) don't matter here, nor a link's target (K)
                records = _pax(data)
                long_name = records.get(b"path", long_name)
                long_size = _decimal(records[b"size"]) if b"size" in records else long_size
                if any(key.startswith(b"GNU.sparse") for key in records):
                    raise UserError(f"{shown(stream.path)}: {_safe(name)} is stored as a sparse file; pack it without")
            continue
        long_name = long_size = None
        parts, left = _parts(name, stream.path), size
        if kind in (b"0", b"\0", b"7") and parts and not name.endswith(b"/"):
            content = stream.exactly(size) if size <= MEMBER_LIMIT else None
            yield Member(parts, size, content)
            left = size if content is None else 0
        elif kind not in (b"5", b"0", b"\0"):
            raise UserError(f"{shown(stream.path)}: {_safe(name)} is a link or device; only files and folders are read")
        stream.skip(left + -size % BLOCK)
    while stream.read(READ):  # to the end, where the compressor keeps its checksum and a cut would show
        pass


def _parts(name: bytes, path: Path) -> tuple[str, ...]:
    parts = tuple(p for p in name.decode("utf-8", "surrogateescape").split("/") if p not in ("", "."))
    if name.startswith(b"/") or ".." in parts or b"\0" in name:
        raise UserError(f"{shown(path)}: the name {_safe(name)} points outside the archive; nothing of it was used")
    return parts


def _safe(name: bytes) -> str:
    return shown(name.decode("utf-8", "surrogateescape"))


def _name(header: bytes) -> bytes:
    name = header[:100].partition(b"\0")[0]
    prefix = header[345:500].partition(b"\0")[0]
    return prefix + b"/" + name if prefix and header[257:263] == b"ustar\0" else name


def _sum_is_right(header: bytes) -> bool:
    """The header's checksum: the sum of its bytes, its own field taken as spaces."""
    try:
        return _number(header[148:156]) == sum(header) - sum(header[148:156]) + 8 * 32
    except _Damaged:
        return False


def _number(field: bytes) -> int:
    if field[0] == 0x80:  # GNU: binary, for what octal digits can't hold
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0")
    if any(d not in b"01234567" for d in digits):
        raise _Damaged("a header's number is wrong")
    return int(digits or b"0", 8)


def _decimal(digits: bytes) -> int:
    if not digits.isdigit() or len(digits) > 20:
        raise _Damaged("a pax header's number is wrong")
    return int(digits)


def _pax(data: bytes) -> dict[bytes, bytes]:
    """Records "LENGTH KEY=VALUE\\n", where the length counts the whole record."""
    records: dict[bytes, bytes] = {}
    while data.rstrip(b"\0"):
        digits, space, _ = data.partition(b" ")
        length = _decimal(digits)
        record, data = data[:length], data[length:]
        key, equals, value = record[len(digits) + 1 :].partition(b"=")
        if not (space and equals and value.endswith(b"\n") and len(record) == length):
            raise _Damaged("a pax header is wrong")
        records[key] = value[:-1]
    return records
