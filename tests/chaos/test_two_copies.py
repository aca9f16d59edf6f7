"""The copy that won't die: a newer one takes the run over, the older one notices, and the history stays one line."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.disks import fill_up
from tests.runs import CompressedLab, Container, Lab

soak = pytest.mark.skipif(not os.environ.get("BATON_SOAK"), reason="in `make soak`")
OPTIONS = ["--preset", "tutorial", "--batch-size", "10", "--epochs", "200", "--checkpoint-every", "0.3s"]


def attempts(lab: Lab) -> int:
    return len([f for f in (lab.store / "cifar10" / "attempts").glob("*.json") if ".end." not in f.name])


def test_the_second_goes_on_and_the_first_says_that_it_is_superseded(tmp_path: Path, small_cifar: Path) -> None:
    lab = Lab(tmp_path, small_cifar, *OPTIONS)
    first = lab.start()
    first.wait_for("durable after")
    second = lab.start()
    assert first.wait() == 0, first.text
    assert "superseded: attempt 2 has taken this run over" in first.text
    taken_over = time.time()
    second.wait_for("durable after")
    time.sleep(0.7)
    second.signal(signal.SIGTERM)
    assert second.wait() == 75, second.text
    assert "taking over from" in second.text

    manifests = lab.manifests()
    assert all(m["attempt"] == 2 for m in manifests if float(str(m["time"])) > taken_over + 0.5)
    chain = lab.chain()
    seconds = [name for name in chain if name.startswith("000002")]
    assert chain == seconds + [name for name in chain if name.startswith("000001")], "one line, no fork"
    assert len(seconds) >= 2


def test_a_superseded_copy_can_have_its_own_exit_code(tmp_path: Path, small_cifar: Path) -> None:
    lab = Lab(tmp_path, small_cifar, *OPTIONS)
    first = lab.start("--superseded-exit-code", "76")
    first.wait_for("durable after")
    second = lab.start()
    assert first.wait() == 76, first.text
    second.signal(signal.SIGKILL)
    second.wait()


def test_who_slept_while_another_finished_the_run_does_not_say_that_it_stopped(
    tmp_path: Path, small_cifar: Path
) -> None:
    """All that it had was durable when it fell asleep, so that no save of its own tells it of the other."""
    no_news = {"trainer.signs.SIGN_S": 1e6, "trainer.signs.NEWS_S": 1e6}
    options = ["--preset", "tutorial", "--batch-size", "20", "--epochs", "1", "--checkpoint-every", "1steps"]
    lab = CompressedLab(tmp_path, small_cifar, *options, constants=no_news)
    lab.pace.touch()
    first = lab.start()
    first.wait_for("durable after", times=2)
    with first.standing_still():  # in its slow step, which is durable
        lab.pace.unlink()
        lab.finish()
        first.signal(signal.SIGTERM)
    assert first.wait() == 75, first.text
    assert "0 steps lost" in first.text
    for status in (lab.status(), json.loads((lab.store / "cifar10" / "status.json").read_bytes())):
        assert (status["state"], status["attempt"]) == ("finished", 2)


def test_of_many_starts_at_once_one_comes_to_the_end_and_the_others_say_so(tmp_path: Path, small_cifar: Path) -> None:
    options = ("--preset", "tutorial", "--batch-size", "20", "--epochs", "3", "--checkpoint-every", "0.3s")
    lab, quiet = (Lab(tmp_path / name, small_cifar, *options) for name in ("many", "quiet"))
    containers = [lab.start() for _ in range(20 if "BATON_SOAK_SEED" in os.environ else 3)]
    for container in containers:
        assert container.wait(600) == 0, container.text
        assert "superseded:" in container.text or "finished:" in container.text, container.text
    ends = [line for container in containers for line in container.lines if re.match(r"\S+ finished: 300 steps", line)]
    assert len(ends) == 1, ends
    quiet.finish()
    assert lab.hashes() == quiet.hashes()
    chain = lab.chain()
    assert [int(name[:6]) for name in chain] == sorted((int(name[:6]) for name in chain), reverse=True)


def test_copies_that_cannot_work_never_take_the_run(tmp_path: Path, small_cifar: Path) -> None:
    lab = Lab(tmp_path, small_cifar, *OPTIONS)
    first = lab.start()
    first.wait_for("durable after")
    bad, halted = tmp_path / "bad", tmp_path / "halted"
    bad.mkdir()
    (bad / "packed.safetensors").write_bytes((small_cifar / "packed.safetensors").read_bytes()[:-1000])
    halted.mkdir()
    (halted / "halt").touch()
    troubles = {
        ("--data", str(bad)): 78,
        ("--data", str(tmp_path / "nowhere")): 78,
        ("--halt", str(halted)): 0,
        ("--lr", "0.5"): 78,
        ("--device", "cuda"): 78,
        ("--preset", "nonsense"): 64,
    }
    others = {options: lab.start(*options, CUDA_VISIBLE_DEVICES="") for options in troubles}
    for options, code in troubles.items():
        assert others[options].wait() == code, others[options].text
    assert attempts(lab) == 1
    first.signal(signal.SIGTERM)
    assert first.wait() == 75, first.text


LATE = """
import os, subprocess, sys
from trainer.history import History
plain, said = getattr(History, sys.argv[1]), []
def late(self, *given):
    if not said:
        said.append(subprocess.run(sys.argv[2], shell=True, capture_output=True, text=True).stdout)
    return plain(self, *given)
