"""One container's work for a run: prepare without touching it, claim it, train, and end it well.

Whatever can go wrong is found before the claim, so a container that can't work never takes the run from one that can.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Protocol

from storage.errors import StoreError
from trainer import gpu, prepare
from trainer.admission import check_again, check_room, check_same_run, check_share, is_finished, look_again
from trainer.attempt import Attempt
from trainer.cadence import Cadence
from trainer.checkpoint import Position, restore
from trainer.commit import RunFacts
from trainer.early import Early
from trainer.ending import exit_code_for, fail, finish, record_end, stop
from trainer.exits import ExitCode, UserError
from trainer.history import Checkpoint, History, Superseded
from trainer.loop import Loop
from trainer.opening import say_start
from trainer.place import Sign
from trainer.predecessors import last_sign, ledger_so_far, unsaved
from trainer.prepare import Prepared, Start, Wanted
from trainer.progress import Progress
from trainer.resuming import arguments
from trainer.settings import Json, Settings
from trainer.tally import Tally
from watchers import Stopped, Watch, Watcher
from watchers.signals import heed_launcher_no_more

if TYPE_CHECKING:
    from trainer.together import Together

log = logging.getLogger("baton")

FIRST_LOOKS_S = 1.0  # a machine that is told to go takes no run; one whose metadata service hangs may


class Curves(Protocol):
    """Who draws what is measured while a run is trained."""

    def begin(self) -> None:
        """This copy has the run, and goes on from what is on record now."""

    def line(self, line: Mapping[str, Json]) -> None: ...


class Restored(NamedTuple):
    """A checkpoint whose state the task has."""

    checkpoint: Checkpoint
    position: Position


@dataclass(frozen=True, kw_only=True, slots=True)
class Request(Wanted):
    """The same for the process that leads: the run's own place, and whom to tell."""

    history: History
    checkpoint: Early[Checkpoint | None]
    stop_grace_s: float  # between a SIGTERM and the kill that follows
    halt: Watcher
    watch: Watch
    show: Callable[[Progress], None]
    show_every_s: float
    curves: Curves | None = None


def train(request: Request) -> int:
    """Train a run to its end or to a notice; returns the exit code.

    Raises `UserError`, `StoreError` and `Stopped` for what ends it before it has begun.
    """
    if request.rank.count == 1:
        with gpu.in_one_line():
            return _train(request, prepare.start(request), None)
    from trainer.follow import join

    together = join(request)
    code = int(ExitCode.DEFECT)
    try:
        with gpu.in_one_line():
            begun = prepare.start(request)
            together.device = begun.device
            code = _train(request, begun, together)
        return code
    except (UserError, StoreError, Stopped) as e:
        code = exit_code_for(e, Settings.of(request.given))
        raise
    finally:
        heed_launcher_no_more()
        together.part(code)


def _train(request: Request, begun: Start, together: Together | None) -> int:
    ready, newest = _prepare(request, begun, together)
    if is_finished(request, ready, newest):
        return ExitCode.DONE
    check_room(request, ready)
    request.watch.first_looks(FIRST_LOOKS_S)
    request.mailbox.check()
    attempt = _begin(request, ready, newest, together)
    del newest  # its bytes are in the model now
    loop = Loop(ready.task, ready.plan, attempt.position, request.mailbox, attempt, together)
    try:
        with gpu.in_one_line(ready.plan.micro_batch_size):
            return _to_its_end(request, ready, attempt, loop, together)
    except Exception as e:  # also one that its last save met
        if not fail(ready.settings, attempt, e, at_boundary=loop.at_boundary):
            return ready.settings.superseded_exit_code
        raise


def _to_its_end(request: Request, ready: Prepared, attempt: Attempt, loop: Loop, together: Together | None) -> int:
    """Train, to the end of the run or to a notice."""
    evaluated_at = attempt.metrics.get("step")
    try:
        loop.run(evaluated_at=evaluated_at if isinstance(evaluated_at, int) else None)
        return finish(request, ready.settings, attempt, ready.data.classes)
    except Stopped:
        if together is not None and together.has_lost and ready.plan.device.type == "cuda":
            # what NCCL was told to do may wait for the other for ever, and all that was told after it, updates and
            # copies too, waits behind it
            attempt.lost_state = "a GPU's state can't be read once another process is gone"
        return stop(request, ready.settings, attempt)


def _prepare(request: Request, begun: Start, together: Together | None) -> tuple[Prepared, Restored | None]:
    """Everything that can fail before the run is touched, and its newest checkpoint. Raises as `train` does."""
    restored = None
    data = request.data.result(request.mailbox)
    newest = request.checkpoint.result(request.mailbox)
    shape = prepare.shape_of(begun, request, data, newest.manifest.settings if newest else None)
    if together is not None:
        together.say("shape", shape)
    ready = prepare.build(begun, request, data, shape)
    check_share(request, ready.plan)
    if newest is None:
        ready.task.begin(ready.settings.weights, request.mailbox.check)
    else:
        check_same_run(newest.manifest, request, ready, request.allow_change)
        restored = Restored(newest, restore(ready.task, newest))
    if together is not None:
        others = together.wait_for_others(ready.common)
        ready = replace(ready, machine={**ready.machine, "others": others})  # for the bill
    return ready, restored


