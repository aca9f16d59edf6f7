"""CIFAR-10: 32x32 photographs of 10 classes.

    quick      a small whitened network for two CPU cores; the default
    tutorial   the classic small network: two 5x5 convolutions, three linear layers, SGD, batch 4
    best       for a GPU: the same way with the widths of airbench (Jordan, "94% on CIFAR-10 in 3.29 seconds on a
               single GPU", 2024, arXiv:2404.00498, and its Muon variant)

What `quick` and `best` do, most of it from airbench: a first convolution that whitens patches, of which nothing learns
but the biases, for three eighths of a run; the following convolutions trained by Muon, biases and the last layer by
SGD; small pictures in the first part of a run of `quick`; shifts and alternating flips of the training pictures; the
last evaluation averages over flips and shifts. README has what they reach.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.data.packed import Packed
from trainer.exits import ExitCode, UserError
from trainer.job import Batch, Task, tensor_of
from trainer.muon import Muon
from trainer.settings import Json, Settings

DATASET = "cifar10"
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "quick": {
        "model": "quick", "epochs": 6, "batch_size": 300, "lr": 0.13, "momentum": 0.6, "weight_decay": 0.0,
    },
    "tutorial": {
        "model": "tutorial", "epochs": 10, "batch_size": 4, "lr": 0.001, "momentum": 0.9, "weight_decay": 0.0,
        "precision": "fp32",
    },
    "best": {
        "model": "best", "epochs": 8, "batch_size": 2000, "lr": 0.24, "momentum": 0.6, "weight_decay": 0.0,
    },
}  # fmt: skip

WITHOUT_EFFECT = ("freeze", "size", "train_size", "optimizer")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What tells `quick` from `best`."""

    patches: int  # how many principal patches are looked for; each, and its negative, is a channel
    widths: tuple[int, int, int]  # channels of three pairs of convolutions; the first of each halves the sides
    sides: tuple[tuple[float, int], ...]  # (until this fraction of the run, side of the pictures in pixels)
    short: int = 0  # steps; a run of no more keeps the smallest pictures to its end, and its evaluation to one view


RECIPES = {
    "quick": Recipe(patches=8, widths=(32, 64, 128), sides=((0.3, 16), (0.65, 24), (1.0, 32)), short=250),
    "best": Recipe(patches=12, widths=(64, 256, 256), sides=((1.0, 32),)),
}
WHITENED = 2  # pixels, the side of a patch
WHITENING_LEARNS = 3 / 8  # of a run: so long the first convolution's biases do
SHIFT = 2  # pixels that a training picture is moved by, at most
SMOOTHING = 0.2  # of the labels
BIAS_LR, HEAD_LR = 106.0, 1340.0  # SGD's, for the mean loss of a batch
DECAY = 0.004  # SGD's of the weights, in a step at the peak of its rates
SGD_MOMENTUM = 0.85
BATCH_NORM_MOMENTUM = 0.4  # the weights move fast; so must the running statistics


@dataclass(frozen=True)
class Kind:
    """What tells one data set from another."""

    mean: list[float]  # of the training pictures, by channel, of 255
    std: list[float]
    mirrors: bool = True  # whether a picture's mirror image is one of its class


KINDS = {
    "cifar10": Kind([125.31, 122.96, 113.86], [51.59, 50.85, 51.26]),
    "cifar100": Kind([129.30, 124.07, 112.43], [68.17, 65.39, 70.42]),
    "mnist": Kind([33.32], [78.57], mirrors=False),
}


def build(settings: Settings, data: Packed, device: torch.device) -> Task:
    if settings.model == "tutorial":
        return Tutorial(settings, data, device)
    if settings.model not in RECIPES:
        raise UserError(f"--model {settings.model}: there are tutorial, {', '.join(RECIPES)}", ExitCode.USAGE)
    return Whitened(settings, data, device, RECIPES[settings.model])


def network(config: Mapping[str, Any], dropout: float = 0.0) -> Net | Small:
    """The network that a result's config.json describes, for the weights beside it; its `predict` takes pictures."""
    kind = Kind(**{f.name: config[f.name] for f in fields(Kind)})
    classes = len(config["classes"])
    if config["model"] == "tutorial":
        return Small(dropout, len(kind.mean), classes)
    return Net(RECIPES[config["model"]], dropout, kind, classes)


