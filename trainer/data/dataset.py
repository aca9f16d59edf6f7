"""What each data set is: its classes, its pictures' size, and the archives that it is published as."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from trainer.exits import UserError

Bytes: TypeAlias = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Archive:
    """A published archive. One with another checksum is not it: cut short, changed, or made by somebody else."""

    url: str
    md5: str  # as published beside it

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureSet:
    """A data set of small pictures, all of one size."""

    name: str
    classes: tuple[str, ...]  # in the official order: a label is an index into it
    size: int  # pixels, each side
    channels: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one picture: height, width, channels."""
        return self.size, self.size, self.channels

    @property
    def pixels(self) -> int:
        """Bytes of one picture."""
        return self.size * self.size * self.channels


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset(PictureSet):
    """One that is published as the CIFAR sets are. A new one is a line in `DATASETS`."""

    python: Archive  # pickles
    binary: Archive  # raw bytes
    train_files: tuple[str, ...]  # in the archives; with .bin in the binary one
    test_files: tuple[str, ...]
    train_count: int  # pictures in `train_files` together
    test_count: int
    label_key: bytes  # of the labels in a pickled batch
    label_bytes: int  # before each picture in the binary files; the last is the label

    def splits(self) -> tuple[tuple[str, tuple[str, ...], int], ...]:
        """(split, its files in the archives, pictures in these together), as published."""
        return ("train", self.train_files, self.train_count), ("test", self.test_files, self.test_count)


CIFAR10 = Dataset(
    name="cifar10",
    classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    size=32,
    channels=3,
    python=Archive("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a"),
    binary=Archive("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530"),
    train_files=tuple(f"data_batch_{i}" for i in range(1, 6)),
    test_files=("test_batch",),
    train_count=50_000,
    test_count=10_000,
    label_key=b"labels",
    label_bytes=1,
)

CIFAR100 = Dataset(
    name="cifar100",
    classes=tuple(
        """apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
        camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup
        dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower
        leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid
        otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray
        road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
        sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
        wardrobe whale willow_tree wolf woman worm""".split()  # noqa: SIM905
    ),
    size=32,
    channels=3,
    python=Archive("https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85"),
    binary=Archive("https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8"),
    train_files=("train",),
    test_files=("test",),
    train_count=50_000,
    test_count=10_000,
    label_key=b"fine_labels",
    label_bytes=2,  # coarse, fine
)

DATASETS: Mapping[str, Dataset] = {d.name: d for d in (CIFAR10, CIFAR100)}
# Data of other kinds, and the modules that pack it, imported where it is asked for
PACKERS: Mapping[str, str] = {
    "bert": "trainer.data.texts",
    "imagenet": "trainer.data.photographs",
    "mnist": "trainer.data.idx",
}


def named(name: str | Dataset) -> Dataset:
    """The data set of this name. Raises `UserError`."""
    if isinstance(name, Dataset):
        return name
    if name not in DATASETS:
        near = difflib.get_close_matches(name, [*DATASETS, *PACKERS], n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(sorted({*DATASETS, *PACKERS}))}"
        raise UserError(f"no data set {shown(name)}; {hint}; a job names one as its DATASET, None where it wants none")
    return DATASETS[name]


@dataclass(frozen=True, slots=True)
class Samples:
    """Pictures with their labels."""

    images: Bytes  # uint8 [n, height, width, channels]
    labels: Bytes  # uint8 [n], indices into Dataset.classes


@dataclass(frozen=True, slots=True)
class Splits:
    train: Samples
    test: Samples

    def check(self, dataset: PictureSet, name: str) -> None:
        """Both splits hold every class. Raises `UserError`, which names the source."""
        for split, samples in (("train", self.train), ("test", self.test)):
            if not len(samples.labels):
                raise UserError(f"{name}: no pictures for {split}; wanted {split}/CLASS/PICTURE for each class")
            counts = np.bincount(samples.labels, minlength=len(dataset.classes))
            if len(counts) > len(dataset.classes):
                raise UserError(f"{name}: a label of {split} is {len(counts) - 1}; there are {len(dataset.classes)}")
            if missing := [c for c, n in zip(dataset.classes, counts, strict=True) if n == 0]:
                raise UserError(f"{name}: {split} has no pictures of {', '.join(missing)}")


def shown(text: object) -> str:
    """For a message: as it is if that fits on one line and leaves the terminal as it was, else escaped."""
    string = str(text)
    return string if string.isprintable() else ascii(string)
