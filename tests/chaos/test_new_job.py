"""A newcomer's own task is one file of 60 lines: this one is put beside the others, stopped, and goes on."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from tests.runs import REPOSITORY, Container, environment

soak = pytest.mark.skipif(not os.environ.get("BATON_SOAK"), reason="in `make soak`")
EXAMPLE = re.compile(r"## How to add a job\n.*?```python\n(.*?)```", re.DOTALL)


def newcomers(folder: Path) -> None:
    """Put the program there, with the documented example among its jobs."""
    example = EXAMPLE.search((REPOSITORY / "docs" / "jobs.md").read_text())
    assert example is not None
    assert len(example[1].splitlines()) <= 60
    for name in ("entrypoint.py", "trainer", "storage", "watchers", "console"):
        source = REPOSITORY / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder)
    (folder / "trainer" / "jobs" / "linear.py").write_text(example[1])


NO_DATA = '''
"""Regression on random numbers."""

import torch
from torch import nn

from trainer.job import Task

DATASET = None
PRESETS = {"plain": {"epochs": 2, "batch_size": 10, "lr": 0.1}}


class Regression(Task):
    train_size, eval_size, eval_batch = 200, 50, 50

    def __init__(self, settings, data, device):
        assert not data.arrays
        self.x = torch.rand(250, 3, generator=torch.Generator().manual_seed(1))
        self.y = self.x.sum(1, keepdim=True)
        self.model = nn.Linear(3, 1)
        self.optimizers = {"sgd": torch.optim.SGD(self.model.parameters(), lr=settings.lr)}

    def loss(self, batch):
        return nn.functional.mse_loss(self.model(self.x[batch.index]), self.y[batch.index]), {}

    def evaluate(self, rows):
        return {"error": (self.model(self.x[200:][rows]) - self.y[200:][rows]).abs().sum()}

    def schedule(self, step, steps):
        pass


def build(settings, data, device):
    return Regression(settings, data, device)
'''
_PRESET = '"lr": 0.1}'


@pytest.mark.parametrize(
    ("change", "words", "code", "told"),
    [
        (("", ""), ["reg"], 0, "finished: 40 steps, error 0."),
        (("DATASET =", "DATASET: str | None ="), ["reg"], 0, "finished: 40 steps, error 0."),
        (("", ""), ["reg", "--data", "x"], 64, "--data: reg takes no data: its DATASET is None"),
        (("", ""), ["data", "reg"], 64, "reg takes no data: its DATASET is None"),
        (("", ""), ["reg", "--preset", "plane"], 64, "no such preset; did you mean plain?"),
        (("DATASET = None", ""), ["reg"], 78, "no data set reg; there are: bert, cifar10, cifar100, imagenet, mnist;"),
        ((_PRESET, '"lr": 0.1, "hidden": 3}'), ["reg"], 78, "reg.py: preset plain has 'hidden', which is no setting;"),
        ((_PRESET, '"lr": 0.1, "momentun": 3}'), ["reg"], 78, "which is no setting; did you mean momentum? (what"),
        ((_PRESET, '"lr": "fast"}'), ["reg"], 78, "reg.py: preset plain: lr must be a number; it is 'fast'"),
        ((_PRESET, '"lr": 1 / 10}'), ["reg"], 78, "reg.py, line 10: PRESETS is read without running the file, so what"),
        (
            ('"plain": {', "1: {"),
            ["help", "reg"],
            78,
            "reg.py: a preset's name must be a word; 1 is none; right is, for",
        ),
        (
            ("PRESETS = ", "PRESETS = [] or 3, "),
            ["reg"],
            78,
            "reg.py: PRESETS must be a dict of presets by their names;",
        ),
        (("PRESETS", "PRESET"), ["reg"], 78, "trainer/jobs/reg.py: no PRESETS in it; right is, for example, PRESETS ="),
        (
            (
                "self.model = nn.Linear(3, 1)",
                "self.model = nn.Linear(3, 1)\n"
                "        self.model.register_buffer('phase', torch.ones(3, dtype=torch.complex64))",
            ),
            ["reg"],
            78,
            "trainer/jobs/reg.py: its Task's model has phase in its state, a tensor of torch.complex64, which no check",
        ),
        (("def build", "def built"), ["reg"], 78, "reg.py: no function build(settings, data, device) in it"),
        ((", eval_batch = 200, 50, 50", " = 200, 50"), ["reg"], 78, "trainer/jobs/reg.py: its Task has no eval_batch;"),
        (
            ("def evaluate", "def effort(self, step, steps):\n        return 1.0 - step // 39\n\n    def evaluate"),
            ["reg"],
            78,
            "trainer/jobs/reg.py: effort must give a number above 0; it gives 0.0",
        ),
        (('"epochs": 2, ', ""), ["reg"], 78, "trainer/jobs/reg.py: preset plain has neither epochs nor steps: give it"),
        (('"batch_size": 10, ', ""), ["reg"], 78, "trainer/jobs/reg.py: preset plain has no batch_size: give it one"),
    ],
)
def test_a_job_may_have_no_data_and_what_it_lacks_is_told_in_a_line(
    tmp_path: Path, change: tuple[str, str], words: list[str], code: int, told: str
) -> None:
    newcomers(tmp_path)
    (tmp_path / "trainer" / "jobs" / "reg.py").write_text(NO_DATA.replace(*change))
    done = subprocess.run(
        [sys.executable, "entrypoint.py", *words], cwd=tmp_path, env=environment(), capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (code, "")
    assert told in done.stdout.splitlines()[-1], done.stdout
    assert code == 0 or len(done.stdout.splitlines()) == 1


@pytest.mark.parametrize(
    "mistake", ["1 // (step - 7)", "step != 7 or bytes.fromhex(input())"], ids=["arithmetic", "end of file"]
)
def test_an_error_in_a_jobs_file_is_told_from_there_on_and_said_to_be_its_own(tmp_path: Path, mistake: str) -> None:
    newcomers(tmp_path)
    mine = tmp_path / "trainer" / "jobs" / "reg.py"
    mine.write_text(NO_DATA.replace("        pass", f"        {mistake}"))
    line = mine.read_text().splitlines().index(f"        {mistake}") + 1
    done = subprocess.run(
        [sys.executable, "entrypoint.py", "reg"],
        cwd=tmp_path,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr.strip()) == (1, "")
    told = done.stdout[done.stdout.index("Traceback") :].splitlines()
    assert told[1] == f'  File "{mine}", line {line}, in schedule'
    assert f"this is a mistake in {mine}, line {line};" in told[-1]
    assert "last checkpoint durable at step 7, 0 steps lost (exit code 1)" in done.stdout


def test_a_job_whose_tensors_are_views_of_larger_ones_goes_on_from_its_checkpoints(tmp_path: Path) -> None:
    newcomers(tmp_path)
    views = """nn.Linear(3, 1)
        self.model.weight = nn.Parameter(torch.rand(1, 9, generator=torch.Generator().manual_seed(2))[:, ::3])
        self.model.bias = nn.Parameter(torch.rand(4, 2)[::4, 1])
        self.model.register_buffer("seen", torch.zeros(2, 8)[:, :3])"""
    job = NO_DATA.replace("nn.Linear(3, 1)", views).replace("lr=settings.lr", "lr=settings.lr, momentum=0.9")
    job = job.replace("        return nn", "        self.model.seen += self.x[batch.index].mean(0)\n        return nn")
    job = job.replace("        pass", '        str(step) == os.environ.get("AT") and os.kill(os.getpid(), 15)')
    (tmp_path / "trainer" / "jobs" / "reg.py").write_text(
        job.replace("import torch\n", "import os\n\nimport torch\n", 1)
    )

    def run(name: str, **variables: str) -> subprocess.CompletedProcess[str]:
        words = ["reg", "--run", name, "--checkpoint-every", "3steps"]
        return subprocess.run(
            [sys.executable, "entrypoint.py", *words],
            cwd=tmp_path,
            env=environment(**variables),
            capture_output=True,
            text=True,
        )

    def hashes(name: str) -> list[str]:
        result = json.loads((tmp_path / "store" / name / "result.json").read_bytes())
        return [result[key] for key in ("weights_sha256", "state_sha256", "order_sha256")]

    assert run("quiet").returncode == 0
    stopped = run("stopped", AT="7")
    assert stopped.returncode == 75, stopped
    mended = run("stopped")
    assert mended.returncode == 0, mended
    assert re.search(r"goes on at step [78] of 40", mended.stdout), mended.stdout
    assert hashes("stopped") == hashes("quiet")


@pytest.mark.parametrize("number", [pytest.param(0, marks=soak), 1])
def test_an_error_in_one_of_two_processes_costs_its_step_alone(tmp_path: Path, number: int) -> None:
    newcomers(tmp_path)
    mine = tmp_path / "trainer" / "jobs" / "reg.py"
    mistake = "seen.append(1); len(seen) != 8 or os.environ['RANK'] != '{}' or 1 / 0\n        return nn"

    def run(name: str, *, wrong: bool = False) -> subprocess.CompletedProcess[str]:
        good = NO_DATA.replace("import torch\n", "import os\n\nimport torch\n\nseen = []\n", 1)
        mine.write_text(good.replace("return nn", mistake.format(number), 1) if wrong else good)
        return subprocess.run(
            [sys.executable, "entrypoint.py", "reg", "--nproc", "2", "--micro-batch-size", "5", "--run", name],
            cwd=tmp_path,
            env=environment(OMP_NUM_THREADS="1"),
            capture_output=True,
            text=True,
        )

    def hashes(name: str) -> list[str]:
        result = json.loads((tmp_path / "store" / name / "result.json").read_bytes())
        return [result[key] for key in ("weights_sha256", "state_sha256", "order_sha256")]

    failed = run("hurt", wrong=True)
    assert (failed.returncode, failed.stderr) == (1, ""), failed
    assert "last checkpoint durable at step 7, 0 steps lost" in failed.stdout, failed.stdout
    assert f"this is a mistake in {mine}, line " in failed.stdout
    if number:  # which has died, and process 0 stops for that
        assert "stopping at step 7: another process of this run is gone" in failed.stdout, failed.stdout
    assert not re.search(r"exit code (?!1\b)", failed.stdout), "no other than what they end with"
    mended = run("hurt")
    assert mended.returncode == 0, mended
    assert "goes on at step 7 of 40" in mended.stdout
    assert run("quiet").returncode == 0
    assert hashes("hurt") == hashes("quiet")


def test_a_stop_is_acknowledged_while_an_evaluation_goes_on_and_on(tmp_path: Path) -> None:
    newcomers(tmp_path)
    endless = NO_DATA.replace(
        'return {"error"', 'print("in it", flush=True)\n        while True: pass\n        return {"error"'
    )
    (tmp_path / "trainer" / "jobs" / "reg.py").write_text(endless)
    container = Container.of([sys.executable, "entrypoint.py", "reg"], cwd=tmp_path)
    assert container.wait_for("in it")
    container.signal(signal.SIGINT)
    assert container.wait_for(r"Ctrl-C: waiting for what is in progress, .*; once more ends it at once$")
    container.signal(signal.SIGINT)
    assert container.wait() == 130
    assert "last checkpoint durable" not in container.text


def test_one_file_is_a_job_with_every_promise(tmp_path: Path, small_cifar: Path) -> None:
    newcomers(tmp_path)
    options = ("--checkpoint-every", "10steps", "--dropout", "0.1")

    def run(run_name: str, *, stop_at: str | None = None) -> int:
        place = ["--store", f"file://{tmp_path}/store", "--halt", str(tmp_path), "--data", str(small_cifar)]
        process = subprocess.Popen(
            [sys.executable, "entrypoint.py", "linear", *place, "--run", run_name, *options],
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
    config = json.loads((tmp_path / "store" / "hunted" / "result" / "config.json").read_bytes())
    assert (config["job"], config["inputs"], len(config["classes"])) == ("linear", 3072, 10)
    weights = load_file(tmp_path / "store" / "hunted" / "result" / "model.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in weights.items()} == {"1.weight": (10, 3072), "1.bias": (10,)}
