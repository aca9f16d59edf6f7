"""What a run still takes is told with its evaluations, and steadily."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from console.progress import describe, facts
from trainer.exits import UserError
from trainer.job import Task
from trainer.loop import Plan
from trainer.progress import Evaluating, Pace

PLAN = Plan(
    seed=0, batch_size=10, micro_batch_size=10, steps=95, steps_per_epoch=20, bf16=False, device=torch.device("cpu")
)


class Even(Task):
    unit = "images"
    eval_size, eval_batch = 100, 20


class Growing(Even):
    def effort(self, step: int, steps: int) -> float:
        return 1.0 if step < 40 else 3.0


SAVER: Any = SimpleNamespace(durable=None, error=None)


class Run:
    """Told of at moments of one's own choice."""

    def __init__(self, step: int = 0, task: Task | None = None) -> None:
        self.now = 0.0
        self.pace = Pace(PLAN, task or Even(), step, lambda: self.now)

    def tell(self, now: float, step: int, evaluating: Evaluating | None = None) -> Any:
        self.now = now
        return self.pace.tell(step, None, SAVER, evaluating)


def test_the_time_left_has_the_evaluations_to_come() -> None:
    run = Run()
    assert run.tell(0.0, 0).seconds_left is None
    # a second a step, so 10 s for as many samples as an evaluation has, of twice as many at once 5 s; five times
    assert run.tell(10.0, 10).seconds_left == pytest.approx(85 + 5 * 5)
    assert run.tell(20.0, 20, Evaluating(0.0, 0.0)).seconds_left == pytest.approx(75 + 5 * 5)
    # it is slower than training: a quarter took 10 s
    left = run.tell(30.0, 20, Evaluating(0.25, 10.0))
    assert left.seconds_left == pytest.approx(75 + 5 * 40 - 10)
    assert ", evaluating: 25 %, 4 min 25 s left, " in describe(left)
    assert (facts(left)["evaluating"], facts(left)["evaluated"]) == (True, 0.25)
    run.now = 60.0
    run.pace.evaluated(20.0, 60.0)
    assert run.tell(70.0, 30).seconds_left == pytest.approx(65 + 4 * 40)


def test_the_last_evaluation_counts_down_to_nothing() -> None:
    run = Run()
    run.tell(95.0, 95)
    assert run.tell(96.0, 95, Evaluating(0.1, 1.0)).seconds_left == pytest.approx(9)
    assert run.tell(104.0, 95, Evaluating(0.9, 9.0)).seconds_left == pytest.approx(1)
    run.pace.evaluated(95.0, 105.0)
    assert run.tell(105.0, 95).seconds_left == 0
    # a container that goes on when only the evaluation is to be done has seen no step
    again = Run(95)
    assert again.tell(1.0, 95, Evaluating(0.0, 0.0)).seconds_left is None
    assert again.tell(3.0, 95, Evaluating(0.5, 2.0)).seconds_left == pytest.approx(2)


def test_the_time_that_an_evaluation_takes_is_no_time_of_steps() -> None:
    run = Run()
    assert run.tell(19.0, 19).samples_per_s == pytest.approx(10)
    evaluating = run.tell(24.0, 20, Evaluating(0.5, 4.0))  # since 20.0
    assert evaluating.samples_per_s == pytest.approx(10)
    assert evaluating.seconds_left == pytest.approx(75 + 4 * 8 + 4)
    run.now = 28.0
    run.pace.evaluated(20.0, 28.0)
    assert run.tell(29.0, 21).seconds_left == pytest.approx(74 + 4 * 8)


def test_one_slow_moment_changes_the_time_left_little() -> None:
    run = Run()
    for step in range(1, 41):
        before = run.tell(float(step), step)
    slow = run.tell(40.0 + 2.0, 41)  # a step that took twice as long
    assert slow.samples_per_s == pytest.approx(5)
    assert slow.seconds_left == pytest.approx(before.seconds_left, rel=0.15)


def test_what_was_slow_for_a_while_is_soon_forgotten() -> None:
    run = Run()
    run.tell(100.0, 10)  # beside something else: a tenth of the speed
    assert run.tell(130.0, 40).seconds_left < 2 * (55 + 3 * 5)


def test_steps_that_take_longer_later_are_known_of() -> None:
    run = Run(task=Growing())
    # the first evaluation as it takes to train on half as many of this step's samples; they come to 30 and 55 steps
    assert run.tell(10.0, 10).seconds_left == pytest.approx(30 + 3 * 55 + 5 * 5)
    half = run.tell(10.0 + 30 + 3 * 10, 50)
    assert half.samples_per_s == pytest.approx(400 / 60)
    assert half.seconds_left == pytest.approx(3 * 45 + 3 * 15)
    long = Run(task=Growing())
    long.pace._plan = dataclasses.replace(PLAN, steps=1_000_000)
    assert long.tell(10.0, 10).seconds_left == pytest.approx(3e6, rel=0.3)


@pytest.mark.parametrize("effort", [0, -1.0, math.nan, math.inf, "much", None, torch.tensor(1.0)])
def test_an_effort_that_is_none_is_the_jobs_mistake(effort: object) -> None:
    run = Run(task=type("Mine", (Even,), {"effort": lambda self, step, steps: effort})())
    with pytest.raises(UserError, match=r"effort must give a number above 0; it gives"):
        run.tell(10.0, 10)
