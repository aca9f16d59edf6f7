"""What can be known of the jobs without importing any (and so without torch)."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Collection
from functools import cache
from pathlib import Path

from trainer.exits import ExitCode, UserError
from trainer.presets import EXAMPLE, check_presets

JOBS = Path(__file__).parent / "jobs"
# What the command line keeps for itself, in the order in which one comes to want it
COMMANDS = ("doctor", "status", "report", "halt", "verify", "copy", "clean", "delete", "data", "weights", "help")


def job_names() -> list[str]:
    return sorted(path.stem for path in JOBS.glob("*.py") if path.stem not in ("__init__", *COMMANDS))


def unreachable() -> list[str]:
    """Files among the jobs that are none: a command has their name."""
    return [f"trainer/jobs/{name}.py" for name in COMMANDS if (JOBS / f"{name}.py").exists()]


def summary(job: str) -> str:
    """What a job trains, in a line: the beginning of its module's docstring."""
    told = ast.get_docstring(_parsed(job)) or f"train {job}"
    return told.splitlines()[0].partition(";")[0].rstrip(".")


def dataset_of(job: str) -> str | None:
    """The data set that a job trains on: its DATASET, or its own name where it has none; None: it wants no data."""
    for statement in _parsed(job).body:
        match statement:
            case (
                ast.AnnAssign(target=ast.Name("DATASET"), value=ast.Constant(str() | None as name))
                | ast.Assign(targets=[ast.Name("DATASET")], value=ast.Constant(str() | None as name))
            ):
                return name
    return job


def of_preset(job: str, preset: str, setting: str) -> object:
    """What a job's preset (the first one for "") says of a setting; None where it says nothing."""
    values = presets_of(job)
    return values.get(preset or next(iter(values), ""), {}).get(setting)


def presets_of(job: str) -> dict[str, dict[str, object]]:
    """A job's presets as they are written in its file, the default one first. Raises `UserError` as `check_presets`."""
    for statement in _parsed(job).body:
        match statement:
            case (
                ast.AnnAssign(target=ast.Name("PRESETS"), value=ast.Dict() as presets)
                | ast.Assign(targets=[ast.Name("PRESETS")], value=ast.Dict() as presets)
            ):
                try:
                    written = ast.literal_eval(presets)
                except (TypeError, ValueError) as e:  # a sum, a name
                    raise UserError(
                        f"trainer/jobs/{job}.py, line {_computed(presets).lineno}: PRESETS is read without running the "
                        f"file, so what is in it must be written out; {EXAMPLE}"
                    ) from e
                check_presets(job, written)
                return dict(written)
    return {}


def _computed(value: ast.expr) -> ast.expr:
    """The innermost thing in it that is not written out."""
    parts = [node for node in ast.iter_child_nodes(value) if isinstance(node, ast.expr)]
    if isinstance(value, ast.Dict | ast.List | ast.Tuple | ast.Set):
        for part in parts:
            try:
                ast.literal_eval(part)
            except (TypeError, ValueError):
                return _computed(part)
    return value


def check_preset(name: str, presets: Collection[str]) -> None:
    """Raises `UserError` (wrong command line) where there is none of this name."""
    if name and name not in presets:
        near = difflib.get_close_matches(name, presets, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(presets)}"
        raise UserError(f"--preset {name}: no such preset; {hint}", ExitCode.USAGE)


@cache
def _parsed(job: str) -> ast.Module:
    """Raises `UserError` where the file is no Python."""
    path = JOBS / f"{job}.py"
    try:
        return ast.parse(path.read_bytes())
    except (SyntaxError, ValueError) as e:
        at, why = (f", line {e.lineno},", e.msg) if isinstance(e, SyntaxError) and e.lineno else ("", str(e))
        raise UserError(f"{path.relative_to(JOBS.parents[1])}{at} can't be read: {why}") from e
