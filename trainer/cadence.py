"""How often to save: `auto`, `30s`, `5m`, `1h`, `200steps` or `1epoch`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trainer.exits import ExitCode, UserError
from watchers.drill import UNITS

SHORTEST_S = 15.0  # between two saves: clouds charge for requests
PRIOR_S = 7200.0  # a machine is expected to last so long before anything is known of this run's

# How an attempt ends that no machine was taken from: by its operator, or by a mistake or defect.
NO_EVICTIONS = (ExitCode.DONE, ExitCode.INTERRUPTED, ExitCode.DEFECT, ExitCode.USAGE, ExitCode.SETUP)

_FORM = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?(s|m|h|steps?|epochs?)")


@dataclass(frozen=True, slots=True)
class Cadence:
    """A save is due `seconds` after the last one began, or at every `steps`-th step, or at every `epochs`-th end."""

    auto: bool = False  # `seconds` is for `best_interval_s` to say, anew after each save
    seconds: float = 0.0
    steps: int = 0
    epochs: int = 0

    @classmethod
    def parse(cls, text: str) -> Cadence:
        """Raises `UserError` (wrong command line)."""
        if text.strip().lower() == "auto":
            return cls(auto=True, seconds=SHORTEST_S)
        match = _FORM.fullmatch(text.strip().lower())
        number = float(match[1]) if match else 0.0
        unit = match[2] if match else ""
        if number <= 0 or (unit not in UNITS and number != int(number)):
            raise UserError(
                f"--checkpoint-every {text!r}: write auto, or a length above 0, for example 30s, 5m, 1h, 200steps or "
                "1epoch",
                ExitCode.USAGE,
            )
        if unit in UNITS:
            return cls(seconds=number * UNITS[unit])
        return cls(steps=int(number)) if unit.startswith("step") else cls(epochs=int(number))

    @property
    def fixed(self) -> str | None:
        """How often, for people, where that is no matter of seconds."""
        number, what = (self.steps, "step") if self.steps else (self.epochs, "epoch")
        return f"{number} {what}{'' if number == 1 else 's'}" if number else None

    def due(self, step: int, steps_per_epoch: int, since_last_s: float) -> bool:
        """Whether to save at the boundary after `step` steps; `since_last_s` since the last save began, in seconds."""
        if self.steps:
            return step % self.steps == 0
        if self.epochs:
            return step % (self.epochs * steps_per_epoch) == 0
        return since_last_s >= self.seconds


def lifetime_s(ledger: Sequence[Mapping[str, object]], here_s: float) -> float:
    """Seconds that a machine is expected to last: the run's time so far, with the prior, over its evictions.

    `ledger`: the attempts before this one, which has lasted `here_s`. How one ended stands in `exit`; None: it was
    never heard of again.
    """
    seconds = [entry.get("seconds") for entry in ledger]
    lasted = sum(s for s in seconds if isinstance(s, int | float) and 0 <= s < math.inf)
    evictions = sum(entry.get("exit") not in NO_EVICTIONS for entry in ledger)
    return (lasted + here_s + PRIOR_S) / (evictions + 1)


def best_interval_s(cost_s: float, takes_s: float, lifetime: float) -> float:
    """Seconds between two saves that lose least: sqrt(2 C M), Young's first order of Daly's optimum.

    cost_s: training time that a save costs. takes_s: how long it is on its way; the next can't begin before.
    lifetime: as by `lifetime_s`. Source: J. T. Daly, Future Generation Computer Systems 22 (2006) 303-312.
    """
    return max(SHORTEST_S, 2 * takes_s, math.sqrt(2 * cost_s * lifetime))
