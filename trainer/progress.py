"""How far a run is, how fast it goes, and how long it will take; for people."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from trainer.loop import Plan, seen_this_epoch
from trainer.saver import CLOCK, Durable, Saver


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    step: int
    steps: int
    epoch: int  # counted from 1
    epochs: int
    loss: float | None  # mean of the running epoch so far
    samples_per_s: float | None
    seconds_left: float | None
    durable: Durable | None
    save_error: str | None
    evaluating: bool
    unit: str  # what a sample is


class Pace:
    """The speed from one telling to the next."""

    def __init__(self, plan: Plan, unit: str, step: int) -> None:
        self.last: Progress | None = None
        self.told = CLOCK()  # when
        self._plan = plan
        self._unit = unit
        self._step = step

    def leave_out(self, began: float, ended: float) -> None:
        """An evaluation is no time in which steps were made."""
        self.told += ended - max(began, self.told)

    def tell(self, step: int, loss: Tensor | None, saver: Saver, *, evaluating: bool) -> Progress:
        """`loss`: the sum of the running epoch."""
        plan, now = self._plan, CLOCK()
        seconds, steps = now - self.told, step - self._step
        rate = steps * plan.batch_size / seconds if steps and seconds > 0 else None
        if rate is None and self.last is not None:
            rate = self.last.samples_per_s
        self.last = Progress(
            step=step,
            steps=plan.steps,
            epoch=(max(step - 1, 0) if evaluating else min(step, plan.steps - 1)) // plan.steps_per_epoch + 1,
            epochs=-(-plan.steps // plan.steps_per_epoch),
            loss=float(loss) / seen_this_epoch(plan, step) if loss is not None and step else None,
            samples_per_s=rate,
            seconds_left=(plan.steps - step) * plan.batch_size / rate if rate else None,
            durable=saver.durable,
            save_error=saver.error,
            evaluating=evaluating,
            unit=self._unit,
        )
        self.told, self._step = now, step
        return self.last
