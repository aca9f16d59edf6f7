"""What a job is: one module in trainer/jobs/ with PRESETS and a Task. It knows nothing of stores or clouds."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trainer import order
from trainer.data.packed import Packed
from trainer.exits import ExitCode, UserError
from trainer.names import check_preset
from trainer.presets import check_presets
from trainer.scores import Metric
from trainer.settings import Json, Settings


@dataclass(frozen=True)
class Batch:
    """The samples of one micro-batch, and their chance."""

    samples: order.Int64s  # int64 [n], indices into the training data
    seed: int
    epoch: int
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @cached_property
    def index(self) -> Tensor:
        """`samples` on the device; int64 [n]."""
        return self.on_device(self.samples)

    def random_below(self, n: int, name: str) -> order.Int64s:
        """One integer in [0, n) for each sample; the same for the same (seed, epoch, sample, name). int64 [n]"""
        return order.below(order.stream(self.seed, name, self.epoch), self.samples, n)

    def random_once_below(self, n: int, name: str) -> order.Int64s:
        """Likewise, but the same in every epoch."""
        return order.below(order.stream(self.seed, name), self.samples, n)

    def on_device(self, values: np.ndarray[Any, Any]) -> Tensor:
        return sent(values, self.device)


class Task:
    """One job built for one run, on one device; what the loop trains.

    All that training changes must be in `model.state_dict()` or in the optimizers' `state_dict()`: that is what
    a checkpoint holds. Random numbers in `loss` come from torch's default generators (dropout does this), which
    the loop seeds anew for each micro-batch, or from `Batch.random_below`.
    """

    model: nn.Module
    optimizers: Mapping[str, Optimizer]
    train_size: int  # samples
    eval_size: int  # samples
    eval_batch: int  # samples evaluated between two looks at the mailbox
    unit = "samples"  # what people call them
    shapes_run: Mapping[
        str, Json
    ] = {}  # what is computed, where settings don't tell it all: a run goes on with no other

    def epoch_order(self, seed: int, epoch: int) -> order.Int64s:
        """All training samples in the order in which this epoch takes them; a pure function of (seed, epoch).

        int64 [train_size]. A step takes the next batch of them; what is left over at the end waits for another epoch.
        """
        return order.permutation(seed, epoch, self.train_size)

    def begin(self, weights: str, check: Callable[[], None]) -> None:
        """Put in the weights that a new run begins with, as `--weights` says; a run that goes on has its checkpoint's.

        Looks at `check` often, which may raise. Raises `UserError`, so that nothing else is trained in their place.
        """
        if weights not in ("", "none"):
            raise UserError(f"--weights {weights}: this job begins by chance; leave it out", ExitCode.USAGE)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The micro-batch's mean loss (0-d), and sums over its samples to report (0-d, always by the same names)."""
        raise NotImplementedError

    def evaluate(self, rows: slice) -> dict[str, Tensor]:
        """Sums over the evaluation samples `rows`, by name; of any shape that `metrics` knows."""
        raise NotImplementedError

    def metrics(self, sums: Mapping[str, Tensor]) -> dict[str, Metric]:
        """What the sums over all evaluation samples come to: means, where a job says nothing else.

        `sums`: float64, on the device. A number, or a table of whole numbers (a confusion matrix), for each name.
        """
        return {name: float(value) / self.eval_size for name, value in sums.items()}

    def schedule(self, step: int, steps: int) -> None:
        """Set this step's learning rates; a pure function of (step, steps)."""
        raise NotImplementedError

    def effort(self, step: int, steps: int) -> float:
        """What a sample of this step takes, in proportion to other steps' samples; a pure function of (step, steps).

        For telling how long training still takes; evaluations are taken to last as long as the last one.
        """
        return 1.0

    def update(self) -> None:
        """Change the weights by the gradients, and clear these."""
        for optimizer in self.optimizers.values():
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    # -- what the run's result holds beside the weights ---------------------------------------------------------

    def result_config(self) -> dict[str, Json]:
        """config.json: what it takes to build the network again for the weights in model.safetensors."""
        return {}

    def result_files(self) -> dict[str, bytes]:
        """More small files by name, such as a tokenizer's."""
        return {}


class Job(Protocol):
    """A module in trainer/jobs/. The first preset is the default one."""

    WITHOUT_EFFECT: Sequence[str]  # settings that it makes no use of; may be lacking
    DATASET: str | None  # read without importing the module, so a plain string; None: it wants no data
    PRESETS: Mapping[str, Mapping[str, Any]]

    def build(self, settings: Settings, data: Packed, device: torch.device) -> Task: ...


def sent(values: np.ndarray[Any, Any], device: torch.device) -> Tensor:
    """A batch's values on the device; to a GPU by way of pinned memory, so that nobody waits for them to arrive."""
    here = torch.from_numpy(values)
    return here.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else here.to(device)


def tensor_of(array: np.ndarray[Any, Any], device: torch.device) -> Tensor:
    """The array on the device; on the CPU it is the packed file's own mapped memory, which nobody may write to."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of memory that can't be written to
        return torch.from_numpy(array).to(device)


def load(name: str) -> Job:
    """Raises `UserError` where a library that the job needs is lacking: the slim CPU image has no torchvision."""
    try:
        job: Job = import_module(f"trainer.jobs.{name}")
    except ModuleNotFoundError as e:
        in_image = "BATON_REVISION" in os.environ  # which the image sets
        way = "use the image of flavour cuda" if in_image else f"install it for {sys.executable}"
        raise UserError(f"{name} needs {e.name}, which is not installed here: {way}") from e
    _check(name, job)
    return job


def _check(name: str, job: Job) -> None:
    """Raise `UserError` where a job's module lacks what a job has."""
    if not callable(getattr(job, "build", None)):
        raise UserError(f"trainer/jobs/{name}.py: no function build(settings, data, device) in it")
    check_presets(name, getattr(job, "PRESETS", None))


def preset(job: Job, name: str) -> tuple[str, Mapping[str, Any]]:
    """The preset's name (the first one's for "") and settings. Raises `UserError`."""
    name = name or next(iter(job.PRESETS))
    check_preset(name, job.PRESETS)
    return name, job.PRESETS[name]
