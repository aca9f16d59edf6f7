"""Photographs in folders by class, and any of torchvision's classification networks, whole or its last layer alone.

    finetune   resnet18 from torchvision's own weights, pictures of 128 pixels; the default
    scratch    the same network by chance, which needs more passes

Training sees random parts of the pictures, scaled to half the side that evaluation sees at first, to 3/4 in the end:
that costs less than half the time, and makes up for the parts, which show things larger than whole pictures do (Touvron
and others, "Fixing the train-test resolution discrepancy", 2019, arXiv:1906.06423; the growth as in Leclerc and others,
"FFCV", 2023, arXiv:2306.12517). Parts, mirror images and colours are made for a batch at a time.
"""

from __future__ import annotations

import difflib
import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models  # type: ignore[import-untyped]

from trainer import weights as those
from trainer.crops import Pictures, coloured, normalized, parts
from trainer.data.packed import Packed, remedy
from trainer.exits import ExitCode, UserError
from trainer.job import Batch, Task, tensor_of
from trainer.scores import MOST_CONFUSED, Metric, confusion, of_confusion
from trainer.settings import Json, Settings

log = logging.getLogger("baton")

DATASET = "imagenet"
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "finetune": {
        "model": "resnet18", "weights": "imagenet", "size": 128, "epochs": 3, "batch_size": 32,
        "momentum": 0.9, "weight_decay": 0.0001,
    },
    "scratch": {
        "model": "resnet18", "weights": "none", "size": 128, "epochs": 3, "batch_size": 32,
        "momentum": 0.9, "weight_decay": 0.0005,
    },
}  # fmt: skip
# of a batch of 32; SGD's grows with the batch: (optimizer, how it begins) -> peak
LEARNING_RATES = {
    ("sgd", "chance"): 0.05, ("sgd", "weights"): 0.01, ("sgd", "frozen"): 0.1,
    ("adamw", "chance"): 0.001, ("adamw", "weights"): 0.0001, ("adamw", "frozen"): 0.001,
}  # fmt: skip
WARM_UP = 0.2  # of the run
SMOOTHING = 0.1  # of the labels
SMALLEST, WIDEST = 0.35, 4 / 3  # of a part: its share of the picture, its sides' ratio
COLOUR = 0.2  # brightness, contrast and saturation change by at most this factor
FIXED_SIDE = ("vit", "maxvit")  # networks that see one side only
PLACES = "encoder.pos_embedding"  # of a vit: [1, 1 + patches of a picture, width]
FIRST_SIDE, LAST_SIDE, GROWN = 1 / 2, 3 / 4, 6 / 7  # of evaluation's; the last from this share of the run on
WORDNET = re.compile("n[0-9]{8}")  # the number of a noun in WordNet
SIDE_STEP, SMALLEST_SIDE = 8, 32  # pixels; the second but for a smaller --size


def published_url(model: str) -> str:
    """Where torchvision's newest weights for a network are published. Raises `UserError`."""
    return str(models.get_model_weights(known(model)).DEFAULT.url)


def published_classes(model: str) -> Sequence[str]:
    """The names of the classes that a network's published weights tell apart, in order. Raises `UserError`."""
    names: Sequence[str] = models.get_model_weights(known(model)).DEFAULT.meta["categories"]
    return names


def known(model: str) -> str:
    names = models.list_models(module=models)
    if model not in names:
        near = difflib.get_close_matches(model, names, n=1)
        hint = f"did you mean {near[0]}?" if near else "torchvision's are resnet18, resnet50, convnext_tiny, ..."
        raise UserError(f"--model {model}: no classification network of torchvision; {hint}", ExitCode.USAGE)
    return model


