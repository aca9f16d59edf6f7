"""Google Cloud Storage: the whole contract over the emulator, and over a real bucket where BATON_LIVE_GCS names one."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from functools import partial

import pytest
from store_contract import Place, StoreContract

from storage import open_store
from tests.emulators.gcs import GoogleEmulator


@pytest.fixture
def _emulated(gcs_emulator: GoogleEmulator, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in gcs_emulator.env.items():
        monkeypatch.setenv(name, value)


class TestGoogleStore(StoreContract):
    @pytest.fixture
    def place(self, gcs_emulator: GoogleEmulator, _emulated: None) -> Place:
        return Place(partial(open_store, gcs_emulator.url("baton", uuid.uuid4().hex)))


if "BATON_LIVE_GCS" in os.environ:

    class TestLiveGoogleStore(StoreContract):
        @pytest.fixture
        def place(self) -> Iterator[Place]:
            url = f"{os.environ['BATON_LIVE_GCS'].rstrip('/')}/{uuid.uuid4().hex}"
            yield Place(partial(open_store, url), claim_rounds=10, kills=10)
            store = open_store(url)
            for info in store.list(""):
                store.delete(info.key)
