"""Real processes on simulated clouds, evicted and killed: the ledger has their seconds, the curves no step twice."""

from __future__ import annotations

import csv
import signal
import struct
import time
from pathlib import Path

import pytest

from storage import open_store
from tests.emulators.metadata import Metadata
from tests.runs import Lab, command
from trainer.curve import is_due
from trainer.history import History
from trainer.ledger import Ledger, account
from trainer.records import read

OPTIONS = ["--preset", "tutorial", "--batch-size", "20", "--epochs", "20", "--checkpoint-every", "30steps"]
STEPS = 2000  # on a quick machine too it must outlast AWS's notice, which is looked for every 2 s


def ledger_of(lab: Lab) -> Ledger:
    records = read(History(open_store(lab.url), "cifar10"))
    assert records is not None
    return account(records)


def on(service: Metadata) -> dict[str, str]:
    return {"BATON_CLOUD": service.cloud, f"BATON_{service.cloud.upper()}_METADATA": service.url}


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What event files hold, by tag, in their order. Records: length, its CRC, data, its CRC."""
    from tensorboardX.proto.event_pb2 import Event

    found: dict[str, list[tuple[int, float]]] = {}
    for file in sorted(folder.glob("events.out.tfevents.*")):
        data, at = file.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            event = Event.FromString(data[at + 12 : at + 12 + length])
            at += length + 16
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


@pytest.fixture(scope="module")
def relay(small_cifar: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Lab, list[float]]:
    """A run that AWS took back, that vanished from Google, and that ended where no cloud is; and their seconds."""
    lab = Lab(tmp_path_factory.mktemp("relay"), small_cifar, *OPTIONS)
    curves = ("--tensorboard", str(lab.halt.parent / "curves"))
    seconds = []
    with Metadata("aws") as aws, Metadata("gcp") as gcp:
        began = time.monotonic()
        first = lab.start("--price-per-hour", "0.36", *curves, **on(aws))
        first.wait_for("checkpoint 000001-00000060 durable")
        aws.notice()
        assert first.wait() == 75, first.text
        seconds.append(time.monotonic() - began)
        began = time.monotonic()
        second = lab.start("--price-per-hour", "0.72", *curves, **on(gcp))
        second.wait_for(r"checkpoint 000002-\d+ durable", times=4)
        time.sleep(0.1)
        second.signal(signal.SIGKILL)
        second.wait()
        seconds.append(time.monotonic() - began)
        began = time.monotonic()
        assert lab.start("--instance-type", "desk", *curves).wait() == 0
        seconds.append(time.monotonic() - began)
    return lab, seconds


def test_the_ledger_has_the_seconds_and_steps_of_real_processes(relay: tuple[Lab, list[float]]) -> None:
    lab, seconds = relay
    ledger = ledger_of(lab)
    assert [e.machine.get("cloud") for e in ledger.entries] == ["aws", "gcp", None]
    assert [e.machine.get("spot") for e in ledger.entries] == [True, True, None]
    assert [(e.ended, e.exit) for e in ledger.entries] == [(True, 75), (False, None), (True, 0)]
    assert (ledger.state, ledger.step, ledger.useful_steps) == ("finished", STEPS, STEPS)
    for entry, true in zip(ledger.entries, seconds, strict=True):
        assert entry.wall_s is not None
        assert entry.useful_s + entry.lost_s + entry.overhead_s == pytest.approx(entry.wall_s, abs=1e-6)
        # a process is not over when it has put its end on record; of one that was killed the last checkpoint tells
        assert true - (5 if not entry.ended else 2) < entry.wall_s < true
        assert entry.startup_s is not None
        assert 0 < entry.startup_s < entry.overhead_s + 0.01
    assert ledger.entries[0].lost_steps == 0, "it was told"


def test_the_curve_of_an_interrupted_run_is_that_of_one_that_never_was(
    relay: tuple[Lab, list[float]], tmp_path: Path, small_cifar: Path
) -> None:
    lab, _ = relay
    quiet = Lab(tmp_path, small_cifar, *OPTIONS)
    quiet.finish()
    mine, theirs = ledger_of(lab), ledger_of(quiet)
    assert [step for step, _, _ in mine.losses] == [s for s in range(1, STEPS + 1) if is_due(s, STEPS)]
    assert [(step, loss) for step, loss, _ in mine.losses] == [(step, loss) for step, loss, _ in theirs.losses]
    assert [e.step for e in mine.evaluations] == list(range(100, STEPS + 1, 100))
    assert [e.metrics["accuracy"] for e in mine.evaluations] == [e.metrics["accuracy"] for e in theirs.evaluations]


def test_event_files_have_one_curve_whoever_wrote_them(relay: tuple[Lab, list[float]], tmp_path: Path) -> None:
    lab, _ = relay
    ledger = ledger_of(lab)
    code, said = command("report", "--store", lab.url, "--out", str(tmp_path), "--tensorboard")
    assert code == 0, said
    followed, reported = scalars(lab.halt.parent / "curves" / "cifar10"), scalars(tmp_path / "tensorboard" / "cifar10")
    for tags in (followed, reported):
        assert [step for step, _ in tags["train/loss"]] == [step for step, _, _ in ledger.losses]
        assert [v for _, v in tags["train/loss"]] == pytest.approx([loss for _, loss, _ in ledger.losses], rel=1e-5)
        assert [step for step, _ in tags["test/accuracy"]] == [e.step for e in ledger.evaluations]
    with (tmp_path / "attempts.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["instance"] for row in rows] == ["g5.xlarge", "g2-standard-4", "desk"]
    assert [row["cost $"] != "unknown" for row in rows] == [True, True, False]
    assert float(rows[0]["cost $"]) == pytest.approx(0.36 * float(rows[0]["seconds"]) / 3600, rel=1e-3, abs=1e-6)


def test_a_copy_of_the_run_has_the_same_ledger(relay: tuple[Lab, list[float]], tmp_path: Path) -> None:
    lab, _ = relay
    other = Lab(tmp_path, lab.data)
    for old in sorted((lab.store / "cifar10" / "checkpoints").glob("000001-*.json")):
        old.unlink()  # cleaned up, as they are in time; their metric lines stay
    before = ledger_of(lab)
    assert command("copy", lab.url, other.url, "--run", "cifar10")[0] == 0
    assert ledger_of(other) == before
