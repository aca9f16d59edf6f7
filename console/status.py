"""The `status` command: how each run in a store stands, from its records alone."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass

from console.logs import one_line
from storage import Store
from storage.errors import NotFound
from trainer.exits import ExitCode, UserError
from trainer.history import Bad, History, runs
from trainer.manifest import Manifest, checkpoint_name
from trainer.settings import Json

SILENT_S = 90.0  # three signs of life missed: the machine is gone


def show(store: Store, run: str | None, *, as_json: bool) -> int:
    """Print the runs, or the one asked for. Raises `UserError` if there is no such run, `StoreError`."""
    names = [run] if run else runs(store)
    found = [told for name in names if (told := describe(History(store, name))) is not None]
    if run and not found:
        raise UserError(f"no run {run!r} in {store.url}; `status` without --run lists those there are")
    if as_json:
        print(json.dumps(found, indent=2))
    elif not found:
        print(f"no runs in {store.url}")
    else:
        _print_table(found)
    return ExitCode.DONE


@dataclass(frozen=True, slots=True)
class Newest:
    """The newest checkpoint, and whether it can be used: "ok", or what is wrong with it."""

    manifest: Manifest | None
    name: str
    health: str


def describe(history: History) -> dict[str, Json] | None:
    """All that `status --json` tells of a run, or None where there is none of this name."""
    attempts = history.attempts()
    newest = _newest(history)
    if not attempts and newest is None:
        return None
    attempt = attempts[-1] if attempts else 0
    claim = history.read_record("attempts", f"{attempt:06d}.json") or {}
    end = history.read_record("attempts", f"{attempt:06d}.end.json")
    sign = history.read_record("status.json") or {}
    result = history.read_record("result.json")
    if sign.get("attempt") != attempt:
        sign = {}
    seen = _age(sign.get("time") or claim.get("time"))
    manifest = newest.manifest if newest else None
    if result is not None and newest is not None and result.get("checkpoint") == newest.name:
        state = "finished"
    elif end is None and seen is not None and seen < SILENT_S:
        state = "running"
    else:
        state = "stopped"
    step = max(_count(sign.get("step")), manifest.step if manifest else 0)
    steps = manifest.steps if manifest else _count(sign.get("steps")) or None
    per_epoch = manifest.steps_per_epoch if manifest else None
    machine = claim.get("machine")
    return {
        "run": history.run,
        "job": claim.get("job") or (manifest.job if manifest else None),
        "state": state,
        "attempt": attempt,
        "step": step,
        "steps": steps,
        "epoch": step // per_epoch if per_epoch else _count(sign.get("epoch")),
        "epochs": -(-manifest.steps // manifest.steps_per_epoch) if manifest else sign.get("epochs"),
        "metrics": (result or {}).get("metrics") if state == "finished" else sign.get("metrics") or _metrics(manifest),
        "exit": end.get("exit") if end else None,
        "outcome": end.get("outcome") if end else None,
        "host": machine.get("host") if isinstance(machine, dict) else None,
        "last_seen_s": seen,
        "checkpoint": newest.name if newest else None,
        "checkpoint_step": manifest.step if manifest else None,
        "checkpoint_age_s": _age(manifest.time) if manifest else None,
        "checkpoint_health": newest.health if newest else None,
        "save_error": sign.get("save_error"),
        "samples_per_s": sign.get("samples_per_s"),
        "seconds_left": sign.get("seconds_left") if state == "running" else None,
        "weights_sha256": manifest.weights_sha256 if manifest else None,
        "state_sha256": manifest.state_sha256 if manifest else None,
        "order_sha256": manifest.order_sha256 if manifest else None,
        "synthetic": manifest.synthetic if manifest else bool(sign.get("synthetic")),
    }


def _newest(history: History) -> Newest | None:
    names = history.checkpoints()
    if not names:
        return None
    name = checkpoint_name(*names[0])
    try:
        manifest = history.manifest(name)
    except Bad as e:
        return Newest(None, name, str(e))
    for ref in manifest.parts:
        try:
            size = history.store.stat(history.key("parts", ref.sha256)).size
        except NotFound:
            return Newest(manifest, name, f"part {ref.sha256[:12]} is not there")
        if size != ref.size:
            return Newest(manifest, name, f"part {ref.sha256[:12]} has {size} bytes and should have {ref.size}")
    return Newest(manifest, name, "ok")


def _metrics(manifest: Manifest | None) -> dict[str, Json]:
    return manifest.metrics if manifest else {}


def _count(value: Json) -> int:
    return value if isinstance(value, int) else 0


def _age(at: Json) -> float | None:
    # what others wrote: a number may be none, or too large for arithmetic
    return round(max(0.0, time.time() - at), 1) if isinstance(at, int | float) and 0 <= at < 1e12 else None


def _print_table(found: list[dict[str, Json]]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("run", "state", "step", "attempt", "accuracy", "last durable checkpoint", "seen"):
        table.add_column(title)
    for told in found:
        cells = (
            f"{told['run']}" + (" SYNTHETIC" if told["synthetic"] else ""),
            f"{told['state']}" + (f" (exit {told['exit']})" if told["exit"] is not None else ""),
            f"{told['step']} of {told['steps'] or '?'}",
            str(told["attempt"]),
            _accuracy(told["metrics"]),
            _checkpoint(told),
            f"{_ago(told['last_seen_s'])} on {told['host']}",
        )
        table.add_row(
            *[escape(one_line(f"{cell:.200}")) for cell in cells]
        )  # records may hold what rich takes for markup
    Console(width=None if _is_terminal() else 160, highlight=False).print(table)
    for told in found:
        if told["save_error"]:
            print(one_line(f"{told['run']}: the last save failed: {told['save_error']}"))


def _is_terminal() -> bool:
    import sys

    return sys.stdout.isatty()


def _accuracy(metrics: Json) -> str:
    value = metrics.get("accuracy") if isinstance(metrics, dict) else None
    return f"{100 * value:.2f} %" if isinstance(value, float) else "-"


def _checkpoint(told: dict[str, Json]) -> str:
    if told["checkpoint"] is None:
        return "none yet"
    health = "" if told["checkpoint_health"] == "ok" else f", BAD: {told['checkpoint_health']}"
    return f"step {told['checkpoint_step']}, {_ago(told['checkpoint_age_s'])}{health}"


def _ago(seconds: Json) -> str:
    from console.progress import duration

    return f"{duration(seconds)} ago" if isinstance(seconds, int | float) else "never"
