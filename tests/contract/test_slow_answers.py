"""Each cloud's store against a server that sends a byte now and then: no socket's time-out ever ends that."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from storage import Store, open_store
from storage.errors import Unavailable
from tests.clouds import Cloud, reached
from tests.emulators.proxy import Fault, Request

MIB = 1 << 20
BIG = bytes(range(256)) * (20 * MIB // 256)


@pytest.fixture
def patience() -> list[float]:
    """Seconds that `store` waits; a test may put another in."""
    return [30.0]


@pytest.fixture
def store(cloud: Cloud, patience: list[float]) -> Iterator[Store]:
    with reached(cloud.variables):
        store = open_store(cloud.url(), patience=lambda: patience[0])
        store.put("small", b"some bytes")
        store.put("big", BIG)
        yield store


def calls(store: Store) -> list[Callable[[], object]]:
    return [
        lambda: store.get("small", io.BytesIO()),
        lambda: store.get("big", io.BytesIO()),
        lambda: store.get("small", io.BytesIO(), byte_range=(1, 2)),
        lambda: store.stat("small"),
        lambda: list(store.list("")),
        lambda: list(store.list("", delimiter="/")),
        lambda: store.put("new", b"1"),
        lambda: store.put("claim", b"1", if_absent=True),
        lambda: store.put("new big", BIG),
        lambda: store.delete("gone"),
    ]


def test_whatever_was_asked_an_answer_that_trickles_is_given_up(
    store: Store, cloud: Cloud, patience: list[float]
) -> None:
    patience[0] = 1.0
    cloud.proxy.faults = [Fault("slow", pause_s=0.5)]  # two minutes for a head of 250 bytes, and each byte in time
    begun = time.monotonic()
    for asked in ThreadPoolExecutor(10).map(failure_of, calls(store)):
        assert isinstance(asked, Unavailable), asked
        assert "\n" not in str(asked)
    assert time.monotonic() - begun < 45


def failure_of(call: Callable[[], object]) -> object:
    try:
        return call()
    except Exception as e:
        return e


def test_a_body_that_trickles_after_a_prompt_head_is_given_up(
    store: Store, cloud: Cloud, patience: list[float]
) -> None:
    """Of the second range alone, in the midst of a big object; the link carries 1,000 bytes a second."""
    patience[0] = 1.0

    def is_late(request: Request) -> bool:
        asked = request.headers.get("range") or request.headers.get("x-ms-range") or ""
        return request.method == "GET" and not asked.startswith("bytes=0-") and asked.startswith("bytes=")

    cloud.proxy.faults = [Fault("slow", pause_s=0.001, when=is_late)]
    begun = time.monotonic()
    with pytest.raises(Unavailable):
        store.get("big", io.BytesIO())
    assert time.monotonic() - begun < 45, "the whole would take hours"


def test_a_deadline_that_comes_closer_bounds_the_answer_that_is_coming_in(
    store: Store, cloud: Cloud, patience: list[float]
) -> None:
    cloud.proxy.faults = [Fault("slow", pause_s=0.05, when=lambda request: request.method == "GET")]
    patience[0] = 600.0
    nearer = threading.Timer(0.5, lambda: patience.__setitem__(0, 0.5))
    nearer.start()
    begun = time.monotonic()
    with pytest.raises(Unavailable):
        store.get("big", io.BytesIO())
    assert time.monotonic() - begun < 45


def test_a_deadline_that_comes_closer_bounds_the_silence_after_it(
    store: Store, cloud: Cloud, patience: list[float]
) -> None:
    """It came while the answer was on its way; the answer then stops for good."""

    def nearer(request: Request) -> bool:
        patience[0] = 0.5
        return request.method == "GET"

    cloud.proxy.faults = [Fault("stall", at=1000, when=nearer)]
    patience[0] = 60.0
    begun = time.monotonic()
    with pytest.raises(Unavailable):
        store.get("big", io.BytesIO())
    assert time.monotonic() - begun < 45