class Cifar(Task):
    """What every network here shares: the pictures in memory as uint8, and the accuracy."""

    eval_batch = 500
    unit = "images"
    net: Net | Small

    def __init__(self, settings: Settings, data: Packed, device: torch.device) -> None:
        self.settings, self.kind = settings, KINDS[data.name]
        self.on_gpu = device.type == "cuda"
        if self.on_gpu:
            self.eval_batch = 2000  # so few pictures as a processor takes leave a GPU idle between two launches
        self.train_images, self.train_labels, self.test_images, self.test_labels = (
            tensor_of(data.arrays[name], device)
            for name in ("train_images", "train_labels", "test_images", "test_labels")
        )
        self.train_images = framed(self.train_images)
        self.train_size, self.eval_size = len(self.train_labels), len(self.test_labels)
        self.model = self.net = network({**self.result_config(), "classes": data.classes}, settings.dropout).to(device)

    def result_config(self) -> dict[str, Json]:
        return {"model": self.settings.model, **asdict(self.kind)}

    def sums(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"accuracy": (logits.argmax(1) == labels).sum()}

    def evaluate(self, rows: slice) -> dict[str, Tensor]:
        labels = self.test_labels[rows].long()
        logits = self.net.predict(self.test_images[rows]).float()
        return {**self.sums(logits, labels), "loss": F.cross_entropy(logits, labels, reduction="sum")}


class Tutorial(Cifar):
    def __init__(self, settings: Settings, data: Packed, device: torch.device) -> None:
        super().__init__(settings, data, device)
        sgd = torch.optim.SGD(
            self.model.parameters(),
            lr=settings.lr,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            fused=self.on_gpu,
        )
        self.optimizers = {"sgd": sgd}

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        labels = self.train_labels[batch.index].long()
        logits = self.net.predict(self.train_images[batch.index]).float()
        return F.cross_entropy(logits, labels), self.sums(logits.detach(), labels)

    def schedule(self, step: int, steps: int) -> None:
        pass  # one rate throughout


