"""The `copy` command: a run to another store, and what came of it."""

from __future__ import annotations

import logging

from storage import Store
from trainer.exits import ExitCode, UserError
from trainer.history import History
from trainer.retention import counted
from trainer.transfer import copy

log = logging.getLogger("baton")


def copy_run(source: Store, target: Store, run: str) -> int:
    """Raises `UserError`, `StoreError`."""
    if source.url.rstrip("/") == target.url.rstrip("/"):
        raise UserError(f"{source.url} is both where to copy from and where to: give two stores", ExitCode.USAGE)
    copied = copy(History(source, run), History(target, run), log.debug)
    for name, why in copied.bad.items():
        log.warning("checkpoint %s is bad in %s and was not copied: %s", name, source.url, why)
    print(
        f"run {run} is in {target.url}: {counted(len(copied.checkpoints), 'checkpoint')}, "
        f"{counted(copied.sent_parts, 'part')} sent ({copied.sent_bytes / 1e6:.1f} MB), {copied.found_parts} there "
        "before, every byte checked"
    )
    if copied.checkpoints:
        print(f"a start there goes on from {copied.checkpoints[-1]}")
    if copied.newer:
        print(
            f"{source.url} is still being written to: {counted(copied.newer, 'newer checkpoint')} not in the copy; "
            f"`halt --run {run}` there, then copy again"
        )
    return ExitCode.DONE
