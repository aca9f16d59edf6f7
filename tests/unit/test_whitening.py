"""The biases of the whitening convolution learn in the first three eighths of a run, its kernels never."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.jobs import packed
from trainer.data.packed import open_packed
from trainer.job import Batch
from trainer.jobs import cifar10, mnist
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


def test_pictures_grow_in_all_but_a_short_run_of_quick(small_cifar: Path) -> None:
    task = task_of("quick", small_cifar)

    def sides(steps: int) -> list[int]:
        found = []
        for step in range(steps):
            task.schedule(step, steps)
            found.append(task.next_side)
            assert task.effort(step, steps) == task.next_side**2
        assert task.is_last == (steps > 250)
        return found

    assert sides(250) == 250 * [16]
    assert sides(1000) == 300 * [16] + 350 * [24] + 350 * [32]


@pytest.mark.parametrize("bf16", [False, True])
def test_pictures_of_one_channel_have_the_patches_that_there_are_and_no_mirror_images(
    bf16: bool, tmp_path: Path
) -> None:
    data = open_packed(packed("mnist", tmp_path))
    settings = Settings.of({}, mnist.PRESETS["quick"])
    task = mnist.build(settings, data, torch.device("cpu"))
    assert isinstance(task, cifar10.Whitened)
    assert task.net.whiten.weight.shape == (8, 1, 2, 2)
    task.schedule(0, 1000)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss, _ = task.loss(Batch(np.arange(24), 0, 0, torch.device("cpu")))
    loss.backward()
    task.update()
    task.net.last.fill_(True)
    task.net.eval()
    pictures = task.test_images[:5]
    with torch.no_grad():
        logits = task.net.predict(pictures)
        x = task.net.pictures(cifar10.framed(pictures), int(task.net.side))
        wider = F.pad(x, (1, 1, 1, 1), mode="reflect")
        upright = torch.stack([task.net(view) for view in (x, wider[:, :, :-2, :-2], wider[:, :, 2:, 2:])]).mean(0)
    assert logits.shape == (5, 10)
    torch.testing.assert_close(logits, upright)
