"""Muon is torch's own, but for the number format that it computes in."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from trainer.muon import Muon


@pytest.mark.parametrize("shape", [(16, 72), (72, 16), (32, 32)])
def test_moves_as_torchs_own(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    start = torch.randn(shape)
    mine, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    torchs = torch.optim.Muon([theirs], lr=0.1, momentum=0.6, weight_decay=0.1, ns_steps=3)
    optimizer = Muon([mine], 0.1, 0.6, 0.1)
    for _ in range(3):
        mine.grad = torch.randn(shape)
        theirs.grad = mine.grad.clone()
        optimizer.step()
        torchs.step()
    moved = (theirs - start).norm()
    assert (mine - theirs).norm() < 0.02 * moved, "bf16's rounding is 0.4 %"
