"""A run to another store: verified on the way, resumable, a few parts in memory at a time.

Attempts' records go first, so that numbering goes on, with the last sign of life, and the metric lines of checkpoints
that were cleaned up; then, checkpoint by checkpoint from the oldest, its parts, its metric lines and its manifest, of a
bad one the lines alone; the result last. A mark among the checkpoints keeps anyone from starting the copy before it is
whole.
A part that lies there already is read again and hashed rather than believed: its name and size say nothing of rot.
A large one goes through a file on this machine's disk: under its name nothing may ever lie that wasn't checked before.
"""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from storage.errors import AlreadyExists, NotFound, StoreError
from trainer.exits import ExitCode, UserError
from trainer.history import READERS, Bad, History
from trainer.manifest import MAX_BYTES, Manifest, PartRef, checkpoint_name, parse_name
from trainer.place import none_of
from trainer.side_by_side import side_by_side

PIECE = 8 << 20  # bytes; larger parts go through a file, in pieces of so many, which stores send as they are


@dataclass(slots=True)
class Copied:
    """What a copy came to."""

    checkpoints: list[str] = field(default_factory=list)  # those now in both, the oldest first
    sent_parts: int = 0
    sent_bytes: int = 0
    found_parts: int = 0  # there already, and good
    bad: dict[str, str] = field(default_factory=dict)  # checkpoints of the source that are not copied, and why
    newer: int = 0  # checkpoints that the source has got meanwhile


def copy(source: History, target: History, tell: Callable[[str], None] = lambda line: None) -> Copied:
    """Copy a run as it is now. Raises `UserError` if the target has another history, `StoreError`."""
    names = [checkpoint_name(*pair) for pair in reversed(source.checkpoints())]
    attempts = source.attempts()
    if not names and not attempts:
        raise UserError(none_of(source.store, source.run))
    if source.is_marked():
        raise UserError(f"run {source.run!r} in {source.store.url} is not whole itself; `verify` says why")
    _check_same_history(source, target, attempts)
    was_marked = target.is_marked()
    target.mark(f"was being copied from {source.store.url}: finish with the same `copy`, or `delete` it here")
    if source.is_marked():
        target.unmark()
        raise UserError(f"{source.store.url} and {target.store.url} are one store: give two", ExitCode.USAGE)
    try:
        _check_same_history(source, target, attempts)  # once more: a start there may have come before the mark
    except UserError:
        if not was_marked:
            target.unmark()
        raise
    for number in attempts:
        name = f"{number:06d}"
        target.create(target.key("attempts", f"{name}.json"), _whole(source, source.key("attempts", f"{name}.json")))
        _copy_if_there(source, target, "attempts", f"{name}.end.json")
    if (sign := source.read_sign("status.json")) is not None:  # else claims that are new there would be signs of life
        target.write_copy(sign, "status.json")
    for name in _chunks(source):
        if name not in names:  # of a checkpoint that was cleaned up: the curves are theirs too
            _copy_if_there(source, target, "metrics", f"{name}.jsonl")
    copied = _Copying(source, target, tell).checkpoints(names)
    _copy_result(source, target, tell)
    copied.newer = len([name for name in source.checkpoints() if checkpoint_name(*name) not in names])
    if names and not copied.checkpoints:
        raise UserError(
            f"none of the {len(names)} checkpoints of run {source.run!r} in {source.store.url} is good: "
            f"{next(iter(copied.bad.values()), 'all were cleaned up')}; the copy stays marked as not whole"
        )
    target.unmark()
    return copied


def _check_same_history(source: History, target: History, attempts: list[int]) -> None:
    """Raise `UserError` if the target's attempts are not the source's: it was trained on, or is another run."""
    claimed = target.attempts()
    for number, step in target.checkpoints():
        if number not in claimed:
            raise UserError(
                f"run {target.run!r} in {target.store.url} has another history: its checkpoint "
                f"{checkpoint_name(number, step)} is of an attempt that no record tells of; `delete` it there first"
            )
    for number in claimed:
        key = target.key("attempts", f"{number:06d}.json")
        if number not in attempts or _whole(source, key) != _whole(target, key):
            raise UserError(
                f"run {target.run!r} in {target.store.url} has another history: its attempt {number} is none of "
                f"{source.store.url}; copy the other way, or `delete` it there first"
            )


def _whole(history: History, key: str) -> bytes:
    return history.read(key, MAX_BYTES)


def _copy_if_there(source: History, target: History, *names: str) -> None:
    """A small object, or metric lines; what is there is replaced, for the source's may have grown."""
    sink = io.BytesIO()
    try:
        source.store.get(source.key(*names), sink)
    except NotFound:
        return
    target.store.put(target.key(*names), sink.getvalue())


def _chunks(history: History) -> list[str]:
    """Names of the run's chunks of metric lines."""
    folder = history.key("metrics", "")
    names = [info.key.removeprefix(folder).removesuffix(".jsonl") for info in history.store.list(folder)]
    return [name for name in names if parse_name(name)]


