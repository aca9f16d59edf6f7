"""Data for all tests: a part of the real CIFAR-10 where it is at hand, else the generated stand-in."""

from __future__ import annotations

import fcntl
import hashlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))  # tests import each other's drivers as tests.*

pytest_plugins = [
    *("tests.emulators.azurite", "tests.emulators.gcs", "tests.emulators.moto", "tests.clouds"),
    *("tests.container.image", "tests.disks"),
]

os.environ.setdefault("BATON_CLOUD", "none")  # no test asks a real cloud's metadata service

TEST_DATA = Path(os.environ.get("BATON_TEST_DATA", REPOSITORY.parent / "shared" / "data"))


@pytest.fixture(autouse=True)
def _nothing_is_left_running() -> Iterator[None]:
    from tests.runs import kill_all

    yield
    kill_all()


@pytest.fixture(scope="session")
def cifar(pytestconfig: pytest.Config) -> Path:
    """A folder with CIFAR-10 packed: the real images, or the stand-in where they aren't at hand.

    Once for all test processes and runs by the same code: it takes 20 s of a processor.
    """
    from trainer.data.pack import pack

    real = TEST_DATA / "cifar10-jpeg.tar.xz"
    code = hashlib.sha256(b"".join(file.read_bytes() for file in sorted((REPOSITORY / "trainer/data").glob("*.py"))))
    folder = pytestconfig.cache.mkdir(f"cifar10-{code.hexdigest()[:16]}")
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        pack("cifar10", str(real) if real.exists() else "synthetic", folder, say=lambda line: None)
    return folder


@pytest.fixture(scope="session")
def small_cifar(cifar: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first 2,000 training and 600 test images of it: epochs of a second, evaluations of two pieces."""
    from tests.jobs import keep

    folder = tmp_path_factory.mktemp("small")
    keep(cifar, folder, (2000, 600))
    return folder
