"""`make sbom` names every package that the image's lock pins, with its hashes, as CycloneDX has it."""

from __future__ import annotations

import json
import re
import subprocess

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from tests.launch.parsers import REPOSITORY

PINNED = re.compile(r"^([\w.-]+)==(\S+)", re.MULTILINE)


def test_every_package_of_the_lock_is_in_it_and_it_fits_the_schema():
    done = subprocess.run(
        ["make", "sbom", "FLAVOUR=cpu", "ARGS=--no-validate"], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    bom = json.loads((REPOSITORY / done.stdout.split()[-1]).read_text())
    pinned = set(PINNED.findall((REPOSITORY / "requirements-cpu.lock").read_text()))
    assert len(pinned) > 50
    assert {(component["name"], component["version"]) for component in bom["components"]} == pinned
    assert all(component["externalReferences"][0]["hashes"] for component in bom["components"])

    validator = JsonStrictValidator(SchemaVersion.V1_6)
    assert validator.validate_str(json.dumps(bom)) is None
    bom["components"][-1]["type"] = "nonsense"
    assert validator.validate_str(json.dumps(bom)) is not None
