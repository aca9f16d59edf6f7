"""Whenever a cloud says that the machine goes, the run stops, its last state durable before it does: 0 missed.

BATON_SOAK=1 tells all 300 notices, 100 of each cloud (BATON_NOTICES: another number); BATON_SOAK_SEED draws other
moments. Two clouds at once, with what each notice took:

    make soak ROUNDS=1 ARGS="-n 2 -rP -k no_notice_is_missed"
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.clouds import Cloud
from tests.emulators.metadata import Metadata
from tests.runs import REPOSITORY, Container, Lab
from watchers.aws import AwsWatcher
from watchers.azure import AzureWatcher
from watchers.gcp import GcpWatcher

SEED = int(os.environ.get("BATON_SOAK_SEED", "5"))
SOAK = "BATON_SOAK" in os.environ
COUNT = int(os.environ.get("BATON_NOTICES", "100" if SOAK else "3"))  # of each cloud
# how long a cloud may take to be heard: its interval and 100 ms, or 1 s while torch is imported
INTERVAL_S = {"aws": AwsWatcher.interval_s, "gcp": GcpWatcher.interval_s, "azure": AzureWatcher.interval_s}
BUSY_S = 10.0  # what a busy machine may add
PATIENCE_S = 240.0
OPTIONS = ["--preset", "tutorial", "--batch-size", "10", "--epochs", "500", "--checkpoint-every", "20steps"]

# the line after which a notice comes, and within how many seconds; no line: after the process started
MOMENTS: dict[str, tuple[str | None, float, float]] = {
    "start-up": (None, 0.0, 0.6),
    "import": ("machine:", 0.0, 1.5),
    "restore": ("machine:", 1.5, 2.5),
    "download": ("machine:", 0.0, 0.5),
    "training": ("to stop:", 0.0, 0.5),
    "saving": ("saving the state", 0.0, 0.01),
    "cleaning": ("durable after", 0.0, 0.01),
    "evaluation": ("evaluating after", 0.0, 0.05),
}
IMPORTING = ("start-up", "import", "restore", "download")


class CleaningLab(Lab):
    """Cleans up after each save, whatever is young."""

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, str(REPOSITORY / "tests" / "hurried.py"), "30", "0", "0", "0", *arguments]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """600 generated pictures to train on, 100 to test: epochs of a moment."""
    from trainer.data.dataset import named
    from trainer.data.packed import Origin, write_packed
    from trainer.data.pulse import Pulse
    from trainer.data.synthetic import generate

    folder = tmp_path_factory.mktemp("tiny")
    dataset = named("cifar10")
    write_packed(folder, dataset, generate(dataset, Pulse(), 600, 100), Origin("noise", "noise", "1"), synthetic=True)
    return folder


@pytest.fixture
def endless_download() -> Iterator[str]:
    """The address of an archive that trickles for ever."""

    class Trickle(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(1 << 28))
            self.end_headers()
            try:
                while True:
                    self.wfile.write(b"x" * 100)
                    time.sleep(0.05)
            except OSError:
                self.close_connection = True

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Trickle)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/cifar-10-binary.tar.gz"
    server.shutdown()
    server.server_close()


def variables(service: Metadata) -> dict[str, str]:
    return {"BATON_CLOUD": service.cloud, f"BATON_{service.cloud.upper()}_METADATA": service.url}


@dataclass(frozen=True)
class Heard:
    """What became of one notice."""

    cloud: str
    moment: str
    delay_s: float
    seen_s: float  # after the metadata service had it
    spare_s: float | None  # from durable to the deadline; None where there was nothing to save

    @property
    def bound_s(self) -> float:
        return INTERVAL_S[self.cloud] + (1.0 if self.moment in IMPORTING else 0.1)

    def __str__(self) -> str:
        late = "" if self.seen_s <= self.bound_s else "  LATE"
        spare = "nothing to save" if self.spare_s is None else f"durable {self.spare_s:.1f} s before the deadline"
        return f"{self.cloud:6}{self.moment:11}+{self.delay_s:.3f} s  seen after {self.seen_s:.3f} s{late}, {spare}"


def evict(lab: Lab, service: Metadata, moment: str, delay_s: float, *options: str) -> Heard:
    """Start a container, let its cloud tell it to go at a moment, and check that it went as promised."""
    records = lab.store / "cifar10" / "attempts"
    before = set(records.glob("*.json"))
    container = lab.start("--log", "json", *options, **variables(service))
    line = MOMENTS[moment][0]
    if line is not None:
        assert container.wait_for(line, PATIENCE_S), container.text
    time.sleep(delay_s)
    told = time.time()
    goes = service.notice(in_s={"aws": 120.0, "gcp": 30.0, "azure": 60.0}[service.cloud])
    code = container.wait(PATIENCE_S)
    service.clear()
    assert code == 75, f"{service.cloud}, {moment} + {delay_s:.3f} s: exit {code}\n{container.text}"
    lines = [json.loads(line) for line in container.lines]
    seen = min(datetime.fromisoformat(line["time"]).timestamp() for line in lines if "s are left" in line["message"])
    ends = sorted(set(records.glob("*.end.json")) - before)
    if not ends:
        assert "stopped before training" in container.text, container.text
        assert set(records.glob("*.json")) == before, "a machine that is told to go takes no run"
        return Heard(service.cloud, moment, delay_s, seen - told, None)
    end = json.loads(ends[-1].read_text())
    (notice,) = end["notices"]
    assert notice["source"] == service.cloud
    if end["outcome"] == "did not begin":
        return Heard(service.cloud, moment, delay_s, notice["seen"] - told, None)
    assert end["durable_step"] == end["step"] or end["step"] == 0, container.text
    durable = notice["durable"] or notice["stopped"]  # nothing was left to save
    assert notice["seen"] <= notice["stopped"] <= end["time"]
    assert durable < min(goes, notice["deadline"]), container.text
    check_spare_told(lines, notice["deadline"], durable)
    return Heard(service.cloud, moment, delay_s, notice["seen"] - told, notice["deadline"] - durable)


def check_spare_told(lines: list[dict[str, Any]], deadline: float, durable: float) -> None:
    """The last line tells what was left of the time between the last save's landing and the line itself.

    It tells tenths of a second, and the line's own time is cut to a millisecond.
    """
    (line,) = (line for line in lines if "last checkpoint durable" in line["message"])
    spare = re.search(r"0 steps lost, (-?[0-9.]+) s before the deadline$", line["message"])
    assert spare, line
    said = datetime.fromisoformat(line["time"]).timestamp()
    assert deadline - said - 0.052 < float(spare[1]) < deadline - durable + 0.051, (line, deadline, durable)


@pytest.mark.timeout(900 + 60 * COUNT)
@pytest.mark.parametrize("name", ["aws", "gcp", "azure"])
def test_no_notice_is_missed_whenever_it_comes(name: str, tmp_path: Path, tiny: Path, endless_download: str) -> None:
    dice = random.Random(f"{name} {SEED}")
    moments = list(MOMENTS)
    random.Random(SEED).shuffle(moments)
    first = {"aws": 0, "gcp": 3, "azure": 6}[name]  # so that few notices are of all moments too
    heard: list[Heard] = []
    missed: list[str] = []
    with Metadata(name) as service:
        for number in range(first, first + COUNT):
            moment = moments[number % len(moments)]
            lab = (CleaningLab if moment == "cleaning" else Lab)(tmp_path, tiny, *OPTIONS)
            options = ["--data", endless_download] if moment == "download" else []
            try:
                heard.append(evict(lab, service, moment, dice.uniform(*MOMENTS[moment][1:]), *options))
                print(heard[-1])
            except AssertionError as e:
                missed.append(str(e))
                service.clear()
    assert not missed, f"{len(missed)} of {COUNT}:\n" + "\n".join(missed)
    assert all(h.seen_s < h.bound_s + BUSY_S for h in heard)
    for moment in moments:
        if them := [h for h in heard if h.moment == moment]:
            bound, seen = them[0].bound_s, [h.seen_s for h in them]
            told = f"{sum(s <= bound for s in seen)} of {len(seen)} seen within {bound:.1f} s"
            print(f"{name} {moment}: {told}; median {statistics.median(seen):.2f}, largest {max(seen):.2f} s")
    spare = [h.spare_s for h in heard if h.spare_s is not None]
    print(f"{name}, seed {SEED}: {COUNT} notices, 0 missed, {len(spare)} last states durable, ", end="")
    print(f"the one with least to spare {min(spare, default=0.0):.1f} s before its deadline")


@pytest.mark.parametrize("cloud", ["s3"], indirect=True)
@pytest.mark.parametrize("lands", [True, False], ids=["the save in flight lands", "nothing lands"])
def test_a_store_too_slow_for_the_deadline_ends_in_74_before_it_and_says_what_is_lost(
    cloud: Cloud, tmp_path: Path, tiny: Path, *, lands: bool
) -> None:
    lab = cloud.lab(tmp_path, tiny, *OPTIONS)
    with Metadata("gcp") as service:
        container = lab.start(**variables(service), BATON_STOP_GRACE="3")
        assert container.wait_for("durable after", PATIENCE_S), container.text
        cloud.proxy.bytes_per_s = 250_000.0 if lands else 10_000.0  # a checkpoint has 500 KB
        at = len(container.lines)
        saving = next_line(container, at, "saving the state at step ")
        time.sleep(0.3)  # some steps more, which only a later save holds
        service.notice()
        assert container.wait_for("stopping at step", PATIENCE_S), container.text
        if lands:
            flying = int(saving.rpartition(" ")[2])
            next_line(container, at, f"-{flying:08d} durable after")
            cloud.proxy.bytes_per_s = 10_000.0
        container.signal(signal.SIGTERM)  # as clouds do after their notice: a deadline that is nearer
        told = time.monotonic()
        code = container.wait(PATIENCE_S)
        took = time.monotonic() - told
        cloud.proxy.bytes_per_s = None
    assert code == 74, container.text
    assert took < 3 + BUSY_S, container.text
    lost = [line for line in container.lines if "the last state could not be saved" in line]
    assert len(lost) == 1, container.text
    assert re.search(r"\(no time left\): [1-9][0-9]* steps? since step [0-9]+ (is|are) lost", lost[0]), lost
    step = int(lost[0].rpartition("since step ")[2].split()[0])
    assert not lands or step == flying, "what was in flight counts"
    assert cloud.hashes(lab)["step"] == step, "the one before it is whole"


def next_line(container: Container, at: int, words: str) -> str:
    """The first line from the one numbered `at` on that holds `words`."""
    give_up = time.monotonic() + PATIENCE_S
    while not (found := [line for line in container.lines[at:] if words in line]):
        assert not container.ended, container.text
        assert time.monotonic() < give_up, container.text
        time.sleep(0.01)
    return found[0]


def test_a_rebalance_recommendation_saves_at_once_and_training_goes_on(tmp_path: Path, tiny: Path) -> None:
    lab = Lab(tmp_path, tiny, *OPTIONS[:-1], "1000s")
    with Metadata("aws") as service:
        container = lab.start(**variables(service))
        assert container.wait_for("to stop:", PATIENCE_S), container.text
        service.notice("rebalance")
        assert container.wait_for("risk of interruption: saving now", PATIENCE_S), container.text
        assert container.wait_for("durable after", PATIENCE_S), container.text
        service.notice("spot")
        assert container.wait(PATIENCE_S) == 75, container.text
    end = json.loads((lab.store / "cifar10" / "attempts" / "000001.end.json").read_text())
    rebalance, spot = end["notices"]
    assert (rebalance["action"], rebalance["stopped"]) == ("save", None)
    assert rebalance["durable"] < spot["seen"] + BUSY_S
    assert 0 < rebalance["durable_step"] < spot["durable_step"] == end["step"]


def test_azure_is_told_that_the_machine_may_go_once_all_is_on_record_and_only_where_it_is_alone(
    tmp_path: Path, tiny: Path
) -> None:
    lab = Lab(tmp_path, tiny, *OPTIONS)
    with Metadata("azure") as service:
        for resources, acknowledged in ((["trainer_3", "trainer_4"], 0), (["trainer_3"], 1)):
            container = lab.start(**variables(service))
            assert container.wait_for("to stop:", PATIENCE_S), container.text
            service.notice("Preempt", in_s=60.0, Resources=resources)
            assert container.wait(PATIENCE_S) == 75, container.text
            assert len(service.acknowledged) == acknowledged, container.text
            service.clear()
    end = json.loads((lab.store / "cifar10" / "attempts" / "000002.end.json").read_text())
    assert end["notices"][0]["stopped"] < end["time"] < service.acknowledged[0]["at"]
    assert "told azure that this machine may go" in container.text


@pytest.mark.parametrize("name", ["aws", "gcp", "azure"] if SOAK else ["aws"])
def test_a_drill_ends_as_an_eviction_does(name: str, tmp_path: Path, tiny: Path) -> None:
    lab = Lab(tmp_path, tiny, *OPTIONS)
    container = lab.start("--drill", f"{name}@2s")
    assert container.wait(PATIENCE_S) == 75, container.text
    assert "a drill: " in container.text


def test_a_token_that_never_comes_is_told_in_plain_words_and_the_rest_is_heard(tmp_path: Path, tiny: Path) -> None:
    lab = Lab(tmp_path, tiny, *OPTIONS)
    with Metadata("aws") as service:
        service.fault("hang", path="/latest/api/token")
        container = lab.start(**variables(service))
        assert container.wait_for("--http-put-response-hop-limit 2", PATIENCE_S), container.text
        assert container.wait_for("ends: accuracy", PATIENCE_S), container.text
        (lab.halt / "halt").touch()
        assert container.wait(PATIENCE_S) == 0, container.text
    assert sum("hop-limit" in line for line in container.lines) == 1, container.text
    token = [entry["time"] for entry in service.log if "token" in entry["path"]]
    assert len(token) > 1, "it is tried again"
