"""`make scan` finds what was put into any layer of an image, also where a later layer hides it, and tells no value."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import uuid
from pathlib import Path

import pytest

from tests.container.engine import REPOSITORY, Engine

pytestmark = pytest.mark.timeout(600)

# Put together here, so that no scanner takes this file for a leak. None has ever opened anything.
KEY = "\n".join(
    ["-----BEGIN " + "PRIVATE KEY-----", *["MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7VJTUt9Us8cKj"] * 4]
)
SEEDS = {
    "home/.aws/credentials": "[default]\naws_secret_access_key = " + "wJalrXUtnFEMIK7MDENGbPxRfiCY" + "0123456789ab\n",
    "app/settings.py": "ACCESS = '" + "AKIA" + "Q3EGRTY7UIOP2ASD" + "'\n",
    "run/google.json": '{"type": "service_account", "private_key": "' + KEY.replace("\n", "\\n") + '"}\n',
    "app/id_rsa": KEY,
    "etc/azure": "DefaultEndpointsProtocol=https;AccountName=x;AccountKey=" + "Ab1+" * 21 + "Ab1=;EndpointSuffix=y\n",
    "etc/sas": "?sv=2024-11-04&se=2030-01-01&sr=c&sp=rwdl&sig="
    + "Zm9vYmFyYmF6cXV4Zm9vYmFyYmF6cXV4Zm9vYmFyYmE"
    + "%3D\n",
    "root/.git-credentials": "gh" + "p_" + "A1b2C3d4E5" * 3 + "A1b2C3\n",
    "root/hub": "hf" + "_" + "AbCdEfGhIj" * 3 + "AbCd\n",
    "etc/pip.conf": "[global]\nindex-url = https://reader:" + "s3cr3tW0rd" + "@packages.example/simple\n",
    "opt/token": "ya29" + "." + "a0AfH6SMBx" * 6 + "\n",
}
BY_ENVIRONMENT = "glpat" + "-" + "A1b2C3d4E5" * 2
# what other people's programs and documentation are full of
HARMLESS = {
    "app/read_key.py": 'if text.startswith("-----BEGIN ' + 'PRIVATE KEY-----"):\n    pass\n',
    "app/example.json": '{"AccessKeyId": "' + "AKIA" + 'IOSFODNN7EXAMPLE"}\n',
    "app/font": "AAAA" + "AKIA" + "AQAAAAAABAAHAM0AAAAA" + "\n",
    "opt/venv/lib/python3.11/site-packages/pip/doc.py": "# https://user:" + "password" + "@example.com/simple\n",
    "app/library.so": "_ZN5Hi" + "ghs_" + "A1b2C3d4E5" * 4 + "\n",
}


def build(engine: Engine, folder: Path, files: dict[str, str], more: str = "") -> str:
    """A small image: each file in a layer of its own, at last an empty one over the first."""
    for path, text in files.items():
        (folder / "seeds" / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / "seeds" / path).write_text(text)
    (folder / "empty").write_text("")
    first = next(iter(files))
    copies = "".join(f"COPY seeds/{path} /{path}\n" for path in files)
    (folder / "Dockerfile").write_text(f"FROM scratch\n{copies}COPY empty /{first}\n{more}")
    name = f"baton-test:scan-{uuid.uuid4().hex[:12]}"
    engine.made.append(("rmi", "-f", name))
    done = subprocess.run(
        [engine.client, "build", "-q", "-t", name, str(folder)],
        env={"DOCKER_BUILDKIT": "1", "PATH": "/usr/bin:/bin", "HOME": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return name


def scanned(engine: Engine, image: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "make/scan.py", image, engine.client],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.returncode, done.stdout


def test_each_secret_is_found_in_its_layer_and_none_is_printed(engine: Engine, tmp_path: Path):
    image = build(engine, tmp_path, SEEDS, f"ENV GITLAB_TOKEN={BY_ENVIRONMENT}\n")
    code, said = scanned(engine, image)
    assert code == 78
    for path in SEEDS:
        assert f": /{path} in layer " in said, f"{path} not found:\n{said}"
    assert "GitLab Token: " in said  # from the image's environment
    for text in (*SEEDS.values(), BY_ENVIRONMENT):
        for word in text.replace('"', " ").split():
            assert len(word) < 20 or word not in said
    assert f"{len(SEEDS)} secrets" not in said  # the environment's one comes on top


def test_what_only_looks_like_one_is_left_alone(engine: Engine, tmp_path: Path):
    code, said = scanned(engine, build(engine, tmp_path, HARMLESS))
    assert code == 0, said
    assert f"{len(HARMLESS) + 1} files" in said or "no secrets" in said


def test_an_image_that_breaks_off_is_not_called_clean(tmp_path: Path):
    """Between two files, where a tar that breaks off looks like one that ends."""
    with tarfile.open(tmp_path / "image.tar", "w", format=tarfile.USTAR_FORMAT) as image:
        for name in ("manifest.json", "layer.tar"):
            (tmp_path / name).write_text("{}")
            image.add(tmp_path / name, name)
    docker = tmp_path / "docker"
    docker.write_text(f"#!/bin/sh\nhead -c 1024 '{tmp_path}/image.tar'\nexit 1\n")
    docker.chmod(0o755)
    command = [sys.executable, "make/scan.py", "an-image", docker]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 78, done.stdout
    assert "not read to its end" in done.stderr


def test_an_image_that_is_not_there_is_one_line(engine: Engine):
    code, said = scanned(engine, "baton-test:none-such")
    assert code == 78
    assert "is there such an image?" in said
    assert "Traceback" not in said
