"""The image as the container tests run it; tests/container/image.py builds it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.container.engine import Engine
from tests.container.runner import WAYS, Runner


@pytest.fixture(params=WAYS.values(), ids=WAYS.keys())
def runner(request: pytest.FixtureRequest, engine: Engine, image: str, tmp_path: Path) -> Iterator[Runner]:
    halt, store = tmp_path / "halt", tmp_path / "store"
    halt.mkdir()
    store.mkdir()
    store.chmod(0o1777)  # the container's user is not this one
    kept = len(engine.made)
    yield Runner(engine, image, halt, store, request.param)
    while len(engine.made) > kept:
        engine(*engine.made.pop(), check=False)