setattr(History, sys.argv[1], late)
import entrypoint
sys.exit(entrypoint.main(sys.argv[3:]))
"""


@pytest.mark.parametrize("before", ["read_sign", "claim"])
def test_who_starts_while_another_changes_the_run_does_not_go_on_with_it(
    before: str, tmp_path: Path, small_cifar: Path
) -> None:
    """Another copy comes right before the first look at the run's sign, or right before the claim."""
    lab = Lab(tmp_path, small_cifar, *OPTIONS[:-2], "--checkpoint-every", "10steps")
    first = lab.start()
    first.wait_for("durable after")
    first.signal(signal.SIGTERM)
    assert first.wait() == 75, first.text

    arguments = ["cifar10", "--store", lab.url, "--halt", str(lab.halt), "--data", str(lab.data), *lab.options]
    steps = int(str(lab.manifests()[-1]["step"])) + 30
    changed = ["--lr", "0.002", "--allow-change", "lr", "--steps", str(steps), "--allow-change", "steps"]
    other = shlex.join(lab.command(*arguments, *changed))
    late = Container.of([sys.executable, "-c", LATE, before, other, *arguments])
    assert late.wait() == 78, late.text
    assert "was started with other settings (lr 0.002 -> 0.001, steps " in late.lines[-1]
    assert attempts(lab) == (2 if before == "read_sign" else 3), "before its claim it takes nothing"
    assert lab.manifests()[-1]["step"] == steps, "what the other made of it is the run"


@pytest.mark.parametrize(
    ("before", "said", "code"),
    [
        ("read_sign", [], 74),
        ("claim", [], 74),
        pytest.param("claim", ["--micro-batch-size", "10"], 78, marks=soak),
    ],
)
def test_of_two_first_starts_the_later_goes_on_with_what_nobody_said_when_it_is_started_again(
    before: str, said: list[str], code: int, tmp_path: Path, small_cifar: Path
) -> None:
    """The other computes in other micro-batches, as one of more processes does."""
    lab = Lab(tmp_path, small_cifar, "--preset", "tutorial", "--batch-size", "10", "--steps", "20")
    arguments = ["cifar10", "--store", lab.url, "--halt", str(lab.halt), "--data", str(lab.data), *lab.options, *said]
    other = shlex.join(lab.command(*arguments, "--micro-batch-size", "5"))
    late = Container.of([sys.executable, "-c", LATE, before, other, *arguments])
    assert late.wait() == code, late.text
    if code == 74:
        assert "another copy has begun run 'cifar10'" in late.lines[-1], late.text
        assert "start this one again" in late.lines[-1]
    again = lab.start(*said)
    assert again.wait() == (0 if code == 74 else 78), again.text


def test_a_copy_that_finds_no_room_never_takes_the_run(tmp_path: Path, small_cifar: Path, small_disk: Path) -> None:
    lab = Lab(tmp_path, small_cifar, *OPTIONS)
    lab.store = small_disk / "store"
    first = lab.start()
    first.wait_for("durable after")
    ballast = fill_up(small_disk)
    os.truncate(ballast, ballast.stat().st_size - (64 << 10))  # enough to claim the run, and for no checkpoint
    second = lab.start()
    assert second.wait() == 78, second.text
    assert "make room" in second.lines[-1]
    assert attempts(lab) == 1
    ballast.unlink()
    saved = sum("durable after" in line for line in first.lines)
    first.wait_for("durable after", times=saved + 2)
    first.signal(signal.SIGTERM)
    assert first.wait() == 75, first.text
    assert {manifest["attempt"] for manifest in lab.manifests()} == {1}
