"""Runs on a GPU, and from CPU to GPU and back, where there is one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.jobs import JOBS, options_for, packed
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


@pytest.mark.parametrize("job", JOBS)
def test_every_job_interrupted_on_a_gpu_ends_with_the_same_bits(job: str, tmp_path: Path) -> None:
    data = packed(job, tmp_path)
    options = [*options_for(job, data), "--epochs", "60", "--checkpoint-every", "3steps", "--device", "cuda"]
    quiet, hunted = (Lab(tmp_path / name, data, *options, job=job) for name in ("quiet", "hunted"))
    quiet.finish()
    for _ in range(3):
        kill(hunted)
    hunted.finish()
    assert hunted.hashes() == quiet.hashes()


class Silent:
    def boundary(self, *, evaluating: bool, evaluated: float = 0.0) -> None: ...

    def evaluated(self, metrics: object) -> None: ...


def loop_of(job: str, data: Path) -> Any:
    """The job's small run as `prepare` would build it, from chance, without a store."""
    import torch

    import entrypoint
    from console.commands import those_given
    from trainer import job as jobs
    from trainer.checkpoint import Position
    from trainer.data.packed import open_packed
    from trainer.loop import Loop, Plan
    from trainer.settings import Settings
    from watchers import Mailbox

    given = those_given(entrypoint.job_command(job).make_context(job, options_for(job, data)).params)
    given.pop("allow_change", None)
    name, preset = jobs.preset(jobs.load(job), given.get("preset", ""))
    settings = Settings.of({**given, "preset": name}, preset)
    device = torch.device("cuda")
    task = jobs.load(job).build(settings, open_packed(data), device)
    size = settings.batch_size
    plan = Plan(
        seed=0, batch_size=size, micro_batch_size=settings.micro_batch_size or size, steps=100,
        steps_per_epoch=task.train_size // size, bf16=True, device=device,
    )  # fmt: skip
    task.model.train()
    return Loop(task, plan, Position(), Mailbox(), Silent())


@pytest.mark.parametrize("job", [*JOBS, "imagenet, sent over"])
def test_a_step_waits_for_no_gpu(job: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/devices.md: a step asks the GPU for nothing. torch raises at each call of its own that would wait."""
    import torch

    from trainer import crops
    from trainer.machine import compute_exactly

    if job not in JOBS:
        monkeypatch.setattr(crops, "RESIDENT", 0.0)
    job = job.partition(",")[0]
    compute_exactly(torch.get_num_threads())
    try:
        loop = loop_of(job, packed(job, tmp_path))
        for _ in range(2):  # the first makes what later ones use
            loop._step()
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        for _ in range(3):
            loop._step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
        torch.set_deterministic_debug_mode("default")  # of which other tests in this process know nothing


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
