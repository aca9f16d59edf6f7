"""A newcomer's own task is one file of 60 lines: this one is put beside the others, stopped, and goes on."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from safetensors.numpy import load_file

from tests.runs import REPOSITORY, environment

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
