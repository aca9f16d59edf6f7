"""`file://`: runs in a folder, with what object stores promise: whole objects or none, created once, durable."""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from storage.errors import (
    AlreadyExists,
    InvalidURL,
    NoSpace,
    NotFound,
    PermissionDenied,
    StoreError,
    Unavailable,
    Unsupported,
)
from storage.protocol import SCRATCH, ObjectInfo, Source, check_key, chunks

COPY_BYTES = 1 << 20


class LocalStore:
    def __init__(self, url: str) -> None:
        """`url` is `file:///absolute/folder` or `file://./relative`; the folder is made when first written to."""
        path = url.removeprefix("file://")
        if not path.startswith(("/", "./", "../")) and path not in (".", ".."):
            raise InvalidURL(f"{url}: a local store is written file:///absolute/folder or file://./folder")
        self.url = url
        self._root = Path(path).absolute()

    def put(self, key: str, source: Source, *, if_absent: bool = False) -> ObjectInfo:
        path = self._root / check_key(key)
        scratch = path.parent / f"{SCRATCH}{uuid.uuid4().hex}"
        with _translated(key):
            _make_folders(path.parent)
            try:
                with open(scratch, "xb", buffering=0) as file:
                    for chunk in chunks(source):
                        _write_all(file, chunk)
                    os.fsync(file.fileno())
                    stat = os.fstat(file.fileno())
                if if_absent:
                    _link(scratch, path)
                else:
                    os.replace(scratch, path)
            finally:
                with suppress(FileNotFoundError):
                    os.unlink(scratch)
            _sync_folder(path.parent)
        return ObjectInfo(key, stat.st_size, stat.st_mtime)

    def get(self, key: str, sink: BinaryIO, *, byte_range: tuple[int, int] | None = None) -> ObjectInfo:
        path = self._root / check_key(key)
        with _translated(key), open(path, "rb", buffering=0) as file:
            stat = os.fstat(file.fileno())
            start, stop = byte_range or (0, stat.st_size)
            file.seek(start)
            left = min(stop, stat.st_size) - start
            buffer = memoryview(bytearray(max(1, min(left, COPY_BYTES))))
            while left > 0:
                got = file.readinto(buffer[: min(left, COPY_BYTES)])
                if not got:
                    raise Unavailable(f"{key}: ended {left} bytes early while being read")
                sink.write(buffer[:got])
                left -= got
        return ObjectInfo(key, stat.st_size, stat.st_mtime)

    def stat(self, key: str) -> ObjectInfo:
        path = self._root / check_key(key)
        with _translated(key):
            stat = os.stat(path)
            if not path.is_file():
                raise NotFound(f"{key}: not there")
        return ObjectInfo(key, stat.st_size, stat.st_mtime)

    def list(self, prefix: str, *, delimiter: str | None = None) -> Iterator[ObjectInfo]:
        folder, _, start = prefix.rpartition("/")
        if folder:
            check_key(folder)
        yield from self._list(folder, start, recurse=delimiter is None)

    def _list(self, folder: str, start: str, *, recurse: bool) -> Iterator[ObjectInfo]:
        """Objects below `folder` whose next name starts with `start`, in the order of their keys."""
        entries = []
        with _translated(folder or "."):
            try:
                with os.scandir(self._root / folder) as scan:
                    for entry in scan:
                        if entry.name.startswith(start) and not entry.name.startswith(SCRATCH):
                            # a folder's keys all have "/" after its name: sort it as they are sorted
                            entries.append((entry.name + "/" if entry.is_dir() else entry.name, entry))
            except (FileNotFoundError, NotADirectoryError):
                return
        for name, entry in sorted(entries, key=lambda pair: pair[0].encode("utf-8", "surrogateescape")):
            key = f"{folder}/{name}" if folder else name
            if not name.endswith("/"):
                with suppress(FileNotFoundError), _translated(key):
                    stat = entry.stat()
                    yield ObjectInfo(key, stat.st_size, stat.st_mtime)
            elif recurse:
                yield from self._list(key[:-1], "", recurse=True)
            else:
                yield ObjectInfo(key, 0, 0.0)

    def delete(self, key: str) -> None:
        path = self._root / check_key(key)
        with _translated(key), suppress(FileNotFoundError, NotADirectoryError):
            os.unlink(path)
            _sync_folder(path.parent)

    def free_bytes(self) -> int | None:
        folder = self._root
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        with _translated("."):
            return shutil.disk_usage(folder).free


@contextmanager
def _translated(key: str) -> Iterator[None]:
    """Turn what the operating system says into the store's own errors."""
    try:
        yield
    except StoreError:
        raise
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as e:
        raise NotFound(f"{key}: not there") from e
    except FileExistsError as e:
        raise AlreadyExists(f"{key}: already there") from e
    except OSError as e:
        where = e.filename or key
        if e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise NoSpace(f"{where}: no space left for it") from e
        if e.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise PermissionDenied(f"{where}: {os.strerror(e.errno).lower()} for user {os.getuid()}") from e
        raise Unavailable(f"{where}: {e.strerror or e}") from e


def _write_all(file: BinaryIO, chunk: bytes | bytearray | memoryview) -> None:
    view = memoryview(chunk).cast("B")
    while view:  # an unbuffered write may be short
        view = view[file.write(view) :]


def _link(scratch: Path, path: Path) -> None:
    try:
        os.link(scratch, path)
    except OSError as e:
        if e.errno in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
            raise Unsupported(
                f"{path.parent}: this file system has no hard links; choose a folder on another one"
            ) from e
        raise


def _make_folders(folder: Path) -> None:
    """Make `folder` and the ones above it, each recorded durably in the one that holds it."""
    if folder.is_dir():
        return
    _make_folders(folder.parent)
    with suppress(FileExistsError):
        os.mkdir(folder)
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
