"""One image, built once for all tests that run it."""

from __future__ import annotations

import os
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
