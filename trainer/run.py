"""One container's work for a run: prepare without touching it, claim it, train, and end it well.

Whatever can go wrong is found before the claim, so a container that can't work never takes the run from one that can.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from trainer import job as jobs
from trainer import machine
from trainer.attempt import Attempt, Progress
from trainer.cadence import Cadence
from trainer.checkpoint import Position, restore, take
from trainer.data.packed import Packed
from trainer.early import Early
from trainer.exits import ExitCode, UserError
from trainer.history import Checkpoint, History
from trainer.loop import Loop, Plan
from trainer.manifest import Manifest
from trainer.saver import RunFacts
from trainer.settings import Json, Settings, difference
from trainer.startup import put_off_compiler
from watchers import Mailbox, Stopped, Watcher

log = logging.getLogger("baton")

# A run's place in the data is counted in its batches, and a checkpoint's tensors are those of its network.
UNCHANGEABLE = ("model", "batch_size")


@dataclass(frozen=True, slots=True)
class Prepared:
    """All that is needed to train, with the run not yet touched."""

    history: History
    settings: Settings
    shape: dict[str, Json]  # the settings that shape the run, and its data
    data: Packed
    task: jobs.Task
    plan: Plan
    machine: dict[str, Json]
    newest: Checkpoint | None


def train(
    job_name: str,
    given: Mapping[str, Any],
    history: History,
    early_checkpoint: Early[Checkpoint | None],
    early_data: Early[Packed],
    mailbox: Mailbox,
    halt: Watcher,
    allow_change: Sequence[str],
    show: Callable[[Progress], None],
    show_every_s: float,
) -> int:
    """Train a run to its end or to a notice; returns the exit code. `given`: the user's own settings.

    Raises `UserError`, `StoreError` and `Stopped` for what ends it before it has begun.
    """
    ready = _prepare(job_name, given, history, early_checkpoint, early_data, mailbox, allow_change)
    if _is_finished(ready):
        return ExitCode.DONE
    _check_room(ready)
    mailbox.check()
    attempt = _begin(job_name, ready, mailbox, show, show_every_s)
    loop = Loop(ready.task, ready.plan, attempt.position, mailbox, attempt)
    evaluated_at = attempt.metrics.get("step")
    try:
        loop.run(evaluated_at=evaluated_at if isinstance(evaluated_at, int) else None)
    except Stopped:
        return _stop(attempt, ready, mailbox, halt)
    except Exception:
        attempt.end(ExitCode.DEFECT, "defect")
        raise
    return _finish(attempt, ready, mailbox, halt)


def _prepare(
    job_name: str,
    given: Mapping[str, Any],
    history: History,
    early_checkpoint: Early[Checkpoint | None],
    early_data: Early[Packed],
    mailbox: Mailbox,
    allow_change: Sequence[str],
) -> Prepared:
    put_off_compiler()
    job = jobs.load(job_name)
    name, preset = jobs.preset(job, given.get("preset", ""))
    settings = Settings.of({**given, "preset": name}, preset)
    device = machine.pick_device(settings.device)
    threads = machine.thread_count()
    machine.compute_exactly(threads)
    machine.keep_memory()
    data = early_data.result(mailbox)
    newest = early_checkpoint.result(mailbox)

    precision = settings.precision
    if precision == "auto":  # fixed by the run's first machine, wherever it goes on
        recorded = newest.manifest.settings.get("precision") if newest else None
        precision = "fp32" if recorded == "fp32" or not (recorded or machine.computes_in_bf16(device)) else "bf16"
    micro = min(settings.micro_batch_size or settings.batch_size, settings.batch_size)
    shape: dict[str, Json] = {
        **settings.that_shape_the_run(),
        "precision": precision,
        "micro_batch_size": micro,
        "data_sha256": data.sha256,
    }
    torch.default_generator.manual_seed(settings.seed)  # initial weights
    task = job.build(settings, data, device)
    steps_per_epoch = task.train_size // settings.batch_size
    if not steps_per_epoch:
        raise UserError(f"--batch-size {settings.batch_size}: the data has only {task.train_size} training samples")
    plan = Plan(
        seed=settings.seed,
        batch_size=settings.batch_size,
        micro_batch_size=micro,
        steps=settings.steps or settings.epochs * steps_per_epoch,
        steps_per_epoch=steps_per_epoch,
        bf16=precision == "bf16",
        device=device,
    )
    if newest is not None:
        _check_same_run(newest.manifest, job_name, shape, plan, allow_change, history)
        restore(task, newest)  # does it fit this image's network? once more after the claim
    facts = {
        **machine.facts(device, threads),
        "instance_type": settings.instance_type or None,
        "price_per_hour": settings.price_per_hour if settings.price_per_hour == settings.price_per_hour else None,
    }
    return Prepared(history, settings, shape, data, task, plan, facts, newest)


def _check_same_run(
    manifest: Manifest,
    job_name: str,
    shape: dict[str, Json],
    plan: Plan,
    allow_change: Sequence[str],
    history: History,
) -> None:
    """Raise `UserError` where these settings are not the run's, and nobody said that this is meant."""
    where = f"run {history.run!r} in {history.store.url}"
    if manifest.job != job_name:
        raise UserError(f"{where} is one of job {manifest.job}; give this one another name with --run NAME")
    changed = difference(shape, manifest.settings)
    refused = {name: pair for name, pair in changed.items() if name not in allow_change or name in UNCHANGEABLE}
    if refused:
        told = ", ".join(f"{n} {_short(theirs)} -> {_short(mine)}" for n, (mine, theirs) in refused.items())
        ways = "use --run NAME for a new run"
        if not any(name in UNCHANGEABLE for name in refused):
            ways += ", or " + " ".join(f"--allow-change {name}" for name in refused) + " to go on with the new value"
        raise UserError(f"{where} was started with other settings ({told}): {ways}")
    if manifest.steps_per_epoch != plan.steps_per_epoch:
        raise UserError(
            f"{where} has epochs of {manifest.steps_per_epoch} steps, not {plan.steps_per_epoch}: use --run NAME"
        )
    if manifest.step > plan.steps:
        raise UserError(
            f"{where} is at step {manifest.step} already, beyond {plan.steps}: use --run NAME for a new run"
        )
    for name, (mine, theirs) in changed.items():
        log.warning("%s changed from %s to %s, as --allow-change says", name, _short(theirs), _short(mine))


