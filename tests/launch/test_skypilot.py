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
import yaml

from tests.launch.parsers import LAUNCH, REPOSITORY, several_machines
from tests.launch.stand_ins import StandIns
from trainer.ranks import VARIABLES

VENV = REPOSITORY / ".build" / "skypilot"
LOCK = LAUNCH / "requirements-skypilot.lock"
SPEC = (LAUNCH / "skypilot.yaml").read_text()
FILES = {
    "as it is": SPEC,
    "several machines": several_machines(SPEC),
    "a key misspelt": SPEC.replace("use_spot:", "use_spott:"),
    "a cloud that isn't one": SPEC.replace("infra: gcp", "infra: gpc"),
    "a number of machines that isn't one": several_machines(SPEC).replace("num_nodes: 2", "num_nodes: two"),
    "a code that isn't one": SPEC.replace("[74, 75]", "[74, seventy-five]"),
}


def parsed(folder: Path) -> dict[str, Any]:
    """What SkyPilot makes of every file, all at once: importing it takes longer than they do."""
    if os.environ.get("CI") == "true":
        # of its thousands of files it imports a few once
        variables = os.environ | {"UV_COMPILE_BYTECODE": "0"}
        subprocess.run(["make/venv.sh", str(VENV), str(LOCK)], cwd=REPOSITORY, check=True, env=variables)
    if not (VENV / "bin" / "sky").exists():
        pytest.skip("no SkyPilot here: make/venv.sh .build/skypilot launch/requirements-skypilot.lock")
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


def good_shell(script: str, file: Path) -> None:
    file.write_text(f"#!/usr/bin/env bash\n{script}")
    # SC2154: SkyPilot and `envs` set them
    command = [REPOSITORY / ".venv" / "bin" / "shellcheck", "-e", "SC2154", file]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_it_is_a_spot_job_on_any_of_three_clouds_started_again_on_74_and_75_alone_and_mistakes_are_found(
    tmp_path: Path,
):
    """One test, so that one process imports SkyPilot."""
    tasks = parsed(tmp_path)
    task = tasks["as it is"]
    assert task["error"] is None
    assert task["clouds"] == ["AWS", "Azure", "GCP"]
    assert task["regions"] == ["None"] * 3
    assert task["spot"] == [True] * 3
    for recovery in task["recovery"]:
        assert recovery["recover_on_exit_codes"] == [74, 75]
        assert not recovery.get("max_restarts_on_errors")
    assert task["nodes"] == 1

    several = tasks["several machines"]
    assert several["error"] is None
    assert several["nodes"] == 2
    for name in VARIABLES:
        assert f"-e {name}=" in several["run"]
        assert not any(f"-e {name}=" in line for line in task["run"].splitlines() if not line.startswith("#"))

    for number, script in enumerate((task["setup"], task["run"], several["run"])):
        good_shell(script, tmp_path / f"script-{number}")

    for broken in list(FILES)[2:]:
        assert tasks[broken]["error"], broken


def test_a_line_from_which_the_number_sign_is_taken_stands_in_its_place():
    spec = yaml.safe_load(SPEC.replace("#accelerators:", "accelerators:").replace("#file_mounts:", "file_mounts:"))
    assert spec["resources"]["accelerators"] == {"L4": 1, "A10G": 1, "T4": 1}
    (mounted,) = spec["file_mounts"]
    assert f"-v {mounted}:/run/secrets/google.json:ro" in spec["run"]


@pytest.mark.parametrize("file", ["as it is", "several machines"])
@pytest.mark.parametrize("cloud", ["AWS", "GCP", "Azure"])
def test_store_and_run_reach_the_container_through_a_sudo_that_empties_the_environment(
    file: str, cloud: str, tmp_path: Path
):
    task = yaml.safe_load(FILES[file])
    stand_ins = StandIns(tmp_path / "bin")
    stand_ins.add("sudo", 'exec env -i "PATH=$PATH" "$@"')
    # as docker does: a bare name is given the value that docker's own environment has, if any
    stand_ins.add(
        "docker",
        """
while (($#)); do
    if [[ $1 == -e && $2 == *=* ]]; then
        echo "$2"
    elif [[ $1 == -e && -n ${!2-} ]]; then
        echo "$2=${!2}"
    fi
    shift
done
exit 75""",
    )
    given = {"BATON_STORE": "s3://bucket/runs", "BATON_RUN": "mine", "BATON_STOP_GRACE": "25"}
    done = subprocess.run(
        ["bash", "-c", task["run"]],
        capture_output=True,
        text=True,
        env=stand_ins.environment
        | task["envs"]
        | given
        | {"SKYPILOT_CLUSTER_INFO": f'{{"cloud": "{cloud}"}}', "SKYPILOT_NODE_RANK": "1"}
        | {"SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2"},
    )
    assert done.returncode == 75, done.stderr  # the container's own
    heard = dict(line.split("=", 1) for line in done.stdout.splitlines())
    assert given.items() <= heard.items()
    assert (heard.get("MASTER_ADDR") == "10.0.0.1") == (file == "several machines")
    docker = next(call for call in stand_ins.calls if call[0] == "docker")
    assert docker[-2:] == [task["envs"][f"IMAGE_{cloud.upper()}"], "cifar10"]
