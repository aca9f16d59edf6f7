"""The training loss as points between evaluations, such that no interruption shows in them.

A point holds the running epoch's sum of losses, which every checkpoint carries on, and not a mean since the point
before: so the points of a run that was interrupted are those of one that never was, and whoever reads them takes the
difference of two neighbours of one epoch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TypeGuard

from trainer.settings import Json

POINTS = 200  # in a run


def is_due(step: int, steps: int) -> bool:
    """Whether the boundary after `step` steps has a point, in a run of `steps`."""
    return step > 0 and step % max(1, steps // POINTS) == 0


def losses(points: Iterable[Mapping[str, Json]]) -> list[tuple[int, float]]:
    """(step, mean training loss since the point before or since the epoch's begin) of points in the order of steps.

    A point holds `step`, `epoch`, `loss_sum` over the epoch so far, and `seen`, the samples in that sum.
    """
    found: list[tuple[int, float]] = []
    sum_before, seen_before, epoch_before = 0.0, 0.0, None
    for point in points:
        step, total, seen = point.get("step"), point.get("loss_sum"), point.get("seen")
        if type(step) is not int or not is_number(total) or not is_number(seen):
            continue
        if point.get("epoch") != epoch_before or seen <= seen_before:
            sum_before, seen_before = 0.0, 0.0
        if seen > seen_before:
            found.append((step, (total - sum_before) / (seen - seen_before)))
        sum_before, seen_before, epoch_before = total, seen, point.get("epoch")
    return found


def is_number(value: object) -> TypeGuard[float]:
    """Whether it is a number to reckon with; what others wrote may be anything."""
    return isinstance(value, int | float) and type(value) is not bool and math.isfinite(value) and abs(value) < 1e15
