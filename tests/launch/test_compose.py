"""Compose understands launch/compose.yaml."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.launch.parsers import LAUNCH, program

SPEC = (LAUNCH / "compose.yaml").read_text()


def config(folder: Path, text: str) -> tuple[int, str]:
    """What `docker compose config` makes of it. The plug-in where Docker has it, else the program of its own."""
    docker = shutil.which("docker")
    plugin = docker is not None and subprocess.run([docker, "compose", "version"], capture_output=True).returncode == 0
    command = [str(docker), "compose"] if plugin else [program("docker-compose")]
    (folder / "compose.yaml").write_text(text)
    done = subprocess.run(
        [*command, "-f", "compose.yaml", "config"],
        cwd=folder,
        capture_output=True,
        text=True,
        env={name: value for name, value in os.environ.items() if name != "IMAGE"} | {"COMPOSE_PROFILES": "azure"},
    )
    return done.returncode, done.stdout if done.returncode == 0 else done.stderr


def test_it_starts_the_image_locked_down_beside_a_stand_in_for_each_store(tmp_path: Path):
    code, text = config(tmp_path, SPEC)
    assert code == 0, text
    services: dict[str, Any] = yaml.safe_load(text)["services"]
    for name, store in (("baton", "s3://"), ("baton-azure", "az://")):
        service = services[name]
        assert service["image"] == "baton:cpu"
        assert service["read_only"] is True
        assert service["environment"]["BATON_STORE"].startswith(store)
        grace = float(str(service["stop_grace_period"]).removesuffix("s"))
        assert grace > float(service["environment"]["BATON_STOP_GRACE"])
        assert "/halt" in json.dumps(service["volumes"])
    assert {"s3", "azurite"} <= services.keys()


def test_what_its_images_own_python_is_told_to_run_is_python():
    services = yaml.safe_load(SPEC)["services"]
    for name in ("bucket", "container"):
        compile(services[name]["command"][0], name, "exec")


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("read_only: true", "read_only: sometimes"),
        ("stop_grace_period:", "stop_grace_periods:"),
        ("service_healthy", "service_happy"),
        ('"azurite:/data"', '"azuritte:/data"'),
    ],
)
def test_a_mistake_in_it_is_found(right: str, wrong: str, tmp_path: Path):
    assert right in SPEC
    code, text = config(tmp_path, SPEC.replace(right, wrong))
    assert code != 0, text
