"""What can be known of the jobs without importing any (and so without torch)."""

from __future__ import annotations

import ast
from pathlib import Path

JOBS = Path(__file__).parent / "jobs"


def job_names() -> list[str]:
    return sorted(path.stem for path in JOBS.glob("*.py") if path.stem != "__init__")


def dataset_of(job: str) -> str:
    """The data set that a job trains on: its DATASET, or its own name where it says none."""
    for statement in ast.parse((JOBS / f"{job}.py").read_text()).body:
        match statement:
            case ast.Assign(targets=[ast.Name("DATASET")], value=ast.Constant(str(name))):
                return name
    return job


def of_preset(job: str, preset: str, setting: str) -> object:
    """What a job's preset (the first one for "") says of a setting; None where it says nothing."""
    for statement in ast.parse((JOBS / f"{job}.py").read_text()).body:
        match statement:
            case ast.AnnAssign(target=ast.Name("PRESETS"), value=ast.Dict() as presets):
                values = ast.literal_eval(presets)
                return values.get(preset or next(iter(values)), {}).get(setting)
    return None
