"""What a container says once the run is its own, where that depends on the machine."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.unit.test_loop import planned
from trainer import machine, opening
from trainer.settings import Settings


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
