"""What a container says once the run is its own, where that depends on the machine."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from storage import open_store
from tests.unit.test_loop import planned
from trainer import machine, opening
from trainer.history import History
from trainer.settings import Settings
from watchers import Mailbox


@pytest.mark.parametrize(
    ("bf16", "asked", "faster", "warned"),
    [
        (True, "auto", False, True),
        (True, "auto", True, False),
        (True, "bf16", False, False),
        (False, "auto", False, False),
    ],
)
def test_a_run_that_goes_on_in_bf16_where_that_is_slower_is_told_so(
    bf16: bool,
    asked: str,
    faster: bool,
    warned: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def computes(device: torch.device) -> bool:
        return faster

    monkeypatch.setattr(machine, "computes_in_bf16", computes)
    opening._warn_of_slow_bf16(Settings.of({"precision": asked}), dataclasses.replace(planned(), bf16=bf16))
    assert ("--precision fp32 --allow-change precision" in caplog.text) == warned


@pytest.mark.parametrize(
    ("steps", "size", "said"),
    [(1, 4, "1 step of 4 samples on"), (2, 1, "2 steps of 1 sample on"), (12, 5, "12 steps of 5 samples on")],
)
def test_a_start_counts_as_people_do(
    steps: int, size: int, said: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(History, "read_record", lambda *names: pytest.fail("there was no attempt before the first"))
    plan = dataclasses.replace(planned(), steps=steps, batch_size=size)
    ready: Any = SimpleNamespace(
        settings=Settings(),
        plan=plan,
        machine={"device": "cpu", "threads": 1},
        data=SimpleNamespace(name="it"),
        shape={},
    )
    history = History(open_store(f"file://{tmp_path}"), "run")
    request: Any = SimpleNamespace(job="mnist", rank=SimpleNamespace(count=1), history=history, mailbox=Mailbox())
    opening.say_start(request, ready, 1, None, None)
    assert said in caplog.messages[0]
