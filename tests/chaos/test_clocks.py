"""A machine's clock is set while it trains, as one is that began with a wrong one: nothing goes by it but records."""

from __future__ import annotations

import re
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.runs import Lab, command

SET = """
import sys, time
import trainer.attempt, trainer.cadence
real, off, begin = time.time, [0.0], trainer.attempt.Attempt.__init__
time.time = lambda: real() + off[0]
def beginning(self, *arguments, **named):
    begin(self, *arguments, **named)
    off[0] = float(sys.argv[1])
trainer.attempt.Attempt.__init__ = beginning
trainer.cadence.SHORTEST_S, trainer.cadence.PRIOR_S = 0.3, 1.0
import entrypoint
sys.exit(entrypoint.main(sys.argv[2:]))
"""


class LabOfClocks(Lab):
    set_by_s = 0.0

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-c", SET, str(self.set_by_s), *arguments]


@pytest.mark.parametrize("days", [-1, 400])
def test_saving_as_often_as_pays_goes_on_when_the_clock_is_set(days: int, tmp_path: Path, small_cifar: Path) -> None:
    lab = LabOfClocks(tmp_path, small_cifar, "--preset", "tutorial", "--batch-size", "10", "--epochs", "200")
    lab.set_by_s = days * 86400.0
    container = lab.start()
    assert container.wait_for("saving every"), container.text
    until = time.monotonic() + 60
    while container.text.count("durable after") < 4 and not container.ended:
        assert time.monotonic() < until, container.text
        time.sleep(0.05)
    _, told = command("status", "--store", lab.url, "--run", "cifar10")
    assert re.search(r"cifar10: saves every [0-9.]+ s: a save costs [0-9]+ ms of training", told), told
    assert "a save costs" in str(lab.status()["checkpoint_every_why"])
    container.signal(signal.SIGTERM)
    assert container.wait() == 75, container.text
    manifest = lab.manifests()[-1]
    assert len(lab.manifests()) > 3
    assert 0 <= manifest["ledger"][-1]["seconds"] < 600  # type: ignore[index]
