"""What answers in a cloud's place (a login page, a proxy's own words) is a passing fault: no absence, no success."""

from __future__ import annotations

import gzip
import io
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import count

import pytest
from google.auth.credentials import AnonymousCredentials

from storage import Store, open_store
from storage.errors import AlreadyExists, Damaged, NotFound, PermissionDenied, Unavailable
from tests.clouds import Cloud, reached
from tests.emulators.proxy import Fault

PAGE = b"<html><body>Log in, please</body></html>"
HEAD = {"Content-Type": "text/html", "Date": "Tue, 03 Mar 2026 09:00:00 GMT"}
FILE = {"ETag": '"5e15153d-28"', "Last-Modified": HEAD["Date"]}  # as web servers tell of each
STRANGERS = {
    "a page": Fault("answer", status=200, body=PAGE, headers=HEAD),
    "the way to a page": Fault("answer", status=302, headers={"Location": "http://127.0.0.1:9/login"}),
    "nothing": Fault("answer", status=200, headers={"Date": HEAD["Date"]}),
    "a file": Fault("answer", status=200, body=PAGE, headers=HEAD | FILE),
    "a file's creation": Fault("answer", status=201, body=PAGE, headers=HEAD | FILE),
    "another's JSON": Fault("answer", status=200, body=b"[]", headers={"Content-Type": "application/json"}),
    "JSON of nothing": Fault("answer", status=200, body=b"{}", headers={"Content-Type": "application/json"}),
}


@pytest.fixture
def store(cloud: Cloud) -> Iterator[Store]:
    with reached(cloud.variables):
        store = open_store(cloud.url(), patience=lambda: 5.0)
        store.put("run/a", b"some bytes")
        yield store


@pytest.mark.parametrize("who", STRANGERS)
def test_a_strangers_answer_is_a_fault_that_passes(who: str, store: Store, cloud: Cloud) -> None:
    calls: dict[str, Callable[[], object]] = {
        "get": lambda: store.get("run/a", io.BytesIO()),
        "range": lambda: store.get("run/a", io.BytesIO(), byte_range=(1, 2)),
        "stat": lambda: store.stat("run/a"),
        "list": lambda: list(store.list("run/")),
        "put": lambda: store.put("run/b", b"1"),
        "claim": lambda: store.put("run/c", b"1", if_absent=True),
        "big": lambda: store.put("run/d", bytes(9 << 20)),
        "delete": lambda: store.delete("run/a"),
    }
    for name, call in calls.items():
        cloud.proxy.faults = [STRANGERS[who]]
        with pytest.raises(Unavailable) as caught:
            pytest.fail(f"{name} gave {call()!r}")
        assert "\n" not in str(caught.value)
    cloud.proxy.faults = []
    assert [info.key for info in store.list("run/")] == ["run/a"]


@pytest.mark.parametrize("who", [*STRANGERS, "a page that isn't there"])
def test_a_stranger_who_answers_one_request_of_a_big_put_is_a_fault_that_passes(
    who: str, store: Store, cloud: Cloud
) -> None:
    """Whichever it is; and never an absence, though nothing of the object may be there. What the SDK asks again of the
    cloud itself may well be a success."""
    big = bytes(9 << 20)
    before = len(cloud.proxy.requests)
    store.put("run/big", big)
    requests = len(cloud.proxy.requests) - before
    assert requests >= 3
    stranger = STRANGERS.get(who) or Fault("answer", status=404, body=PAGE, headers=HEAD)
    for struck in range(requests):
        store.delete("run/big")
        cloud.proxy.faults = [only(stranger, struck)]
        with suppress(Unavailable):
            store.put("run/big", big)
            cloud.proxy.faults = []
            assert store.stat("run/big").size == len(big)
        cloud.proxy.faults = []


def test_a_deletion_that_another_answers_is_none(store: Store, cloud: Cloud) -> None:
    """As a login page does, while the store itself is reached again at the next request."""
    for who in STRANGERS:
        cloud.proxy.faults = [replace(STRANGERS[who], when=lambda request: request.method == "DELETE")]
        with pytest.raises(Unavailable):
            store.delete("run/a")
    cloud.proxy.faults = []
    store.delete("run/a")
    assert not list(store.list("run/"))
    store.delete("run/a")


