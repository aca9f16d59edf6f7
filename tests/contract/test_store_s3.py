"""The S3 store against moto, and over a real bucket where BATON_LIVE_S3 names one; then what is S3's own.

What the network does to it is done by a proxy; what moto can't say (no rights, dead credentials, another region,
busy) the proxy answers in S3's words.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from store_contract import SOAK, Place, StoreContract, names, read

from storage import Store, open_store
from storage.errors import (
    Damaged,
    InvalidURL,
    NoSpace,
    NotSetUp,
    PermissionDenied,
    StoreError,
    Unavailable,
    Unsupported,
)
from storage.s3 import PART, S3Store
from tests.docs.pages import REPOSITORY, documents
from tests.emulators.moto import MotoS3
from tests.emulators.proxy import Fault, Proxy

MIB = 1 << 20
BUCKET = "baton-test"
LIVE = os.environ.get("BATON_LIVE_S3")


@pytest.fixture
def moto(moto_emulator: MotoS3, monkeypatch: pytest.MonkeyPatch) -> MotoS3:
    """The emulator, as the place that this process and its children find."""
    for name, value in moto_emulator.env.items():
        monkeypatch.setenv(name, value)
    moto_emulator.make_bucket(BUCKET)
    return moto_emulator


@pytest.fixture
def url(moto: MotoS3) -> str:
    return moto.url(BUCKET, f"{uuid.uuid4().hex}/run s")


class TestS3(StoreContract):
    @pytest.fixture
    def place(self, url: str, moto: MotoS3) -> Place:
        # moto joins what came in parts, several times over
        return Place(lambda: open_store(url), big_mib=300 if SOAK else 150, open_uploads=lambda: moto.open_uploads(url))


if LIVE:

    class TestLiveS3(StoreContract):
        @pytest.fixture
        def place(self) -> Iterator[Place]:
            place = Place(lambda: open_store(f"{LIVE}/{uuid_of_this_test}"), kills=10)
            uuid_of_this_test = uuid.uuid4().hex
            yield place
            store = place.open()
            for info in store.list(""):
                store.delete(info.key)


# --- through a network that fails


@pytest.fixture
def proxy(moto: MotoS3, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    with Proxy(("127.0.0.1", moto.port)) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        yield proxy


@pytest.fixture
def patience() -> list[float]:
    """Seconds of silence after which `store` gives up; a test may put another in."""
    return [20.0]


@pytest.fixture
def store(proxy: Proxy, url: str, patience: list[float]) -> Store:
    """Behind the proxy."""
    return S3Store(url, patience=lambda: patience[0])


def body(size: int) -> bytes:
    return bytes(range(251)) * (size // 251) + bytes(size % 251)


def answer(status: int, code: str, message: str = "", extra: str = "", **headers: str) -> Fault:
    text = f"<Error><Code>{code}</Code><Message>{message}</Message>{extra}</Error>"
    return Fault(
        "answer",
        status=status,
        body=text.encode(),
        headers={name.replace("_", "-"): value for name, value in headers.items()},
    )


CALLS: dict[str, Callable[[Store], object]] = {
    "put": lambda store: store.put("a", b"new"),
    "create": lambda store: store.put("b", b"new", if_absent=True),
    "put big": lambda store: store.put("a", [body(PART), b"x"]),
    "get": lambda store: read(store, "a"),
    "get range": lambda store: read(store, "a", (0, 2)),
    "stat": lambda store: store.stat("a"),
    "list": lambda store: names(store),
    "delete": lambda store: store.delete("a"),
}


def every_call(test: Any) -> Any:
    return pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)(test)


def test_nothing_listens_is_unavailable(store: Store, proxy: Proxy) -> None:
    proxy.stop()
    with pytest.raises(Unavailable):
        store.stat("a")


def no_name(error: int, words: str) -> Callable[..., Any]:
    """In place of the system's resolver."""

    def resolve(*_: object, **__: object) -> Any:
        raise socket.gaierror(error, words)

    return resolve


