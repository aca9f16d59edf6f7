"""How a run stands, from its records in the store: at a glance from one small object, or whole from all of them.

A run is running, stopped or finished. An attempt, one container's part in it, is more: `dead` if it gave no sign of
life for 90 s and nobody heard of its end, `superseded` if a newer one took the run from it while it lived.

Ages are by the store's clock: that of whoever trains and that of whoever looks may be minutes off.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from console.endings import how
from storage.errors import NotFound
from trainer.curve import is_number
from trainer.history import SILENT_S, Bad, History
from trainer.manifest import Manifest, checkpoint_name, is_result_of
from trainer.place import Sign
from trainer.settings import Json
from trainer.side_by_side import side_by_side

T = TypeVar("T")
R = TypeVar("R")
Record = Mapping[str, Json]

AT_ONCE = 16  # reads


def at_once(work: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """Each item's result in order; what one of them raises is raised."""
    return list(side_by_side(work, items, AT_ONCE))


def age_s(sign: Sign, at: Json) -> float | None:
    """Seconds since a time that the record's writer told, whose clock may be wrong."""
    written, at = number(sign.record.get("time")), number(at)
    return None if at is None else round(max(0.0, sign.age_s + max(0.0, (written or at) - at)), 1)


# -- at a glance ----------------------------------------------------------------------------------------------


def glance(history: History) -> dict[str, Json] | None:
    """What `status` shows of a run, from its status.json alone where that can be believed; None: no such run.

    All records are read where it can't: it was copied, or the last word was "running", and that is long ago. Most
    likely it is dead, but it may have ended, or lost the run, without another word there; and a save may have come
    after it.
    """
    sign = history.read_sign("status.json")
    state = sign.record.get("state") if sign is not None else None
    if sign is None or not count(sign.record.get("attempt")) or state not in ("running", "stopped", "finished"):
        return whole(history)
    if sign.copied or (state == "running" and sign.age_s >= SILENT_S):
        return whole(history)
    return _told(history, sign, str(state), str(state))


def _told(history: History, sign: Sign, state: str, attempt_state: str) -> dict[str, Json]:
    record = sign.record
    durable = record.get("durable")
    last: Record = durable if isinstance(durable, dict) else {}
    left = number(record.get("seconds_left"))
    return {
        "run": history.run,
        "job": text(record.get("job")),
        "state": state,
        "attempt_state": attempt_state,
        "attempt": count(record.get("attempt")),
        "step": count(record.get("step")),
        "steps": count(record.get("steps")) or None,
        "epoch": count(record.get("epoch")),
        "epochs": count(record.get("epochs")) or None,
        "metrics": _metrics(record.get("metrics")),
        "exit": record.get("exit"),
        "outcome": text(record.get("outcome")),
        "host": text(record.get("host")),
        "cloud": text(record.get("cloud")),
        "instance_type": text(record.get("instance_type")),
        "device": text(record.get("device")),
        "machines": count(record.get("machines")) or 1,
        "last_seen_s": round(sign.age_s, 1),
        "checkpoint": text(last.get("name")),
        "checkpoint_step": count(last.get("step")) if last else None,
        "checkpoint_age_s": age_s(sign, last.get("time")),
        "checkpoint_health": None,  # nobody looked
        "checkpoint_every_s": number(record.get("checkpoint_every_s")),
        "checkpoint_every_fixed": text(record.get("checkpoint_every_fixed")),
        "checkpoint_every_why": text(record.get("checkpoint_every_why")),
        "save_error": text(record.get("save_error")),
        "samples_per_s": number(record.get("samples_per_s")) if state == "running" else None,
        "unit": text(record.get("unit")),
        "seconds_left": max(0.0, left - sign.age_s) if state == "running" and left is not None else None,
        "weights_sha256": text(last.get("weights_sha256")),
        "state_sha256": text(last.get("state_sha256")),
        "order_sha256": text(last.get("order_sha256")),
        "arguments": words(record.get("arguments")),
        "synthetic": bool(record.get("synthetic")),
    }


# -- whole ----------------------------------------------------------------------------------------------------


def whole(history: History) -> dict[str, Json] | None:
    """All that `status --run` tells of a run, its attempts too, or None where there is none of this name."""
    numbers = history.attempts()
    names = history.checkpoints()
    if not numbers and not names:
        return None
    attempt = numbers[-1] if numbers else 0
    sign = history.read_sign("status.json")
    if sign is not None and sign.record.get("attempt") != attempt:
        sign = None
    newest = checkpoint_name(*names[0]) if names else None
    manifest, health = _examine(history, newest) if newest else (None, None)
    result = history.read_record("result.json")
    named = result is not None and newest is not None and result.get("checkpoint") == newest
    finished = named and (manifest is None or is_result_of(result, manifest))

    def both(number: int) -> tuple[Sign, Record | None]:
        claim = history.read_sign("attempts", f"{number:06d}.json")
        return claim or Sign({}, 0.0), history.read_record("attempts", f"{number:06d}.end.json")

    records = dict(zip(numbers, at_once(both, numbers), strict=True))
    claim, end = records.get(attempt, (Sign({}, 0.0), None))
    last = sign or claim
    seen = last.age_s if last.record else None
    # whoever gave a sign that was copied is alive elsewhere, if at all
    alive = end is None and seen is not None and seen < SILENT_S and not last.copied
    state = "finished" if finished else "running" if alive else "stopped"
    told = _told(history, sign or Sign({**claim.record, **_dict(claim.record.get("machine"))}, last.age_s), state, "")
    if end is not None:
        told |= {"exit": end.get("exit"), "outcome": text(end.get("outcome"))}
    if finished:
        told["metrics"] = _metrics(_dict(result).get("metrics"))
    if manifest is not None:
        told |= _of_manifest(manifest, told)
        if manifest.attempt == attempt:
            told["checkpoint_age_s"] = age_s(sign or claim, manifest.time)
        elif (object_ := history.read_sign("checkpoints", f"{newest}.json")) is not None:
            told["checkpoint_age_s"] = round(object_.age_s, 1)  # another machine's clock can't be held to this one's
    signs = _last_signs(records, manifest, sign)
    attempts = [_attempt(n, *records[n], signs[n], alive=alive and n == attempt) for n in numbers]
    told |= {
        "attempt": attempt,
        "attempt_state": attempts[-1]["state"] if attempts else None,
        "last_seen_s": None if seen is None else round(seen, 1),
        "checkpoint": newest,
        "checkpoint_health": health,
        "attempts": list(attempts),
    }
    return told


