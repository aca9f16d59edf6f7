"""Points hold sums over an epoch so far: their differences are the losses, however many epochs lie between two."""

from __future__ import annotations

import pytest

from trainer.curve import is_due, losses

BATCH = 10


@pytest.mark.parametrize(("epochs", "steps_per_epoch"), [(300, 10), (1000, 7), (3, 50), (1, 450)])
def test_a_point_tells_the_loss_of_its_own_epoch(epochs: int, steps_per_epoch: int) -> None:
    """The loss of each step is its number in the run, so that a point of other steps than it should have shows."""
    steps = epochs * steps_per_epoch
    points, wanted, total, seen, first = [], [], 0.0, 0, 1
    for step in range(1, steps + 1):
        if step % steps_per_epoch == 1:
            total, seen, first = 0.0, 0, step
        total, seen = total + step * BATCH, seen + BATCH
        if is_due(step, steps):
            epoch = -(-step // steps_per_epoch)
            points.append({"step": step, "epoch": epoch, "loss_sum": total, "seen": seen})
            wanted.append((step, (first + step) / 2))
            first = step + 1
    assert dict(losses(points)) == pytest.approx(dict(wanted))
