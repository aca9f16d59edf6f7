"""However its container ends, `docker run -v DIR:/halt -v STORE:/store IMAGE cifar10` again goes on with the run."""

from __future__ import annotations

import re
import statistics
import time

import pytest

from tests.container.runner import WAYS, Runner

pytestmark = pytest.mark.timeout(1800)  # the first one also builds the image

STARTED = "to stop: touch /halt/halt"


def durable_step(log: str) -> int:
    found = re.search(r"last checkpoint durable at step (\d+)", log)
    assert found, log
    return int(found[1])


def test_a_halt_file_stops_it_in_two_seconds_with_a_durable_checkpoint_and_without_it_the_run_goes_on(runner: Runner):
    seconds, step = [], 0
    for attempt in (1, 2, 3):
        container = runner.start()
        container.wait_for(f"attempt {attempt} goes on at step {step} " if step else STARTED)
        time.sleep(2)  # well into training
        touched_at = time.time()
        (runner.halt / "halt").touch()
        assert container.exit_code() == 0, container.logs()
        seconds.append(container.ended_at() - touched_at)
        step = durable_step(container.logs())
        assert step > 0
        assert runner.checkpoints()[-1] == f"{attempt:06d}-{step:08d}"
        (runner.halt / "halt").unlink()
    assert statistics.median(seconds) < 2, seconds


def test_docker_stop_gives_75_and_the_run_goes_on_where_it_was(runner: Runner):
    first = runner.start()
    first.wait_for(STARTED)
    time.sleep(1)
    runner.engine("stop", first.name)  # SIGTERM, and SIGKILL ten seconds later
    assert first.exit_code() == 75, first.logs()
    second = runner.start()
    second.wait_for(f"attempt 2 goes on at step {durable_step(first.logs())} ")


def test_a_rehearsed_eviction_gives_75(runner: Runner):
    container = runner.start()
    container.wait_for(STARTED)
    (runner.halt / "preempt.txt").touch()
    assert container.exit_code() == 75, container.logs()
    assert runner.checkpoints()[-1] == f"000001-{durable_step(container.logs()):08d}"


def test_killed_outright_again_and_again_it_goes_on_from_its_newest_checkpoint(runner: Runner):
    container = runner.start()
    for attempt in (2, 3):
        runner.wait_for_new_checkpoint(container)
        runner.engine("kill", container.name)
        assert container.exit_code() == 137
        newest = runner.checkpoints()[-1]
        container = runner.start()
        container.wait_for(f"attempt {attempt} goes on at step {int(newest.split('-')[1])} ")


def test_with_a_halt_file_there_already_it_leaves_at_once_with_0(runner: Runner):
    (runner.halt / "halt").touch()
    container = runner.start()
    assert container.exit_code() == 0, container.logs()
    assert container.ended_at() - container.started_at() < 2
    assert runner.checkpoints() == []


@pytest.mark.parametrize("runner", [(), WAYS["as user 12345"]], ids=["plain", "as user 12345"], indirect=True)
def test_without_its_folders_it_warns_that_checkpoints_go_with_the_container_and_names_what_stops_it(runner: Runner):
    container = runner.start(mounted=False)
    container.wait_for("add -v FOLDER:/store to keep checkpoints")
    container.wait_for("to stop: Ctrl-C, or docker stop;")
    container.wait_for(", saved: step ")  # whoever its user is may write to the image's own /store
    runner.engine("stop", container.name)
    assert container.exit_code() == 75
    assert durable_step(container.logs()) > 0


@pytest.mark.parametrize("runner", [()], ids=["plain"], indirect=True)
def test_the_image_alone_or_with_help_says_what_it_can_do_and_how_to_begin(runner: Runner):
    for words in ((), ("help",)):
        said = runner.engine("run", "--rm", runner.image, *words)
        assert '-v "$PWD/halt:/halt" -v "$PWD/store:/store"' in said
        assert re.search(r"To begin:\n +doctor .*\n +cifar10 ", said), said
