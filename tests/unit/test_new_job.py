"""A newcomer's own task is one file of 60 lines: this one is put beside the others, stopped, and goes on."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from tests.runs import REPOSITORY, environment

JOB = '''"""Softmax regression on CIFAR-10's pixels: the smallest job there can be."""

import torch
import torch.nn.functional as F
from torch import nn

from trainer.job import Task, tensor_of

DATASET = "cifar10"
PRESETS = {"plain": {"model": "linear", "epochs": 3, "batch_size": 50, "lr": 0.01, "momentum": 0.9}}


class Linear(Task):
    eval_batch = 100

    def __init__(self, settings, data, device):
        self.lr = settings.lr
        arrays = {name: tensor_of(array, device) for name, array in data.arrays.items()}
        self.images, self.labels = arrays["train_images"], arrays["train_labels"]
        self.test_images, self.test_labels = arrays["test_images"], arrays["test_labels"]
        self.train_size, self.eval_size = len(self.labels), len(self.test_labels)
        self.model = nn.Linear(3072, 10).to(device)
        self.optimizers = {"sgd": torch.optim.SGD(self.model.parameters(), lr=self.lr, momentum=settings.momentum)}

    def loss(self, batch):
        x = self.images[batch.index].flatten(1) / 255
        return F.cross_entropy(self.model(x), self.labels[batch.index].long()), {}

    def evaluate(self, rows):
        logits = self.model(self.test_images[rows].flatten(1) / 255)
        return {"accuracy": (logits.argmax(1) == self.test_labels[rows]).sum()}

    def schedule(self, step, steps):
        self.optimizers["sgd"].param_groups[0]["lr"] = self.lr * (1 - step / steps)


def build(settings, data, device):
    return Linear(settings, data, device)
'''


def test_one_file_is_a_job_with_every_promise(tmp_path: Path, small_cifar: Path) -> None:
    assert len(JOB.splitlines()) <= 60
    for name in ("entrypoint.py", "trainer", "storage", "watchers", "console"):
        source = REPOSITORY / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tmp_path)
    (tmp_path / "trainer" / "jobs" / "linear.py").write_text(JOB)

    def run(run_name: str, *, stop_at: str | None = None) -> int:
        place = ["--store", f"file://{tmp_path}/store", "--halt", str(tmp_path), "--data", str(small_cifar)]
        process = subprocess.Popen(
            [sys.executable, "entrypoint.py", "linear", *place, "--run", run_name, "--checkpoint-every", "10steps"],
            cwd=tmp_path,
            env=environment(BATON_DEBUG="1", PYTHONUNBUFFERED="1"),
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        for line in process.stdout:
            if stop_at and stop_at in line:
                process.send_signal(signal.SIGKILL)
        return process.wait()

    def hashes(run_name: str) -> list[str]:
        result = json.loads((tmp_path / "store" / run_name / "result.json").read_bytes())
        return [result[name] for name in ("weights_sha256", "state_sha256", "order_sha256")]

    assert run("quiet") == 0
    assert run("hunted", stop_at="durable after") == -signal.SIGKILL
    assert run("hunted", stop_at="durable after") in (-signal.SIGKILL, 0)
    assert run("hunted") == 0
    assert hashes("hunted") == hashes("quiet")