def _short(value: Json) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text[:12] + "..." if len(text) > 24 else text


def _is_finished(ready: Prepared) -> bool:
    """Whether the run is at its end, with its result written; says so."""
    if ready.newest is None or ready.newest.manifest.step < ready.plan.steps:
        return False
    result = ready.history.read_record("result.json")
    if result is None or result.get("checkpoint") != ready.newest.manifest.name:
        return False
    log.info(
        "run %r is finished: %d steps, %s; nothing left to do (a new one: --run NAME)",
        ready.history.run,
        ready.newest.manifest.step,
        _told(result.get("metrics")),
    )
    return True


def _told(metrics: Json) -> str:
    pairs = metrics.items() if isinstance(metrics, dict) else ()
    return ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in pairs if isinstance(value, float))


def _check_room(ready: Prepared) -> None:
    """Raise `UserError` if the store has no room for a checkpoint: such a container must not take a run over."""
    free = ready.history.store.free_bytes()
    state = sum(tensor.nbytes for tensor in take(ready.task, Position()).model.values())
    need = 4 * state  # two optimizer moments beside the weights, and the checkpoint before
    if free is not None and free < need:
        raise UserError(
            f"store {ready.history.store.url} has {free / 1e6:.1f} MB free and a checkpoint needs up to "
            f"{need / 1e6:.1f} MB: make room, or choose another --store"
        )


def _begin(
    job_name: str, ready: Prepared, mailbox: Mailbox, show: Callable[[Progress], None], show_every_s: float
) -> Attempt:
    """Claim the run, then load what is newest now: an older copy may have saved until this moment."""
    history, plan = ready.history, ready.plan
    before = history.read_record("status.json")
    number = history.claim(
        {
            "run": history.run,
            "job": job_name,
            "time": time.time(),
            "pid": os.getpid(),
            "machine": ready.machine,
            "settings": ready.shape,
            "data": {"name": ready.data.name, "synthetic": ready.data.synthetic},
        }
    )
    newest = history.newest_good(ready.newest.data if ready.newest else None, mailbox.check)
    position = Position()
    if newest is not None:
        if ready.newest is None:
            _check_same_run(newest.manifest, job_name, ready.shape, plan, (), history)
        position = restore(ready.task, newest)
    _say_start(job_name, ready, number, newest, before)
    facts = RunFacts(
        run=history.run,
        job=job_name,
        attempt=number,
        steps=plan.steps,
        steps_per_epoch=plan.steps_per_epoch,
        settings=ready.shape,
        machine=ready.machine,
        synthetic=ready.data.synthetic,
    )
    return Attempt(
        history,
        facts,
        plan,
        ready.task,
        position,
        mailbox,
        cadence=Cadence.parse(ready.settings.checkpoint_every),
        keep=ready.settings.keep,
        resumed_from=newest,
        show=show,
        show_every_s=show_every_s,
    )


