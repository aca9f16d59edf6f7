"""The generated stand-in: pictures that a small network can learn, for where there is no network and no data.

A picture is a wave whose direction and width belong to its class, of chance strength and colour, laid over a fainter
wave of another class and much noise. All chance comes from SHAKE-128 and all arithmetic is on integers, so that the
bytes are the same on every machine, whatever its libraries' versions. The small network of the tutorial learns it to
84 % in a few epochs.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from trainer.data.dataset import Bytes, PictureSet, Samples, Splits
from trainer.data.pulse import Pulse

TRAIN, TEST = 10_000, 2_000  # pictures
BLOCK = 500  # pictures made at a time
_HEAD = 16  # bytes of chance for each picture, before those of its pixels


def generate(dataset: PictureSet, pulse: Pulse, train: int = TRAIN, test: int = TEST) -> Splits:
    """Raises only what `pulse.check` does."""
    return Splits(_samples(dataset, "train", train, pulse), _samples(dataset, "test", test, pulse))


def _samples(dataset: PictureSet, split: str, count: int, pulse: Pulse) -> Samples:
    images = np.empty((count, *dataset.shape), np.uint8)
    labels = (np.arange(count) % len(dataset.classes)).astype(np.uint8)
    for start in range(0, count, BLOCK):
        pulse.beat(f"making SYNTHETIC pictures: {start} of {count} for {split}")
        rows = slice(start, min(start + BLOCK, count))
        chance = _chance(f"{dataset.name}/{split}/{start}", rows.stop - start, _HEAD + dataset.pixels)
        images[rows] = _pictures(dataset, labels[rows].astype(np.int16), chance)
    return Samples(images, labels)


def _chance(name: str, rows: int, columns: int) -> Bytes:
    raw = hashlib.shake_128(f"baton stand-in 1/{name}".encode()).digest(rows * columns)
    return np.frombuffer(raw, np.uint8).reshape(rows, columns)


def _pictures(dataset: PictureSet, labels: Any, chance: Bytes) -> Bytes:
    """int16 [n] labels, uint8 [n, 16 + pixels] chance -> uint8 [n, size, size, channels]"""
    head = chance[:, :_HEAD].astype(np.int16)
    classes = len(dataset.classes)
    other = (labels + 1 + head[:, 0] % (classes - 1)) % classes
    strength = 8 + head[:, 1] % 48
    wave = _wave(labels, head[:, 2], dataset.size) * strength[:, None, None]
    wave += _wave(other, head[:, 3], dataset.size) * 14
    wave >>= 5
    colour = 1 + head[:, 4 : 4 + dataset.channels] % 4  # of 4
    ground = 96 + head[:, 8 : 8 + dataset.channels] % 64
    pixels = (chance[:, _HEAD:].reshape(-1, *dataset.shape) >> 1).astype(np.int16)
    pixels -= 64
    pixels += wave[..., None] * colour[:, None, None, :] >> 2
    pixels += ground[:, None, None, :]
    return np.clip(pixels, 0, 255, out=pixels).astype(np.uint8)


def _wave(classes: Any, phase: Any, size: int) -> Any:
    """A triangle wave between -64 and 64 for each class and phase; int16 [n], [n] -> int16 [n, size, size]"""
    directions = np.array([(8, 0), (6, 5), (0, 8), (-6, 5), (3, 7)], np.int16)
    across, down = directions[classes % 5].T * (2 + classes // 5)
    y, x = np.mgrid[:size, :size].astype(np.int16)
    angle = across[:, None, None] * x + down[:, None, None] * y + phase[:, None, None]
    angle &= 127
    return np.abs(angle - 64) * 2 - 64
