"""`file://`: runs in a folder, with what object stores promise: whole objects or none, created once, durable."""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat as modes
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import BinaryIO

from storage.errors import (
    AlreadyExists,
    InvalidKey,
    InvalidURL,
    NoSpace,
    NotFound,
    NotSetUp,
    PermissionDenied,
    StoreError,
    Unavailable,
    Unsupported,
)
from storage.protocol import SCRATCH, ObjectInfo, Source, check_key, check_prefix, views

COPY_BYTES = 8 << 20
STALE_S = 24 * 3600.0  # scratch that has not grown for so long has lost its writer


class LocalStore:
    def __init__(self, url: str, *, patience: Callable[[], float] | None = None) -> None:
        """`url` is `file:///absolute/folder` or `file://./relative`; the folder is made when first written to.

        `patience`: see `open_store`; an operating system's calls can't be given a limit.
        """
        path = url.removeprefix("file://")
        if not path.startswith(("/", "./", "../")) and path not in (".", ".."):
            raise InvalidURL(f"{url}: a local store is written file:///absolute/folder or file://./folder")
        self.url = url
        try:
            self._root = Path(path).absolute()
        except FileNotFoundError as e:
            raise InvalidURL(f"{url}: the folder that this begins in has been removed") from e
        self._known: tuple[int, int] | None = None  # the folder in which objects were found or put: device and inode
        self._swept: set[Path] = set()
        self._ahead: float | None = None  # the file system's clock, of this machine's, in seconds

    def put(self, key: str, source: Source, *, if_absent: bool = False) -> ObjectInfo:
        path = self._root / check_key(key)
        scratch = path.parent / f"{SCRATCH}{uuid.uuid4().hex}"
        vanished = Unavailable(f"{path.parent}: vanished while {key} was being written")
        with _translated(key, absent=vanished):
            if not path.parent.is_dir():
                self._check_there()
            _make_folders(path.parent)
            file = FileIO(scratch, "x")
        try:
            self._sweep(path.parent, os.fstat(file.fileno()).st_mtime)
            for view in views(source):  # outside: the source's own errors are not the store's
                with _translated(key):
                    while view:  # an unbuffered write may be short
                        view = view[file.write(view) :]
            with _translated(key):
                os.fsync(file.fileno())
                stat = os.fstat(file.fileno())
                file.close()  # some file systems tell only here what went wrong
            # no renaming replaces a folder; else what is absent then is the folder that was there before
            in_the_way = Unsupported(f"{path}: is a folder here, so {key} can't be written")
            absent = in_the_way if os.path.isdir(path) else vanished
            with _translated(key, absent=absent):
                if if_absent:
                    _link(scratch, path)
                else:
                    os.replace(scratch, path)
        finally:
            with suppress(OSError):
                file.close()
            with suppress(OSError):  # what is left is swept later
                os.unlink(scratch)
        with _translated(key):
            _sync_folder(path.parent)
        if self._known is None:
            self._known = self._identity()
        return ObjectInfo(key, stat.st_size, stat.st_mtime)

    def _identity(self) -> tuple[int, int] | None:
        """Which folder this is now; None if there is none."""
        try:
            with _translated("."):
                stat = os.stat(self._root)
        except NotFound:
            return None
        return stat.st_dev, stat.st_ino

    def _check_there(self) -> None:
        """Raise `Unavailable` if the folder is not the one that it was: nothing is proven absent in another.

        It was unmounted, moved away, or replaced. An object that is read in it makes it the store again.
        """
        if self._known is not None and self._identity() != self._known:
            raise Unavailable(f"{self._root}: the store's folder has gone, or another is in its place")

    @contextmanager
    def _looked_up(self, key: str) -> Iterator[None]:
        try:
            with _translated(key):
                yield
        except NotFound:
            self._check_there()
            raise

    def _sweep(self, folder: Path, now: float) -> None:
        """Remove what killed writers left in `folder`, once; `now` is by the clock of its file system."""
        if folder in self._swept:
            return
        self._swept.add(folder)
        with suppress(OSError), os.scandir(folder) as scan:
            for entry in scan:
                with suppress(OSError):
                    if entry.name.startswith(SCRATCH) and now - entry.stat().st_mtime > STALE_S:
                        os.unlink(entry)

    def get(self, key: str, sink: BinaryIO, *, byte_range: tuple[int, int] | None = None) -> ObjectInfo:
        path = self._root / check_key(key)
        with self._looked_up(key):
            file = _open(path)
        self._known = self._identity()
        with file:
            with _translated(key):
                stat = os.fstat(file.fileno())
                start, stop = byte_range or (0, stat.st_size)
                file.seek(start)
            left = min(stop, stat.st_size) - start
            while left > 0:
                with _translated(key):
                    piece = file.read(min(left, COPY_BYTES))
                if not piece:
                    raise Unavailable(f"{key}: ended {left} bytes early while being read")
                sink.write(piece)  # outside: the sink's own errors are not the store's
                left -= len(piece)
        return ObjectInfo(key, stat.st_size, stat.st_mtime, self._now())

    def _now(self) -> float:
        """By the clock that gives files their times: a network file system's is its server's. Found out once."""
        if self._ahead is None:
            ahead = 0.0  # where nothing may be written, nobody can know
            with suppress(OSError), tempfile.TemporaryFile(dir=self._root, prefix=SCRATCH) as file:
                ahead = os.fstat(file.fileno()).st_mtime - time.time()
            self._ahead = ahead  # at once: several threads read
        return time.time() + self._ahead

    def stat(self, key: str) -> ObjectInfo:
        path = self._root / check_key(key)
        with self._looked_up(key):
            stat = os.stat(path)
        if not modes.S_ISREG(stat.st_mode):
            raise NotFound(f"{key}: not there")
        return ObjectInfo(key, stat.st_size, stat.st_mtime)

    def list(self, prefix: str, *, delimiter: str | None = None) -> Iterator[ObjectInfo]:
        if delimiter not in (None, "/"):
            raise ValueError(f"the delimiter can only be '/': {delimiter!r}")
        folder, _, start = check_prefix(prefix).rpartition("/")
        yield from self._list(folder, start, recurse=delimiter is None)

    def _list(self, folder: str, start: str, *, recurse: bool) -> Iterator[ObjectInfo]:
        """Objects below `folder` whose next name starts with `start`, in the order of their keys."""
        entries = []
        with _translated(folder or "."):
            try:
                with os.scandir(self._root / folder) as scan:
                    for entry in scan:
                        if not entry.name.startswith(start) or entry.name.startswith(SCRATCH):
                            continue
                        if entry.is_dir():
                            if folder or entry.name != "lost+found":  # a disk's own, closed to all but root
                                # a folder's keys all have "/" after its name: sort it as they are sorted
                                entries.append((entry.name + "/", entry))
                        elif entry.is_file():
                            entries.append((entry.name, entry))
            except (FileNotFoundError, NotADirectoryError) as e:
                if not folder and isinstance(e, NotADirectoryError):
                    raise NotSetUp(f"{self._root}: is a file, and a store is a folder") from e
                self._check_there()
                return
        for name, entry in sorted(entries, key=lambda pair: pair[0].encode("utf-8", "surrogateescape")):
            key = f"{folder}/{name}" if folder else name
            if not name.endswith("/"):
                with suppress(FileNotFoundError), _translated(key):
                    stat = entry.stat()
                    yield ObjectInfo(key, stat.st_size, stat.st_mtime)
            elif recurse:
                yield from self._list(key[:-1], "", recurse=True)
            elif self._holds_something(key[:-1]):
                yield ObjectInfo(key, 0, 0.0)

    def _holds_something(self, folder: str) -> bool:
        """Whether an object is in or below `folder`: deleting the last one leaves the folder, which is no prefix."""
        try:
            return next(self._list(folder, "", recurse=True), None) is not None
        except PermissionDenied:
            return True  # nobody knows, and what may be there must not be hidden

    def delete(self, key: str) -> None:
        path = self._root / check_key(key)
        with _translated(key):
            try:
                os.unlink(path)
                _sync_folder(path.parent)
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                self._check_there()

    def free_bytes(self) -> int | None:
        folder = self._root
        with _translated("."):
            while not folder.exists() and folder != folder.parent:
                folder = folder.parent
            return shutil.disk_usage(folder).free

    def caveat(self) -> str | None:
        kind = _file_system(self._root)
        if kind[0] == "/" and kind[1] in ("overlay", "fuse.fuse-overlayfs"):  # the latter is of engines without root
            return (
                f"{self.url} is inside this container and goes with it: add -v FOLDER:{self._root} to keep checkpoints"
            )
        if kind[1] in ("tmpfs", "ramfs"):
            return f"{self.url} is in memory and goes with the machine: choose a folder on a disk"
        return None


