from __future__ import annotations

from pathlib import Path

import pytest

from console.status import show
from tests.unit.test_gpu_trouble import attempt as training
from trainer.cadence import Cadence
from trainer.exits import UserError
from watchers import Mailbox


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


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("200steps", "saves every 200 steps"),
        ("1epoch", "saves every 1 epoch"),
        ("5m", "saves every 300 s"),
        ("auto", "saves every 15 s"),
    ],
)
def test_the_status_tells_how_often_a_run_saves_in_whatever_way_that_was_said(
    text: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = training(tmp_path, "cpu", Mailbox(), [], text)
    try:
        mine.signs._write("running", None, None)
        show(mine.history.store, "run", as_json=False)
        assert f"run: {told}" in capsys.readouterr().out.splitlines()
    finally:
        mine.end(0, "finished")
