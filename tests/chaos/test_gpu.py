"""From CPU to GPU and back in one run: the same samples in the same order, and as good a result."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.runs import Lab


def gpu_is_there() -> bool:
    import torch

    return bool(torch.cuda.is_available())


pytestmark = pytest.mark.skipif(not gpu_is_there(), reason="no GPU in this machine")
OPTIONS = ["--batch-size", "100", "--precision", "fp32", "--checkpoint-every", "5steps"]


def test_a_run_goes_from_cpu_to_gpu_and_back(tmp_path: Path, small_cifar: Path) -> None:
    quiet = Lab(tmp_path / "quiet", small_cifar, *OPTIONS, "--epochs", "4", "--device", "cpu")
    quiet.finish()
    moved = Lab(tmp_path / "moved", small_cifar, *OPTIONS, "--epochs", "4")
    for device in ("cpu", "cuda"):
        container = moved.start("--device", device)
        container.wait_for("durable after")
        container.signal(9)
        container.wait()
    back = moved.finish("--device", "cpu")
    assert "another kind of machine than before" in back.text
    assert moved.hashes()["order_sha256"] == quiet.hashes()["order_sha256"]
    mine, theirs = moved.status()["metrics"], quiet.status()["metrics"]
    assert isinstance(mine, dict)
    assert isinstance(theirs, dict)
    assert abs(mine["accuracy"] - theirs["accuracy"]) < 0.08, "500 test pictures: four standard errors"


def test_a_run_interrupted_on_a_gpu_ends_with_the_same_bits(tmp_path: Path, small_cifar: Path) -> None:
    options = [*OPTIONS, "--epochs", "4", "--device", "cuda", "--dropout", "0.2"]
    quiet, hunted = (Lab(tmp_path / name, small_cifar, *options) for name in ("quiet", "hunted"))
    quiet.finish()
    for _ in range(3):
        container = hunted.start()
        container.wait_for("durable after")
        container.signal(9)
        container.wait()
    hunted.finish()
    assert hunted.hashes() == quiet.hashes()
