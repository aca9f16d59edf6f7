"""MNIST: 28x28 written digits with a margin of 2 pixels; all that trainer/jobs/cifar10.py does, but mirror images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainer.jobs import cifar10

DATASET = "mnist"
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "quick": {
        "model": "quick", "epochs": 2, "batch_size": 300, "lr": 0.13, "momentum": 0.6, "weight_decay": 0.0,
    },
    "tutorial": {
        "model": "tutorial", "epochs": 5, "batch_size": 32, "lr": 0.01, "momentum": 0.9, "weight_decay": 0.0,
    },
}  # fmt: skip
build = cifar10.build
WITHOUT_EFFECT = cifar10.WITHOUT_EFFECT
