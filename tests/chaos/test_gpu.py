"""Runs on a GPU, and from CPU to GPU and back, where there is one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.runs import Lab


def gpu_is_there() -> bool:
    import torch

    return bool(torch.cuda.is_available())


pytestmark = pytest.mark.skipif(not gpu_is_there(), reason="no GPU in this machine")
# small batches: of a run of hundreds of steps none comes to its end before it is killed
OPTIONS = ["--batch-size", "20", "--checkpoint-every", "5steps", "--epochs", "4"]


def kill(lab: Lab, *options: str) -> None:
    """Start it, and kill it once it has made some steps and saved them."""
    container = lab.start(*options)
    assert container.wait_for("durable after") is not None, container.text
    container.signal(9)
    assert container.wait() == -9, "the run is too short for this GPU"


def test_a_run_goes_from_cpu_to_gpu_and_back(tmp_path: Path, small_cifar: Path) -> None:
    """The same samples in the same order, and as good a result."""
    options = [*OPTIONS, "--precision", "fp32"]
    quiet, moved = (Lab(tmp_path / name, small_cifar, *options) for name in ("quiet", "moved"))
    quiet.finish("--device", "cpu")
    for device in ("cpu", "cuda"):
        kill(moved, "--device", device)
    back = moved.finish("--device", "cpu")
    assert "another kind of machine than before" in back.text
    assert moved.hashes()["order_sha256"] == quiet.hashes()["order_sha256"]
    mine, theirs = moved.status()["metrics"], quiet.status()["metrics"]
    assert isinstance(mine, dict)
    assert isinstance(theirs, dict)
    assert abs(mine["accuracy"] - theirs["accuracy"]) < 0.08, "600 test pictures: four standard errors"


RUNS = {
    "quick-fp32": ["--preset", "quick", "--precision", "fp32"],
    "quick-bf16-micro-batches": ["--preset", "quick", "--precision", "bf16", "--micro-batch-size", "8"],
    "best-fp32": ["--preset", "best", "--precision", "fp32"],
    "best-bf16": ["--preset", "best", "--precision", "bf16"],
    "tutorial-fp32": ["--preset", "tutorial"],
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_interrupted_on_a_gpu_ends_with_the_same_bits(name: str, tmp_path: Path, small_cifar: Path) -> None:
    options = [*OPTIONS, *RUNS[name], "--device", "cuda", "--dropout", "0.2"]
    quiet, hunted = (Lab(tmp_path / name, small_cifar, *options) for name in ("quiet", "hunted"))
    quiet.finish()
    for _ in range(3):
        kill(hunted)
    hunted.finish()
    assert hunted.hashes() == quiet.hashes()


def test_what_is_said_of_determinism_is_that_of_the_run(tmp_path: Path, small_cifar: Path) -> None:
    lab = Lab(tmp_path, small_cifar, *OPTIONS, "--device", "cuda", "--no-deterministic")
    kill(lab)
    assert "not deterministic)" in lab.finish().text


def test_fp32_is_fp32_on_a_gpu_too() -> None:
    import torch

    from trainer.machine import compute_exactly

    compute_exactly(torch.get_num_threads())
    torch.set_deterministic_debug_mode("default")  # of which other tests in this process know nothing
    torch.manual_seed(0)
    x, weight = torch.randn(4, 64, 16, 16, device="cuda"), torch.randn(64, 64, 3, 3, device="cuda")
    mine, exact = (torch.nn.functional.conv2d(x.to(kind), weight.to(kind)).double() for kind in (x.dtype, torch.double))
    # of 576 products each: fp32 rounds by 6e-8, TF32 by 5e-4
    assert float((mine - exact).norm() / exact.norm()) < 1e-5
