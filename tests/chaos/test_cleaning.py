"""Cleaning up beside a writer, beside a zombie, and beside itself: no kept checkpoint ever lacks a part."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

from storage import open_store
from tests.runs import REPOSITORY, Container, Lab, environment
from trainer.history import History
from trainer.verify import verify

OPTIONS = ["--preset", "tutorial", "--batch-size", "10", "--epochs", "2000", "--checkpoint-every", "0.2s"]


class HurriedLab(Lab):
    """Containers in which 24 hours are `young_s` seconds; the last one's uploads can be slowed down."""

    young_s = 4.0
    slow_part_s = 0.0

    def command(self, *arguments: str) -> list[str]:
        times = ("0.5", str(self.young_s), "0.3", str(self.slow_part_s))
        return [sys.executable, str(REPOSITORY / "tests" / "hurried.py"), *times, *arguments]

    def slow(self, slow_part_s: float) -> Container:
        self.slow_part_s = slow_part_s
        try:
            return self.start()
        finally:
            self.slow_part_s = 0.0

    def clean(self, *options: str) -> str:
        done = subprocess.run(
            self.command("clean", "--store", f"file://{self.store}", *options),
            capture_output=True,
            text=True,
            env=environment(),
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


def all_are_whole(lab: Lab) -> int:
    """Every checkpoint that is there can be loaded, if it isn't cleaned up meanwhile; how many there are."""
    verdicts = verify(History(open_store(f"file://{lab.store}"), "cifar10"))
    assert [verdict for verdict in verdicts if verdict.problems] == []
    return len(verdicts)


def test_a_running_copy_cleans_up_after_itself_and_goes_on(tmp_path: Path, small_cifar: Path) -> None:
    lab = HurriedLab(tmp_path, small_cifar, *OPTIONS)
    container = lab.start()
    assert container.wait_for("cleaned up: .* checkpoints?")
    container.wait_for("durable after")
    container.signal(signal.SIGTERM)
    assert container.wait() == 75, container.text
    assert "warning" not in container.text
    time.sleep(lab.young_s)
    left = all_are_whole(lab)
    assert "would delete" in lab.clean()
    assert all_are_whole(lab) == left, "without --yes nothing goes"
    assert "deleted" in lab.clean("--yes")
    assert all_are_whole(lab) == 3
    assert "nothing to delete; 3 checkpoints stay" in lab.clean("--yes")
    again = lab.start()
    assert again.wait_for("goes on at step")
    again.signal(signal.SIGTERM)
    again.wait()


def test_cleaners_beside_a_slow_writer_and_a_zombie_take_nothing_that_is_needed(
    tmp_path: Path, small_cifar: Path
) -> None:
    """The zombie is stopped in mid-save for longer than anything stays young, and then goes on saving."""
    lab = HurriedLab(tmp_path, small_cifar, *OPTIONS)
    zombie = lab.slow(0.5)
    zombie.wait_for("durable after")
    zombie.wait_for("saving the state")
    zombie.signal(signal.SIGSTOP)
    writer = lab.slow(0.5)
    writer.wait_for("durable after")
    for _ in range(3):
        lab.clean("--yes")
        all_are_whole(lab)
    time.sleep(lab.young_s)
    zombie.signal(signal.SIGCONT)
    lab.clean("--yes")
    assert zombie.wait() == 0, zombie.text
    assert "superseded" in zombie.text
    lab.clean("--yes")
    writer.signal(signal.SIGTERM)
    assert writer.wait() == 75, writer.text
    all_are_whole(lab)
    chain = lab.chain()
    assert len(chain) >= 3
    again = lab.start()
    line = again.wait_for("is the newest good one")
    assert line is not None
    assert chain[0] in line
    again.signal(signal.SIGTERM)
    again.wait()
    assert "is bad" not in again.text
