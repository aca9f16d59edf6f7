"""A job's presets, held to what settings can be: what is wrong in them is told in a line that names the job's file."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from trainer.exits import UserError
from trainer.settings import check, choices, fields_of, kind

EXAMPLE = 'right is, for example, PRESETS = {"plain": {"epochs": 3, "batch_size": 50, "lr": 0.1}}'
_KINDS = {bool: "True or False", int: "a whole number", float: "a number", str: "a text"}


def check_presets(job: str, presets: object) -> None:
    """Raise `UserError` where they are no presets, or say what no setting can be."""
    file = f"trainer/jobs/{job}.py"
    if not presets:
        raise UserError(f"{file}: no PRESETS in it; {EXAMPLE}")
    if not isinstance(presets, Mapping):
        raise UserError(f"{file}: PRESETS must be a dict of presets by their names; {EXAMPLE}")
    for preset, values in presets.items():
        if not isinstance(preset, str):
            raise UserError(f"{file}: a preset's name must be a word; {preset!r:.60} is none; {EXAMPLE}")
        if not isinstance(values, Mapping):
            raise UserError(f"{file}: preset {preset} must be a dict of settings; {EXAMPLE}")
        for name, value in values.items():
            _check_value(f"{file}: preset {preset}", name, value)


def _check_value(where: str, name: object, value: object) -> None:
    defaults = {f.name: f.default for f in fields_of()}
    if not isinstance(name, str) or name not in defaults:
        near = difflib.get_close_matches(str(name), defaults, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(defaults)}"
        raise UserError(
            f"{where} has {name!r:.60}, which is no setting; {hint} "
            "(what is the job's own is a constant there, or another --model)"
        )
    wanted = kind(name)
    kinds = (int, float) if wanted is float else wanted  # of which a bool is an int
    if not isinstance(value, kinds) or isinstance(value, bool) is not (wanted is bool):
        raise UserError(f"{where}: {name} must be {_KINDS[wanted]}; it is {value!r:.60}")
    if (known := choices(name)) and value not in known:
        raise UserError(f"{where}: {name} must be one of {', '.join(known)}; it is {value!r:.60}")
    if value == defaults[name]:  # as if it said nothing
        return
    try:
        check(name, value)
    except UserError as e:
        raise UserError(f"{where}: {e}") from e
