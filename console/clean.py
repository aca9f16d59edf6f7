"""The `clean` command: say what the rules of retention no longer keep, and delete it if told to."""

from __future__ import annotations

from storage import Store
from trainer.exits import ExitCode, UserError
from trainer.history import History
from trainer.place import none_of, runs
from trainer.retention import Retention, counted, store_time, told


def clean(store: Store, run: str | None, keep: int, *, yes: bool) -> int:
    """Raises `UserError` if there is no such run, `StoreError`."""
    names = [run] if run else runs(store)
    found = [history for name in names if (history := History(store, name)).checkpoints() or history.attempts()]
    if run and not found:
        raise UserError(none_of(store, run))
    if not found:
        print(none_of(store))
    left = False
    code = ExitCode.DONE
    for history in found:
        now = store_time(history)
        retention = Retention(history, keep)
        excess = retention.excess(now)
        some = bool(excess.manifests or excess.parts)
        if excess.why_not:
            print(f"{history.run}: {excess.why_not}; `verify --run {history.run}` says more")
            code = ExitCode.SETUP
        if yes:
            retention.remove(excess)
        what = ("deleted " if yes else "would delete ") + told(excess) if some else "nothing to delete"
        print(f"{history.run}: {what}; {counted(excess.kept, 'checkpoint')} stay{'s' if excess.kept == 1 else ''}")
        left |= some and not yes
    if left:
        print("nothing has been deleted; --yes does it")
    return code
