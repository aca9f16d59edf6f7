"""CIFAR-100: 32x32 photographs of 100 classes; all that trainer/jobs/cifar10.py does, on other files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainer.jobs import cifar10

DATASET = "cifar100"
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "quick": {
        "model": "quick", "epochs": 10, "batch_size": 300, "lr": 0.13, "momentum": 0.6, "weight_decay": 0.0,
    },
    "best": {
        "model": "best", "epochs": 16, "batch_size": 2000, "lr": 0.24, "momentum": 0.6, "weight_decay": 0.0,
    },
}  # fmt: skip
build = cifar10.build
WITHOUT_EFFECT = cifar10.WITHOUT_EFFECT
