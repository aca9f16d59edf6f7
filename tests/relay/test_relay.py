"""One run on machines of three clouds, evicted and killed: it ends with the bits of a run that nobody disturbed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.container.engine import REPOSITORY, Engine
from tests.jobs import packed
from tests.relay.janitor import Janitor
from tests.relay.relay import Options, Relay
from tests.relay.simulated import Cloud
from tests.relay.telling import Story, comparison, table

pytestmark = pytest.mark.timeout(1800)  # the first one also builds the image

soak = pytest.mark.skipif("BATON_SOAK" not in os.environ, reason="in `make soak`")
HAS_TORCHVISION = os.environ.get("BATON_TEST_FLAVOUR", "cpu") != "cpu"
SEED = int(os.environ.get("BATON_SOAK_SEED", "1"))  # `make soak` sets others


@pytest.mark.parametrize(
    "job",
    [
        "cifar10",
        *(pytest.param(job, marks=soak) for job in ("bert", "cifar100", "mnist", *["imagenet"] * HAS_TORCHVISION)),
    ],
)
def test_handed_over_five_times_a_run_loses_nothing_but_what_a_kill_takes_and_no_bit(
    job: str, engine: Engine, image: str, tmp_path: Path
):
    options = Options(image, job, seed=SEED, data=packed(job, tmp_path) if job == "imagenet" else None)
    print(f"seed {SEED}")
    outcome = Relay(options, engine, Story()).run()
    assert not outcome.wrong, "\n".join(outcome.wrong)
    print(f"{table(outcome)}\n{comparison(outcome)}")
    assert [leg.exit_code for leg in outcome.legs] == [75, 75, 137, 75, 0]
    assert [leg.attempt for leg in outcome.legs] == [1, 2, 3, 4, 5]
    for before, after in zip(outcome.legs, outcome.legs[1:], strict=False):
        assert after.began_at == before.reached > before.began_at
    for leg in outcome.legs:
        assert "Traceback" not in leg.machine.log.text


@pytest.mark.skipif(HAS_TORCHVISION, reason="this image has torchvision")
def test_a_job_that_the_image_or_its_data_lack_is_one_line(engine: Engine, image: str, tmp_path: Path):
    """Photographs are nowhere to be had, and the CPU image has no torchvision."""
    arguments = [sys.executable, "-m", "tests.relay", "--image", image, "--docker", engine.client, "--job", "imagenet"]
    for data, wanted in (
        (tmp_path / "imagenet", "no packed data here; pack it: python entrypoint.py data imagenet --source"),
        (
            packed("imagenet", tmp_path),
            "imagenet needs torchvision, which is not installed here: use the image of flavour",
        ),
    ):
        done = subprocess.run([*arguments, "--data", str(data)], capture_output=True, text=True, cwd=REPOSITORY)
        assert done.returncode == 78, done.stdout + done.stderr
        last = done.stdout.splitlines()[-1]
        assert last.startswith("can't run imagenet here: ")
        assert wanted in last
        assert "Traceback" not in done.stdout + done.stderr


def test_its_machines_write_only_to_tmp_have_no_capabilities_and_are_not_root(engine: Engine, image: str):
    with Janitor(engine.client) as janitor:
        cloud = Cloud("aws", engine, image, janitor)
        cloud.wait()
        told = engine.inspect(cloud.start((), "help").container.name)
    assert told["HostConfig"]["ReadonlyRootfs"]
    assert list(told["HostConfig"]["Tmpfs"]) == ["/tmp"]
    assert told["HostConfig"]["CapDrop"] == ["ALL"]
    assert "no-new-privileges" in told["HostConfig"]["SecurityOpt"]
    assert int(told["Config"]["User"].split(":")[0]) > 0


MAKES_AND_WAITS = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job is started deaf to it
from tests.container.engine import Engine
from tests.relay.janitor import Janitor
with Janitor(sys.argv[1]) as janitor:
    engine = Engine(sys.argv[1])
    engine("network", "create", "--label", janitor.label, f"baton-relay-{janitor.id}")
    engine("run", "-d", "--label", janitor.label, "--network", f"baton-relay-{janitor.id}",
           "--entrypoint", "sleep", sys.argv[2], "600")
    print(janitor.label, flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT], ids=["kill -9", "Ctrl-C"])
def test_whatever_ends_a_relay_it_leaves_no_container_and_no_network(engine: Engine, image: str, end: signal.Signals):
    relay = subprocess.Popen(
        [sys.executable, "-c", MAKES_AND_WAITS, engine.client, image],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=REPOSITORY,
    )
    assert relay.stdout is not None
    label = relay.stdout.readline().strip()

    def left() -> str:
        of_it = ("-q", "--filter", f"label={label}")
        return engine("ps", "-a", *of_it) + engine("network", "ls", *of_it)

    assert len(left().split()) == 2
    relay.send_signal(end)
    relay.wait(60)
    until = time.monotonic() + 60
    while left() and time.monotonic() < until:
        time.sleep(0.2)
    assert left() == ""