def _of_manifest(manifest: Manifest, told: Record) -> dict[str, Json]:
    step = max(count(told["step"]), manifest.step)
    return {
        "job": told["job"] or manifest.job,
        "step": step,
        "steps": manifest.steps,
        "epoch": step // manifest.steps_per_epoch,
        "epochs": -(-manifest.steps // manifest.steps_per_epoch),
        "metrics": told["metrics"] or _metrics(manifest.metrics),
        "checkpoint_step": manifest.step,
        "weights_sha256": manifest.weights_sha256,
        "state_sha256": manifest.state_sha256,
        "order_sha256": manifest.order_sha256,
        "synthetic": manifest.synthetic,
    }


def _examine(history: History, name: str) -> tuple[Manifest | None, str]:
    """A checkpoint's manifest, and whether it can be used, as far as sizes tell: "ok", or what is wrong."""
    try:
        manifest = history.manifest(name)
    except Bad as e:
        return None, str(e)

    def size(sha256: str) -> int | None:
        try:
            return history.store.stat(history.key("parts", sha256)).size
        except NotFound:
            return None

    for ref, found in zip(manifest.parts, at_once(size, [ref.sha256 for ref in manifest.parts]), strict=True):
        if found is None:
            return manifest, f"part {ref.sha256[:12]} is not there"
        if found != ref.size:
            return manifest, f"part {ref.sha256[:12]} has {found} bytes and should have {ref.size}"
    return manifest, "ok"


def _how(state: str, end: Record | None) -> str | None:
    if end is None:
        return "no word of its end: killed, or its machine went" if state == "dead" else None
    step = _step(end, "step")
    return how(
        end.get("outcome"), end.get("notices"), None if step is None else step - (_step(end, "durable_step") or 0)
    )


def _last_signs(
    records: Mapping[int, tuple[Sign, Record | None]], manifest: Manifest | None, sign: Sign | None
) -> dict[int, list[Record]]:
    """What is known of each attempt's seconds and steps, from whatever moment; as trainer/ledger.py has it."""
    told = [_dict(claim.record.get("before")) for claim, _ in records.values()]
    told += [*(manifest.ledger if manifest else ()), *([sign.record] if sign else ())]
    found = {
        n: [_dict(r.get("tally")) for r in (claim.record, end or {}, *(t for t in told if t.get("attempt") == n))]
        for n, (claim, end) in records.items()
    }
    return {n: [tally for tally in tallies if number(tally.get("seconds")) is not None] for n, tallies in found.items()}


def _attempt(n: int, claim: Sign, end: Record | None, tallies: Sequence[Record], *, alive: bool) -> dict[str, Json]:
    """One container's part. `tallies`: all there is."""
    machine = _dict(claim.record.get("machine"))
    if end is not None:
        outcome = text(end.get("outcome"))
        state = outcome if outcome in ("finished", "superseded") else "stopped"
    else:
        state = "running" if alive else "dead"
    seconds = max((number(tally.get("seconds")) or 0.0 for tally in tallies), default=None)
    if end is not None and (at_end := number(_dict(end.get("tally")).get("seconds"))) is not None:
        seconds = at_end  # a sign of life that came after it tells of nothing more
    ahead = next((a for tally in tallies if is_number(a := tally.get("clock_ahead_s"))), 0.0)
    claimed, before = number(claim.record.get("time")), number(_dict(claim.record.get("tally")).get("seconds"))
    trained = [tally for tally in tallies if tally.get("startup_s") is not None]
    return {
        "attempt": n,
        "state": state,
        "how": _how(state, end),
        "exit": end.get("exit") if end is not None else None,
        "started": claimed - (before or 0.0) - ahead if claimed is not None else None,
        "seconds": None if seconds is None else round(seconds, 1),
        "first_step": max((_step(tally, "first_step") or 0 for tally in trained), default=None),
        "last_step": max((_step(tally, "step") or 0 for tally in trained), default=None),
        "durable_step": _step(end, "durable_step"),
        **{name: text(machine.get(name)) for name in ("host", "cloud", "instance_type", "device")},
    }


# -- what others wrote: anything may be of another type --------------------------------------------------------


def number(value: Json) -> float | None:
    """A number that arithmetic and clocks can bear."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e12 else None


def count(value: Json) -> int:
    return value if isinstance(value, int) and value > 0 else 0


def text(value: Json) -> str | None:
    return value if isinstance(value, str) else None


def words(value: Json) -> list[Json]:
    return [*value] if isinstance(value, list) and all(isinstance(word, str) for word in value) else []


def _step(record: Record | None, name: str) -> int | None:
    value = (record or {}).get(name)
    return value if isinstance(value, int) and value >= 0 else None


def _dict(value: object) -> Record:
    return value if isinstance(value, dict) else {}


def _metrics(value: Json) -> dict[str, Json]:
    return value if isinstance(value, dict) else {}
