"""Whose mistake an error is that nobody foresaw."""

from __future__ import annotations

from pathlib import Path

from trainer.names import JOBS

_CODE = [JOBS.parents[1] / name for name in ("console", "storage", "trainer", "watchers")]


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
    return mine or "a defect in Baton or in the job"
