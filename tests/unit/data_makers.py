"""Make what the data step reads: a small data set as the official archives, as a folder, as a tar of one."""

from __future__ import annotations

import hashlib
import io
import pickle
import struct
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from trainer.data.dataset import CIFAR10, Archive, Dataset, Samples, Splits

SMALL = replace(CIFAR10, train_files=("data_batch_1", "data_batch_2"), train_count=60, test_count=20)


def small_splits(seed: int = 0, dataset: Dataset = SMALL) -> Splits:
    chance = np.random.RandomState(seed)

    def samples(n: int) -> Samples:
        images = chance.randint(0, 256, (n, *dataset.shape)).astype(np.uint8)
        return Samples(images, (np.arange(n) % len(dataset.classes)).astype(np.uint8))

    return Splits(samples(dataset.train_count), samples(dataset.test_count))


class PickledByPython2(pickle._Pickler):  # type: ignore[name-defined]
    """Writes what Python 2 and its numpy wrote: bytes as its str, numpy under its old module name."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]

    def save_bytes(self, value: bytes) -> None:
        if len(value) < 256:
            self.write(pickle.SHORT_BINSTRING + bytes([len(value)]) + value)
        else:
            self.write(pickle.BINSTRING + struct.pack("<i", len(value)) + value)
        self.memoize(value)

    def save_str(self, value: str) -> None:
        self.save_bytes(value.encode())

    def save_global(self, value: object, name: str | None = None) -> None:
        name = name or value.__qualname__  # type: ignore[attr-defined]
        module = value.__module__.replace("numpy._core", "numpy.core")
        self.write(pickle.GLOBAL + f"{module}\n{name}\n".encode())
        self.memoize(value)

    dispatch[bytes] = save_bytes
    dispatch[str] = save_str
    dispatch[type] = save_global
    dispatch[type(small_splits)] = save_global


def pickled(value: object) -> bytes:
    out = io.BytesIO()
    PickledByPython2(out, protocol=2).dump(value)
    return out.getvalue()


def batches(dataset: Dataset, splits: Splits) -> dict[str, Samples]:
    """The samples of each file of the archives."""
    found = {}
    for split, names, _ in dataset.splits():
        samples = getattr(splits, split)
        rows = np.array_split(np.arange(len(samples.labels)), len(names))
        found.update({n: Samples(samples.images[r], samples.labels[r]) for n, r in zip(names, rows, strict=True)})
    return found


def planes(samples: Samples) -> np.ndarray:
    return samples.images.transpose(0, 3, 1, 2).reshape(len(samples.labels), -1)


def python_batch(dataset: Dataset, samples: Samples) -> bytes:
    return pickled(
        {
            b"batch_label": b"one of them",
            dataset.label_key: samples.labels.tolist(),
            b"data": np.ascontiguousarray(planes(samples)),
            b"filenames": [b"x_%d.png" % i for i in range(len(samples.labels))],
        }
    )


def binary_batch(samples: Samples) -> bytes:
    return np.concatenate([samples.labels[:, None], planes(samples)], axis=1).tobytes()


def tar(path: Path, files: dict[str, bytes], mode: str = "w:gz", format_: int = tarfile.GNU_FORMAT) -> Path:
    with tarfile.open(path, mode, format=format_) as out:  # type: ignore[call-overload]
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            out.addfile(info, io.BytesIO(content))
    return path


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def python_archive(folder: Path, splits: Splits, dataset: Dataset = SMALL) -> tuple[Path, Dataset]:
    """The archive, and the data set of which it is the official one."""
    files = {f"cifar-10-batches-py/{n}": python_batch(dataset, s) for n, s in batches(dataset, splits).items()}
    files["cifar-10-batches-py/batches.meta"] = pickled({b"label_names": [c.encode() for c in dataset.classes]})
    path = tar(folder / dataset.python.name, files)
    return path, replace(dataset, python=Archive(dataset.python.url, md5(path)))


def binary_archive(folder: Path, splits: Splits, dataset: Dataset = SMALL) -> tuple[Path, Dataset]:
    files = {f"cifar-10-batches-bin/{n}.bin": binary_batch(s) for n, s in batches(dataset, splits).items()}
    files["cifar-10-batches-bin/readme.html"] = b"<html>"
    path = tar(folder / dataset.binary.name, files)
    return path, replace(dataset, binary=Archive(dataset.binary.url, md5(path)))


def png(pixels: np.ndarray, format_: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format_)
    return out.getvalue()


def tree(
    splits: Splits, dataset: Dataset = SMALL, *, top: str = "", test: str = "test", names: str = "{:04}.png"
) -> dict[str, bytes]:
    """The files of an image tree, by path."""
    files = {}
    for split, samples in (("train", splits.train), (test, splits.test)):
        for i, (image, label) in enumerate(zip(samples.images, samples.labels, strict=True)):
            files[f"{top}{split}/{dataset.classes[label]}/{names.format(i)}"] = png(image)
    return files


def laid_out(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder
