"""A GPU, or the job itself, that fails in the midst of a run: the right exit code, and the place is kept.

The failures are fakes, the errors that torch raises raised by a job: no GPU was at hand. All else is real.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.test_new_job import newcomers
from tests.runs import HASHES, environment
from trainer.manifest import from_json

FAILING = '''"""cifar10 whose GPU fails at the FAIL_AT-th loss of process FAIL_IN, in the way FAIL_AS."""

import os

import torch

from trainer.jobs import cifar10

DATASET = "cifar10"
PRESETS: dict = {
    "quick": {"model": "quick", "steps": 24, "batch_size": 64, "lr": 0.13, "momentum": 0.6, "weight_decay": 0.0},
}


def fail(way):
    if way == "memory":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1.00 GiB free.")
    if way == "order":  # nobody has written one that does it the same way twice
        torch.zeros(2).put_(torch.tensor([0]), torch.tensor([1.0]))
        return
    if way == "mistake":
        raise KeyError("a word that no list has")
    error = torch.AcceleratorError("CUDA error: " + way + "\\nCompile with TORCH_USE_CUDA_DSA")
    error.error_code = {"unspecified launch failure": 719, "device-side assert triggered": 710}[way]
    raise error


def build(settings, data, device):
    task = cifar10.build(settings, data, device)
    real, calls = task.loss, []

    def loss(batch):
        calls.append(batch)
        result = real(batch)  # which changes BatchNorm's buffers
        mine = os.environ.get("RANK", "0") == os.environ.get("FAIL_IN", "0")
        if mine and len(calls) == int(os.environ.get("FAIL_AT", "0")):
            fail(os.environ["FAIL_AS"])
        return result

    task.loss = loss
    return task
'''


class Failing:
    """The program with such a job."""

    def __init__(self, folder: Path, data: Path) -> None:
        newcomers(folder)
        (folder / "trainer" / "jobs" / "failing.py").write_text(FAILING)
        self.folder, self.data = folder, data

    def run(self, name: str, *options: str, fail_at: int = 0, way: str = "", rank: int = 0) -> tuple[int, str]:
        done = subprocess.run(
            [
                *(sys.executable, "entrypoint.py", "failing", "--run", name, "--checkpoint-every", "5steps"),
                *("--store", f"file://{self.folder}/store", "--halt", str(self.folder), "--data", str(self.data)),
                *options,
            ],
            cwd=self.folder,
            env=environment(FAIL_AT=str(fail_at), FAIL_AS=way, FAIL_IN=str(rank)),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout

    def record(self, *place: str) -> dict[str, object]:
        return dict(json.loads(self.folder.joinpath("store", *place).read_bytes()))


def test_a_gpu_or_a_job_that_fails_in_mid_run_costs_no_bit(tmp_path: Path, small_cifar: Path) -> None:
    failing = Failing(tmp_path, small_cifar)
    assert failing.run("quiet")[0] == 0

    code, said = failing.run("hunted", fail_at=13, way="memory")
    assert code == 78, said
    assert "too little memory for 64 samples at once: --micro-batch-size 32 --allow-change micro_batch_size" in said
    assert "last checkpoint durable at step 12, 0 steps lost (exit code 78)" in said
    assert "Traceback" not in said

    code, said = failing.run("hunted", fail_at=5, way="unspecified launch failure")
    assert code == 74, said
    assert "goes on at step 12" in said
    assert "the GPU is lost (CUDA error: unspecified launch failure): start again" in said
    assert "last checkpoint durable at step 15, 1 step lost (exit code 74)" in said
    assert "Traceback" not in said
    end = failing.record("hunted", "attempts", "000002.end.json")
    assert (end["exit"], end["outcome"], end["durable_step"]) == (74, "a GPU failed", 15)

    code, said = failing.run("hunted", fail_at=3, way="device-side assert triggered")
    assert code == 1, said
    assert "Traceback" in said, "a mistake of the job's, which a new start would only make again"
    assert "last checkpoint durable at step 15, 2 steps lost (exit code 1)" in said

    code, said = failing.run("hunted", fail_at=4, way="mistake")
    assert code == 1, said
    assert "last checkpoint durable at step 18, 0 steps lost (exit code 1)" in said
    assert "KeyError" in said

    assert failing.run("hunted")[0] == 0
    quiet, hunted = (failing.record(name, "result.json") for name in ("quiet", "hunted"))
    assert [hunted[name] for name in HASHES] == [quiet[name] for name in HASHES]


@pytest.mark.skipif(not os.environ.get("BATON_SOAK"), reason="in `make soak`")
def test_whichever_process_has_too_little_memory_no_restarter_tries_again(tmp_path: Path, small_cifar: Path) -> None:
    failing = Failing(tmp_path, small_cifar)
    for rank in (0, 1):
        code, said = failing.run(
            f"r{rank}", "--nproc", "2", "--micro-batch-size", "32", fail_at=3, way="memory", rank=rank
        )
        assert code == 78, said
        assert "too little memory for 32 samples at once: --micro-batch-size 16" in said


def test_who_gives_up_determinism_gives_it_up_for_the_run(tmp_path: Path, small_cifar: Path) -> None:
    failing = Failing(tmp_path, small_cifar)
    code, said = failing.run("mine", fail_at=7, way="order")
    assert code == 1, said
    assert "does not have a deterministic implementation" in said

    for file in (tmp_path / "store" / "mine" / "checkpoints").glob("*.json"):  # as by an image without such a setting
        manifest = from_json(file.read_bytes(), file.stem)
        assert manifest.settings.pop("no_deterministic") is False
        file.write_bytes(manifest.to_json())
    code, said = failing.run("mine", "--no-deterministic")
    assert code == 78, said
    assert "(no_deterministic false -> true)" in said

    code, said = failing.run("mine", "--no-deterministic", "--allow-change", "no_deterministic", fail_at=3, way="order")
    assert code == 0, said
    assert re.search(r"(fp32|bf16), not deterministic\)", said)
