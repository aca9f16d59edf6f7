"""One container's work for a run: prepare without touching it, claim it, train, and end it well.

Whatever can go wrong is found before the claim, so a container that can't work never takes the run from one that can.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple, Protocol

from storage.errors import StoreError
from trainer import gpu, prepare
from trainer.attempt import Attempt
from trainer.cadence import Cadence
from trainer.checkpoint import Position, restore, take
from trainer.commit import RunFacts
from trainer.early import Early
from trainer.ending import exit_code_for, fail, finish, record_end, stop, told
from trainer.exits import ExitCode, OtherRun, UserError
from trainer.history import Checkpoint, History, Superseded
from trainer.loop import Loop, Plan
from trainer.manifest import Manifest, is_result_of
from trainer.opening import say_start
from trainer.place import Sign
from trainer.prepare import Prepared, Start, Wanted
from trainer.progress import Progress
from trainer.resuming import arguments
from trainer.settings import Json, Settings, changeable, changes, difference
from trainer.tally import Tally
from trainer.unsaved import unsaved
from watchers import Stopped, Watch, Watcher
from watchers.signals import heed_launcher_no_more

if TYPE_CHECKING:
    from trainer.together import Together

log = logging.getLogger("baton")

FIRST_LOOKS_S = 1.0  # a machine that is told to go takes no run; one whose metadata service hangs may

# A run's place in the data is counted in its batches, and a checkpoint's tensors are those of its network.
UNCHANGEABLE = ("model", "batch_size")

# Of an attempt before in the ledger; its machine, and when it began, stand in its claim.
CARRIED = ("attempt", "first_step", "last_step", "seconds", "exit", "tally")


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
    if _is_finished(request.history, ready, newest):
        return ExitCode.DONE
    _check_room(request.history, ready)
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
    _check_share(request, ready.plan)
    if newest is None:
        ready.task.begin(ready.settings.weights, request.mailbox.check)
    else:
        _check_same_run(newest.manifest, request, ready, request.allow_change)
        restored = Restored(newest, restore(ready.task, newest))
    if together is not None:
        others = together.wait_for_others(ready.common)
        ready = replace(ready, machine={**ready.machine, "others": others})  # for the bill
    return ready, restored


def _check_share(request: Request, plan: Plan) -> None:
    """Raise `UserError` where a step has fewer micro-batches than there are processes; with `auto` only say so."""
    count, micro_batches = request.rank.count, -(-plan.batch_size // plan.micro_batch_size)
    if micro_batches >= count:
        return
    what = (
        f"run {request.history.run!r} computes its batch of {plan.batch_size} in {micro_batches} "
        f"micro-batch{'es' if micro_batches > 1 else ''}"
    )
    if plan.batch_size < count:
        raise UserError(f"--nproc {count}: a batch of {plan.batch_size} can't be shared by so many processes")
    if plan.micro_batch_size == request.given.get("micro_batch_size"):
        way = "give a smaller --micro-batch-size"
    else:
        way = f"add --allow-change micro_batch_size for {prepare.share(plan.batch_size, count)} samples each"
    if request.given.get("nproc") != "auto":
        raise UserError(f"--nproc {count}: {what}, too few to share: {way}, or start fewer processes")
    log.warning("%s: %d of %d processes have nothing to do; %s", what, count - micro_batches, count, way)


def _check_same_run(manifest: Manifest, request: Request, ready: Prepared, allow_change: Sequence[str]) -> None:
    """Raise `OtherRun` where these settings are not the run's, and nobody said that this is meant."""
    plan, shape = ready.plan, ready.shape

    def other(what: str) -> OtherRun:
        return OtherRun(
            f"run {request.history.run!r} in {request.history.store.url} {what}", synthetic=manifest.synthetic
        )

    if manifest.job != request.job:
        raise other(f"is one of job {manifest.job}; give this one another name with --run NAME")
    # a setting that is newer than the run's image was not given to it
    newer = {**Settings().that_shape_the_run(), **ready.task.shapes_run}
    changed = difference(shape, {**newer, **manifest.settings})
    fixed = {name for name in changed if name in UNCHANGEABLE or name not in changeable()}
    refused = {name: pair for name, pair in changed.items() if name not in allow_change or name in fixed}
    if refused:
        follows = {"micro_batch_size"} if "batch_size" in refused else set()
        told = changes({name: pair for name, pair in refused.items() if name not in follows})
        ways = "use --run NAME for a new run"
        # other texts come with another vocabulary, and epochs are counted in steps
        others = {"data_sha256", "network_sha256"} <= refused.keys() or manifest.steps_per_epoch != plan.steps_per_epoch
        if not fixed and not others:
            ways += ", or " + " ".join(f"--allow-change {name}" for name in refused) + " to go on with the new value"
        if "data_sha256" in refused:
            had, here = (("SYNTHETIC" if made else "real") for made in (manifest.synthetic, ready.data.synthetic))
            kinds = f", {had} data there and {here} data here" if had != here else ""
            told += kinds
            ways += f", or give it the data that it had: --data, or `data {request.job} --source`"
        raise other(f"was started with other settings ({told}): {ways}")
    if manifest.steps_per_epoch != plan.steps_per_epoch:
        raise other(f"has epochs of {manifest.steps_per_epoch} steps, not {plan.steps_per_epoch}: use --run NAME")
    if manifest.step > plan.steps:
        raise other(f"is at step {manifest.step} already, beyond {plan.steps}: use --run NAME for a new run")
    if changed:
        log.warning("changed, as --allow-change says: %s", changes(changed))


