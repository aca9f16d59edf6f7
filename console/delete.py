"""The `delete` command: a run whole, after saying what that is."""

from __future__ import annotations

from storage import Store
from trainer.deletion import check_silent, contents, delete
from trainer.exits import ExitCode
from trainer.history import History


def delete_whole(store: Store, run: str, *, yes: bool) -> int:
    """Raises `UserError` if there is no such run or it is running, `StoreError`."""
    history = History(store, run)
    there = contents(history)
    what = f"run {run} in {store.url}: {there.checkpoints} checkpoints, {len(there.objects)} objects, "
    what += f"{there.bytes / 1e6:.1f} MB"
    check_silent(history)
    if not yes:
        print(f"would delete {what}\nnothing has been deleted; --yes does it")
        return ExitCode.DONE
    delete(history)
    print(f"deleted {what}")
    return ExitCode.DONE
