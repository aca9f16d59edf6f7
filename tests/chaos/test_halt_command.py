"""`halt --run` stops the copy that trains, wherever it is, and no other."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from tests.runs import REPOSITORY, Lab, environment

OPTIONS = ["--preset", "tutorial", "--batch-size", "10", "--epochs", "2000"]


class QuickSigns(Lab):
    """Containers that give a sign of life every 0.3 s, so that no test waits for 30 s."""

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, str(REPOSITORY / "tests" / "hurried.py"), "0.3", "86400", "600", "0", *arguments]


def halt(lab: Lab, run: str = "cifar10") -> tuple[int, str]:
    done = subprocess.run(
        lab.command("halt", "--store", f"file://{lab.store}", "--run", run),
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_the_running_copy_saves_and_stops_and_the_next_start_goes_on(tmp_path: Path, small_cifar: Path) -> None:
    lab = QuickSigns(tmp_path, small_cifar, *OPTIONS)
    container = lab.start()
    container.wait_for("to stop:")
    time.sleep(0.5)
    code, text = halt(lab)
    assert code == 0
    assert "attempt 1 of run cifar10" in text
    assert "saves its state and exits with 0" in text
    assert container.wait(30) == 0, container.text
    assert "halted through the store" in container.text
    status = lab.status()
    assert (status["state"], status["exit"], status["checkpoint_step"]) == ("stopped", 0, status["step"])
    assert int(str(status["step"])) > 0

    code, text = halt(lab)
    assert (code, "not running: attempt 1 has ended" in text) == (0, True), text

    again = lab.start()
    again.wait_for("attempt 2 goes on at step")
    time.sleep(2)
    assert again.process.poll() is None, "the halt was for attempt 1 alone"
    again.process.kill()


def test_a_copy_that_is_gone_is_told_of_and_no_run_is_said(tmp_path: Path, small_cifar: Path) -> None:
    from storage import open_store
    from trainer.history import History

    lab = Lab(tmp_path, small_cifar, *OPTIONS)
    code, text = halt(lab)
    assert (code, "no run 'cifar10'" in text) == (78, True), text
    History(open_store(f"file://{lab.store}"), "cifar10").claim({"job": "cifar10"})
    long_ago = time.time() - 300
    os.utime(lab.store / "cifar10" / "attempts" / "000001.json", (long_ago, long_ago))
    code, text = halt(lab)
    assert code == 0
    assert "gave no sign of life for 30" in text
    assert (lab.store / "cifar10" / "halts" / "000001.json").exists()


def test_without_a_name_it_asks_for_one() -> None:
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "entrypoint.py"), "halt"],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    assert done.returncode == 64
    assert "give --run NAME" in done.stdout
