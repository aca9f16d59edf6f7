"""Decode picture files in parallel. Threads do: most of the time goes in Pillow's C code, which lets go of the GIL."""

from __future__ import annotations

import io
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from PIL import Image

from trainer.data.dataset import Bytes, Dataset, Samples, Splits, shown
from trainer.data.paths import reading
from trainer.data.pulse import Pulse
from trainer.exits import UserError

FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "PPM")  # of Pillow's; the fewer, the less a hostile file can reach
EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm")
FILE_LIMIT = 4 << 20  # bytes of one picture file; the pictures themselves have a few thousand
COUNT_LIMIT = 1_000_000  # pictures: they are held in memory until they are written
BATCH = 200  # pictures decoded by a thread at a time (30 ms)
BATCH_BYTES = 4 << 20
AHEAD_BYTES = 256 << 20  # of files in memory that are being decoded or wait for it; those of a tar may have 64 MB each
_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"}  # 8 bits a channel: these convert faithfully


class Encoded(Protocol):
    """A picture file, in memory or still to be read."""

    @property
    def data(self) -> bytes | Path | Callable[[], bytes]: ...


E = TypeVar("E", bound=Encoded)
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Picture:
    name: str  # for messages: where it came from
    test: bool
    label: int
    data: bytes | Path


def decode_all(dataset: Dataset, pictures: Iterable[Picture], pulse: Pulse) -> Splits:
    """All pictures' pixels. Raises `UserError` that names the first one, in their order, which can't be used."""
    images: tuple[list[Bytes], list[Bytes]] = ([], [])
    labels: tuple[list[int], list[int]] = ([], [])
    done = 0
    for batch, pixels in in_parallel(partial(_decode_batch, dataset), pictures, pulse):
        for test in (False, True):
            rows = [i for i, picture in enumerate(batch) if picture.test == test]
            if rows:
                images[test].append(pixels if len(rows) == len(batch) else pixels[rows])
                labels[test].extend(batch[i].label for i in rows)
        done += len(batch)
        pulse.beat(f"decoded {done:,} pictures")
        if done > COUNT_LIMIT:
            raise UserError(f"more than {COUNT_LIMIT:,} pictures; {dataset.name} has {dataset.train_count:,}")
    return Splits(*(_joined(dataset, blocks, ns, pulse) for blocks, ns in zip(images, labels, strict=True)))


def _joined(dataset: Dataset, blocks: list[Bytes], labels: list[int], pulse: Pulse) -> Samples:
    """One array of all blocks, which are dropped on the way, so that memory never holds all pictures twice."""
    images = np.empty((len(labels), *dataset.shape), np.uint8)
    end = len(labels)
    while blocks:
        pulse.check()
        block = blocks.pop()
        images[end - len(block) : end] = block
        end -= len(block)
    return Samples(images, np.array(labels, np.uint8))


def in_parallel(
    work: Callable[[list[E]], R], pictures: Iterable[E], pulse: Pulse, *, batch: int = BATCH, workers: int = 0
) -> Iterator[tuple[list[E], R]]:
    """Batches in order, each with what `work` made of it. Raises what `work` raises, and what `pulse.check` does.

    Only a few are under way at a time, so that memory stays small when reading is faster. `workers`: threads; as many
    as there are processors, if not given.
    """
    workers = workers or min(8, len(os.sched_getaffinity(0)))
    waiting: deque[tuple[list[E], Future[R]]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")

    def first() -> tuple[list[E], R]:
        some, future = waiting.popleft()
        while True:
            pulse.check()
            try:
                return some, future.result(timeout=0.1)
            except NotYet:
                continue

    def ahead() -> int:
        return sum(_size(some) for some, _ in waiting)

    try:
        for some in _batches(pictures, batch):
            waiting.append((some, pool.submit(work, some)))
            while len(waiting) > 3 * workers or (len(waiting) > 1 and ahead() > AHEAD_BYTES):
                yield first()
        while waiting:
            yield first()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _batches(pictures: Iterable[E], count: int) -> Iterator[list[E]]:
    batch: list[E] = []
    size = 0
    for picture in pictures:
        batch.append(picture)
        size += _size([picture])
        if len(batch) == count or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _size(batch: Iterable[Encoded]) -> int:
    """Bytes of it in memory."""
    return sum(len(picture.data) for picture in batch if isinstance(picture.data, bytes))


def _decode_batch(dataset: Dataset, batch: list[Picture]) -> Bytes:
    pixels = np.empty((len(batch), *dataset.shape), np.uint8)
    for i, picture in enumerate(batch):
        pixels[i] = _decode(dataset, picture)
    return pixels


def _decode(dataset: Dataset, picture: Picture) -> Bytes:
    """uint8 [height, width, channels]"""
    data = picture.data if isinstance(picture.data, bytes) else read_file(picture.data, FILE_LIMIT)
    if len(data) > FILE_LIMIT:
        raise UserError(f"{shown(picture.name)}: more than {FILE_LIMIT >> 20} MB long; that is no small picture")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.size == (dataset.size, dataset.size) and image.mode in _MODES:
            wanted = "RGB" if dataset.channels == 3 else "L"
            raw = (image if image.mode == wanted else image.convert(wanted)).tobytes()
            return np.frombuffer(raw, np.uint8).reshape(dataset.shape)
    except Exception as e:  # Pillow raises many kinds for broken files, among them SyntaxError and struct.error
        raise UserError(f"{shown(picture.name)}: broken picture, or none at all; mend or remove it") from e
    if image.mode not in _MODES:
        raise UserError(f"{shown(picture.name)}: has other than 8 bits a channel ({image.mode}); convert it")
    width, height = image.size
    raise UserError(
        f"{shown(picture.name)}: is {width}x{height} pixels; {dataset.name} has {dataset.size}x{dataset.size}"
    )


def read_file(path: Path, limit: int) -> bytes:
    """At most one byte more than `limit`, by which a file that is too long is told. Raises `UserError`."""
    with reading(path), path.open("rb") as file:
        return file.read(limit + 1)
