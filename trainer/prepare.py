"""What every process of a run makes ready before it trains: settings, device, data, network. The run isn't touched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from trainer import answers, machine
from trainer import job as jobs
from trainer.data.packed import Packed
from trainer.early import Early
from trainer.exits import ExitCode, UserError
from trainer.loop import Plan
from trainer.ranks import Rank
from trainer.settings import LARGEST_COUNT, Json, Settings
from trainer.startup import collect_garbage, put_off_compiler
from watchers import Mailbox

if TYPE_CHECKING:
    from watchers.metadata import Instance


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """What the command line wants, and what was begun before torch was imported."""

    job: str
    given: Mapping[str, Any]  # the user's own settings
    allow_change: Sequence[str]
    rank: Rank
    data: Early[Packed]
    instance: Early[Instance | None]  # the cloud's machine that this is; once known, its notices are watched for
    mailbox: Mailbox


@dataclass(frozen=True, slots=True)
class Start:
    """What can be known at once."""

    job: jobs.Job
    settings: Settings
    device: torch.device
    threads: int


@dataclass(frozen=True, slots=True)
class Prepared:
    """All that is needed to train, with the run not yet touched."""

    settings: Settings
    shape: dict[str, Json]  # the settings that shape the run, and its data
    data: Packed
    task: jobs.Task
    plan: Plan
    machine: dict[str, Json]

    @property
    def common(self) -> dict[str, Json]:
        """What several processes must have alike, beside the data and what process 0 tells the others of the shape."""
        told = ("precision", "micro_batch_size")
        own = {name: value for name, value in self.settings.that_shape_the_run().items() if name not in told}
        return {**own, **self.task.shapes_run, **{name: self.machine[name] for name in ("torch", "revision")}}


def start(wanted: Wanted) -> Start:
    """Raises `UserError`."""
    collect_garbage()
    put_off_compiler()
    job = jobs.load(wanted.job)
    name, preset = jobs.preset(job, wanted.given.get("preset", ""))
    _check_effect(wanted.job, wanted.given, getattr(job, "WITHOUT_EFFECT", ()))
    settings = Settings.of({**wanted.given, "preset": name}, preset)
    _check_length(wanted.job, settings)
    device = machine.pick_device(settings.device, wanted.rank.local)
    threads = machine.thread_count(wanted.rank.local_count)
    machine.compute_exactly(threads)
    if settings.no_deterministic:
        machine.compute_quickly()
    machine.keep_memory()
    return Start(job, settings, device, threads)


def _check_effect(job: str, given: Mapping[str, Any], without: Sequence[str]) -> None:
    """Raise `UserError` for what was said in the belief that it does something."""
    for name in without:
        if name in given:
            raise UserError(f"--{name.replace('_', '-')}: {job} makes no use of it; leave it out", ExitCode.USAGE)


def _check_length(job: str, settings: Settings) -> None:
    """Raise `UserError` where neither the preset nor the user says how long to train, or on how many samples a step."""
    preset = f"trainer/jobs/{job}.py: preset {settings.preset}"
    if not (settings.epochs or settings.steps):
        raise UserError(f"{preset} has neither epochs nor steps: give it some, or say --epochs or --steps")
    if not settings.batch_size:
        raise UserError(f"{preset} has no batch_size: give it one, or say --batch-size")


def shape_of(begun: Start, wanted: Wanted, data: Packed, recorded: Mapping[str, Json] | None) -> dict[str, Json]:
    """What this run computes. What nobody said is as its first machine had it, wherever the run goes on.

    `recorded`: the same of the run so far, None for a new run.
    """
    settings, so_far = begun.settings, recorded or {}
    precision = settings.precision
    if precision == "auto":
        known = so_far.get("precision")
        precision = "fp32" if known == "fp32" or not (known or machine.computes_in_bf16(begun.device)) else "bf16"
    micro = settings.micro_batch_size
    known = so_far.get("micro_batch_size")
    if not micro and isinstance(known, int) and known > 0 and "micro_batch_size" not in wanted.allow_change:
        micro = known
    return {
        **settings.that_shape_the_run(),
        "precision": precision,
        "micro_batch_size": min(micro or share(settings.batch_size, wanted.rank.count), settings.batch_size),
        "data_sha256": data.sha256,
    }


def share(batch: int, count: int) -> int:
    """Samples of a micro-batch, of which each of so many processes gets one at least."""
    most = -(-batch // count)
    return most if -(-batch // most) >= count else max(1, batch // count)


def build(begun: Start, wanted: Wanted, data: Packed, shape: dict[str, Json]) -> Prepared:
    """The network, with the first weights that chance gives it, and the plan. Raises `UserError`."""
    settings, micro = begun.settings, shape["micro_batch_size"]
    assert isinstance(micro, int)
    torch.default_generator.manual_seed(settings.seed)  # initial weights
    task = begun.job.build(settings, data, begun.device)
    answers.check_task(wanted.job, task)
    steps_per_epoch = task.train_size // settings.batch_size
    if not steps_per_epoch:
        raise UserError(f"--batch-size {settings.batch_size}: the data has only {task.train_size} training samples")
    _check_micro_batches(task.model, settings.batch_size, micro)
    plan = Plan(
        seed=settings.seed,
        batch_size=settings.batch_size,
        micro_batch_size=micro,
        steps=settings.steps or settings.epochs * steps_per_epoch,
        steps_per_epoch=steps_per_epoch,
        bf16=shape["precision"] == "bf16",
        device=begun.device,
    )
    if plan.steps > LARGEST_COUNT:
        raise UserError(f"--epochs {settings.epochs}: {plan.steps} steps are too many for a run", ExitCode.USAGE)
    for step in (0, plan.steps - 1):
        answers.effort_of(task, task.effort(step, plan.steps))
    return Prepared(settings, {**shape, **task.shapes_run}, data, task, plan, _facts(begun, wanted))


def _check_micro_batches(model: torch.nn.Module, batch: int, micro: int) -> None:
    """Raise `UserError` for micro-batches of one sample where a network takes means over the batch.

    One that a job keeps as in evaluation, as part of what is frozen, takes none.
    """
    norms = (module for module in model.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm))
    takes_means = any(module.training for module in norms)
    if takes_means and 1 in (micro, batch % micro):
        raise UserError(
            f"--batch-size {batch} in micro-batches of {micro} leaves a single sample, of which BatchNorm can take no "
            "mean: choose other sizes",
            ExitCode.USAGE,
        )


def _facts(begun: Start, wanted: Wanted) -> dict[str, Json]:
    """This machine, for the ledger. May raise `Stopped`: it waits for the cloud's answer."""
    settings = begun.settings
    instance = wanted.instance.result(wanted.mailbox)
    return {
        **machine.facts(begun.device, begun.threads),
        "processes": wanted.rank.count,
        **(asdict(instance) if instance else {}),
        "instance_type": settings.instance_type or (instance.instance_type if instance else None),
        "price_per_hour": settings.price_per_hour if settings.price_per_hour == settings.price_per_hour else None,
    }
