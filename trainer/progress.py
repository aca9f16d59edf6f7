"""How far a run is, how fast it goes, and how long it will take; for people."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from trainer.answers import effort_of
from trainer.job import Task
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
    evaluated: float | None  # the share of the running evaluation that is done; None outside one
    unit: str  # what a sample is


SMOOTH_S = 20.0  # over about so long the speed is taken by which the time that is left is told
ASKED = 100  # steps of those to come of whose effort a job is asked at once


class Evaluating(NamedTuple):
    """An evaluation that goes on."""

    share: float  # of it that is done
    seconds: float  # that it has taken so far


class Pace:
    """The speed from one telling to the next, and how long the rest will take by it, evaluations included."""

    def __init__(self, plan: Plan, task: Task, step: int, clock: Callable[[], float] = CLOCK) -> None:
        self.last: Progress | None = None
        self._clock = clock
        self.told = clock()  # when
        self._plan = plan
        self._task = task
        self._step = step
        self._sample_s: float | None = None  # what a sample of effort 1 takes in training, of late
        self._spent_s, self._done = 0.0, 0.0  # seconds and such samples, the older the less they count
        self._evaluation_s: float | None = None  # what the last evaluation took

    def evaluated(self, began: float, ended: float) -> None:
        """An evaluation is no time in which steps were made."""
        self.told += ended - max(began, self.told)
        self._evaluation_s = ended - began

    def tell(self, step: int, loss: Tensor | None, saver: Saver, evaluating: Evaluating | None) -> Progress:
        """`loss`: the sum of the running epoch."""
        plan, now = self._plan, self._clock()
        # what of it went into an evaluation that goes on made no step
        seconds = now - self.told - (min(evaluating.seconds, now - self.told) if evaluating else 0.0)
        samples = (step - self._step) * plan.batch_size
        rate = samples / seconds if samples and seconds > 0 else None
        if rate is not None:
            # both fade alike, and their quotient follows: a mean of quotients would long go on with what was slowest
            fades = math.exp(-seconds / SMOOTH_S)
            self._spent_s = self._spent_s * fades + seconds
            self._done = self._done * fades + self._work(self._step, step)
            self._sample_s = self._spent_s / self._done
        elif self.last is not None:
            rate = self.last.samples_per_s
        self.last = Progress(
            step=step,
            steps=plan.steps,
            epoch=(max(step - 1, 0) if evaluating else min(step, plan.steps - 1)) // plan.steps_per_epoch + 1,
            epochs=-(-plan.steps // plan.steps_per_epoch),
            loss=float(loss) / seen_this_epoch(plan, step) if loss is not None and step else None,
            samples_per_s=rate,
            seconds_left=self._seconds_left(step, evaluating),
            durable=saver.durable,
            save_error=saver.error,
            evaluated=None if evaluating is None else evaluating.share,
            unit=self._task.unit,
        )
        self.told, self._step = now, step
        return self.last

    def _work(self, begin: int, end: int) -> float:
        """The samples of these steps, each counted with its effort."""
        every = -(-(end - begin) // ASKED) or 1
        asked = range(begin + (every - 1) // 2, end, every)
        return (end - begin) * self._plan.batch_size * sum(map(self._effort, asked)) / (len(asked) or 1)

    def _effort(self, step: int) -> float:
        return effort_of(self._task, self._task.effort(step, self._plan.steps))

    def _seconds_left(self, step: int, evaluating: Evaluating | None) -> float | None:
        """None: not known yet."""
        plan, each = self._plan, self._evaluation_s
        if evaluating is not None and evaluating.share:
            each = evaluating.seconds / evaluating.share
        elif each is None and self._sample_s is not None:
            # until one is over: as it takes to train on as many; in larger pieces a sample costs less
            sample_s = self._sample_s * self._effort(max(0, step - 1))
            each = sample_s * self._task.eval_size * min(1.0, plan.batch_size / self._task.eval_batch)
        if each is None or (self._sample_s is None and step < plan.steps):
            return None
        training = self._work(step, plan.steps) * (self._sample_s or 0.0)
        later = -(-plan.steps // plan.steps_per_epoch) - step // plan.steps_per_epoch if step < plan.steps else 0
        now = max(0.0, each - evaluating.seconds) if evaluating is not None else 0.0
        left = training + later * each + now
        return left if math.isfinite(left) else None
