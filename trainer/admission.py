"""Whether this container may go on with the run: it is found before the claim, or at it, and nothing is lost."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from trainer import prepare
from trainer.early import Early
from trainer.ending import told
from trainer.exits import ExitCode, OtherRun, UserError
from trainer.history import Checkpoint
from trainer.loop import Plan
from trainer.manifest import Manifest, is_result_of
from trainer.place import Sign
from trainer.prepare import Prepared
from trainer.settings import Settings, changeable, changes, difference

if TYPE_CHECKING:
    from trainer.run import Request, Restored

log = logging.getLogger("baton")

# A run's place in the data is counted in its batches, and a checkpoint's tensors are those of its network.
UNCHANGEABLE = ("model", "batch_size")


def is_finished(request: Request, ready: Prepared, newest: Restored | None) -> bool:
    """Whether the run is at its end, with its result written; says so."""
    if newest is None or newest.position.step < ready.plan.steps:
        return False
    history = request.history
    result = Early(lambda: history.read_record("result.json"), "result").result(request.mailbox)
    if result is None or not is_result_of(result, newest.checkpoint.manifest):
        return False
    log.info(
        "run %r is finished: %d steps, %s; nothing left to do (a new one: --run NAME)",
        history.run,
        newest.position.step,
        told(result.get("metrics")),
    )
    return True


def check_share(request: Request, plan: Plan) -> None:
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


def check_same_run(manifest: Manifest, request: Request, ready: Prepared, allow_change: Sequence[str]) -> None:
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


def look_again(request: Request, ready: Prepared, prefetched: Restored | None, before: Sign | None) -> None:
    """Raise `UserError` where an attempt that came meanwhile has made another run of it: who can't go on with that must
    not take it. Looks only where the run's last sign is of another attempt than the checkpoint that is known."""
    known = prefetched.checkpoint if prefetched else None
    if before is None or before.record.get("attempt") == (known.manifest.attempt if known else None):
        return
    history, mailbox = request.history, request.mailbox
    newest = Early(lambda: history.newest_good(known, mailbox.check), "newest-before").result(mailbox)
    if newest is not None and newest is not known:
        check_again(request, ready, prefetched, newest)


def check_again(request: Request, ready: Prepared, prefetched: Restored | None, newest: Checkpoint) -> None:
    """Raise `UserError` where the newest checkpoint, which was not known when this began, is of other settings.

    What nobody said is as the run's first machine had it: where this was to be that, a new start takes it over.
    """
    if prefetched is not None:
        check_same_run(newest.manifest, request, ready, request.allow_change)
        return
    settings, theirs = ready.settings, newest.manifest.settings
    unsaid = {"precision": settings.precision == "auto", "micro_batch_size": not settings.micro_batch_size}
    shape = {**ready.shape, **{name: theirs[name] for name in unsaid if unsaid[name] and name in theirs}}
    check_same_run(newest.manifest, request, replace(ready, shape=shape), ())
    if shape != ready.shape:
        raise OtherRun(
            f"another copy has begun run {request.history.run!r} in {request.history.store.url} meanwhile, in "
            "another precision or other micro-batches: start this one again, and it goes on with those",
            synthetic=newest.manifest.synthetic,
            code=ExitCode.NOT_DURABLE,
        )


def check_room(request: Request, ready: Prepared) -> None:
    """Raise `UserError` if the store has no room for a checkpoint: such a container must not take a run over."""
    store = request.history.store
    free = Early(store.free_bytes, "room").result(request.mailbox)
    if free is None:
        return
    state = sum(tensor.nbytes for tensor in ready.task.model.state_dict().values())
    need = 4 * state  # two optimizer moments beside the weights, and the checkpoint before
    if free < need:
        raise UserError(
            f"store {store.url} has {amount(free)} free and a checkpoint needs up to {amount(need)}: make "
            "room, or choose another --store"
        )


def amount(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"
