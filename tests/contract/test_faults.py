"""What bad networks and busy or unwilling clouds do, on each store alike: a call fails in this house's words and in
time, is never half done, and takes no more memory and connections than it may. What a cloud's own words mean is in the
store's own tests; what answers in a cloud's place in test_strangers.py, what trickles in test_slow_answers.py.
"""

from __future__ import annotations

import io
import itertools
import json
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from store_contract import MIB, SOAK, fill, finish, names, read, spawn

from storage import Store, open_store
from storage.errors import AlreadyExists, Damaged, PermissionDenied, Unavailable
from storage.retry import Retrying
from tests.clouds import BUCKET, Cloud, is_third_part, reached
from tests.emulators.azurite import Azurite, sas
from tests.emulators.proxy import Fault, Request
from watchers import Mailbox, Notice, Stopped

SMALL, BIG = random.Random(0).randbytes(10_000), random.Random(1).randbytes(20 * MIB + 7)  # BIG: three parts
PART = 8 * MIB

CALLS: dict[str, Callable[[Store], object]] = {
    "get": lambda store: read(store, "small"),
    "get big": lambda store: read(store, "big"),
    "range": lambda store: read(store, "small", (1, 2)),
    "stat": lambda store: store.stat("small"),
    "list": lambda store: names(store),
    "level": lambda store: names(store, "", "/"),
    "put": lambda store: store.put("new", SMALL),
    "claim": lambda store: store.put("new claim", SMALL, if_absent=True),
    "put big": lambda store: store.put("new big", BIG),
    "delete": lambda store: store.delete("gone"),
}


@pytest.fixture
def patience() -> list[float]:
    """Seconds that `store` waits; a test may put another in."""
    return [60.0]


@pytest.fixture
def store(cloud: Cloud, patience: list[float]) -> Iterator[Store]:
    variables = cloud.variables
    if isinstance(cloud.emulator, Azurite):  # by a token: a key signs the length as well, which a fault here changes
        address = variables["AZURE_STORAGE_CONNECTION_STRING"].partition("BlobEndpoint=")[2]
        variables = {"AZURE_STORAGE_SERVICE_ENDPOINT": address, "AZURE_STORAGE_SAS_TOKEN": sas(BUCKET)}
    with reached(variables):
        store = open_store(cloud.url(), patience=lambda: patience[0])
        store.put("small", SMALL)
        store.put("big", BIG)
        yield store


def is_body(request: Request) -> bool:
    """Of a small object, on its way up."""
    return request.method in ("PUT", "POST") and 5000 < int(request.headers.get("content-length", 0)) < 20_000


def is_end(request: Request) -> bool:
    """What makes an object of parts."""
    return "comp=blocklist" in request.target or (request.method == "POST" and "uploadId" in request.target)


def is_list(target: str) -> bool:
    return bool(re.search(r"comp=list|list-type=2|/o\?", target))


def is_get(request: Request) -> bool:
    return request.method == "GET"


def is_late_range(request: Request) -> bool:
    asked = request.headers.get("range") or request.headers.get("x-ms-range") or "bytes=0-"
    return is_get(request) and not asked.startswith("bytes=0-")


def all_is_as_before(store: Store, cloud: Cloud) -> None:
    cloud.proxy.faults = []
    assert names(store) == ["big", "small"]
    assert read(store, "small") == SMALL
    assert read(store, "big") == BIG
    if cloud.name != "az":  # whose blocks without a list nobody sees; it drops them
        assert cloud.emulator.open_uploads(store.url) == []


# --- who doesn't do as he is told


def test_whoever_fails_is_unavailable_within_ones_patience_and_is_asked_once(
    store: Store, cloud: Cloud, patience: list[float]
) -> None:
    """The SDKs' own retries are off, and so are their minutes of waiting."""
    patience[0] = 0.5
    begun = time.monotonic()
    for fault in (
        *(Fault("reset"), Fault("lose"), Fault("hang")),
        *(Fault("answer", status=status) for status in (408, 429, 500, 503)),
    ):
        print(fault)
        cloud.proxy.requests.clear()
        cloud.proxy.faults = [fault]
        with ThreadPoolExecutor(len(CALLS)) as pool:
            for future in [pool.submit(call, store) for call in CALLS.values()]:
                with pytest.raises(Unavailable) as caught:
                    future.result()
                assert str(caught.value).isprintable()
        asked = [(r.method, r.target, *map(r.headers.get, ("range", "x-ms-range"))) for r in cloud.proxy.requests]
        assert len(set(asked)) == len(asked)
    assert time.monotonic() - begun < 90


