"""Whose mistake an error is that nobody foresaw."""

from __future__ import annotations

import sys
from pathlib import Path

from trainer.names import JOBS

_CODE = [JOBS.parents[1] / name for name in ("console", "storage", "trainer", "watchers")]
NOBODYS = "a defect in Baton or in the job"


def whose(error: Exception) -> str:
    """In words. The traceback of what came by way of a job's file begins there from now on: how Baton came to it helps
    nobody. The mistake is the job's, unless it called Baton, and that failed."""
    mine, at, frame = "", None, error.__traceback__
    while frame is not None:
        file = Path(frame.tb_frame.f_code.co_filename)
        if file.parent == JOBS:
            mine, at = f"a mistake in {file}, line {frame.tb_lineno}", at or frame
        elif any(folder in file.parents for folder in _CODE):
            mine = ""
        frame = frame.tb_next
    error.__traceback__ = at or error.__traceback__
    return mine or NOBODYS


def unusable_python(error: Exception) -> str | None:
    """The line for a library that this Python lacks or can't load; None for all else, what a job imports too."""
    why = str(error).partition("\n")[0][:200]
    no_room = "failed to map segment" in why or "cannot allocate memory" in why  # ld.so's words
    if not (isinstance(error, ImportError) or no_room) or whose(error) != NOBODYS:
        return None
    mend = "give it more memory (ulimit -v?)" if no_room else "use .venv/bin/python, which `make cifar10` sets up"
    return f"{sys.executable or 'this Python'} can't load what Baton needs: {why}; {mend}"
