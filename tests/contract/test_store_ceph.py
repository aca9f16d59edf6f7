"""The S3 store against Ceph's object gateway: another server than the one that the rest is tried with."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from functools import partial

import pytest
from store_contract import SOAK, Place, StoreContract

from storage import open_store
from tests.emulators.ceph import Ceph, missing

if not SOAK:
    pytest.skip("in `make soak`", allow_module_level=True)
if missing():
    pytest.skip(f"not installed: {', '.join(missing())}", allow_module_level=True)

BUCKET = "baton-test"


@pytest.fixture(scope="module")
def ceph() -> Iterator[Ceph]:
    with Ceph() as ceph:
        ceph.client().create_bucket(Bucket=BUCKET)
        yield ceph


class TestCeph(StoreContract):
    @pytest.fixture
    def place(self, ceph: Ceph, monkeypatch: pytest.MonkeyPatch) -> Place:
        for name, value in ceph.env.items():
            monkeypatch.setenv(name, value)
        return Place(partial(open_store, f"s3://{BUCKET}/{uuid.uuid4().hex}"))
