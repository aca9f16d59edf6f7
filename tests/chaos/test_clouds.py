"""Real training on each cloud's store, through what networks and clouds do: nothing committed is lost or wrong."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from storage import open_store
from tests.chaos.test_every_store_call import CALLS, CountingStore, DyingStore, in_a_child, train
from tests.chaos.test_every_store_call import OPTIONS as SHORT
from tests.chaos.test_halt_command import QuickSigns
from tests.chaos.test_new_job import newcomers
from tests.clouds import NAMES, Cloud, is_third_part, reached
from tests.emulators.proxy import Fault, Request
from tests.runs import REPOSITORY, Lab, environment
from trainer.history import History
from trainer.manifest import checkpoint_name, parse_name

OPTIONS = ["--preset", "tutorial", "--batch-size", "20", "--dropout", "0.2", "--epochs", "3"]
OFTEN = ["--checkpoint-every", "25steps"]
SOAK = "BATON_SOAK_SEED" in os.environ


def is_for_objects(request: Request) -> bool:
    """Not a question that an SDK asks on its own."""
    return "baton-chaos" in request.target


def is_get_of_a_part(request: Request) -> bool:
    return request.method == "GET" and "/parts/" in request.target


# each of which strikes in any start that goes on with a run, if need be by waiting for it
FAULTS = {
    "30 % of connections are reset": lambda: [Fault("reset", chance=0.3)],
    "429 and 503 storms": lambda: [
        Fault("answer", status=503, chance=0.25, when=is_for_objects),
        Fault("answer", status=429, chance=0.25, when=is_for_objects),
    ],
    "answers lost, cut and spoilt": lambda: [
        Fault("lose", chance=0.15),
        Fault("cut", at=20, chance=0.2, when=lambda r: r.method == "GET"),
        Fault("flip", at=30, times=1, when=is_get_of_a_part),  # a start reads few of them
    ],
    # short answers take a second and are waited for, longer ones are given up
    "answers trickle or never come": lambda: [
        Fault("slow", pause_s=0.002, chance=0.15),
        Fault("hang", times=1),
        Fault("hang", chance=0.05),
    ],
}


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, small_cifar: Path) -> dict[str, object]:
    """Hashes of the uninterrupted run, on a local store."""
    lab = Lab(tmp_path_factory.mktemp("quiet"), small_cifar, *OPTIONS)
    lab.finish()
    return lab.hashes()


@pytest.mark.parametrize("last", FAULTS if SOAK else [None])
def test_a_run_through_faults_ends_as_without_them(
    last: str | None, cloud: Cloud, tmp_path: Path, small_cifar: Path, expected: dict[str, object]
) -> None:
    """A start, saves and a death with each fault in turn; with the last, another one on each store, to the end.

    What never comes is waited for 2 s here, not 20.
    """
    lab = cloud.compressed(tmp_path, small_cifar, {"console.train.PATIENCE_S": 2.0}, *OPTIONS, *OFTEN)
    names = list(FAULTS)
    last = last or names[NAMES.index(cloud.name) - 1]
    for name in names:
        if name == last:
            continue
        cloud.proxy.faults = faults = FAULTS[name]()
        lab.pace.touch()
        container = lab.start()
        assert container.wait_for("durable after", 240), container.text
        while missed := not_struck(faults):
            assert not container.ended, f"{missed} in no request of a whole run\n{container.text}"
            time.sleep(0.02)
        container.signal(signal.SIGKILL)
        container.wait()
        lab.pace.unlink()
    cloud.proxy.faults = faults = FAULTS[last]()
    container = lab.start()
    assert container.wait(240) == 0, container.text
    assert "goes on at step" in container.text
    assert not not_struck(faults)
    cloud.proxy.faults = []
    assert cloud.hashes(lab) == expected


def not_struck(faults: list[Fault]) -> set[tuple[str, int]]:
    """The kinds that no request has met."""
    return {(f.kind, f.status) for f in faults} - {(f.kind, f.status) for f in faults if f.struck}


# ten minutes as three seconds: tried for 30 s each, saved each 30 s
FASTER = 200.0
OUTAGE_S = 600 / FASTER


def test_ten_minutes_without_a_store_stop_no_training_and_then_the_newest_state_is_saved(
    cloud: Cloud, tmp_path: Path, small_cifar: Path, expected: dict[str, object]
) -> None:
    constants = {"trainer.attempt.TRY_S": 30 / FASTER, "console.progress.Lines.every_s": 0.2}
    lab = cloud.compressed(tmp_path, small_cifar, constants, *OPTIONS, "--checkpoint-every", f"{30 / FASTER}s")
    lab.pace.touch()
    container = lab.start()
    assert container.wait_for("durable after"), container.text
    time.sleep(1.5)  # a sign of life has told of it
    cloud.proxy.stop()
    begun, failed = time.monotonic(), "checkpoint at step ([0-9]+) could not be saved, trying again"
    while time.monotonic() - begun < OUTAGE_S or len(re.findall(failed, container.text)) < 5:
        assert not container.ended, container.text
        time.sleep(0.05)
    elsewhere = Lab(tmp_path / "elsewhere", small_cifar, url=lab.url, variables=cloud.emulator.env).status()
    cloud.proxy.start()
    back = container.wait_for("saving works again: checkpoint at step [0-9]+ is durable")
    lab.pace.unlink()
    assert back, container.text
    assert container.wait(240) == 0, container.text
    assert cloud.hashes(lab) == expected

    at = next(n for n, line in enumerate(container.lines) if re.search(failed, line))
    before, after = container.lines[:at], container.lines[at:]
    away, after = after[: after.index(back)], after[after.index(back) :]
    durable = int(re.findall("-([0-9]{8}) durable after", "\n".join(before))[-1])
    tried = [int(found[1]) for line in away if (found := re.search(failed, line))]
    assert tried == sorted(set(tried)), "each try has a newer state than the one before"
    assert re.search(f"warning: .*; the last durable one is of step {durable}$", away[0])
    warned = [line for line in away if "warning: checkpoint at step" in line]
    assert len(warned) < len(tried), "the same trouble is warned of once"
    assert not any("durable after" in line for line in away)
    told = [re.search(r"step ([0-9]+)/300, .*SAVING FAILS, saved: step ([0-9]+), ([0-9]+) s ago", x) for x in away]
    steps, saved, ages = zip(*(map(int, found.groups()) for found in told if found), strict=True)
    assert steps[0] < steps[-1], "trained on"
    assert set(saved) == {durable}
    assert list(ages) == sorted(ages), "older and older"
    assert ages[-1] >= ages[0] + 2
    # of the first that failed the manifest may be there, its reply lost
    assert elsewhere["checkpoint_step"] in (*range(1, durable + 1), tried[0])
    assert elsewhere["checkpoint_age_s"] > 1
    at_once = int(re.findall("at step ([0-9]+) is durable", back)[0])
    assert tried[-1] < at_once < 300, "the newest state, and not first at the run's end"
    assert not any("could not be saved" in line for line in after)


def test_told_to_go_while_the_store_is_away_it_exits_74_and_loses_only_what_was_not_durable(
    cloud: Cloud, tmp_path: Path, small_cifar: Path, expected: dict[str, object]
) -> None:
    lab = cloud.lab(tmp_path, small_cifar, *OPTIONS, *OFTEN)
    container = lab.start(BATON_STOP_GRACE="4")
    container.wait_for("durable after")
    cloud.proxy.stop()
    container.signal(signal.SIGTERM)
    begun = time.monotonic()
    assert container.wait() == 74, container.text
    assert time.monotonic() - begun < 10, "before the kill, but for a loaded machine"
    assert "the last state could not be saved" in container.text
    cloud.proxy.start()
    again = lab.start()
    assert again.wait() == 0, again.text
    assert "goes on at step" in again.text
    assert cloud.hashes(lab) == expected


def test_a_notice_ends_the_wait_for_a_store_that_is_away_from_the_start(
    cloud: Cloud, tmp_path: Path, small_cifar: Path
) -> None:
    lab = cloud.lab(tmp_path, small_cifar, *OPTIONS)
    cloud.proxy.stop()
    container = lab.start()
    assert container.wait_for("trying again"), container.text
    container.signal(signal.SIGTERM)
    assert container.wait(20) == 75, container.text
    assert "stopped before training" in container.text


def test_a_place_that_is_not_there_is_told_in_one_line(cloud: Cloud, tmp_path: Path, small_cifar: Path) -> None:
    url = cloud.url().replace("baton-chaos", "no-such-bucket-here")
    lab = Lab(tmp_path, small_cifar, url=url, variables=cloud.variables)
    container = lab.start(debug=False)
    assert container.wait() == 78, container.text
    assert "no-such-bucket-here" in container.lines[-1]
    assert "Traceback" not in container.text
    assert len([line for line in container.lines if "error" in line]) == 1, container.text


def test_a_slow_link_delays_saves_and_nothing_else(
    cloud: Cloud, tmp_path: Path, small_cifar: Path, expected: dict[str, object]
) -> None:
    """A state takes more than a second over it."""
    lab = cloud.compressed(tmp_path, small_cifar, {}, *OPTIONS, "--checkpoint-every", "1s")
    lab.pace.touch()
    cloud.proxy.bytes_per_s = 400e3
    container = lab.start(BATON_STOP_GRACE="30")
    assert container.wait_for("durable after", 120)
    assert container.wait_for("saving the state", times=2)
    time.sleep(1)
    container.signal(signal.SIGTERM)
    assert container.wait() == 75, container.text
    assert "0 steps lost" in container.text
    cloud.proxy.bytes_per_s = None
    lab.pace.unlink()
    again = lab.start()
    assert again.wait() == 0, again.text
    assert "goes on at step" in again.text
    assert cloud.hashes(lab) == expected


def test_a_server_that_dies_in_mid_upload_and_comes_back_loses_nothing_committed(
    cloud: Cloud, tmp_path: Path, small_cifar: Path, expected: dict[str, object]
) -> None:
    """With bytes on their way, Google's and Azure's emulators are killed and started again.

    S3's keeps nothing on a disk, so nothing committed could be there afterwards: for S3 only the connections die. What
    azurite took in its last 5 s may be gone after its death, against its word: the save before is older than that, and
    of the one that is cut nothing has arrived.
    """
    lab = cloud.lab(tmp_path, small_cifar, *OPTIONS, *OFTEN)
    container = lab.start()
    container.wait_for("durable after")
    cloud.proxy.bytes_per_s = 30e3  # 17 s for a state of 0.5 MB
    seen = len(cloud.proxy.requests)
    while not any(is_of_a_part(request) for request in cloud.proxy.requests[seen:]):
        assert not container.ended, container.text
        time.sleep(0.02)
    durable = -1
    while durable < container.text.count("durable after"):  # one that was nearly there when the link got slow
        durable = container.text.count("durable after")
        time.sleep(6 if cloud.name == "az" else 0)
    cloud.proxy.stop()
    if cloud.name != "s3":
        cloud.emulator.kill()
        cloud.emulator.start()
    assert container.wait_for("trying again"), container.text
    assert container.text.count("durable after") == durable, "it was in the midst of it"
    cloud.proxy.bytes_per_s = None
    cloud.proxy.start()
    assert container.wait(240) == 0, container.text
    assert cloud.hashes(lab) == expected


def is_of_a_part(request: Request) -> bool:
    """Whether it brings a model's or an optimizer's state, of 250 kB."""
    sizes = (request.headers.get(name, "0") for name in ("content-length", "x-amz-decoded-content-length"))
    return request.method in ("PUT", "POST") and max(map(int, sizes)) > 100_000


class WideLab(Lab):
    """For a program of its own, whose job `linear` has a tensor of 18 MB: three pieces of an upload."""

    program = REPOSITORY

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, str(self.program / "entrypoint.py"), *arguments]


WIDE = ["--momentum", "0", "--steps", "12", "--checkpoint-every", "4steps"]


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory, small_cifar: Path) -> dict[str, object]:
    """The program, in WideLab, and hashes of the quiet run."""
    program = tmp_path_factory.mktemp("wide")
    newcomers(program)
    job = program / "trainer" / "jobs" / "linear.py"
    narrow = "nn.Linear(3072, 10))"
    assert narrow in job.read_text()
    job.write_text(job.read_text().replace(narrow, "nn.Linear(3072, 1500), nn.ReLU(), nn.Linear(1500, 10))"))
    WideLab.program = program
    lab = WideLab(program / "quiet", small_cifar, *WIDE, job="linear")
    lab.finish()
    return lab.hashes()


def test_death_and_resets_in_the_midst_of_an_upload_in_pieces_leave_no_half_of_it(
    cloud: Cloud, tmp_path: Path, small_cifar: Path, wide: dict[str, object]
) -> None:
    """Killed while the second save's last piece is on its way; then the third piece is broken off three times."""
    lab = WideLab(tmp_path, small_cifar, *WIDE, job="linear", url=cloud.url(), variables=cloud.variables)
    pieces = itertools.count()
    hang = Fault("hang", when=lambda r: is_third_part(r) and next(pieces) == 1)
    cloud.proxy.faults = [hang]
    container = lab.start()
    while not hang.struck:
        assert not container.ended, container.text
        time.sleep(0.01)
    container.signal(signal.SIGKILL)
    container.wait()
    with reached(cloud.emulator.env):
        history = cloud.history(lab)
        assert history.checkpoints() == [(1, 4)]
        parts = [info.key for info in history.store.list(history.key("parts", ""))]
        named = {ref.sha256 for ref in history.manifest(checkpoint_name(1, 4)).parts}
        for key in parts:  # a small part of the second save may be there, but whole
            data = history.read(key, 1 << 30)
            assert hashlib.sha256(data).hexdigest() == key.rpartition("/")[2]
            assert len(data) < 8 << 20 or key.rpartition("/")[2] in named
    if cloud.name != "az":  # whose blocks without a list nobody sees
        assert len(cloud.emulator.open_uploads(lab.url)) == 1

    breaks = Fault("break", at=1_000_000, times=3, when=is_third_part)
    cloud.proxy.faults = [breaks]
    again = lab.start()
    assert again.wait() == 0, again.text
    assert "attempt 2 goes on at step 4 of 12" in again.text
    assert breaks.struck == 3
    cloud.proxy.faults = []
    assert cloud.hashes(lab) == wide
    if cloud.name != "az":
        assert len(cloud.emulator.open_uploads(lab.url)) == 1, "those that were broken off are given back"


