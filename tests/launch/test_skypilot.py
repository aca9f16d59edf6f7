"""SkyPilot understands launch/skypilot.yaml, as what it is meant to be.

SkyPilot has an environment of its own, .build/skypilot, made from its lock: in CI by this test, elsewhere by

    make/venv.sh .build/skypilot launch/requirements-skypilot.lock
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.launch.parsers import LAUNCH, REPOSITORY, several_machines

VENV = REPOSITORY / ".build" / "skypilot"
LOCK = LAUNCH / "requirements-skypilot.lock"
SPEC = (LAUNCH / "skypilot.yaml").read_text()
FILES = {
    "as it is": SPEC,
    "several machines": several_machines(SPEC),
    "a key misspelt": SPEC.replace("use_spot:", "use_spott:"),
    "a cloud that isn't one": SPEC.replace("infra: gcp", "infra: gpc"),
    "a code that isn't one": SPEC.replace("[74, 75]", "[74, seventy-five]"),
}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Every file at once: importing SkyPilot takes longer than all of them."""
    if os.environ.get("CI") == "true":
        subprocess.run(["make/venv.sh", str(VENV), str(LOCK)], cwd=REPOSITORY, check=True)
    if not (VENV / "bin" / "sky").exists():
        pytest.skip("no SkyPilot here: make/venv.sh .build/skypilot launch/requirements-skypilot.lock")
    folder = tmp_path_factory.mktemp("sky")
    paths = []
    for number, text in enumerate(FILES.values()):
        paths.append(folder / f"{number}.yaml")
        paths[-1].write_text(text)
    done = subprocess.run(
        [VENV / "bin" / "python", Path(__file__).with_name("sky_parse.py"), *paths],
        capture_output=True,
        text=True,
        env=os.environ | {"HOME": str(folder), "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"},
    )
    found = [json.loads(line[5:]) for line in done.stdout.splitlines() if line.startswith("TASK ")]
    assert len(found) == len(FILES), done.stdout + done.stderr
    return dict(zip(FILES, found, strict=True))


def test_it_is_a_spot_job_on_any_of_three_clouds_that_is_started_again_on_74_and_75_alone(tasks: dict[str, Any]):
    task = tasks["as it is"]
    assert task["error"] is None
    assert task["clouds"] == ["AWS", "Azure", "GCP"]
    assert task["regions"] == ["None"] * 3
    assert task["spot"] == [True] * 3
    for recovery in task["recovery"]:
        assert recovery["recover_on_exit_codes"] == [74, 75]
        assert not recovery.get("max_restarts_on_errors")
    assert task["nodes"] == 1


def test_its_variant_for_several_machines_starts_torchrun_on_each(tasks: dict[str, Any]):
    task = tasks["several machines"]
    assert task["error"] is None
    assert task["nodes"] == 2
    assert "--entrypoint /opt/venv/bin/torchrun" in task["run"]
    assert "torchrun" not in tasks["as it is"]["run"].replace("#multi-node", "").split("launcher=() program=()")[0]


@pytest.mark.parametrize("variant", ["as it is", "several machines"])
def test_its_scripts_are_good_shell(variant: str, tasks: dict[str, Any], tmp_path: Path):
    for part in ("setup", "run"):
        script = tmp_path / part
        script.write_text(f"#!/usr/bin/env bash\n{tasks[variant][part]}")
        # SC2154: SkyPilot and `envs` set them
        command = [REPOSITORY / ".venv" / "bin" / "shellcheck", "-e", "SC2154", script]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("broken", list(FILES)[2:])
def test_a_mistake_in_it_is_found(broken: str, tasks: dict[str, Any]):
    assert tasks[broken]["error"]
