"""A process that shares a run's batches and leaves the rest to process 0: it claims, saves and says nothing."""

from __future__ import annotations

import logging
from contextlib import suppress

from storage.errors import StoreError
from trainer import gpu, prepare
from trainer.checkpoint import Position, begin_optimizers, begun_optimizers, restore
from trainer.ending import acknowledge, exit_code_for
from trainer.exits import ExitCode, UserError
from trainer.history import Checkpoint
from trainer.job import Task
from trainer.loop import Loop
from trainer.machine import BILLED
from trainer.manifest import from_json
from trainer.prepare import Prepared, Wanted
from trainer.scores import Metric
from trainer.settings import Settings
from trainer.together import START_S, Ended, Together
from watchers import Stopped

log = logging.getLogger("baton")


class Quiet:
    """Boundaries concern process 0."""

    def boundary(self, *, evaluating: bool, evaluated: float = 0.0) -> None:
        pass

    def evaluated(self, metrics: dict[str, Metric]) -> None:
        pass


def join(wanted: Wanted) -> Together:
    """Meet the others, before anything can go wrong that all should hear of. Raises `UserError` and `Stopped`."""
    gpus = Settings.of(wanted.given).device != "cpu" and gpu.is_usable()
    return Together.join(wanted.rank, wanted.mailbox, gpus=gpus)


def follow(wanted: Wanted) -> int:
    """Train with the others for as long as process 0 does. Returns its exit code.

    Raises `UserError` and `Stopped` for what ends it before it has met the others.
    """
    together = join(wanted)
    try:
        ready = _prepare(wanted, together)
        with gpu.in_one_line(ready.plan.micro_batch_size):
            position, evaluated_at = _take_over(together, ready.task)
            Loop(ready.task, ready.plan, position, wanted.mailbox, Quiet(), together).run(evaluated_at=evaluated_at)
        return together.last_word().code
    except Ended as e:
        together.say_bye()
        return e.code
    except Stopped as e:
        if together.has_lost:
            return exit_code_for(e, Settings.of(wanted.given))
        code = together.last_word().code
        if code == exit_code_for(e, Settings.of(wanted.given)):  # all is saved
            acknowledge(wanted.mailbox)
        return code


def _prepare(wanted: Wanted, together: Together) -> Prepared:
    """What is wrong here is told to process 0, which ends all."""
    try:
        begun = prepare.start(wanted)
        together.device = begun.device
        data = wanted.data.result(wanted.mailbox)
        shape = together.hear("shape", START_S)
        if shape["data_sha256"] != data.sha256:
            raise UserError("its data are not those of process 0")
        with gpu.in_one_line():
            ready = prepare.build(begun, wanted, data, shape)
    except Ended:
        raise
    except (UserError, Stopped, StoreError) as e:
        together.say_why_not(e, exit_code_for(e, Settings.of(wanted.given)))
        raise together.last_word() from e
    except Exception as e:
        with suppress(Stopped):  # by process 0 being gone: it is this that has to be seen
            together.say_why_not(e, ExitCode.DEFECT)
        raise
    machine = {name: ready.machine.get(name) for name in BILLED} if wanted.rank.local == 0 else None
    together.say_ready(ready.common, machine)
    return ready


def hand_over(together: Together, task: Task, newest: Checkpoint | None) -> None:
    """Process 0 gives the others the state that the run goes on from. `newest`: None for a new run."""
    together.say("state", {"name": newest.manifest.name, "json": newest.manifest.to_json().decode()} if newest else {})
    for ref in newest.manifest.parts if newest else ():
        together.share_bytes(newest.data[ref.sha256] if newest else None, ref.size)
    if newest is None:
        together.share_state(task.model)
        state = begun_optimizers(task)
        together.say("optimizers", len(state))
        together.share_bytes(state, len(state))


def _take_over(together: Together, task: Task) -> tuple[Position, int | None]:
    """Where the run goes on, and the step of its last evaluation."""
    word = together.hear("state", START_S, to_the_end=True)  # notices are heeded together, before the first step
    if not word:
        together.share_state(task.model)
        size = together.hear("optimizers", START_S, to_the_end=True)
        begin_optimizers(task, together.share_bytes(None, size))
        return Position(), None
    manifest = from_json(word["json"].encode(), word["name"])
    data = {ref.sha256: b"" for ref in manifest.parts}
    for ref in manifest.parts:
        data[ref.sha256] = together.share_bytes(None, ref.size)
    evaluated_at = manifest.metrics.get("step")
    return restore(task, Checkpoint(manifest, data)), evaluated_at if isinstance(evaluated_at, int) else None