@contextmanager
def _translated(key: str, *, absent: StoreError | None = None) -> Iterator[None]:
    """Turn what the operating system says into the store's own errors; `absent` replaces NotFound."""
    try:
        yield
    except StoreError:
        raise
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as e:
        raise absent or NotFound(f"{key}: not there") from e
    except FileExistsError as e:
        raise AlreadyExists(f"{key}: already there") from e
    except OSError as e:
        where = e.filename or key
        if os.path.basename(where).startswith(SCRATCH):  # told of in a log again and again: the same each time
            where = os.path.dirname(where)
        if e.errno == errno.ENAMETOOLONG:
            raise InvalidKey(f"{key}: too long a path for this file system") from e
        if e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise NoSpace(f"{where}: no space left for it") from e
        if e.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            denied = f"{where}: {os.strerror(e.errno).lower()} for user {os.getuid()}"
            chown = "let that user have the folder (chown), or run as its owner (docker run --user)"
            raise PermissionDenied(f"{denied}; {'mount it writable' if e.errno == errno.EROFS else chown}") from e
        if e.errno == errno.ELOOP:
            raise NotSetUp(f"{where}: symbolic links that lead in a circle") from e
        raise Unavailable(f"{where}: {e.strerror or e}") from e


def _link(scratch: Path, path: Path) -> None:
    try:
        os.link(scratch, path)
    except FileExistsError as e:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path)) from e
        # it may be one's own, of a try that failed at just this: whoever finds it there counts on it
        _sync_folder(path.parent)
        raise
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
    try:
        os.mkdir(folder)
    except FileExistsError as e:  # made by another at the same moment, or
        if not folder.is_dir():
            raise Unsupported(f"{folder}: is no folder here, so nothing can be written below it") from e
    try:
        _sync_folder(folder.parent)
    except OSError:
        with suppress(OSError):
            os.rmdir(folder)  # else the next try would find it there, and never record it
        raise


def _open(path: Path) -> FileIO:
    # without O_NONBLOCK a pipe in the folder would be waited on for ever
    file = FileIO(path, opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))
    if not modes.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    return file


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _file_system(path: Path) -> tuple[str, str]:
    """Mount point and type of the file system that holds `path` (Linux: proc(5), mountinfo)."""
    best = ("/", "")
    try:
        for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
            before, _, after = os.fsdecode(line).partition(" - ")
            # blanks and their like are written in octal digits
            point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), before.split(" ")[4])
            if len(point) >= len(best[0]) and path.is_relative_to(point):
                best = (point, after.split()[0])
    except OSError:
        pass  # not Linux
    return best