class Whitened(Cifar):
    net: Net

    def __init__(self, settings: Settings, data: Packed, device: torch.device, recipe: Recipe) -> None:
        super().__init__(settings, data, device)
        self.recipe, net = recipe, self.net
        net.to(memory_format=torch.channels_last)
        net.set_whitening(net.pictures(self.train_images[:500], 32))
        self.matrices = [module.weight for module in net.modules() if isinstance(module, MatrixConv)]
        biases = [module.bias for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
        muon = Muon(self.matrices, settings.lr, settings.momentum, settings.weight_decay)
        assert net.whiten.bias is not None
        parts = [
            (biases, BIAS_LR, 1.0),
            ([net.head.weight], HEAD_LR, 1.0),
            ([net.whiten.bias], BIAS_LR, WHITENING_LEARNS),
        ]
        groups = [{"params": p, "lr": lr, "weight_decay": DECAY / lr} for p, lr, _ in parts]
        sgd = torch.optim.SGD(groups, momentum=SGD_MOMENTUM, nesterov=True, fused=self.on_gpu)
        self.optimizers = {"muon": muon, "sgd": sgd}
        self.rates = [(settings.lr, 1.0), *((lr, until) for _, lr, until in parts)]
        self.next_side, self.is_last = recipe.sides[0][1], False

    def schedule(self, step: int, steps: int) -> None:
        """From the peak straight down to zero; small pictures first, in a short run only these."""
        groups = [group for optimizer in self.optimizers.values() for group in optimizer.param_groups]
        for group, (peak, until) in zip(groups, self.rates, strict=True):
            group["lr"] = peak * max(0.0, 1 - step / (until * steps))
        assert self.net.whiten.bias is not None
        # later no gradient need go down to it, through the most pixels of all
        self.net.whiten.bias.requires_grad_(step < WHITENING_LEARNS * steps)
        self.next_side = self.side_at(step, steps)
        self.is_last = step + 1 == steps and not self.is_short(steps)

    def is_short(self, steps: int) -> bool:
        return steps <= self.recipe.short

    def side_at(self, step: int, steps: int) -> int:
        """Of the pictures, in pixels."""
        sides = self.recipe.sides
        return sides[0][1] if self.is_short(steps) else next(side for until, side in sides if step < until * steps)

    def effort(self, step: int, steps: int) -> float:
        return self.side_at(step, steps) ** 2

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        self.net.side.fill_(self.next_side)
        self.net.last.fill_(self.is_last)
        labels = self.train_labels[batch.index].long()
        logits = self.net(self.net.pictures(self.cut(batch), self.next_side)).float()
        loss = F.cross_entropy(logits, labels, label_smoothing=SMOOTHING)
        return loss, self.sums(logits.detach(), labels)

    def update(self) -> None:
        with torch.no_grad():
            for weight in self.matrices:  # Muon turns them; their length stays what it was
                weight.mul_(len(weight) ** 0.5 / weight.norm())
        super().update()

    def cut(self, batch: Batch) -> Tensor:
        """The batch's pictures, each shifted (edges mirrored), every second one flipped, and the others in the next
        epoch: one gather of pixels. uint8 [n, 32, 32, channels]"""
        down, right = (batch.random_below(2 * SHIFT + 1, name) - SHIFT for name in ("down", "right"))
        flipped = (batch.random_once_below(2, "flip") + batch.epoch) % 2 * self.kind.mirrors
        down_, right_, flipped_ = (batch.on_device(values)[:, None] for values in (down, right, flipped))
        ramp = torch.arange(32, device=batch.device)
        rows = mirrored(ramp + down_)
        columns = mirrored(torch.where(flipped_ == 1, 31 - ramp, ramp) + right_)
        where = (batch.index[:, None, None] * 32 + rows[:, :, None]) * 32 + columns[:, None, :]
        channels = self.train_images.shape[3]
        pixels = self.train_images.view(-1, channels).index_select(0, where.view(-1))
        return pixels.view(-1, 32, 32, channels)


def mirrored(place: Tensor) -> Tensor:
    """A row or column outside 0 to 31 as its mirror image inside."""
    return 31 - (31 - place.abs()).abs()


def framed(images: Tensor) -> Tensor:
    """Pictures [n, side, side, channels] of less than 32 pixels, as MNIST's, with a margin up to that."""
    margin = (32 - images.shape[1]) // 2
    return F.pad(images, (0, 0, margin, margin, margin, margin)) if margin else images


class Small(nn.Sequential):
    """The tutorial's."""

    def __init__(self, dropout: float, channels: int, classes: int) -> None:
        super().__init__(
            nn.Conv2d(channels, 6, 5), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
            nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(),
            nn.Dropout(dropout), nn.Linear(84, classes),
        )  # fmt: skip

    def predict(self, images: Tensor) -> Tensor:
        """uint8 [n, 32, 32, channels], or MNIST's 28 pixels -> logits [n, classes]"""
        logits: Tensor = self(framed(images).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0))
        return logits


