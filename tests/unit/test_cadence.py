from __future__ import annotations

import pytest

from trainer.cadence import Cadence
from trainer.exits import UserError


@pytest.mark.parametrize(
    ("text", "cadence"),
    [
        ("30s", Cadence(seconds=30)),
        ("0.5s", Cadence(seconds=0.5)),
        ("1.5m", Cadence(seconds=90.0)),
        ("2h", Cadence(seconds=7200.0)),
        ("200steps", Cadence(steps=200)),
        ("1step", Cadence(steps=1)),
        ("1epoch", Cadence(epochs=1)),
        ("2 epochs", Cadence(epochs=2)),
    ],
)
def test_is_read_as_written(text: str, cadence: Cadence) -> None:
    assert Cadence.parse(text) == cadence


@pytest.mark.parametrize("text", ["", "30", "s", "-1s", "0s", "1.5steps", "soon", "1e9s", "infs", "30s 1epoch"])
def test_anything_else_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UserError, match="30s, 5m, 1h, 200steps or 1epoch"):
        Cadence.parse(text)


def test_falls_due_by_time_steps_or_epochs() -> None:
    assert [Cadence(seconds=2).due(7, 10, t) for t in (1.9, 2.0)] == [False, True]
    assert [s for s in range(1, 9) if Cadence(steps=3).due(s, 10, 0)] == [3, 6]
    assert [s for s in range(1, 41) if Cadence(epochs=2).due(s, 10, 0)] == [20, 40]