UNKNOWN = no_name(socket.EAI_NONAME, "Name or service not known")
AWAY = no_name(socket.EAI_AGAIN, "Temporary failure in name resolution")


@every_call
def test_a_region_or_a_server_whose_name_is_none_is_said_at_once(
    call: Callable[[Store], object], url: str, moto: MotoS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", UNKNOWN)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://mistyped.example:9000")
    with pytest.raises(NotSetUp, match=r"mistyped\.example: no such name: is AWS_ENDPOINT_URL_S3 right") as caught:
        call(S3Store(url))
    assert "\n" not in str(caught.value)
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-mistyped-1")
    with pytest.raises(NotSetUp, match=r"eu-mistyped-1\.amazonaws\.com: no such name: is AWS_REGION right"):
        call(S3Store(url))


@every_call
def test_a_name_that_is_away_or_was_there_is_waited_for(
    call: Callable[[Store], object], url: str, store: Store, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = S3Store(url)
    store.put("a", b"1")
    proxy.stop()
    for resolve, which in ((AWAY, fresh), (UNKNOWN, store)):
        monkeypatch.setattr(socket, "getaddrinfo", resolve)
        with pytest.raises(Unavailable):
            call(which)


def test_a_list_that_does_not_say_where_it_goes_on_is_a_fault_and_is_not_begun_again(
    store: Store, proxy: Proxy
) -> None:
    """As a server gives it that knows the old way of listing alone; asked for the rest of nothing, it begins anew."""
    store.put("a", b"1")
    page = (
        "<ListBucketResult xmlns='http://s3.amazonaws.com/doc/2006-03-01/'><IsTruncated>true</IsTruncated><Contents>"
        "<Key>a</Key><LastModified>2026-03-03T09:00:00Z</LastModified><Size>1</Size></Contents></ListBucketResult>"
    )
    proxy.faults = [Fault("answer", status=200, body=page.encode())]
    with pytest.raises(Unavailable):
        list(itertools.islice(store.list(""), 5))


@every_call
@pytest.mark.parametrize(
    ("fault", "hint"),
    [
        (answer(404, "NoSuchBucket"), "aws s3 mb s3://baton-test"),
        (answer(400, "ExpiredToken"), "out of date"),
        (answer(403, "InvalidAccessKeyId"), "doesn't know the access key"),
        (answer(403, "SignatureDoesNotMatch"), "AWS_SECRET_ACCESS_KEY"),
        (answer(403, "InvalidObjectState"), "restore it"),
        (answer(403, "RequestTimeTooSkewed"), "clock"),
        (answer(400, "AuthorizationHeaderMalformed", extra="<Region>eu-west-3</Region>"), "AWS_REGION=eu-west-3"),
        (answer(301, "PermanentRedirect", x_amz_bucket_region="eu-west-3"), "AWS_REGION=eu-west-3"),
    ],
    ids=lambda value: value.body.decode() if isinstance(value, Fault) else "",
)
def test_what_a_person_must_mend_says_how(
    store: Store, proxy: Proxy, call: Callable[[Store], object], fault: Fault, hint: str
) -> None:
    """Also for `stat`, though the answer to its HEAD has no words; nor has any here a message, like Ceph's."""
    proxy.faults = [fault]
    with pytest.raises(NotSetUp) as caught:
        call(store)
    assert hint in str(caught.value)
    assert ": None" not in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (answer(507, "XMinioStorageFull"), NoSpace),
        (answer(403, "QuotaExceeded"), NoSpace),
        (answer(400, "XMinioAdminBucketQuotaExceeded"), NoSpace),
        (answer(501, "NotImplemented"), Unsupported),
        (answer(400, "BadDigest"), Damaged),
        (answer(400, "RequestTimeout"), Unavailable),
        (answer(400, "SomethingNew"), StoreError),
    ],
    ids=["full", "quota of Ceph", "quota of MinIO", "not implemented", "bad digest", "time-out", "unknown"],
)
def test_other_answers_find_their_error(store: Store, proxy: Proxy, fault: Fault, error: type) -> None:
    proxy.faults = [fault]
    with pytest.raises(error):
        store.put("a", b"")


