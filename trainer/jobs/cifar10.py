"""CIFAR-10: 32x32 photographs of 10 classes.

tutorial   the classic small network: two 5x5 convolutions, three linear layers, SGD, batch 4
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.data.packed import Packed
from trainer.job import Batch, Task, tensor_of
from trainer.settings import Settings

DATASET = "cifar10"
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "tutorial": {
        "model": "tutorial", "epochs": 10, "batch_size": 4, "lr": 0.001, "momentum": 0.9, "weight_decay": 0.0,
        "precision": "fp32",
    },
}  # fmt: skip


def build(settings: Settings, data: Packed, device: torch.device) -> Task:
    return Tutorial(settings, data, device)


class Cifar(Task):
    """What every network here shares: images in memory as uint8, loss and accuracy."""

    eval_batch = 1000

    def __init__(self, settings: Settings, data: Packed, device: torch.device) -> None:
        self.settings = settings
        self.train_images, self.train_labels, self.test_images, self.test_labels = (
            tensor_of(data.arrays[name], device)
            for name in ("train_images", "train_labels", "test_images", "test_labels")
        )
        self.train_size, self.eval_size = len(self.train_labels), len(self.test_labels)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        labels = self.train_labels[batch.index].long()
        logits = self.model(self.images(batch))
        loss = F.cross_entropy(logits.float(), labels)
        return loss, {"correct": (logits.detach().argmax(1) == labels).sum()}

    def evaluate(self, rows: slice) -> dict[str, Tensor]:
        labels = self.test_labels[rows].long()
        logits = self.model(normalized(self.test_images[rows])).float()
        loss = F.cross_entropy(logits, labels, reduction="sum")
        return {"accuracy": (logits.argmax(1) == labels).sum(), "loss": loss}

    def images(self, batch: Batch) -> Tensor:
        """The batch's images, normalized; float32 [n, 3, 32, 32] in channels_last memory order."""
        return normalized(self.train_images[batch.index])


class Tutorial(Cifar):
    def __init__(self, settings: Settings, data: Packed, device: torch.device) -> None:
        super().__init__(settings, data, device)
        self.model = nn.Sequential(
            nn.Conv2d(3, 6, 5), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
            nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(),
            nn.Dropout(settings.dropout), nn.Linear(84, 10),
        ).to(device)  # fmt: skip
        self.optimizers = {
            "sgd": torch.optim.SGD(
                self.model.parameters(),
                lr=settings.lr,
                momentum=settings.momentum,
                weight_decay=settings.weight_decay,
            )
        }

    def schedule(self, step: int, steps: int) -> float:
        return self.settings.lr


def normalized(images: Tensor) -> Tensor:
    """uint8 [n, 32, 32, 3] -> float32 [n, 3, 32, 32] in [-1, 1], in channels_last memory order."""
    return images.permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)
