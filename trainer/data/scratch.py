"""Scratch files: what is being made lies beside its place under another name, and takes its place only when whole."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from trainer.data.dataset import shown
from trainer.data.pulse import told
from trainer.exits import UserError

STALE_S = 3600  # a scratch file not written to for so long belongs to nobody, wherever its maker ran
_NAME = re.compile(r"\.partial-(?P<host>.+)-(?P<pid>[0-9]+)-(?P<token>[0-9a-f]{16})")
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_mine: set[str] = set()  # tokens of this process's scratch files; a restarted container may have the same pid


class Scratch:
    """One scratch file, open for writing; its errors are `UserError`."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self._file = file

    def write(self, data: bytes | memoryview) -> None:
        with _plainly(self.path.parent):
            self._file.write(data)

    def sync(self) -> None:
        """Return once all that was written is on the disk."""
        with _plainly(self.path.parent):
            self._file.flush()
            os.fdatasync(self._file.fileno())

    def seek(self, place: int) -> None:
        with _plainly(self.path.parent):
            self._file.seek(place)

    def close(self) -> None:
        with _plainly(self.path.parent):
            self._file.close()


@contextlib.contextmanager
def scratch(folder: Path) -> Iterator[Scratch]:
    """A new scratch file in `folder`, which is made if need be; removed at the end unless it was renamed."""
    token = secrets.token_hex(8)
    path = folder / f".partial-{_host()}-{os.getpid()}-{token}"
    _mine.add(token)
    try:
        with _plainly(folder):
            folder.mkdir(parents=True, exist_ok=True)
            file = path.open("xb")
        try:
            yield Scratch(path, file)
        finally:
            with contextlib.suppress(OSError):  # a full disk was told already, by the write that met it
                file.close()
    finally:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        _mine.discard(token)


def check_writable(folder: Path) -> None:
    """Raise `UserError` where no file can be made in `folder`, before the work for it; it is made if need be."""
    with scratch(folder):
        pass


@contextlib.contextmanager
def replacing(target: Path) -> Iterator[Scratch]:
    """A scratch file that takes the place of `target`, durably, when the block ends well."""
    with scratch(target.parent) as new:
        yield new
        new.sync()
        with _plainly(target.parent):
            rename(new.path, target)


def rename(path: Path, target: Path) -> None:
    """Durably: without the folder's own sync the new name may be lost when the power goes. Raises OSError."""
    path.replace(target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def remove_stale(folder: Path) -> None:
    """Delete scratch files whose makers are gone, as `kill -9` leaves them. Those of live ones stay."""
    with contextlib.suppress(OSError):
        for path in sorted(folder.iterdir()):
            with contextlib.suppress(OSError):
                if (parts := _NAME.fullmatch(path.name)) and _stale(path, parts):
                    path.unlink()


def _stale(path: Path, parts: re.Match[str]) -> bool:
    if parts["token"] in _mine:
        return False
    if parts["host"] == _host():
        pid = int(parts["pid"])
        if pid == os.getpid():
            return True
        try:
            os.kill(pid, 0)
        except (ProcessLookupError, OverflowError):
            return True
        except PermissionError:
            pass
    return time.time() - path.stat().st_mtime > STALE_S


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9.]", "_", socket.gethostname()) or "host"


@contextlib.contextmanager
def _plainly(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        if e.errno in _FULL:
            why = "" if e.errno == errno.ENOSPC else f": {e.strerror}"  # a quota, or a limit of a file's size
            raise UserError(f"no space left in {shown(folder)}{why}; free some, or choose another folder") from e
        raise told(e, f"can't write to {shown(folder)}") from e
