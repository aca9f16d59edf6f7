"""The jobs' names, found without importing any (and so without torch)."""

from __future__ import annotations

from pathlib import Path


def job_names() -> list[str]:
    return sorted(path.stem for path in (Path(__file__).parent / "jobs").glob("*.py") if path.stem != "__init__")