def test_an_absent_bucket_is_not_an_absent_object(moto: MotoS3) -> None:
    """By moto's own answers, without the proxy's."""
    for call in CALLS.values():
        with pytest.raises(NotSetUp, match="aws s3 mb s3://no-such-bucket"):
            call(open_store("s3://no-such-bucket/run"))


# --- bytes that change or end on the way


def test_a_slow_link_is_no_fault(store: Store, proxy: Proxy, patience: list[float]) -> None:
    """Each of the three takes longer than silence may last."""
    patience[0] = 2.0
    proxy.bytes_per_s = 2.5e6
    for size in (PART, PART + MIB):
        store.put("a", [body(size)])
    assert read(store, "a") == body(PART + MIB)


def test_an_upload_goes_in_parts_side_by_side_and_each_with_its_checksum(store: Store, proxy: Proxy) -> None:
    store.put("a", [body(PART)] * 3)
    parts = [r for r in proxy.requests if "partNumber" in r.target]
    assert len(parts) == 3
    assert all("x-amz-checksum-crc32" in r.headers for r in parts)
    store.put("b", b"small")
    assert "x-amz-checksum-crc32" in proxy.requests[-1].headers


def test_requests_are_few(store: Store, proxy: Proxy) -> None:
    """S3 charges by the request; a small object costs one either way."""
    for call, most in (("put", 1), ("create", 1), ("get", 1), ("stat", 1), ("list", 1), ("delete", 1), ("put big", 5)):
        if call != "put":
            store.put("a", b"old")
        before = len(proxy.requests)
        CALLS[call](store)
        assert len(proxy.requests) - before == most, call
    store.put("a", [body(PART)] * 3)
    before = len(proxy.requests)
    read(store, "a")
    assert len(proxy.requests) - before == 3


def test_the_beginning_of_a_large_object_costs_one_connection_and_not_the_object(store: Store, proxy: Proxy) -> None:
    store.put("a", [body(PART)] * 3)
    before = proxy.connections, len(proxy.requests)
    proxy.bytes_per_s = 4e6
    begun = time.monotonic()
    assert read(store, "a", (0, 10)) == body(PART)[:10]
    assert time.monotonic() - begun < 3, "all of it takes twice as long"
    proxy.bytes_per_s = None
    ranges = [(at, at + PART) for at in range(0, 3 * PART, PART)]  # as a file is streamed from front to back
    assert b"".join(read(store, "a", byte_range) for byte_range in ranges) == body(PART) * 3
    assert proxy.connections - before[0] <= 2, "one for each of the two beginnings"
    assert len(proxy.requests) - before[1] == 4


