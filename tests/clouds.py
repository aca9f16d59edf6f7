"""The three clouds' stores on this machine, each behind a proxy that does what bad networks do."""

from __future__ import annotations

import contextlib
import os
import re
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from storage import open_store
from tests.emulators.azurite import Azurite
from tests.emulators.proxy import Proxy, Request
from tests.runs import HASHES, CompressedLab, Lab
from trainer.history import History
from trainer.verify import verify

NAMES = ("s3", "gs", "az")
BUCKET = "baton-chaos"


@dataclass
class Cloud:
    """An emulator, the proxy before it, and labs whose runs live there."""

    name: str
    emulator: Any
    proxy: Proxy

    @property
    def variables(self) -> dict[str, str]:
        """With these a process reaches the store through the proxy."""
        variables = dict(self.emulator.env)
        if isinstance(self.emulator, Azurite):
            endpoint = self.emulator.endpoint.replace(str(self.emulator.port), str(self.proxy.port))
            variables["AZURE_STORAGE_CONNECTION_STRING"] = self.emulator.connection_string(endpoint)
        else:
            name = "AWS_ENDPOINT_URL_S3" if self.name == "s3" else "STORAGE_EMULATOR_HOST"
            variables[name] = self.proxy.url
        return variables

    def url(self) -> str:
        """A place of its own for each."""
        return str(self.emulator.url(BUCKET, uuid.uuid4().hex))

    def lab(self, folder: Path, data: Path, *options: str) -> Lab:
        return Lab(folder, data, *options, url=self.url(), variables=self.variables)

    def compressed(self, folder: Path, data: Path, constants: Mapping[str, float], *options: str) -> CompressedLab:
        """A lab whose containers have other constants."""
        where = {"url": self.url(), "variables": self.variables}
        return CompressedLab(folder, data, *options, constants=constants, **where)

    def history(self, lab: Lab) -> History:
        """Of the lab's run, past the proxy; to be used where the emulator is `reached`."""
        return History(open_store(lab.url), lab.job)

    def hashes(self, lab: Lab) -> dict[str, object]:
        """Of the newest checkpoint, after every byte of all of them was found good; past the proxy."""
        with reached(self.emulator.env):
            history = self.history(lab)
            assert [v.problems for v in verify(history) if v.problems] == []
            newest = history.newest_good()
        assert newest is not None
        return {name: getattr(newest.manifest, name) for name in ("step", *HASHES)}


def is_third_part(request: Request) -> bool:
    """On its way up. Azure's blocks are named by the base64 of a name that ends in their number."""
    return request.method == "PUT" and bool(re.search("partNumber=3|comp=block&.*MDI(=|%3D)", request.target))


@contextlib.contextmanager
def reached(variables: dict[str, str]) -> Iterator[None]:
    """In this process too."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [n for n in os.environ if n.startswith(("AWS_", "AZURE_", "GOOGLE_", "STORAGE_"))]:
            patch.delenv(name)
        for name, value in variables.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(params=NAMES)
def cloud(request: pytest.FixtureRequest) -> Iterator[Cloud]:
    with _at_hand(request.param, request) as cloud:
        yield cloud


@pytest.fixture
def clouds(request: pytest.FixtureRequest) -> Iterator[dict[str, Cloud]]:
    """All of them by their names."""
    with contextlib.ExitStack() as stack:
        yield {name: stack.enter_context(_at_hand(name, request)) for name in NAMES}


@contextlib.contextmanager
def _at_hand(name: str, request: pytest.FixtureRequest) -> Iterator[Cloud]:
    fixture = {"s3": "moto_emulator", "gs": "gcs_emulator", "az": "azurite_emulator"}[name]
    emulator = request.getfixturevalue(fixture)
    with contextlib.suppress(Exception):  # made by a test before
        emulator.make_bucket(BUCKET)
    with Proxy(("127.0.0.1", emulator.port), seed=1) as proxy:
        yield Cloud(name, emulator, proxy)
