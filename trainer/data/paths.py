"""Paths that people give: one that may not be looked at, or is no path, is told in one line."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trainer.data.dataset import shown
from trainer.data.pulse import told
from trainer.exits import UserError


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """For looking at `path` and reading it: an `OSError` becomes `UserError`.

    `Path.is_file` and its like raise it too, of a folder that may not be entered and of a name that is too long.
    """
    try:
        yield
    except OSError as e:
        raise told(e, f"can't read {shown(path)}") from e


def expanded(path: str) -> Path:
    """The path, a ~ at its beginning taken for that user's home folder. Raises `UserError`."""
    try:
        return Path(path).expanduser()
    except RuntimeError as e:
        raise UserError(f"{shown(path)}: no such home folder") from e


def cache_folder() -> Path:
    """$XDG_CACHE_HOME, or ~/.cache. Raises `UserError` for a user that has no home folder."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or expanded("~/.cache"))
    except UserError as e:
        raise UserError(f"user {os.getuid()} has no home folder to keep a cache in: set XDG_CACHE_HOME") from e
