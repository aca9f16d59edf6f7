"""The image, built once for all tests that run it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.container.engine import REPOSITORY, Engine, Missing, daemon, find_client


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    try:
        client = find_client()
        with daemon(client):
            docker = Engine(client)
            try:
                yield docker
            finally:
                docker.clean()
    except Missing as e:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"no containers here: {e}")


@pytest.fixture(scope="session")
def cifar10() -> str:
    """The real pictures where they are at hand, else the stand-in."""
    folder = Path(os.environ.get("BATON_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    archive = folder / "cifar10-jpeg.tar.xz"
    return str(archive) if archive.is_file() else "synthetic"


@pytest.fixture(scope="session")
def image(engine: Engine, cifar10: str) -> str:
    code, said, name = engine.build(cifar10)
    assert code == 0, said[-6000:]
    return name


CUDA_GB = 25  # of disk while it is built: its packages as archives, as files, as a layer


@pytest.fixture(scope="session")
def cuda_image(engine: Engine, cifar10: str) -> str:
    """That of the other flavour, for jobs that want torchvision: gigabytes to fetch, so not for everyone."""
    if os.environ.get("CI") != "true":
        pytest.skip("wants an image of 6 GB; with CI=true")
    if (free := shutil.disk_usage(engine("info", "-f", "{{.DockerRootDir}}").strip()).free / 1e9) < CUDA_GB:
        pytest.skip(f"an image of 6 GB wants {CUDA_GB} GB of disk; {free:.0f} are free")
    code, said, name = engine.build(cifar10, FLAVOUR="cuda")
    assert code == 0, said[-6000:]
    return name