def test_a_server_that_is_gone_is_told_of_in_words_alone(store: Store, cloud: Cloud) -> None:
    """Not in the objects that libraries wrap them in."""
    cloud.proxy.stop()
    told = r"(Connection refused|Could not connect to the endpoint URL: \S+); is it running\? [\w ]+ says where$"
    try:
        for call in CALLS.values():
            with pytest.raises(Unavailable, match=told) as caught:
                call(store)
            assert "(host" not in str(caught.value)
    finally:
        cloud.proxy.start()
    all_is_as_before(store, cloud)


def forbidden(words: bytes, hint: str, **headers: str) -> tuple[Fault, str]:
    return Fault("answer", status=403, body=words, headers=headers), hint


_AZURES = r"Storage Blob Data Contributor on the container \(action blobs/"


def of_amazon(message: str) -> bytes:
    return f"<Error><Code>AccessDenied</Code><Message>{message}</Message></Error>".encode()


def of_google(message: str, reason: str = "forbidden") -> bytes:
    return json.dumps({"error": {"code": 403, "message": message, "errors": [{"reason": reason}]}}).encode()


FORBIDDEN = {
    "s3": [
        forbidden(of_amazon("Not authorized"), "Not authorized; the role needs s3:"),
        forbidden(
            of_amazon("User: arn:x is not authorized to perform: kms:GenerateDataKey on resource: arn:y"),
            "; the role needs kms:GenerateDataKey and kms:Decrypt on the bucket's key$",
        ),
    ],
    "gs": [
        forbidden(
            of_google("x@y lacks it"),
            r"x@y lacks it .*it takes storage\.(objects|multipartUploads)\.\w+, which roles/",
        ),
        forbidden(of_google("may not be overwritten", "retentionPolicyNotMet"), "take a bucket without one$"),
        forbidden(of_google("Permission denied on Cloud KMS key."), "service-agent --authorize-cmek=KEY$"),
        forbidden(
            of_google("The billing account for the owning project is disabled in state closed", "accountDisabled"),
            "; give the bucket's project a billing account",
        ),
        forbidden(of_google("It has been disabled.", "accountDisabled"), "; the account of .* is disabled"),
    ],
    "az": [
        forbidden(b"", hint, **({"x-ms-error-code": code} if code else {}))
        for code, hint in (
            *((code, _AZURES) for code in ("AuthorizationPermissionMismatch", "AuthorizationFailure", "")),
            ("KeyBasedAuthenticationNotPermitted", "takes no keys: use an identity, or a SAS of a user delegation"),
            ("AccountIsDisabled", "enable the account"),
        )
    ],
}


def test_a_missing_right_is_never_an_absence_and_is_named(store: Store, cloud: Cloud) -> None:
    for fault, hint in FORBIDDEN[cloud.name]:
        cloud.proxy.faults = [fault]
        for call in (*CALLS.values(), lambda store: store.stat("absent"), lambda store: read(store, "absent")):
            with pytest.raises(PermissionDenied, match=hint) as caught:
                call(store)
            assert str(caught.value).isprintable()
    all_is_as_before(store, cloud)


# --- bytes that change, or don't come


def test_a_bit_that_flips_or_a_byte_that_is_lost_on_the_way_up_is_damage_and_nothing_is_written(
    store: Store, cloud: Cloud
) -> None:
    faults = [Fault(kind, at=5000, when=lambda r: is_body(r) or is_third_part(r)) for kind in ("flip_up", "short_up")]
    for fault in faults:
        print(fault)
        cloud.proxy.faults = [fault]
        for body in (SMALL[::-1], BIG[::-1]):
            with pytest.raises(Damaged):
                store.put("small", body)
        with pytest.raises(Damaged):
            store.put("claim", SMALL, if_absent=True)
    all_is_as_before(store, cloud)


@pytest.mark.parametrize("byte_range", [None, (0, 1 << 30)], ids=["an object", "a record of so many bytes at most"])
def test_a_bit_that_flips_on_the_way_down_is_damage(
    store: Store, cloud: Cloud, byte_range: tuple[int, int] | None
) -> None:
    for key, at, which in (
        ("small", 0, is_get),
        ("small", len(SMALL) - 1, is_get),
        ("big", PART - 1, is_get),
        ("big", 0, is_late_range),
        ("big", 4 * MIB, is_late_range),
    ):
        cloud.proxy.faults = [Fault("flip", at=at, when=which)]
        with pytest.raises(Damaged):
            read(store, key, byte_range)
    all_is_as_before(store, cloud)