def _say_start(
    job_name: str, ready: Prepared, number: int, newest: Checkpoint | None, before: dict[str, Json] | None
) -> None:
    """Four lines: what runs, where checkpoints go, where it goes on from and why, how to stop it."""
    settings, plan, machine_ = ready.settings, ready.plan, ready.machine
    log.info(
        "%s, preset %s: %d steps of %d samples on %s (%s threads, %s), data: %s",
        job_name,
        settings.preset,
        plan.steps,
        plan.batch_size,
        machine_["device"],
        machine_["threads"],
        "bf16" if plan.bf16 else "fp32",
        ready.data.name,
    )
    log.info("checkpoints: %s/%s every %s", ready.history.store.url, ready.history.run, settings.checkpoint_every)
    if (caveat := ready.history.store.caveat()) is not None:
        log.warning("%s", caveat)
    if newest is None:
        log.info("attempt %d starts at step 0: the store has no checkpoint of this run", number)
    else:
        seen = ""
        if before and before.get("state") == "running" and isinstance(before.get("time"), int | float):
            seen = f"; taking over from {before.get('host')}, seen {max(0.0, time.time() - before['time']):.0f} s ago"  # type: ignore[operator]
        log.info(
            "attempt %d goes on at step %d of %d: checkpoint %s is the newest good one%s",
            number,
            newest.manifest.step,
            plan.steps,
            newest.manifest.name,
            seen,
        )
        _warn_of_other_machine(newest.manifest.machine, ready.machine)
    touch = f"touch {settings.halt}/halt, or " if os.path.isdir(settings.halt) else ""
    log.info("to stop: %sCtrl-C, or docker stop; the place is kept", touch)


def _warn_of_other_machine(theirs: dict[str, Json], mine: dict[str, Json]) -> None:
    odd = [
        name for name in ("cpu", "cpu_capability", "threads", "device", "torch") if theirs.get(name) != mine.get(name)
    ]
    if odd:
        log.warning(
            "another kind of machine than before (%s): the same samples in the same order, but last bits may differ",
            ", ".join(f"{name} {theirs.get(name)} -> {mine.get(name)}" for name in odd),
        )


def _stop(attempt: Attempt, ready: Prepared, mailbox: Mailbox, halt: Watcher) -> int:
    """Save what a notice stopped, and say what became of it. Returns the exit code."""
    assert mailbox.stop is not None
    log.info("stopping at step %d: %s", attempt.position.step, mailbox.stop.detail)
    saved = attempt.save_last()
    if (notice := halt.check()) is not None:  # an operator's halt outranks the SIGTERM that came with it
        mailbox.post(notice)
    source, last, step = mailbox.stop.source, attempt.saver.durable, attempt.position.step
    if attempt.superseded is not None:  # whatever else came: the run is no longer this copy's to halt or to save
        code, outcome = ready.settings.superseded_exit_code, "superseded"
        log.info("superseded: %s; nothing more is saved here", attempt.superseded)
    elif saved:
        code, outcome = exit_code_for(source, ready.settings), "stopped"
        spare = f", {mailbox.deadline - time.time():.1f} s before the deadline" if mailbox.deadline else ""
        log.info("last checkpoint durable at step %d, 0 steps lost%s", last.step if last else 0, spare)
    else:
        code, outcome = ExitCode.NOT_DURABLE, "not durable"
        log.error(
            "the last state could not be saved (%s): %d steps since step %d are lost",
            attempt.saver.error or "no time left",
            step - (last.step if last else 0),
            last.step if last else 0,
        )
    attempt.end(code, outcome)
    return code


def exit_code_for(source: str, settings: Settings) -> int:
    """The exit code after a stop by this notice, everything being durable."""
    match source:
        case "halt":
            return ExitCode.DONE
        case "SIGINT":
            return ExitCode.INTERRUPTED
        case "superseded":
            return settings.superseded_exit_code
        case _:
            return settings.preempted_exit_code


def _finish(attempt: Attempt, ready: Prepared, mailbox: Mailbox, halt: Watcher) -> int:
    """The run is at its end: make that durable, and write the result."""
    if not attempt.save_last():
        if attempt.superseded is not None:
            return _stop(attempt, ready, mailbox, halt)
        log.error(
            "trained to the end, but the last state could not be saved: %s", attempt.saver.error or "no time left"
        )
        attempt.end(ExitCode.NOT_DURABLE, "not durable")
        return ExitCode.NOT_DURABLE
    attempt.write_result()
    attempt.end(ExitCode.DONE, "finished")
    log.info(
        "finished: %d steps, %s; result in %s/%s/result.json",
        attempt.position.step,
        _told(attempt.metrics),
        ready.history.store.url,
        ready.history.run,
        extra={"fields": {"step": attempt.position.step, **attempt.metrics}},
    )
    return ExitCode.DONE
