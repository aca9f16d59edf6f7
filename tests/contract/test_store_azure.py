"""The store on Azure: the whole contract over azurite, and what is Azure's own."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator

import pytest
from store_contract import Place, StoreContract

from storage import Store, open_store
from tests.emulators.azurite import Azurite

CONTAINER = "contract"
LIVE = os.environ.get("BATON_LIVE_AZURE")


@pytest.fixture
def azurite(azurite_emulator: Azurite, monkeypatch: pytest.MonkeyPatch) -> Azurite:
    """The emulator, known to this process and those that it starts."""
    for name in list(os.environ):
        if name.startswith(("AZURE_", "IDENTITY_", "MSI_")):
            monkeypatch.delenv(name)
    for name, value in azurite_emulator.env.items():
        monkeypatch.setenv(name, value)
    azurite_emulator.make_bucket(CONTAINER)
    return azurite_emulator


@pytest.fixture
def url(azurite: Azurite) -> str:
    return azurite.url(CONTAINER, f"tests/{uuid.uuid4().hex}")


@pytest.fixture
def store(url: str) -> Store:
    return open_store(url)


class TestAzurite(StoreContract):
    @pytest.fixture
    def place(self, url: str) -> Place:
        return Place(lambda: open_store(url))


if LIVE:

    class TestLiveAzure(StoreContract):
        @pytest.fixture
        def place(self) -> Iterator[Place]:
            url = f"{LIVE}/{uuid.uuid4().hex}"
            yield Place(lambda: open_store(url))
            store = open_store(url)
            for info in store.list(""):
                store.delete(info.key)
