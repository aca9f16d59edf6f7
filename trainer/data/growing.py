"""A packed file that grows picture by picture and goes on where it was cut off, were it by `kill -9`.

    .unfinished.lock      held by the one process that packs here
    .unfinished.json      what is packed from what, and how many pictures of the source are durable below
    .unfinished.train     the packed file to be: room for its header, then the training pictures
    .unfinished.test      the test pictures, which go behind them in the end
    .unfinished.places    int32 for each picture of the source, in its order: 2 * class + (1 for test), or -1: skipped

So it needs the disk once, and as much again as the test pictures have; and what was skipped as broken stays skipped.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from trainer.data.dataset import Bytes, shown
from trainer.data.packed import CHUNK, FILE_NAME, MOST_CLASSES, RESERVED, Origin, Packed, header, metadata, open_packed
from trainer.data.pulse import Pulse, told
from trainer.data.scratch import Scratch, rename, replacing
from trainer.exits import UserError

SETTLE_S = 2.5  # work that a `kill -9` can cost
_SKIPPED = -1
_LOCK, _JOURNAL, _TRAIN, _TEST, _PLACES = (f".unfinished.{end}" for end in ("lock", "json", "train", "test", "places"))


@contextlib.contextmanager
def alone(folder: Path, pulse: Pulse) -> Iterator[None]:
    """Be the one process that packs into `folder`, which is made if need be; another is waited for."""
    path = folder / _LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        while True:
            file = path.open("wb")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    break  # else its holder has removed it meanwhile
            except BlockingIOError:
                time.sleep(0.1)
            file.close()
            pulse.beat(f"waiting: another process packs into {shown(folder)}")
    except OSError as e:
        raise told(e, f"can't write to {shown(folder)}") from e
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
        file.close()


class Growing:
    """Open until `finish` or `close`; errors of the disk are `UserError`."""

    def __init__(
        self, folder: Path, what: Mapping[str, Any], side: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`what`: of JSON values; goes on with what was begun in `folder` for the very same, else begins anew."""
        self._folder = folder
        self._what = json.loads(json.dumps(what))
        self._side = side
        self._clock = clock
        begun = self._begun()
        self.seen: int = begun["seen"]  # pictures of the source
        self.counts: list[int] = begun["counts"]  # of train and test
        self.classes: list[str] = begun["classes"]  # in order of appearance
        self.skipped: list[str] = begun["skipped"]
        self._train, self._test, self._places = (
            self._open(name, size) for name, size in zip((_TRAIN, _TEST, _PLACES), self._sizes(begun), strict=True)
        )
        self._settled = clock()

    def _begun(self) -> dict[str, Any]:
        fresh: dict[str, Any] = {"what": self._what, "seen": 0, "counts": [0, 0], "classes": [], "skipped": []}
        try:
            begun = json.loads((self._folder / _JOURNAL).read_bytes())
        except (OSError, ValueError):
            return fresh
        if not isinstance(begun, dict) or begun.get("what") != self._what:
            return fresh
        for name, size in zip((_TRAIN, _TEST, _PLACES), self._sizes(begun), strict=True):
            path = self._folder / name
            if not path.is_file() or path.stat().st_size < size:
                return fresh  # half removed: what is missing would come back as black pictures
        return begun

    def _sizes(self, state: Mapping[str, Any]) -> tuple[int, int, int]:
        pixels = self._side * self._side * 3
        return RESERVED + state["counts"][0] * pixels, state["counts"][1] * pixels, 4 * state["seen"]

    def _open(self, name: str, size: int) -> Scratch:
        path = self._folder / name
        try:
            file = path.open("r+b" if path.exists() else "x+b")
            file.truncate(size)  # a hole where it is longer than it was: the header's room
            file.seek(size)
        except OSError as e:
            raise told(e, f"can't write to {shown(self._folder)}") from e
        return Scratch(path, file)

    def add(self, folder: str, test: bool, image: Bytes) -> None:
        """One more picture of the source, of the class `folder`; uint8 [side, side, 3]."""
        if folder not in self.classes:
            if len(self.classes) == MOST_CLASSES:
                raise UserError(f"more than {MOST_CLASSES:,} classes; wanted is train/CLASS/PICTURE")
            self.classes.append(folder)
        (self._test if test else self._train).write(np.ascontiguousarray(image).reshape(-1).data)
        self.counts[test] += 1
        self._place(2 * self.classes.index(folder) + test)

    def skip(self, what: str) -> None:
        """One more picture of the source, which is broken; `what`: its name and why, for people."""
        self.skipped.append(what)
        self._place(_SKIPPED)

    def _place(self, value: int) -> None:
        self._places.write(np.array(value, "<i4").tobytes())
        self.seen += 1

    def settle(self, *, now: bool = False) -> None:
        """Make it durable, if it is time or `now`."""
        if not now and self._clock() - self._settled < SETTLE_S:
            return
        for file in (self._train, self._test, self._places):
            file.sync()
        state = {name: getattr(self, name) for name in ("seen", "counts", "classes", "skipped")}
        with replacing(self._folder / _JOURNAL) as new:
            new.write(json.dumps({"what": self._what, **state}).encode())
        self._settled = self._clock()

    def labels(self) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Of train and of test: int64, places in the sorted `classes`."""
        self._places.sync()
        places = np.fromfile(self._places.path, "<i4")
        rank = np.argsort(np.argsort(np.array(self.classes)))
        kept = places[places != _SKIPPED]
        train, test = (rank[kept[kept % 2 == split] // 2] for split in (0, 1))
        return train, test

    def finish(self, name: str, origin: Origin, pulse: Pulse) -> Packed:
        """Make it the packed file of `folder`, in place of one that is there."""
        classes = sorted(self.classes)
        labels = [array.astype("<u1" if len(classes) <= 256 else "<u2") for array in self.labels()]
        shapes = [(count, self._side, self._side, 3) for count in self.counts]
        forms = {
            "train_images": (np.dtype("<u1"), shapes[0]),
            "test_images": (np.dtype("<u1"), shapes[1]),
            "train_labels": (labels[0].dtype, labels[0].shape),
            "test_labels": (labels[1].dtype, labels[1].shape),
        }
        meta = metadata(name, classes, (self.counts[0], self.counts[1]), origin)
        meta["skipped"] = str(len(self.skipped))
        if len(header(forms, meta, RESERVED)) != RESERVED:
            raise UserError(f"the names of {len(classes):,} classes are too long together; shorten the folders' names")
        self._train.sync()
        self._test.sync()
        digest = hashlib.sha256()
        for chunk in _read(self._train.path, RESERVED):
            pulse.beat("checking what is packed")
            digest.update(chunk)
        for chunk in (*_read(self._test.path, 0), *(array.tobytes() for array in labels)):
            pulse.beat("putting the test pictures behind the others")
            digest.update(chunk)
            self._train.write(chunk)
            self._train.sync()
        meta["sha256"] = digest.hexdigest()
        self._train.seek(0)
        self._train.write(header(forms, meta, RESERVED))
        self._train.sync()
        pulse.check()
        self.close()
        try:
            rename(self._train.path, self._folder / FILE_NAME)
        except OSError as e:
            raise told(e, f"can't write to {shown(self._folder)}") from e
        self.discard()
        return open_packed(self._folder, name)

    def close(self) -> None:
        for file in (self._train, self._test, self._places):
            file.close()

    def discard(self) -> None:
        """Leave nothing of it."""
        self.close()
        for name in (_JOURNAL, _TRAIN, _TEST, _PLACES):  # the journal first: without it nothing is gone on with
            with contextlib.suppress(OSError):
                (self._folder / name).unlink(missing_ok=True)


def _read(path: Path, start: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(start)
        while chunk := file.read(CHUNK):
            yield chunk