def test_an_answer_that_breaks_off_or_stops_is_no_short_object(
    store: Store, cloud: Cloud, patience: list[float]
) -> None:
    patience[0] = 0.5
    for key, at, which in (
        ("small", 0, is_get),
        ("small", len(SMALL) - 1, is_get),
        ("big", 1000, is_get),
        ("big", 1000, is_late_range),
    ):
        for fault in (Fault("cut", at), Fault("stall", at), Fault("reset"), Fault("hang")):
            print(key, fault)
            cloud.proxy.faults = [replace(fault, when=which)]
            sink = io.BytesIO()
            with pytest.raises(Unavailable):
                store.get(key, sink)
            assert len(sink.getvalue()) < {"small": len(SMALL), "big": len(BIG)}[key]
    patience[0] = 60.0
    all_is_as_before(store, cloud)


def test_a_list_that_breaks_off_on_any_page_is_no_short_list(store: Store, cloud: Cloud, patience: list[float]) -> None:
    """One that came short would hide the newest checkpoint, or all of them, and training would begin again."""
    fill(store, [f"run/{n}" for n in range(5)])
    in_pages_of(2, cloud)
    patience[0] = 0.5
    faults = (Fault("cut"), Fault("cut", 100), Fault("stall", 100), Fault("lose"), Fault("reset"), Fault("answer"))
    for page in range(3):
        for fault in faults:
            print(page, fault)
            left = itertools.count(page, -1)
            cloud.proxy.faults = [replace(fault, when=lambda r: is_list(r.target) and next(left) == 0)]  # noqa: B023
            with pytest.raises(Unavailable):
                names(store, "run/")
    patience[0] = 60.0
    cloud.proxy.faults = []
    assert names(store, "run/") == [f"run/{n}" for n in range(5)]


def in_pages_of(count: int, cloud: Cloud) -> None:
    """The server is asked for pages of so many keys."""
    size = {"s3": "max-keys", "gs": "maxResults", "az": "maxresults"}[cloud.name]
    cloud.proxy.rewrite = lambda target: f"{target}&{size}={count}" if is_list(target) else target


def test_an_upload_that_fails_leaves_the_old_object_and_no_upload_open(
    store: Store, cloud: Cloud, patience: list[float]
) -> None:
    patience[0] = 2.0
    third = [Fault("reset"), Fault("lose"), Fault("break", 1000), Fault("hang"), Fault("answer")]
    for fault in (*(replace(fault, when=is_third_part) for fault in third), Fault("answer", when=is_end)):
        print(fault)
        cloud.proxy.faults = [fault]
        with pytest.raises(Unavailable):
            store.put("small", BIG[::-1])
    patience[0] = 60.0
    all_is_as_before(store, cloud)
    store.put("small", BIG)
    assert read(store, "small") == BIG


def test_a_server_that_takes_nothing_of_a_body_is_given_up(store: Store, cloud: Cloud, patience: list[float]) -> None:
    """Over a connection that is kept, as one whose other end has vanished, and over a new one."""
    patience[0] = 1.0
    again = threading.Event()
    begun = time.monotonic()
    for opened in (store, open_store(store.url, patience=lambda: patience[0])):
        cloud.proxy.rewrite = lambda target: (again.wait(100), target)[1]
        with pytest.raises(Unavailable):
            opened.put("new", BIG[: 6 * MIB])  # in one request, and more than sockets hold
    assert time.monotonic() - begun < 60
    again.set()  # what sockets held of it may still come: it was given up, which is not to say that it never happens


def test_a_claim_whose_answer_was_lost_is_there(store: Store, cloud: Cloud) -> None:
    """Who made it reads back, and finds its own bytes."""
    cloud.proxy.faults = [Fault("lose", times=1)]
    with pytest.raises(Unavailable):
        store.put("claim", b"mine", if_absent=True)
    with pytest.raises(AlreadyExists):
        store.put("claim", b"mine", if_absent=True)
    assert read(store, "claim") == b"mine"


# --- trying again


def test_all_tries_together_end_with_the_deadline(cloud: Cloud) -> None:
    """What is asked after it is asked once, and given up in a tenth of a second; without regard to it, in 20 s."""
    deadline = time.monotonic() + 2.0

    def left(_tried: float = 0.0) -> float:
        return deadline - time.monotonic()

    with reached(cloud.variables):
        store = Retrying(open_store(cloud.url(), patience=lambda: max(0.1, left())), left, time.sleep)
        cloud.proxy.faults = [Fault("hang")]
        for name in ("get", "list", "put", "put big"):
            begun, known = max(deadline, time.monotonic()), len(cloud.proxy.requests)
            with pytest.raises(Unavailable):
                CALLS[name](store)
            assert time.monotonic() - begun < 10, f"{name}, on whatever machine"
            asked = [(r.method, r.target) for r in cloud.proxy.requests[known:]]
            assert len(set(asked)) == len(asked) or begun == deadline, f"{name} was tried again after the deadline"
    assert left() < 0