def test_checksums_are_left_out_where_the_sdk_is_told_so(
    proxy: Proxy, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
    store = open_store(url)
    for size in (5, PART + 1):
        store.put("a", body(size))
        assert read(store, "a") == body(size)
    assert not any("checksum" in name for r in proxy.requests for name in r.headers)


@pytest.mark.parametrize(("status", "error"), [(400, StoreError), (501, Unsupported)])
@pytest.mark.parametrize("told", [("InvalidRequest", "unknown header x-amz-checksum-crc32"), ("BadChecksumMode", "")])
def test_who_refuses_checksums_is_told_of_with_the_variable_that_leaves_them_out(
    store: Store, proxy: Proxy, status: int, error: type, told: tuple[str, str]
) -> None:
    proxy.faults = [answer(status, *told)]
    for call in ("put", "create", "put big", "get"):
        with pytest.raises(error, match="AWS_REQUEST_CHECKSUM_CALCULATION=when_required"):
            CALLS[call](store)
    proxy.faults = [answer(400, "BadDigest", "The CRC32 is not the checksum of what came")]
    with pytest.raises(Damaged) as caught:
        store.put("a", b"")
    assert "when_required" not in str(caught.value)


def test_an_object_of_another_length_than_was_sent_is_damage(store: Store, proxy: Proxy) -> None:
    headers = {"content-length": str(PART), "last-modified": "Tue, 03 Mar 2026 09:00:00 GMT"}
    proxy.faults = [Fault("answer", status=200, headers=headers, when=lambda request: request.method == "HEAD")]
    with pytest.raises(Damaged, match=f"{PART + 1} bytes were sent, and S3 has {PART}"):
        store.put("a", body(PART + 1))


# --- one version


def test_a_conflict_between_two_creates_is_tried_again(store: Store, proxy: Proxy) -> None:
    conflict = answer(409, "ConditionalRequestConflict")
    conflict.times = 2
    proxy.faults = [conflict]
    store.put("claim", b"mine", if_absent=True)
    assert read(store, "claim") == b"mine"
    conflict.times = None
    with pytest.raises(Unavailable, match="ConditionalRequestConflict"):
        store.put("other", b"mine", if_absent=True)


# --- ranges and lists


@pytest.mark.parametrize(
    "byte_range", [(5, 3 * PART - 7), (PART - 1, PART + 1), (PART, 99 * PART), (3 * PART - 1, 3 * PART)]
)
def test_a_range_over_several_parts_is_whole(store: Store, byte_range: tuple[int, int]) -> None:
    store.put("a", [body(3 * PART)])
    assert read(store, "a", byte_range) == body(3 * PART)[slice(*byte_range)]


def test_what_others_left_in_the_bucket_and_no_store_could_hold_is_not_listed(url: str, moto: MotoS3) -> None:
    from boto3 import client

    s3, store = client("s3", endpoint_url=moto.env["AWS_ENDPOINT_URL_S3"], region_name="us-east-1"), open_store(url)
    prefix = url.partition(f"{BUCKET}/")[2]
    for key in ("folder/", "a//b", "/c", "dot.", "good"):
        s3.put_object(Bucket=BUCKET, Key=f"{prefix}/{key}", Body=b"")
    s3.put_object(Bucket=BUCKET, Key=f"{prefix}beside", Body=b"")
    assert names(store) == ["good"]
    assert "good" in names(store, "", "/")
    assert "dot." not in names(store, "", "/")


# --- rights, as moto enforces them where it is told to


RIGHTS = {
    "s3:GetObject": {"get", "get range", "stat", "put big"},  # a big one is asked for its time
    "s3:PutObject": {"put", "create", "put big"},
    "s3:DeleteObject": {"delete"},
    "s3:ListBucket": {"list"},
    "s3:AbortMultipartUpload": set(),  # which moto asks of nobody
}


@pytest.mark.parametrize("lacking", [None, *RIGHTS])
def test_the_pages_policy_is_enough_and_what_lacks_one_of_its_rights_is_told_which(
    lacking: str | None, url: str, moto: MotoS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    pasted = map(json.loads, documents(REPOSITORY / "docs/stores.md"))
    policy = next(told for told in pasted if "s3:GetObject" in json.dumps(told))
    allowed = {
        right: statement["Resource"].replace("BUCKET", BUCKET)
        for statement in policy["Statement"]
        for right in ([statement["Action"]] if isinstance(statement["Action"], str) else statement["Action"])
    }
    assert allowed.keys() == RIGHTS.keys()
    open_store(url).put("a", body(1000))
    granted = [{"Effect": "Allow", "Action": a, "Resource": r} for a, r in allowed.items() if a != lacking]
    with moto.rights({"Version": "2012-10-17", "Statement": granted}) as variables:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        store = open_store(url)
        for name, call in CALLS.items():
            if lacking and name in RIGHTS[lacking]:
                with pytest.raises(PermissionDenied, match=lacking):
                    call(store)
            else:
                call(store)


def test_the_pages_lifecycle_rule_is_taken_drops_old_versions_and_is_what_doctor_looks_for(moto: MotoS3) -> None:
    pasted = map(json.loads, documents(REPOSITORY / "docs/stores.md"))
    rule = next(told for told in pasted if "Rules" in told)
    moto.make_bucket("baton-rule")
    store = S3Store("s3://baton-rule/runs")
    assert store.keeps_abandoned_uploads()
    s3 = moto.client()
    s3.put_bucket_lifecycle_configuration(Bucket="baton-rule", LifecycleConfiguration=rule)
    assert not store.keeps_abandoned_uploads()
    (kept,) = s3.get_bucket_lifecycle_configuration(Bucket="baton-rule")["Rules"]
    assert kept["NoncurrentVersionExpiration"] == {"NoncurrentDays": 1}
    assert kept["Expiration"] == {"ExpiredObjectDeleteMarker": True}


# --- patience, credentials, addresses


def test_credentials_are_told_once_by_kind_and_never_by_value(
    url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "verysecret")
    caplog.set_level(logging.DEBUG, "baton.storage")
    store = open_store(url)
    for _ in range(2):
        store.put("a", b"")
    told = [record.getMessage() for record in caplog.records if record.name == "baton.storage"]
    assert told == [f"{url}: credentials: environment variable AWS_ACCESS_KEY_ID"]
    mounted = tmp_path / "credentials"
    mounted.write_text("[default]\naws_access_key_id = k\naws_secret_access_key = verysecret\n")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(mounted))
    store = open_store(url)
    store.put("a", b"")
    assert "credentials file, profile default" in caplog.text
    assert "verysecret" not in caplog.text
    assert "verysecret" not in repr(store) + str(vars(store))


def test_no_credentials_say_what_to_do(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(NotSetUp, match="AWS_WEB_IDENTITY_TOKEN_FILE"):
        open_store(url).stat("a")
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(NotSetUp, match="nobody"):
        open_store(url).stat("a")


def test_an_endpoint_that_is_no_address_is_named(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "nonsense")
    with pytest.raises(NotSetUp, match="AWS_ENDPOINT_URL_S3"):
        open_store(url).stat("a")


@pytest.mark.parametrize(
    "bad",
    [
        "s3://",
        "s3://B",
        "s3://ab",
        "s3://buck_et",
        "s3://bucket/../x",
        "s3://bucket//x",
        "s3://b--x-s3",
        "s3://bucket/" + "x" * 124,
    ],
)
def test_an_address_that_is_none_is_refused_before_any_request(bad: str) -> None:
    with pytest.raises(InvalidURL, match="s3://"):
        open_store(bad)


def test_the_bucket_itself_may_be_the_store(moto: MotoS3) -> None:
    moto.make_bucket("baton-whole")
    for address in ("s3://baton-whole", "s3://baton-whole/"):
        store = open_store(address)
        store.put("a/b", b"1")
        assert names(store) == ["a/b"]


# --- the server dies


def test_a_server_killed_in_the_midst_of_an_upload_and_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A moto of its own; what it held is gone, but no half object is there and the store finds it again."""
    with MotoS3() as mine, Proxy(("127.0.0.1", mine.port)) as proxy:
        for name, value in mine.env.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        mine.make_bucket(BUCKET)
        store = S3Store(mine.url(BUCKET, "run"), patience=lambda: 3.0)
        store.put("warm", b"")
        proxy.bytes_per_s = 20e6
        killer = threading.Timer(0.5, mine.kill)
        killer.start()
        with pytest.raises(Unavailable):
            store.put("a", [body(PART)] * 8)
        killer.join()
        proxy.bytes_per_s = None
        mine.start()
        assert names(store) == []
        store.put("a", [body(PART)] * 2)
        assert hashlib.sha256(read(store, "a")).digest() == hashlib.sha256(body(PART) * 2).digest()
