"""The stand-in: the same everywhere, made quickly, learnable, and never taken for real data."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from trainer.data.dataset import CIFAR10
from trainer.data.pack import pack
from trainer.data.pulse import Pulse
from trainer.data.synthetic import generate


def test_the_stand_in_has_the_same_bytes_on_every_machine(tmp_path: Path) -> None:
    said: list[str] = []
    result = pack("cifar10", "synthetic", tmp_path, say=said.append)
    assert result.sha256 == "a0da5757847b0ecc5c319e8abfdf438e4748c07f43f17dd3cc1e871aa30bbaa5"
    assert result.synthetic
    assert (len(result.arrays["train_labels"]), len(result.arrays["test_labels"])) == (10_000, 2_000)
    assert said
    assert all("SYNTHETIC" in line for line in said)


def test_classes_are_balanced_and_differ_by_more_than_brightness() -> None:
    splits = generate(CIFAR10, Pulse(), 2000, 500)
    assert np.bincount(splits.train.labels).tolist() == [200] * 10

    def spectra(images: np.ndarray) -> np.ndarray:
        grey = images.astype(np.float64).mean(axis=3)
        return np.abs(np.fft.rfft2(grey - grey.mean(axis=(1, 2), keepdims=True))).reshape(len(images), -1)

    train, test = spectra(splits.train.images), spectra(splits.test.images)
    means = np.stack([train[splits.train.labels == c].mean(axis=0) for c in range(10)])
    means -= means.mean(axis=0)
    right = ((test @ means.T).argmax(axis=1) == splits.test.labels).mean()
    assert right > 0.5  # the classes are there to be learnt
    pixel_means = np.stack([splits.train.images[splits.train.labels == c].mean(axis=0).ravel() for c in range(10)])
    flat = splits.test.images.reshape(500, -1).astype(np.float64)
    nearest = ((flat[:, None] - pixel_means) ** 2).sum(axis=2).argmin(axis=1)
    assert (nearest == splits.test.labels).mean() < 0.3  # and not by a look at single pixels