class FakeTime:
    """In which a notice comes while somebody sleeps."""

    def __init__(self, mailbox: Mailbox, notice_at: float) -> None:
        self.now = 0.0
        self._mailbox = mailbox
        self._notice_at = notice_at

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        if self.now >= self._notice_at:
            self._mailbox.post(Notice("aws", "stop", "spot interruption", "1", time.time()))


def test_a_notice_ends_the_sleep_before_the_next_try_within_100_ms(
    store: Store, cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    cloud.proxy.faults = [Fault("answer", status=503)]
    for name in ("get", "list", "put big"):
        for notice_at in (0.001, 0.1, 7.77):
            mailbox = Mailbox()
            clock = FakeTime(mailbox, notice_at)
            monkeypatch.setattr("watchers.mailbox.time", clock)
            slept = itertools.count()

            def pause(_: float) -> None:
                assert next(slept) == 0, "it is not tried again"  # noqa: B023
                mailbox.pause(300)  # noqa: B023
                mailbox.check()  # noqa: B023

            with pytest.raises(Stopped, match="spot interruption"):
                CALLS[name](Retrying(store, lambda tried: 600.0, pause))  # type: ignore[arg-type]
            assert clock.now - notice_at < 0.1


# --- what it takes


def test_a_list_given_up_on_its_second_page_gives_its_connection_back(store: Store, cloud: Cloud) -> None:
    """Pages have as many keys as the server is asked for; in `make soak` as many as it gives by itself."""
    page = 100
    if SOAK:
        page = 5000 if cloud.name == "az" else 1000
    else:
        in_pages_of(page, cloud)
    keys = [f"run/k{n:05}" for n in range(page + page // 5)]
    fill(store, keys)
    store = open_store(store.url)  # without the connections that this took
    store.stat(keys[0])
    connections = cloud.proxy.connections
    for _ in range(3):
        cloud.proxy.requests.clear()
        listing = store.list("run/")
        assert next(listing).key == keys[0]
        # Azure doesn't promise an order, so all of its pages are read before the first key is told
        assert len(cloud.proxy.requests) == (2 if cloud.name == "az" else 1)
        assert [next(listing).key for _ in range(page + 9)] == keys[1 : page + 10]
        listing.close()  # type: ignore[attr-defined]
        assert len(cloud.proxy.requests) == 2
        assert store.stat(keys[-1]).size == len(keys[-1])
    assert cloud.proxy.connections == connections
    assert names(store, "run/") == keys


def test_connections_are_kept(store: Store, cloud: Cloud) -> None:
    before = cloud.proxy.connections
    for n in range(50):
        store.put(f"run/{n}", SMALL)
        assert read(store, f"run/{n}") == SMALL
    assert cloud.proxy.connections - before <= 1


_MANY = """
import sys
from concurrent.futures import ThreadPoolExecutor
from storage import open_store

class Sink:
    def write(self, data):
        return len(data)

def peak():  # KiB, of what is resident
    return int(next(x for x in open("/proc/self/status") if x.startswith("VmHWM")).split()[1])

store, chunks = open_store(sys.argv[1], patience=lambda: 120.0), [bytes(5 << 20)] * 12
store.put("warm", chunks[:2])
store.get("warm", Sink())
for callers, call in (
    (5, lambda n: store.put(f"big/{n}", chunks)),
    (4, lambda n: store.get(f"big/{n}", Sink(), byte_range=(0, 61 << 20))),
):
    open("/proc/self/clear_refs", "w").write("5")  # let the peak begin anew
    before = peak()
    with ThreadPoolExecutor(callers) as pool:
        list(pool.map(call, range(callers)))
    print(peak() - before)
"""


def test_as_many_as_save_and_restore_at_once_share_eight_parts_of_memory_and_few_connections(cloud: Cloud) -> None:
    """Five who put and four who get, as trainer/commit.py and trainer/history.py do; 60 MiB each. In a process of
    its own, whose C library gives back at once what is freed."""
    variables = {**cloud.variables, "MALLOC_MMAP_THRESHOLD_": str(MIB), "MALLOC_ARENA_MAX": "1"}
    peaks = [int(peak) // 1024 for peak in finish(spawn(_MANY, cloud.url(), **variables), 300).split()]
    print(f"peaks, in MiB: {peaks}; {cloud.proxy.connections} connections")
    assert max(peaks) < 8 * PART // MIB
    assert cloud.proxy.connections <= 14