def _begin(request: Request, ready: Prepared, prefetched: Restored | None, together: Together | None) -> Attempt:
    """Claim the run, then load what is newest now: an older copy may have saved until this moment."""
    history = request.history
    before = Early(lambda: history.read_sign("status.json"), "status").result(request.mailbox)
    look_again(request, ready, prefetched, before)
    claim: dict[str, Json] = {
        "run": history.run,
        "job": request.job,
        "pid": os.getpid(),
        "machine": ready.machine,
        "settings": ready.shape,
        "arguments": list(arguments(request.job, history.run, request.given)),
        "data": {"name": ready.data.name, "synthetic": ready.data.synthetic},
        "plan": {
            "steps": ready.plan.steps,
            "steps_per_epoch": ready.plan.steps_per_epoch,
            "batch_size": ready.plan.batch_size,
            "unit": ready.task.unit,
        },
        "tally": Tally().now(0),
        "before": last_sign(before),
    }
    # where the store is silent a notice must not wait for it; else the end of what has been claimed goes on record
    number = Early(lambda: history.claim(claim), "claim").result(request.mailbox, request.stop_grace_s / 2)
    try:
        with gpu.in_one_line():
            return _load(request, ready, prefetched, number, before, together)
    except (Stopped, UserError, StoreError) as e:
        end = partial(_did_not_begin, request, ready, number, before, exit_code_for(e, ready.settings))
        # a silent store has three quarters of the grace for this and the claim
        with suppress(StoreError, Superseded, Stopped):
            Early(end, "end").result(request.mailbox, request.stop_grace_s / 4)
        raise


def _did_not_begin(request: Request, ready: Prepared, number: int, before: Sign | None, code: int) -> None:
    """Put on record that attempt `number` ends before its first step. Raises `StoreError`, `Superseded`."""
    history = request.history
    record_end(history, number, code, "did not begin", request.mailbox)
    end: dict[str, Json] = {"state": "stopped", "exit": code, "outcome": "did not begin", "time": time.time()}
    end["host"] = ready.machine["host"]
    end["tally"] = Tally().now(0)  # its own: the ledger would count the steps of the one before twice
    mine: dict[str, Json] = {"run": history.run, "job": request.job, "attempt": number}
    history.check_fence(number)  # else a newer copy's sign would be overwritten
    history.write_record({**(before.record if before else {}), **mine, **end}, "status.json")


def _load(
    request: Request,
    ready: Prepared,
    prefetched: Restored | None,
    number: int,
    before: Sign | None,
    together: Together | None,
) -> Attempt:
    history, plan = request.history, ready.plan
    clock_ahead = Early(lambda: history.clock_ahead_s(number), "clock")
    known = prefetched.checkpoint if prefetched else None
    newest = Early(lambda: history.newest_good(known, request.mailbox.check), "newest-again").result(request.mailbox)
    position = Position()
    if newest is None and prefetched is not None:  # the task has not begun; see `_prepare`
        raise UserError(f"run {history.run!r} in {history.store.url} was deleted while this copy started; start again")
    if prefetched is not None and newest is prefetched.checkpoint:
        position = prefetched.position
    elif newest is not None:
        check_again(request, ready, prefetched, newest)
        position = restore(ready.task, newest)
    if together is not None:
        from trainer.follow import hand_over

        hand_over(together, ready.task, newest)
    manifest = newest.manifest if newest else None
    say_start(request, ready, number, manifest, before)
    facts = RunFacts(
        run=history.run,
        job=request.job,
        attempt=number,
        steps=plan.steps,
        steps_per_epoch=plan.steps_per_epoch,
        settings=ready.shape,
        machine=ready.machine,
        synthetic=ready.data.synthetic,
        arguments=arguments(request.job, history.run, request.given),
    )
    cadence = Cadence.parse(ready.settings.checkpoint_every)
    ledger = Early(lambda: ledger_so_far(history, manifest), "ledger").result(request.mailbox) if manifest else []
    saved = {entry.get("attempt") for entry in ledger}
    others = Early(lambda: unsaved(history, saved, number, before) if cadence.auto else [], "unsaved")
    if request.curves is not None:
        request.curves.begin()
    return Attempt(
        history,
        facts,
        plan,
        ready.task,
        position,
        request.mailbox,
        cadence=cadence,
        keep=ready.settings.keep,
        resumed_from=manifest,
        ledger=ledger,
        unsaved=others.result(request.mailbox),
        stop_grace_s=request.stop_grace_s,
        show=request.show,
        show_every_s=request.show_every_s,
        tally=Tally(position.step, clock_ahead.result(request.mailbox)),
        tell_line=request.curves.line if request.curves is not None else lambda line: None,
    )
