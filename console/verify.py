"""The `verify` command: is every checkpoint of a run what it should be, down to its bytes."""

from __future__ import annotations

import json
import logging

from storage import Store
from trainer.exits import ExitCode, UserError
from trainer.history import History
from trainer.place import none_of, runs
from trainer.verify import Verdict, verify

log = logging.getLogger("baton")


def show(store: Store, run: str | None, *, as_json: bool) -> int:
    """Print a line for each checkpoint. Raises `UserError` if there is no such run, `StoreError`."""
    names = [run] if run else runs(store)
    found = [history for name in names if (history := History(store, name)).attempts() or history.checkpoints()]
    if run and not found:
        raise UserError(none_of(store, run))
    if not found and not as_json:
        print(none_of(store))
    bad, told = 0, []
    for history in found:
        verdicts = verify(history, log.debug)
        why = history.why_marked()
        bad += sum(bool(verdict.problems) for verdict in verdicts) + (why is not None)
        told += [{**_told(history, verdict), "unfinished": why} for verdict in verdicts]
        if not as_json:
            _print(history, verdicts)
            if why is not None:
                print(f"{history.run} {why}")
    if as_json:
        print(json.dumps(told, indent=2))
    return ExitCode.SETUP if bad else ExitCode.DONE


def _told(history: History, verdict: Verdict) -> dict[str, object]:
    manifest = verdict.manifest
    return {
        "run": history.run,
        "checkpoint": verdict.name,
        "good": not verdict.problems,
        "problems": verdict.problems,
        "step": manifest.step if manifest else None,
        "parent": manifest.parent if manifest else None,
        "bytes": verdict.bytes,
        "weights_sha256": manifest.weights_sha256 if manifest else None,
        "state_sha256": manifest.state_sha256 if manifest else None,
    }


def _print(history: History, verdicts: list[Verdict]) -> None:
    for verdict in verdicts:
        how = "BAD: " + "; ".join(verdict.problems) if verdict.problems else f"good, {verdict.bytes / 1e6:.1f} MB"
        print(f"{history.run} {verdict.name} {how}")
    bad = sum(bool(verdict.problems) for verdict in verdicts)
    if not verdicts:
        print(f"{history.run} has no checkpoint yet")
    elif bad == len(verdicts):
        print(
            f"no checkpoint of {history.run} is good: a start ends with exit code 78 and changes nothing; "
            "begin anew with --run NAME"
        )
    elif bad:
        are = "is" if bad == 1 else "are"
        print(
            f"{bad} of {len(verdicts)} checkpoints of {history.run} {are} bad; go on as ever: a start takes the newest "
            "good one, and leaves the bad alone"
        )
    elif len(verdicts) == 1:
        print(f"the 1 checkpoint of {history.run} is good")
    else:
        print(f"all {len(verdicts)} checkpoints of {history.run} are good")