def scale_of(model: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation by channel, of 255, that a network's published weights want pictures to be scaled by.

    Raises `UserError`.
    """
    published = models.get_model_weights(known(model)).DEFAULT.transforms()
    mean, std = (tuple(round(255 * value, 6) for value in values) for values in (published.mean, published.std))
    return mean, std


def build(settings: Settings, data: Packed, device: torch.device) -> Task:
    return Photographs(settings, data, device)


class Photographs(Task):
    eval_batch = 64
    unit = "images"

    def __init__(self, settings: Settings, data: Packed, device: torch.device) -> None:
        self.settings, self.device = settings, device
        self.names, self.classes = data.classes, len(data.classes)
        self.side = settings.size
        self.scale = scale_of(settings.model)
        self.fixed_side = settings.train_size or (self.side if settings.model.startswith(FIXED_SIDE) else 0)
        self.train_side = self._train_side(0.0)
        packed = data.arrays["train_images"].shape[1]
        for name, side, most in (("--size", self.side, packed * 7 // 8), ("--train-size", self.fixed_side, packed)):
            if packed < side:
                anew = max(self.side, -(-self.fixed_side * 7 // 8))
                raise UserError(
                    f"{name} {side} is more than the {packed} pixels that the pictures are packed at: give {name} "
                    f"{most}, or {remedy(DATASET)} --size {anew}"
                )
        self.train_images, self.test_images = (Pictures(data.arrays[f"{s}_images"], device) for s in ("train", "test"))
        self.train_labels, self.test_labels = (
            tensor_of(data.arrays[f"{s}_labels"].astype(np.int64), device) for s in ("train", "test")
        )
        self.train_size, self.eval_size = len(self.train_labels), len(self.test_labels)

        # what torchvision's get_model needs to build it again; the two with more than one head train with one here
        self.arguments: dict[str, Json] = {"num_classes": self.classes}
        if settings.model in ("googlenet", "inception_v3"):  # their own weights want pictures in another scale
            self.arguments |= {"aux_logits": False, "init_weights": True, "transform_input": True}
        if settings.model.startswith("vit"):
            self.arguments["image_size"] = self.side
        if settings.model.startswith("maxvit"):
            self.arguments["input_size"] = [self.side, self.side]
        self.model = self._network().to(device)
        self.model.to(memory_format=torch.channels_last)
        self.head = last_layer(self.model, self.classes)
        self.still = self._freeze() if settings.freeze else []
        self._try_sides()
        self._keep_still()
        self.optimizers = {"optimizer": self._optimizer()}

    def _train_side(self, done: float) -> int:
        """Pixels, when this share of the run is done."""
        share = FIRST_SIDE + (LAST_SIDE - FIRST_SIDE) * min(1.0, done / GROWN)
        return self.fixed_side or max(min(SMALLEST_SIDE, self.side), round(self.side * share / SIDE_STEP) * SIDE_STEP)

    # -- the network -------------------------------------------------------------------------------------------

    def _network(self) -> nn.Module:
        name = known(self.settings.model)
        try:
            network: nn.Module = models.get_model(name, weights=None, **self.arguments)
        except (ValueError, AssertionError, RuntimeError) as e:
            raise self._does_not_fit(self.side, e) from e
        for module in list(network.modules()):
            for child, pool in list(module.named_children()):
                match pool:
                    case nn.AdaptiveAvgPool2d(output_size=(int(rows), int(columns))) if rows * columns > 1:
                        setattr(module, child, MeanPool(rows, columns))
        drops = [module for module in network.modules() if isinstance(module, nn.Dropout)]
        if share := self.settings.dropout:
            if not drops:
                raise UserError(f"--dropout {share}: {name} has no layer that drops anything", ExitCode.USAGE)
            for module in drops:
                module.p = share
        return network

    def _freeze(self) -> list[nn.Module]:
        """Train the last layer alone. Returns the modules that stay as in evaluation, and with them their buffers."""
        if self.settings.weights in ("", "none"):
            raise UserError(
                "--freeze: a last layer on a network of chance learns little; give --weights", ExitCode.USAGE
            )
        if self.settings.dropout:
            raise UserError(
                f"--dropout {self.settings.dropout}: with --freeze all but the last layer is as in evaluation, where "
                "nothing is dropped; leave one of them out",
                ExitCode.USAGE,
            )
        self.model.requires_grad_(False)
        layer = dict(self.model.named_modules())[self.head].requires_grad_(True)
        return [module for module in self.model.modules() if layer not in list(module.modules())]

    def _try_sides(self) -> None:
        """Find sides that this network takes. Raises `UserError` where those that were asked for are none.

        Training's own smaller ones are nobody's wish: where one is too small, all pictures are seen at evaluation's.
        """
        self.model.eval()
        if (why := self._refusal(self.side)) is not None:
            raise self._does_not_fit(self.side, why) from why
        smaller = {self._train_side(0.0), self._train_side(1.0)} - {self.side}
        for side in sorted(smaller):
            if (why := self._refusal(side)) is None:
                continue
            if self.fixed_side:
                raise UserError(
                    f"--train-size {side}: {self._reason(side, why)}; leave it out, or give one nearer to --size "
                    f"{self.side}",
                    ExitCode.USAGE,
                ) from why
            log.info("%s: trained at %d pixels throughout", self._reason(side, why), self.side)
            self.fixed_side = self.train_side = self.side
            break
        self.model.train()

    def _refusal(self, side: int) -> Exception | None:
        """What the network says to a picture of this side, if it doesn't take it."""
        try:
            with torch.inference_mode():
                self.model(torch.zeros(1, 3, side, side, device=self.device))
        except (torch.OutOfMemoryError, torch.AcceleratorError):
            raise  # of which the pictures' side is no reason
        except (RuntimeError, AssertionError, ValueError) as e:
            return e
        return None

    def _reason(self, side: int, why: Exception) -> str:
        return f"{self.settings.model} takes no pictures of {side} pixels ({str(why).splitlines()[0][:100]})"

    def _does_not_fit(self, side: int, why: Exception) -> UserError:
        return UserError(f"--size {side}: {self._reason(side, why)}; 224 is what most are made for", ExitCode.USAGE)

    def _keep_still(self) -> None:
        for module in self.still:
            module.training = False

    def _optimizer(self) -> torch.optim.Optimizer:
        settings = self.settings
        name = settings.optimizer
        if name == "auto":
            name = "adamw" if any(isinstance(module, nn.LayerNorm) for module in self.model.modules()) else "sgd"
        begins = "frozen" if settings.freeze else "chance" if settings.weights in ("", "none") else "weights"
        scale = settings.batch_size / 32 if name == "sgd" else 1.0
        self.peak = settings.lr if settings.lr == settings.lr else LEARNING_RATES[name, begins] * scale
        trained = [p for p in self.model.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": settings.weight_decay},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},  # biases, norms' scales
        ]
        if name == "adamw":
            return torch.optim.AdamW(groups, lr=self.peak, fused=True)
        nesterov = settings.momentum > 0
        return torch.optim.SGD(groups, lr=self.peak, momentum=settings.momentum, nesterov=nesterov, fused=True)

    def begin(self, weights: str, check: Callable[[], None]) -> None:
        if weights == "none":
            return
        if those.is_url(weights) or those.is_path(weights):
            state = those.read(weights, check)
            those.warn_of_other_classes(weights, self.names, check)
        elif weights == "imagenet":
            state = those.find(those.published(DATASET, self.settings.model), check)
            if not all(map(WORDNET.fullmatch, self.names)):  # so ImageNet's own folders are called, in the same order
                those.warn_of_other_names(weights, published_classes(self.settings.model), self.names)
        else:
            raise UserError(f"--weights {weights}: give none, imagenet, a file or a finished run's URL", ExitCode.USAGE)
        self._adopt(state, weights)

    def _adopt(self, state: Mapping[str, Tensor], source: str) -> None:
        """Put these weights in. A last layer for other classes is left as it is; all else must fit."""
        own = self.model.state_dict()
        # densenet's were published under older names
        given = {re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2", name): t for name, t in state.items()}
        anew = {
            name
            for name in own
            if name.startswith(f"{self.head}.") and getattr(given.get(name), "shape", None) != own[name].shape
        }
        odd = [
            name for name in own.keys() - anew
            if not name.endswith("num_batches_tracked") and getattr(given.get(name), "shape", None) != own[name].shape
        ]  # fmt: skip
        odd += [name for name in given.keys() - own.keys() if not name.lower().startswith("aux")]
        if odd == [PLACES] and (side := self._side_of(given.get(PLACES))):
            raise UserError(
                f"--weights {source}: are for pictures of {side} pixels, and {self.settings.model} has some for each "
                f"place in a picture: give --size {side}, or --weights none"
            )
        if odd:
            raise UserError(
                f"--weights {source}: are those of another network than {self.settings.model} at this size (first "
                f"difference: {min(odd)}); give the --model that they are of"
            )
        with torch.no_grad():
            for name in own.keys() & given.keys() - anew:
                own[name].copy_(given[name])
        if anew:
            log.info("weights: %s; the last layer begins by chance, for %d classes", source, self.classes)
        else:
            log.info("weights: %s, the last layer too", source)

    def _side_of(self, places: Tensor | None) -> int:
        """Pixels of the pictures that a vision transformer's weights by place are for; 0 where that isn't all."""
        own = self.model.state_dict().get(PLACES)
        if own is None or places is None or places.ndim != 3 or places.shape[::2] != own.shape[::2]:
            return 0
        return int(self.model.patch_size) * math.isqrt(max(0, places.shape[1] - 1))  # type: ignore[arg-type]

    # -- training and evaluation -------------------------------------------------------------------------------

    def schedule(self, step: int, steps: int) -> None:
        """Up to the peak in the first fifth of the run, then down to zero along a cosine; and what side is seen."""
        self.train_side = self._train_side(step / steps)
        warm = max(1, math.ceil(WARM_UP * steps))
        if step < warm:
            share = (step + 1) / warm
        else:
            share = 0.5 + 0.5 * math.cos(math.pi * (step - warm) / max(1, steps - warm))
        for group in self.optimizers["optimizer"].param_groups:
            group["lr"] = self.peak * share

    def effort(self, step: int, steps: int) -> float:
        return self._train_side(step / steps) ** 2

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        self._keep_still()
        labels = self.train_labels[batch.index]
        logits = self.logits(self.seen(batch))
        loss = F.cross_entropy(logits, labels, label_smoothing=SMOOTHING)
        return loss, {"accuracy": (logits.detach().argmax(1) == labels).sum()}

    def evaluate(self, rows: slice) -> dict[str, Tensor]:
        """The middle of each picture: 7/8 of its side, as they are packed for it."""
        labels = self.test_labels[rows]
        images = self.test_images.take(np.arange(rows.start, rows.stop))
        middle = np.full(len(labels), 7 / 8)
        corner = np.full(len(labels), 1 / 16)
        whole = np.zeros(len(labels), bool)
        logits = self.logits(self.normalized(parts(images, (corner, corner), (middle, middle), whole, self.side)))
        sums = {
            "accuracy": (logits.argmax(1) == labels).sum(),
            "loss": F.cross_entropy(logits, labels, reduction="sum"),
        }
        if self.classes <= MOST_CONFUSED:
            sums["confusion"] = confusion(logits, labels, self.classes)
        return sums

    def metrics(self, sums: Mapping[str, Tensor]) -> dict[str, Metric]:
        means = {name: float(sums[name]) / self.eval_size for name in ("accuracy", "loss")}
        return {**means, **(of_confusion(sums["confusion"]) if "confusion" in sums else {})}

    def logits(self, x: Tensor) -> Tensor:
        result: Tensor = self.model(x.contiguous(memory_format=torch.channels_last))
        return result.float()

    def seen(self, batch: Batch) -> Tensor:
        """Random parts of the batch's pictures, half of them mirrored, in changed colours; normalized."""
        size = 1 << 24
        area, ratio, down, right, bright, contrast, vivid = (
            batch.random_below(size, name) / size
            for name in ("area", "ratio", "down", "right", "bright", "contrast", "vivid")
        )
        share = SMALLEST + (1 - SMALLEST) * area
        wide = WIDEST ** (2 * ratio - 1)
        height, width = np.sqrt(share / wide).clip(max=1), np.sqrt(share * wide).clip(max=1)
        corner = down * (1 - height), right * (1 - width)
        mirrored = batch.random_below(2, "mirror") == 1
        x = parts(self.train_images.take(batch.samples), corner, (height, width), mirrored, self.train_side)
        factors = (batch.on_device((1 + COLOUR * (2 * f - 1)).astype(np.float32)) for f in (bright, contrast, vivid))
        return self.normalized(coloured(x, *(factor[:, None, None, None] for factor in factors)))

    def normalized(self, x: Tensor) -> Tensor:
        """As the network's published weights want their pictures."""
        return normalized(x, *self.scale)

    def result_config(self) -> dict[str, Json]:
        return {
            "model": self.settings.model, "arguments": self.arguments, "size": self.side,
            "mean": [m / 255 for m in self.scale[0]], "std": [s / 255 for s in self.scale[1]],
        }  # fmt: skip


def last_layer(network: nn.Module, classes: int) -> str:
    """The name of the layer that tells the classes."""
    modules: list[tuple[str, nn.Module]] = list(network.named_modules())
    for name, module in reversed(modules):
        if classes in (getattr(module, "out_features", None), getattr(module, "out_channels", None)):
            return name
    raise AssertionError("a classification network without a last layer")


class MeanPool(nn.Module):
    """nn.AdaptiveAvgPool2d as two products: on GPUs its own gradient isn't the same twice."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.size = rows, columns

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = (self.means(n, out, x) for n, out in zip(x.shape[2:], self.size, strict=True))
        return rows @ x @ columns.T

    @staticmethod
    def means(size: int, out: int, like: Tensor) -> Tensor:
        """Row i averages the pixels from floor(i * size / out) up to ceil((i + 1) * size / out). [out, size]"""
        matrix = like.new_zeros(out, size)
        for i in range(out):
            begin, end = i * size // out, -(-(i + 1) * size // out)
            matrix[i, begin:end] = 1 / (end - begin)
        return matrix