def _is_finished(history: History, ready: Prepared, newest: Restored | None) -> bool:
    """Whether the run is at its end, with its result written; says so."""
    if newest is None or newest.position.step < ready.plan.steps:
        return False
    result = history.read_record("result.json")
    if result is None or not is_result_of(result, newest.checkpoint.manifest):
        return False
    log.info(
        "run %r is finished: %d steps, %s; nothing left to do (a new one: --run NAME)",
        history.run,
        newest.position.step,
        told(result.get("metrics")),
    )
    return True


def _check_room(history: History, ready: Prepared) -> None:
    """Raise `UserError` if the store has no room for a checkpoint: such a container must not take a run over."""
    free = history.store.free_bytes()
    state = sum(tensor.nbytes for tensor in take(ready.task, Position()).model.values())
    need = 4 * state  # two optimizer moments beside the weights, and the checkpoint before
    if free is not None and free < need:
        raise UserError(
            f"store {history.store.url} has {_amount(free)} free and a checkpoint needs up to {_amount(need)}: make "
            "room, or choose another --store"
        )


def _amount(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


def _begin(request: Request, ready: Prepared, prefetched: Restored | None, together: Together | None) -> Attempt:
    """Claim the run, then load what is newest now: an older copy may have saved until this moment."""
    history = request.history
    before = history.read_sign("status.json")
    _look_again(request, ready, prefetched, before)
    claim: dict[str, Json] = {
        "run": history.run,
        "job": request.job,
        "time": time.time(),
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
        code = exit_code_for(e, ready.settings)
        with suppress(StoreError):
            record_end(history, number, code, "did not begin", request.mailbox)
            end: dict[str, Json] = {"state": "stopped", "exit": code, "outcome": "did not begin", "time": time.time()}
            end["host"] = ready.machine["host"]
            mine: dict[str, Json] = {"run": history.run, "job": request.job, "attempt": number}
            with suppress(Superseded):  # else a newer copy's sign would be overwritten
                history.check_fence(number)
                history.write_record({**(before.record if before else {}), **mine, **end}, "status.json")
        raise


def _look_again(request: Request, ready: Prepared, prefetched: Restored | None, before: Sign | None) -> None:
    """Raise `UserError` where an attempt that came meanwhile has made another run of it: who can't go on with that must
    not take it. Looks only where the run's last sign is of another attempt than the checkpoint that is known."""
    known = prefetched.checkpoint if prefetched else None
    if before is None or before.record.get("attempt") == (known.manifest.attempt if known else None):
        return
    history, mailbox = request.history, request.mailbox
    newest = Early(lambda: history.newest_good(known, mailbox.check), "newest-before").result(mailbox)
    if newest is not None and newest is not known:
        _check_again(request, ready, prefetched, newest)


def _check_again(request: Request, ready: Prepared, prefetched: Restored | None, newest: Checkpoint) -> None:
    """Raise `UserError` where the newest checkpoint, which was not known when this began, is of other settings.

    What nobody said is as the run's first machine had it: where this was to be that, a new start takes it over.
    """
    if prefetched is not None:
        _check_same_run(newest.manifest, request, ready, request.allow_change)
        return
    settings, theirs = ready.settings, newest.manifest.settings
    unsaid = {"precision": settings.precision == "auto", "micro_batch_size": not settings.micro_batch_size}
    shape = {**ready.shape, **{name: theirs[name] for name in unsaid if unsaid[name] and name in theirs}}
    _check_same_run(newest.manifest, request, replace(ready, shape=shape), ())
    if shape != ready.shape:
        raise OtherRun(
            f"another copy has begun run {request.history.run!r} in {request.history.store.url} meanwhile, in "
            "another precision or other micro-batches: start this one again, and it goes on with those",
            synthetic=newest.manifest.synthetic,
            code=ExitCode.NOT_DURABLE,
        )


def last_sign(sign: Sign | None) -> dict[str, Json] | None:
    """Of the run's last sign of life, what the ledger needs: the next sign, of another attempt, overwrites it."""
    return {name: sign.record.get(name) for name in ("attempt", "time", "tally")} if sign else None


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
        _check_again(request, ready, prefetched, newest)
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
    cadence, ledger = Cadence.parse(ready.settings.checkpoint_every), _ledger(history, manifest) if manifest else []
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


def _ledger(history: History, manifest: Manifest) -> list[dict[str, Json]]:
    """The ledger so far, its newest entry completed by how that attempt ended; None: nobody heard of its end.

    Of each attempt what its own records don't tell: every checkpoint to come carries all of it.
    """
    end = history.read_record("attempts", f"{manifest.attempt:06d}.end.json") or {}
    entries = [*manifest.ledger[:-1], *({**entry, "exit": end.get("exit")} for entry in manifest.ledger[-1:])]
    return [{name: entry[name] for name in CARRIED if name in entry} for entry in entries]
