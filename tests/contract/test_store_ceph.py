"""The S3 store against Ceph's object gateway: another server than the one that the rest is tried with."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from functools import partial

import pytest
from store_contract import SOAK, Place, StoreContract

from storage import open_store
from tests.emulators.ceph import Ceph, missing

pytestmark = [
    pytest.mark.skipif(not SOAK, reason="in `make soak`"),
    pytest.mark.skipif(bool(missing()), reason=f"not installed: {', '.join(missing())}"),
]
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
