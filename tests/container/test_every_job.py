"""Every job of the image: halted, stopped and killed it ends with the bits of an undisturbed run.

The CPU image has no torchvision (requirements-cpu.in says why), and so no imagenet: its containers are of the flavour
cuda. cifar10's are those of test_stop_and_resume.py and of the relay.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.container.runner import WAYS, Runner
from tests.jobs import JOBS, SHORT, packed

pytestmark = pytest.mark.timeout(1800)  # the first one also builds the image

ENDS = (("halt", 0), ("stop", 75), ("kill", 137))
STEPS = {"bert": 300, "cifar100": 600, "imagenet": 300, "mnist": 1500}  # enough for three ends
assert STEPS.keys() | {"cifar10"} == JOBS.keys(), "a new job wants its line here too"
HAS_TORCHVISION = os.environ.get("BATON_TEST_FLAVOUR", "cpu") != "cpu"

locked_down = pytest.mark.parametrize("runner", [WAYS["locked down"]], ids=["locked down"], indirect=True)


@pytest.fixture
def image(request: pytest.FixtureRequest, image: str) -> str:
    """What the runner runs."""
    if HAS_TORCHVISION or request.node.callspec.params.get("job") != "imagenet":
        return image
    cuda: str = request.getfixturevalue("cuda_image")
    return cuda


@locked_down
@pytest.mark.parametrize("job", STEPS)
def test_a_job_ended_thrice_has_the_bits_of_one_that_never_was(job: str, runner: Runner, tmp_path: Path):
    (tmp_path / "data").mkdir()
    data = packed(job, tmp_path / "data").parent
    for path in data.rglob("*.safetensors"):
        path.chmod(0o644)  # a library wrote the model, for its own user alone
    options = [option.format(folder="/data") for option in JOBS[job].options]
    command = (job, *options, *SHORT, "--steps", str(STEPS[job]), "--data", "/data/packed")
    for end, code in ENDS:
        container = runner.start(*command, data=data)
        runner.wait_for_new_checkpoint(container, job)
        if end == "halt":
            (runner.halt / "halt").touch()
        else:
            runner.engine(end, container.name)
        assert container.exit_code() == code, container.logs()
        assert "finished:" not in container.logs(), "too short a run: its end came first"
        (runner.halt / "halt").unlink(missing_ok=True)
    results = []
    for name in ("hunted", "quiet"):
        way = () if name == "hunted" else ("--run", name)
        container = runner.start(*command, *way, data=data)
        assert container.exit_code(600) == 0, container.logs()
        results.append(json.loads((runner.store / (job if name == "hunted" else name) / "result.json").read_bytes()))
    for name in ("weights_sha256", "state_sha256", "order_sha256", "metrics"):
        assert results[0][name] == results[1][name]


@pytest.mark.skipif(HAS_TORCHVISION, reason="this image has torchvision")
@locked_down
def test_imagenet_wants_the_image_of_the_other_flavour_and_says_so(runner: Runner, tmp_path: Path):
    container = runner.start("imagenet", "--data", "/data/packed", data=tmp_path)
    assert container.exit_code() == 78
    (line,) = container.logs().splitlines()
    assert "imagenet needs torchvision, which is not installed here: use the image of flavour cuda" in line