def _copy_result(source: History, target: History, tell: Callable[[str], None]) -> None:
    """The result's files, each held to its hash, then the record that names them.

    It follows from the last checkpoint: one that is not whole is left out, and whoever starts the copy writes it anew.
    """
    record = source.read_record("result.json") or {}
    files = record.get("files")
    for name, file in files.items() if isinstance(files, dict) else ():
        key, wanted = target.key("result", name), file.get("sha256") if isinstance(file, dict) else None
        with _local_file() as local:
            try:
                source.store.get(source.key("result", name), local)
            except NotFound:
                wanted = None  # else the SHA-256 of nothing would do
            local.seek(0)
            if hashlib.file_digest(local, "sha256").hexdigest() != wanted:  # type: ignore[arg-type]
                tell(f"the result's {name:.100} is not there or damaged: no result is copied")
                return
            target.store.put(key, _Pieces(local))
    _copy_if_there(source, target, "result.json")


@contextmanager
def _local_file() -> Iterator[BinaryIO]:
    """A file without a name, which is gone with this process however it ends."""
    try:
        with tempfile.TemporaryFile() as file:
            yield file
    except StoreError:
        raise
    except OSError as e:
        raise UserError(
            f"large parts go through a temporary file here: {e.strerror or e}; TMPDIR names another folder for it"
        ) from e


class _Pieces(Sequence[bytes]):
    """A file's bytes, of which one piece at a time is in memory, and all once more for a store that tries again."""

    def __init__(self, file: BinaryIO) -> None:
        file.flush()
        self._fd = file.fileno()
        self._starts = range(0, max(1, os.fstat(self._fd).st_size), PIECE)  # of an empty file, one that is empty

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: Any) -> Any:
        return os.pread(self._fd, PIECE, self._starts[index])


class _Copying:
    def __init__(self, source: History, target: History, tell: Callable[[str], None]) -> None:
        self._source = source
        self._target = target
        self._tell = tell
        self._copied = Copied()
        self._sizes = {
            info.key.rpartition("/")[2]: info.size for info in target.store.list(target.key("parts", ""))
        }  # what lies there
        self._done: set[PartRef] = set()

    def checkpoints(self, names: list[str]) -> Copied:
        for name in names:
            manifest = self._manifest_with_parts(name)
            # also of one that is bad or was cleaned up meanwhile: the curves are theirs too
            _copy_if_there(self._source, self._target, "metrics", f"{name}.jsonl")
            if manifest is not None:
                self._commit(manifest)
                self._copied.checkpoints.append(name)
                self._tell(f"checkpoint {name} is copied")
        return self._copied

    def _manifest_with_parts(self, name: str) -> Manifest | None:
        """A checkpoint's manifest, once its parts are in the target; None if it is bad or was cleaned up."""
        try:
            manifest = self._source.manifest(name)
            self._parts([ref for ref in dict.fromkeys(manifest.parts) if ref not in self._done])
        except Bad as e:
            if self._source.has_manifest(name):
                self._copied.bad[name] = str(e)
            return None
        return manifest

    def _parts(self, refs: Sequence[PartRef]) -> None:
        """Raises `Bad` if one of the source's is."""
        small = [ref for ref in refs if ref.size <= PIECE]
        large = [ref for ref in refs if ref.size > PIECE]  # each of which a store moves in pieces side by side
        for some, at_once in ((small, READERS), (large, 1)):
            for ref, sent in zip(some, side_by_side(self._part, some, at_once), strict=True):
                self._copied.sent_parts += sent
                self._copied.sent_bytes += ref.size * sent
                self._copied.found_parts += not sent
                self._done.add(ref)

    def _part(self, ref: PartRef) -> bool:
        """Whether it was sent; False if it is there. Raises `Bad` if the source's is."""
        if self._sizes.get(ref.sha256) == ref.size:
            try:
                self._target.read_part(ref, _Nowhere)
            except Bad as e:
                self._tell(f"{e}: sent again")
            else:
                return False
        if ref.size <= PIECE:
            self._target.put_part(ref.sha256, ref.size, self._source.part(ref))
            return True
        with _local_file() as local:

            def emptied() -> BinaryIO:
                local.seek(0)
                local.truncate()
                return local

            self._source.read_part(ref, emptied)
            self._target.put_part(ref.sha256, ref.size, _Pieces(local))
        return True

    def _commit(self, manifest: Manifest) -> None:
        key = self._target.key("checkpoints", f"{manifest.name}.json")
        try:
            self._target.create(key, manifest.to_json())
        except AlreadyExists as e:
            raise UserError(
                f"run {self._target.run!r} in {self._target.store.url} has another checkpoint {manifest.name}; "
                "`delete` the run there first"
            ) from e


class _Nowhere:
    def write(self, data: bytes | bytearray | memoryview, /) -> int:
        return len(data)
