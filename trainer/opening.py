"""What a container says once the run is its own."""

from __future__ import annotations

import logging
import os
import re
from typing import TYPE_CHECKING

from storage.errors import StoreError
from trainer import machine
from trainer.early import Early
from trainer.loop import Plan
from trainer.manifest import Manifest
from trainer.place import Sign
from trainer.prepare import Prepared
from trainer.settings import Json, Settings, changes, difference

if TYPE_CHECKING:
    from trainer.run import Request

log = logging.getLogger("baton")


def say_start(request: Request, ready: Prepared, number: int, newest: Manifest | None, before: Sign | None) -> None:
    """Four lines: what runs, where checkpoints go, where it goes on from and why, how to stop it."""
    settings, plan, machine_ = ready.settings, ready.plan, ready.machine
    log.info(
        "%s, preset %s: %d step%s of %d sample%s on %s (%s%s thread%s, %s%s), data: %s",
        request.job,
        settings.preset,
        plan.steps,
        "" if plan.steps == 1 else "s",
        plan.batch_size,
        "" if plan.batch_size == 1 else "s",
        machine_["device"],
        f"{request.rank.count} processes of " if request.rank.count > 1 else "",
        machine_["threads"],
        "" if machine_["threads"] == 1 else "s",
        "bf16" if plan.bf16 else "fp32",
        ", not deterministic" if settings.no_deterministic else "",
        ready.data.name,
    )
    store, every = request.history.store, re.sub(r"(?<=[0-9])(?=[a-z])", " ", settings.checkpoint_every)
    every = "as often as pays" if every == "auto" else f"every {every}"
    # from another folder the same command would begin another run
    url = f"file://{os.path.abspath(store.url[7:])}" if store.url.startswith("file://") else store.url
    log.info("checkpoints: %s/%s, %s", url, request.history.run, every)
    if (caveat := store.caveat()) is not None:
        log.warning("%s", caveat)
    if newest is None:
        log.info(
            "attempt %d starts at step 0: the store has no checkpoint of this run",
            number,
            extra={"fields": {"run": request.history.run, "attempt": number, "step": 0, "steps": plan.steps}},
        )
        if number > 1:
            _warn_of_other_settings(request, number - 1, ready.shape)
    else:
        seen = ""
        if before and before.record.get("state") == "running":
            seen = f"; taking over from {before.record.get('host')}, seen {before.age_s:.0f} s ago"
        log.info(
            "attempt %d goes on at step %d of %d: checkpoint %s is the newest good one%s",
            number,
            newest.step,
            plan.steps,
            newest.name,
            seen,
            extra={
                "fields": {
                    "run": request.history.run,
                    "attempt": number,
                    "step": newest.step,
                    "steps": plan.steps,
                    "checkpoint": newest.name,
                }
            },
        )
        _warn_of_other_machine(newest.machine, ready.machine)
        _warn_of_slow_bf16(settings, plan)
    # the image has such a folder, which nobody outside sees unless it is mounted
    image = "BATON_REVISION" in os.environ
    outside = os.path.isdir(settings.halt) and (not image or os.path.ismount(settings.halt))
    touch = f"touch {settings.halt}/halt, or " if outside else ""
    log.info("to stop: %sCtrl-C%s; the place is kept", touch, ", or docker stop" if image else "")


def _warn_of_other_settings(request: Request, before: int, shape: dict[str, Json]) -> None:
    """The attempt before saved nothing, so its settings bind nobody; but they may be those that were meant."""
    name = f"{before:06d}.json"
    try:
        claim = Early(lambda: request.history.read_record("attempts", name), "claim").result(request.mailbox)
    except StoreError:
        return
    theirs = claim.get("settings") if claim else None
    if isinstance(theirs, dict) and (odd := difference(shape, {**Settings().that_shape_the_run(), **theirs})):
        log.warning("attempt %d saved nothing; the run has other settings from now on: %s", before, changes(odd))


def _warn_of_other_machine(theirs: dict[str, Json], mine: dict[str, Json]) -> None:
    theirs = {"processes": 1, **theirs}
    names = ("cpu", "cpu_capability", "threads", "device", "processes", "torch")
    odd = [name for name in names if theirs.get(name) != mine.get(name)]
    if odd:
        log.warning(
            "another kind of machine than before (%s): the same samples in the same order, but last bits may differ",
            ", ".join(f"{name} {theirs.get(name)} -> {mine.get(name)}" for name in odd),
        )
    before, now = theirs.get("revision"), mine.get("revision")
    if before and now and before != now:
        log.warning(
            "another revision of the code than before (%s -> %s): what it computes otherwise changes the run from here",
            before,
            now,
        )


def _warn_of_slow_bf16(settings: Settings, plan: Plan) -> None:
    """What nobody said is as the run began, on a processor of another kind."""
    if plan.bf16 and settings.precision == "auto" and not machine.computes_in_bf16(plan.device):
        log.warning(
            "the run began in bf16, which is slower than fp32 on this device: --precision fp32 --allow-change "
            "precision goes on in fp32"
        )