@pytest.fixture
def real(store: Store, cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The store as it is out there: Google's emulators may say no more than a number themselves, Google says more."""
    if cloud.name != "gs":
        return store
    monkeypatch.delenv("STORAGE_EMULATOR_HOST")
    monkeypatch.setenv("API_ENDPOINT_OVERRIDE", cloud.proxy.url)
    monkeypatch.setattr("storage.gcs.find_credentials", lambda *_: AnonymousCredentials())  # type: ignore[no-untyped-call]
    return open_store(store.url, patience=lambda: 5.0)


def test_a_strangers_404_proves_no_absence(real: Store, cloud: Cloud) -> None:
    """As a proxy gives it while the server behind it starts again: a checkpoint would count as lost."""
    for words in (PAGE, b"404 page not found", b'{"error": "Not Found"}', b""):
        cloud.proxy.faults = [Fault("answer", status=404, body=words, headers={"Content-Type": "text/html"})]
        for call in (
            lambda: real.get("run/a", io.BytesIO()),
            lambda: real.get("run/a", io.BytesIO(), byte_range=(1, 2)),
            lambda: real.stat("run/a"),
            lambda: real.delete("run/a"),
        ):
            with pytest.raises(Unavailable):
                call()


def test_the_stores_own_404_and_412_count(real: Store) -> None:
    for call in (
        lambda: real.get("run/none", io.BytesIO()),
        lambda: real.get("run/none", io.BytesIO(), byte_range=(1, 2)),
        lambda: real.stat("run/none"),
    ):
        with pytest.raises(NotFound):
            call()
    real.delete("run/none")
    with pytest.raises(AlreadyExists):
        real.put("run/a", b"1", if_absent=True)


MIB = 1 << 20
FLOODS = {
    **{str(status): Fault("flood", 256, status=status, body=bytes(MIB)) for status in (200, 206, 403, 404, 500)},
    "a head": Fault("flood", 256, headers={"Transfer-Encoding": "chunked"}, body=b"1" * MIB),
    "packed": Fault(
        "answer",
        status=500,
        body=gzip.compress(bytes(MIB)) * 256,
        headers={"Content-Encoding": "gzip", "Content-Type": "application/json"},
    ),
}


@pytest.mark.parametrize("what", FLOODS)
def test_an_answer_without_an_end_does_not_fill_the_memory(what: str, store: Store, cloud: Cloud) -> None:
    calls: list[Callable[[], object]] = [
        lambda: store.get("run/a", io.BytesIO()),
        lambda: store.get("run/a", io.BytesIO(), byte_range=(1, 2)),
        lambda: store.stat("run/a"),
        lambda: list(store.list("run/")),
        lambda: store.put("run/b", b"1"),
        lambda: store.put("run/c", b"1", if_absent=True),
        lambda: store.delete("run/a"),
    ]
    cloud.proxy.faults = [FLOODS[what]]
    tracemalloc.start()
    try:
        for call in calls:
            with pytest.raises((Unavailable, PermissionDenied)):
                call()
        assert tracemalloc.get_traced_memory()[1] < 128 * MIB
    finally:
        tracemalloc.stop()


def test_a_strangers_412_is_nobodys_claim(real: Store, cloud: Cloud) -> None:
    for body in (PAGE,) if cloud.name == "az" else (PAGE, b"Precondition Failed", b""):
        cloud.proxy.faults = [Fault("answer", status=412, body=body, headers=HEAD)]
        with pytest.raises(Unavailable):
            real.put("run/claim", b"1", if_absent=True)


LISTS = {
    "s3": b"<ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>t</NextContinuationToken>"
    b"</ListBucketResult>",
    "gs": b'{"kind": "storage#objects", "nextPageToken": "t"}',
    "az": b"<?xml version='1.0'?><EnumerationResults><Blobs/><NextMarker>t</NextMarker></EnumerationResults>",
}


def test_a_list_that_goes_on_where_it_went_on_before_ends(store: Store, cloud: Cloud) -> None:
    """It would be asked for the same page for ever."""
    kind = {"Content-Type": "application/json" if cloud.name == "gs" else "application/xml", "x-ms-request-id": "1"}
    for delimiter in (None, "/"):
        before = len(cloud.proxy.requests)
        cloud.proxy.faults = [Fault("answer", status=200, body=LISTS[cloud.name], headers=kind, times=5)]
        with pytest.raises(Unavailable):
            list(store.list("", delimiter=delimiter))
        assert len(cloud.proxy.requests) - before == 2


def test_an_answer_beyond_all_bounds_is_a_fault_that_passes(store: Store, cloud: Cloud) -> None:
    lists = {
        "s3": b"<ListBucketResult><IsTruncated>false</IsTruncated><Contents><Key>a</Key><Size>1</Size>"
        b"<LastModified>99999999999999999999-03-03T09:00:00Z</LastModified></Contents></ListBucketResult>",
        "gs": b'{"kind": "storage#objects", "prefixes": [5]}',
        "az": b"<?xml version='1.0'?><EnumerationResults><Blobs><Blob><Name>a</Name></Blob></Blobs>"
        b"</EnumerationResults>",
    }
    for body in (lists[cloud.name], b"[" * 100_000, b"<a>" * 10_000):
        kind = {
            "Content-Type": "application/json" if body.startswith((b"[", b"{")) else "application/xml",
            "x-ms-request-id": "1",
        }
        cloud.proxy.faults = [Fault("answer", status=200, body=body, headers=kind)]
        for call in (lambda: list(store.list("")), lambda: store.put("run/b", b"1")):
            with pytest.raises(Unavailable):
                call()


def test_a_range_is_not_taken_for_another(store: Store, cloud: Cloud) -> None:
    other = GOOD | {"content-range": "bytes 5-9/10"}
    cloud.proxy.faults = [Fault("answer", status=206, body=b"12345", headers=other)]
    for byte_range in ((0, 5), (1, 6)):
        with pytest.raises(Unavailable):
            store.get("run/a", io.BytesIO(), byte_range=byte_range)


GOOD = {
    "x-ms-request-id": "1",
    "etag": '"0123456789abcdef"',
    "last-modified": HEAD["Date"],
    "date": HEAD["Date"],
    "content-range": "bytes 0-4/10",
    "x-goog-generation": "1",
    "x-goog-hash": "crc32c=AAAAAA==",
}
BEYOND = "Tue, 03 Mar 99999999999999999999 09:00:00 GMT"  # all bounds
WRONG = [
    *({"date": date} for date in ("today", BEYOND)),
    *({"last-modified": date} for date in ("soon", BEYOND)),
    *({"content-range": told} for told in ("bytes 0-4/*", "bytes 0-4/-10")),
    {"etag": ""},
]


def test_an_answer_with_one_thing_wrong_is_a_fault_that_passes(store: Store, cloud: Cloud) -> None:
    """A date, a size or a time that is missing or none."""
    calls: dict[str, Callable[[], object]] = {
        "get": lambda: store.get("run/a", io.BytesIO()),
        "range": lambda: store.get("run/a", io.BytesIO(), byte_range=(0, 5)),
        "stat": lambda: store.stat("run/a"),
        "put": lambda: store.put("run/b", b"1"),
        "claim": lambda: store.put("run/c", b"1", if_absent=True),
        "big": lambda: store.put("run/d", bytes(9 << 20)),
    }
    for status in (200, 201, 206):
        for wrong in WRONG:
            headers = {name: value for name, value in (GOOD | wrong).items() if value}
            if status == 201:
                headers.pop("last-modified")
            cloud.proxy.faults = [Fault("answer", status=status, body=b"12345", headers=headers)]
            for call in calls.values():
                with suppress(Unavailable, Damaged):  # all else would be a defect; what needs not the wrong one is fine
                    call()


def only(fault: Fault, which: int) -> Fault:
    """The fault, but at that request alone, counted from now."""
    counter = count()
    return replace(fault, when=lambda _: next(counter) == which)
