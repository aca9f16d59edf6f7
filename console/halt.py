"""The `halt` command: stop a run from anywhere, through its store."""

from __future__ import annotations

import socket
import time

from console.standing import whole
from storage import Store
from trainer.exits import ExitCode, UserError
from trainer.history import SIGN_S, SILENT_S, History
from trainer.place import none_of


def halt(store: Store, run: str) -> int:
    """Ask the run's newest attempt to stop. Raises `UserError` if there is no such run, `StoreError`."""
    history = History(store, run)
    told = whole(history)
    attempt = told["attempt"] if told else 0
    if told is None or not attempt:
        raise UserError(none_of(store, run))
    if told["state"] == "finished":
        print(f"run {run} is finished, nothing to halt")
        return ExitCode.DONE
    if told["outcome"] is not None:
        print(f"run {run} is not running: attempt {attempt} has ended ({told['outcome']}), nothing to halt")
        return ExitCode.DONE
    history.write_record({"by": socket.gethostname(), "time": time.time()}, "halts", f"{attempt:06d}.json")
    seen = told["last_seen_s"]
    if isinstance(seen, int | float) and seen < SILENT_S:
        print(
            f"attempt {attempt} of run {run} on {told['host']} stops within {SIGN_S:.0f} s, saves its state and "
            f"exits with 0; `status --run {run}` shows when it has"
        )
    else:
        ago = f"for {seen:.0f} s" if isinstance(seen, int | float) else "at all"
        print(
            f"attempt {attempt} of run {run} gave no sign of life {ago}: most likely its machine is gone; "
            "should it come back, it stops"
        )
    print("this holds for that attempt alone: the next start goes on with the run")
    return ExitCode.DONE