def test_death_at_any_call_to_a_clouds_store_loses_nothing_committed(
    cloud: Cloud, tmp_path: Path, small_cifar: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At four of its calls, before or after, by a seed; at all by `make soak`, and always on a folder."""
    import trainer.run  # noqa: F401  (imported before forking, so that each child starts at once)

    monkeypatch.setenv("BATON_DEBUG", "1")
    with reached(cloud.emulator.env):
        quiet = cloud.lab(tmp_path / "quiet", small_cifar, *SHORT)
        counted = tmp_path / "calls"
        assert in_a_child(lambda: train(quiet, tmp_path / "log", lambda s: CountingStore(s, counted))) == 0
        expected, calls = cloud.hashes(quiet), counted.stat().st_size
        every = [(number, when) for number in range(1, calls + 1) for when in ("before", "after")]
        for number, when in every if SOAK else random.Random(f"5{cloud.name}").sample(every[2:-16], 4):
            lab = cloud.lab(tmp_path / f"{number}-{when}", small_cifar, *SHORT)
            log = tmp_path / f"{number}-{when}.log"
            ended = in_a_child(lambda: train(lab, log, lambda s: DyingStore(s, number, when)))  # noqa: B023
            if ended == 0 and number > calls - 8:
                continue  # signs of life and cleaning up come by the clock: a run may make some calls less
            assert ended == -9, log.read_text()
            told = re.findall("checkpoint ([0-9-]+) durable after", log.read_text())
            kept = cloud.history(lab).checkpoints()
            assert {parse_name(name) for name in told} <= set(kept), f"told durable before call {number}, and gone"
            assert in_a_child(lambda: train(lab, log)) == 0, log.read_text()  # noqa: B023
            text = log.read_text()
            assert "is bad" not in text
            goes_on = f"checkpoint {checkpoint_name(*max(kept))} is the newest good one" if kept else "starts at step 0"
            assert goes_on in text or "is finished" in text, text
            assert cloud.hashes(lab) == expected, f"died {when} call {number} of {CALLS}"


def test_a_run_that_moves_from_cloud_to_cloud_for_good_ends_as_if_it_had_stayed(
    clouds: dict[str, Cloud], tmp_path: Path, small_cifar: Path, expected: dict[str, object]
) -> None:
    """Told to go on each, copied to the next one, resumed there; a copy killed in its midst is said again."""
    variables = {name: value for cloud in clouds.values() for name, value in cloud.variables.items()}
    way = [clouds[name] for name in ("gs", "s3", "az", "gs")]
    labs = [Lab(tmp_path, small_cifar, *OPTIONS, url=cloud.url(), variables=variables) for cloud in way]
    for here, there, cloud in zip(labs, labs[1:], way[1:], strict=False):
        container = here.start("--checkpoint-every", "5steps")
        assert container.wait_for("durable after"), container.text
        container.signal(signal.SIGTERM)
        assert container.wait() == 75, container.text
        copy = here.command("copy", here.url, there.url, "--run", "cifar10")
        if cloud.name == "s3":
            killed_in_mid_copy(copy, cloud, variables)
            with reached(variables):
                assert History(open_store(there.url), "cifar10").is_marked()
        done = subprocess.run(copy, capture_output=True, text=True, env=environment(**variables), check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "every byte checked" in done.stdout
    container = labs[-1].start()
    assert container.wait() == 0, container.text
    assert "attempt 4 goes on at step" in container.text
    assert way[-1].hashes(labs[-1]) == expected


def killed_in_mid_copy(copy: list[str], target: Cloud, variables: Mapping[str, str]) -> None:
    """As soon as the first of several checkpoints is whole there; each takes a second and more."""
    target.proxy.bytes_per_s = 400e3
    process = subprocess.Popen(copy, env=environment(**variables))
    while not any(r.method == "PUT" and "/checkpoints/0" in r.target for r in target.proxy.requests):
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -9
    target.proxy.bytes_per_s = None


def test_every_command_does_its_work_on_a_clouds_store(cloud: Cloud, tmp_path: Path, small_cifar: Path) -> None:
    """Beside a run that trains: clean, status, halt; then verify, delete. `doctor` on each is in test_doctor.py."""
    import trainer.attempt  # noqa: F401  (imported before forking, so that each child starts at once)
    from tests import hurried

    often = [*OPTIONS[:-1], "2000", "--checkpoint-every", "0.5s"]
    lab = QuickSigns(tmp_path, small_cifar, *often, url=cloud.url(), variables=cloud.emulator.env)

    def said(*arguments: str) -> str:
        """By a process of its own, where what is cleaned up after an hour is so after half a second."""
        log = tmp_path / "said"

        def command() -> int:
            sys.stdout, sys.stderr = open(log, "w", buffering=1), open(tmp_path / "aside", "w", buffering=1)  # noqa: SIM115
            return hurried.main(0.3, 2.0, 600, 0, [*arguments, "--store", lab.url, "--run", "cifar10"])

        with reached(cloud.emulator.env):
            assert in_a_child(command) == 0, log.read_text()
        return log.read_text()

    container = lab.start()
    while container.text.count("durable after") < 4:
        assert not container.ended, container.text
        time.sleep(0.05)
    assert re.search("deleted [1-9][0-9]* checkpoints? and [1-9]", told := said("clean", "--keep", "2", "--yes")), told
    assert json.loads(said("status", "--json"))[0]["state"] == "running"
    assert "saves its state and exits with 0" in said("halt")
    assert container.wait() == 0, container.text
    assert "halted through the store" in container.text
    assert re.search("all [0-9]+ checkpoints of cifar10 are good", told := said("verify")), told
    assert "deleted run cifar10" in said("delete", "--yes")
    with reached(cloud.emulator.env):
        assert list(open_store(lab.url).list("")) == []
