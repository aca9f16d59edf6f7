"""How often to save: `30s`, `200steps` or `1epoch`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from trainer.exits import ExitCode, UserError

_FORM = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?(s|steps?|epochs?)")


@dataclass(frozen=True, slots=True)
class Cadence:
    """A save is due `seconds` after the last one began, or at every `steps`-th step, or at every `epochs`-th end."""

    seconds: float = 0.0
    steps: int = 0
    epochs: int = 0

    @classmethod
    def parse(cls, text: str) -> Cadence:
        """Raises `UserError` (wrong command line)."""
        match = _FORM.fullmatch(text.strip().lower())
        number = float(match[1]) if match else 0.0
        unit = match[2].rstrip("s") if match else ""
        if number <= 0 or (unit in ("step", "epoch") and number != int(number)):
            raise UserError(f"--checkpoint-every {text!r}: write for example 30s, 200steps or 1epoch", ExitCode.USAGE)
        match unit:
            case "step":
                return cls(steps=int(number))
            case "epoch":
                return cls(epochs=int(number))
            case _:
                return cls(seconds=number)

    def due(self, step: int, steps_per_epoch: int, since_last_s: float) -> bool:
        """Whether to save at the boundary after `step` steps; `since_last_s` since the last save began, in seconds."""
        if self.steps:
            return step % self.steps == 0
        if self.epochs:
            return step % (self.epochs * steps_per_epoch) == 0
        return since_last_s >= self.seconds
