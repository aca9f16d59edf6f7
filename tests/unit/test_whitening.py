"""The biases of the whitening convolution learn in the first three eighths of a run, its kernels never."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from trainer.data.packed import open_packed
from trainer.jobs import cifar10
from trainer.settings import Settings


def task_of(model: str, data: Path) -> cifar10.Whitened:
    settings = Settings.of({"model": model, **cifar10.PRESETS[model]})
    task = cifar10.build(settings, open_packed(data), torch.device("cpu"))
    assert isinstance(task, cifar10.Whitened)
    return task


@pytest.mark.parametrize("model", ["quick", "best"])
def test_the_whitening_learns_for_three_eighths_of_a_run(model: str, small_cifar: Path) -> None:
    task = task_of(model, small_cifar)
    convolution = task.net.whiten
    assert convolution.bias is not None
    kernels = convolution.weight.clone()
    pictures = task.net.pictures(task.train_images[:8], 32)
    for step in range(8):
        before = convolution.bias.detach().clone()
        task.schedule(step, 8)
        task.net(pictures).square().sum().backward()
        assert (convolution.bias.grad is not None) == (step < 3)
        task.update()
        assert convolution.bias.equal(before) == (step >= 3)
    assert convolution.weight.equal(kernels)
    assert [group["lr"] for group in task.optimizers["sgd"].param_groups] == [106.0 / 8, 1340.0 / 8, 0.0]
