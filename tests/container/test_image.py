"""What is in the image, and what is not; and that a code change costs one small layer."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import uuid
from pathlib import Path

import pytest

from make.scan import File, scan
from tests.bert_makers import small_model
from tests.container.engine import REPOSITORY, Engine

pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="session")
def content(engine: Engine, image: str) -> list[File]:
    """Every file in any of the image's layers, looked through for secrets as `make scan` does."""
    with subprocess.Popen([engine.client, "save", image], stdout=subprocess.PIPE) as saving:
        assert saving.stdout is not None
        return list(scan(saving.stdout))


@pytest.fixture(scope="session")
def files(content: list[File]) -> dict[str, int]:
    """Every file in any of the image's layers, also those that a later one hides, with its size."""
    found = {file.path: file.size for file in content if file.layer != "image"}
    assert "/app/entrypoint.py" in found
    return found


def working_copy(folder: Path) -> Path:
    """The tree as it stands, without what git ignores: no packed data, no environment."""
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name in filter(None, names.split("\0")):
        if (REPOSITORY / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, folder / name)
    return folder


def test_no_layer_holds_a_compiler_a_cache_pip_or_a_secret(files: dict[str, int]):
    def holding(*parts: str) -> list[str]:
        return [name for name in files if any(part in name for part in parts)]

    assert [name for name in files if name.endswith(("/bin/gcc", "/bin/cc", "/bin/g++", "/bin/clang", "/bin/ld"))] == []
    assert holding("/.cache/", "/var/cache/apt/archives/partial/", ".whl.metadata", "/root/.config") == []
    assert holding("/opt/venv/bin/pip", "/opt/venv/bin/uv", "/site-packages/pip/", "/site-packages/uv/") == []
    assert [name for name in holding("/run/secrets", "/etc/pip.conf") if files[name]] == []
    assert holding("/.git/", "/app/tests", "/app/.build") == []
    assert [name for name in holding("/opt/", "/app/") if name.endswith(".whl")] == []


def test_no_layer_and_nothing_that_the_image_says_of_itself_holds_a_secret(content: list[File]):
    assert [file for file in content if file.secrets] == []
    assert any(file.layer == "image" for file in content)


def test_no_secret_stands_in_the_image_history(engine: Engine, image: str):
    history = engine("history", "--no-trunc", image) + str(engine.inspect(image))
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        if value := os.environ.get(name):
            assert value not in history
    assert "BEGIN CERTIFICATE" not in history


def test_byte_code_is_ready_and_trusted_without_looking_at_times(files: dict[str, int]):
    # Found by the name alone: the flags in its header are what compileall was told in the Dockerfile.
    compiled = {name.split("/__pycache__/")[1].split(".")[0] for name in files if name.startswith("/app/__pycache__/")}
    assert compiled == {"entrypoint"}
    assert any(name.startswith("/opt/venv/lib") and "/torch/__pycache__/__init__." in name for name in files)


def test_it_runs_as_a_numbered_user_under_tini_with_labels_for_who_made_it(engine: Engine, image: str):
    config = engine.inspect(image)["Config"]
    assert config["User"] == "1000:1000"
    assert config["Entrypoint"] == ["/usr/bin/tini", "--", "/opt/venv/bin/python", "/app/entrypoint.py"]
    assert not config.get("Volumes")
    assert "BATON_STORE=file:///store" in config["Env"]
    labels = {name.removeprefix("org.opencontainers.image."): value for name, value in config["Labels"].items()}
    assert labels["title"] == "Baton"
    assert labels["licenses"] == "Apache-2.0"
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True).stdout.strip()
    assert labels["revision"].removesuffix("-dirty") == head
    assert labels["created"][:3] == "202"
    assert f"BATON_REVISION={labels['revision']}" in config["Env"]


def test_every_place_that_libraries_write_to_is_under_tmp(engine: Engine, image: str):
    settings = dict(entry.split("=", 1) for entry in engine.inspect(image)["Config"]["Env"])
    for name in ("HOME", "HF_HOME", "TORCH_HOME", "XDG_CACHE_HOME", "MPLCONFIGDIR"):
        assert settings[name].startswith("/tmp/baton-cache")


def test_a_code_change_makes_one_new_layer_of_less_than_a_megabyte(
    engine: Engine, image: str, cifar10: str, tmp_path: Path
):
    copy = working_copy(tmp_path)
    with (copy / "trainer" / "exits.py").open("a") as code:
        code.write("\n# changed\n")
    code_, said, changed = engine.build(cifar10, copy)
    assert code_ == 0, said[-6000:]
    before, after = engine.layers(image), engine.layers(changed)
    assert after[:-1] == before[:-1]
    assert after[-1] != before[-1]
    code_layer = "cd /app && tar -cz entrypoint.py __pycache__ trainer | wc -c"
    pushed = engine("run", "--rm", "--network", "none", "--entrypoint", "/bin/sh", changed, "-c", code_layer)
    assert 0 < int(pushed) < 1_000_000


def test_the_same_tree_gives_the_same_layers_when_they_are_made_anew(
    engine: Engine, image: str, cifar10: str, tmp_path: Path
):
    """Data and code; with BATON_SOAK the dependencies too, fetched again. The weights are there for the doctor."""
    copy = working_copy(tmp_path)
    dockerfile = copy / "Dockerfile"
    text = dockerfile.read_text()
    # Nothing may come from the builder's cache: not what this test made before, and not the last stage's copies, which
    # are known there by their content, whatever their times.
    anew = f": {uuid.uuid4().hex}"
    again, count = re.subn(r"^FROM (deps AS \w+|base)$", rf"\g<0>\nRUN {anew}", text, flags=re.MULTILINE)
    assert count == 4
    if os.environ.get("BATON_SOAK"):
        again = again.replace("mkdir -m 1777 /halt /store\n", f"mkdir -m 1777 /halt /store; {anew}\n")
    dockerfile.write_text(again)
    small_model(copy / "weights", "tiny")
    code, said, remade = engine.build(cifar10, copy, WEIGHTS="bert:tiny")
    assert code == 0, said[-6000:]
    first, second = engine.layers(image)[-5:], engine.layers(remade)[-5:]
    dependencies, data, weights, *code_ = zip(first, second, strict=True)
    for one, other in (dependencies, data, *code_):
        assert one == other
    assert weights[0] != weights[1]
    said = engine("run", "--rm", remade, "doctor", "--cloud", "none", "--seconds", "100")
    assert re.search(r"ok +weights +4 files: every byte as it was built in", said), said


def test_without_a_source_the_build_stops_and_says_how_to_give_one(engine: Engine, image: str, tmp_path: Path):
    code, said, _ = engine.build("", working_copy(tmp_path))
    assert code != 0
    assert "CIFAR10=synthetic" in said
