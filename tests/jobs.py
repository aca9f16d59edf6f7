"""Every job, small: who makes its data, and the options of a run of a few seconds. A new job is a line in `JOBS`."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from tests.bert_makers import small_model, small_texts
from tests.runs import command
from trainer.data.dataset import CIFAR10, PictureSet, Samples, Splits
from trainer.data.packed import open_packed, write_packed
from trainer.names import job_names


@dataclass(frozen=True)
class Tiny:
    source: Callable[[Path], str]  # makes, in a folder, what `data JOB --source` reads
    options: tuple[str, ...]  # in which {folder} is that folder
    packing: tuple[str, ...] = ()
    first: tuple[int, int] | None = None  # training and test samples that are kept of it; None: all


def photo(seed: int, size: tuple[int, int] = (60, 48), kind: str = "JPEG", mode: str = "RGB") -> bytes:
    """Noise about a colour that belongs to the class seed % 2."""
    noise = np.random.RandomState(seed).randint(0, 120, (*size[::-1], 3))
    noise[..., seed % 2] += 120
    out = io.BytesIO()
    Image.fromarray(noise.astype(np.uint8)).convert(mode).save(out, kind)
    return out.getvalue()


def photos(folder: Path, train: int = 48, val: int = 12) -> str:
    for split, count in (("train", train), ("val", val)):
        for i in range(count):
            path = folder / "photos" / split / ("owl", "newt")[i % 2] / f"{i:03}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(photo(i + 1000 * (split == "val")))
    return str(folder / "photos")


def pictures(folder: Path, train: int = 48, test: int = 10) -> str:
    for split, count in (("train", train), ("test", test)):
        for i in range(count):
            path = folder / "pictures" / split / CIFAR10.classes[i % 10] / f"{i:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(photo(i, (32, 32), "PNG"))
    return str(folder / "pictures")


def texts(folder: Path) -> str:
    small_model(folder)
    return str(small_texts(folder))


def stand_in(_folder: Path) -> str:
    return "synthetic"


SHORT = ("--checkpoint-every", "3steps")
JOBS = {
    # the other presets are those of tests/chaos/test_exactness.py
    "cifar10": Tiny(pictures, ("--preset", "best", "--batch-size", "8", "--epochs", "3", "--dropout", "0.1")),
    "imagenet": Tiny(
        photos,
        ("--preset", "scratch", "--model", "shufflenet_v2_x0_5", "--size", "64", "--batch-size", "8", "--epochs", "3"),
        ("--size", "64"),  # smaller ones don't grow in training
    ),
    "bert": Tiny(
        texts,
        (
            *("--model", "{folder}/model", "--batch-size", "16", "--micro-batch-size", "6", "--lr", "5e-3"),
            *("--dropout", "0.1", "--epochs", "5"),
        ),
        ("--model", "{folder}/model"),
    ),
    "cifar100": Tiny(
        # with the 20 epochs that tests/chaos/test_jobs.py makes: more steps than a short run, so that its pictures grow
        stand_in,
        ("--preset", "quick", "--batch-size", "6", "--epochs", "5", "--dropout", "0.1"),
        first=(96, 40),
    ),
    "mnist": Tiny(
        stand_in, ("--preset", "tutorial", "--batch-size", "16", "--epochs", "5", "--dropout", "0.1"), first=(96, 40)
    ),
}
assert sorted(JOBS) == job_names(), "a new job wants its line here: every suite over all jobs goes by it"


def packed(job: str, folder: Path) -> Path:
    """The job's small data, packed in a folder below `folder`."""
    tiny = JOBS[job]
    packing = [option.format(folder=folder) for option in tiny.packing]
    code, said = command("data", job, "--source", tiny.source(folder), "--out", str(folder / "packed"), *packing)
    assert code == 0, said
    if tiny.first is not None:
        keep(folder / "packed", folder / "packed", tiny.first)
    return folder / "packed"


def keep(packed: Path, folder: Path, counts: tuple[int, int]) -> None:
    """Put the first training and test samples of packed pictures into `folder`."""
    whole = open_packed(packed)
    kept = (
        Samples(whole.arrays[f"{split}_images"][:count], whole.arrays[f"{split}_labels"][:count])
        for split, count in zip(("train", "test"), counts, strict=True)
    )
    size, _, channels = whole.arrays["train_images"].shape[1:]
    dataset = PictureSet(name=whole.name, classes=whole.classes, size=size, channels=channels)
    write_packed(folder, dataset, Splits(*kept), whole.origin, synthetic=whole.synthetic)


def options_for(job: str, data: Path) -> list[str]:
    """The options of the job's small run, on what `packed` gave."""
    return [option.format(folder=data.parent) for option in JOBS[job].options]