class MatrixConv(nn.Module):
    """A 3x3 convolution whose weight is the matrix [out, 3 * 3 * in] that Muon takes; as a kernel it lies in
    channels_last memory order without a copy. It begins as near to the identity as its shape allows."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        kernel = nn.Conv2d(channels_in, channels_out, 3, bias=False).weight.detach()
        nn.init.dirac_(kernel[: min(channels_in, channels_out)])
        self.weight = nn.Parameter(kernel.permute(0, 2, 3, 1).reshape(channels_out, -1).contiguous())

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.weight.view(-1, 3, 3, x.shape[1]).permute(0, 3, 1, 2)
        return F.conv2d(x, kernel, padding=1)


class Block(nn.Module):
    def __init__(self, channels_in: int, channels_out: int, halved: bool) -> None:
        super().__init__()
        self.conv = MatrixConv(channels_in, channels_out)
        self.norm = nn.BatchNorm2d(channels_out, momentum=BATCH_NORM_MOMENTUM)
        self.norm.weight.requires_grad_(False)
        self.halved = halved

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return F.gelu(self.norm(F.max_pool2d(y, 2) if self.halved else y))


class Net(nn.Module):
    def __init__(self, recipe: Recipe, dropout: float, kind: Kind, classes: int) -> None:
        super().__init__()
        mean, std = torch.tensor(kind.mean).view(-1, 1, 1), torch.tensor(kind.std).view(-1, 1, 1)
        self.register_buffer("scale", 1 / std, persistent=False)
        self.register_buffer("offset", -mean / std, persistent=False)
        self.scale: Tensor
        self.offset: Tensor
        self.mirrors, channels = kind.mirrors, len(kind.mean)
        patches = min(recipe.patches, channels * WHITENED**2)
        self.whiten = nn.Conv2d(channels, 2 * patches, WHITENED).requires_grad_(False)
        # what evaluations must know of the step before them; here, so that checkpoints hold it
        self.register_buffer("side", torch.tensor(32))  # of its pictures, in pixels
        self.register_buffer("last", torch.tensor(False))  # whether it was the run's last
        self.side: Tensor
        self.last: Tensor
        self._known: tuple[tuple[int, int], tuple[int, bool]] | None = None  # see `of_last_step`
        widths = [2 * patches, *(width for width in recipe.widths for _ in range(2))]
        self.blocks = nn.Sequential(
            *(Block(before, width, number % 2 == 0) for number, (before, width) in enumerate(pairwise(widths)))
        )
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(widths[-1], classes, bias=False)
        self.head.weight.data.div_(self.head.weight.data.std())

    @torch.no_grad()
    def set_whitening(self, images: Tensor) -> None:
        """Look for the principal components of the images' patches, each scaled to unit variance, and for their
        negatives. `images`: float32 [n, channels, h, w]."""
        size = WHITENED
        windows = images.cpu().unfold(2, size, size).unfold(3, size, size)  # [n, channels, rows, columns, size, size]
        patches = windows.permute(0, 2, 3, 1, 4, 5).reshape(-1, images.shape[1] * size * size)
        values, vectors = torch.linalg.eigh((patches.T @ patches / len(patches)).double())
        best = (vectors / (values + 5e-4).sqrt()).T.flip(0)[: len(self.whiten.weight) // 2]
        kernels = best.reshape(-1, images.shape[1], size, size).float()
        self.whiten.weight.copy_(torch.cat((kernels, -kernels)))

    def pictures(self, images: Tensor, side: int) -> Tensor:
        """uint8 [n, 32, 32, channels] -> float32 [n, channels, side, side], normalized, channels last in memory."""
        x = images.float().permute(0, 3, 1, 2)  # without moving anything
        x = x if side == 32 else F.interpolate(x, size=(side, side), mode="bilinear")
        return torch.addcmul(self.offset, x, self.scale)

    def predict(self, images: Tensor) -> Tensor:
        """uint8 [n, 32, 32, channels], or MNIST's 28 pixels -> logits [n, classes], in evaluation.

        At the side that training has reached. After the last step the mean of the picture and its mirror image, each
        in place and moved by a pixel; the views cost time, so the evaluations before make do with one.
        """
        side, is_last = self.of_last_step()
        x = self.pictures(framed(images), side)
        views = [x]
        if is_last:
            wider = F.pad(x, (1, 1, 1, 1), mode="reflect")
            views = [x, x.flip(3), wider[:, :, :-2, :-2], wider[:, :, 2:, 2:].flip(3)]
            if not self.mirrors:
                views = [x, wider[:, :, :-2, :-2], wider[:, :, 2:, 2:]]
        logits = [self(view.contiguous(memory_format=torch.channels_last)) for view in views]
        return logits[0] if len(logits) == 1 else torch.stack(logits).mean(0)

    def of_last_step(self) -> tuple[int, bool]:
        """The side of its pictures, and whether it was the run's last: read from a GPU, which then stands still, only
        where these buffers were written to since."""
        written = self.side._version, self.last._version
        if self._known is None or self._known[0] != written:
            self._known = written, (int(self.side), bool(self.last))
        return self._known[1]

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.gelu(self.whiten(x))).amax((2, 3))
        logits: Tensor = self.head(self.dropout(x))
        return logits / x.shape[1]
