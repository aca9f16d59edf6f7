"""The store on Azure: the whole contract over azurite, and what is Azure's own."""

from __future__ import annotations

import base64
import io
import json
import logging
import os
import random
import re
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from azure.core.credentials import AccessToken
from azure.core.pipeline import Pipeline
from azure.core.pipeline.transport import HttpRequest
from azure.storage.blob import BlobServiceClient
from azure.storage.blob._shared.policies import StorageBearerTokenCredentialPolicy
from store_contract import MIB, Place, StoreContract, names, read

from storage import Store, open_store
from storage.azure import AzureStore, _Transport
from storage.azure_login import _TIMES, AZURES_TAG, _identity, log_in
from storage.errors import AlreadyExists, Damaged, InvalidURL, NotFound, NotSetUp, PermissionDenied, Unavailable
from tests.docs.pages import REPOSITORY
from tests.emulators.azurite import ACCOUNT, KEY, Azurite, sas
from tests.emulators.proxy import Fault, Proxy

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


def test_requests_are_named_by_nothing_for_which_each_thread_keeps_a_file_open(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That libuuid does so shows in the contract only where it may write its own folder, as root mostly may."""

    def refused() -> None:
        pytest.fail("uuid1() was called")

    monkeypatch.setattr(uuid, "uuid1", refused)
    store.put("small", b"some bytes")
    store.put("big", BIG)
    assert [info.key for info in store.list("")] == ["big", "small"]
    for key, size in (("small", 10), ("big", len(BIG))):
        sink = io.BytesIO()
        assert store.get(key, sink).size == store.stat(key).size == len(sink.getvalue()) == size
        store.delete(key)


# --- the place


@pytest.mark.parametrize(
    "bad",
    [
        "az://account",
        "az://account/",
        "az://UPPER/container/p",
        "az://account/ab/p",
        "az://account/-container",
        "az://account/con--tainer",
        "az://account.blob.core.windows.net/container",
        "az://account/container/a//b",
        "az://account/container/../b",
        "az://account/container/back\\slash",
    ],
)
def test_an_url_that_names_no_place_is_refused(azurite: Azurite, bad: str) -> None:
    with pytest.raises(InvalidURL, match="az://"):
        open_store(bad)


def test_a_store_holds_only_what_is_below_its_prefix(azurite: Azurite) -> None:
    here = uuid.uuid4().hex
    open_store(azurite.url(CONTAINER, here)).put("run/a", b"1")
    open_store(azurite.url(CONTAINER, f"{here}-other")).put("run/b", b"2")
    for url in (azurite.url(CONTAINER, here), azurite.url(CONTAINER, here) + "/"):
        assert names(open_store(url)) == ["run/a"]
    whole = open_store(azurite.url(CONTAINER))
    assert read(whole, f"{here}/run/a") == b"1"
    assert names(whole, f"{here}/", "/") == [f"{here}/run/"]


def test_what_other_tools_left_below_the_prefix_is_no_object(azurite: Azurite, store: Store, url: str) -> None:
    """Folder markers, names that no store holds, and the folders of accounts with a hierarchical namespace.

    azurite has no such accounts: a blob is given the metadata by which they mark a folder.
    """
    store.put("run/a", b"1")
    prefix = url.removeprefix(azurite.url(CONTAINER) + "/")
    client = BlobServiceClient.from_connection_string(azurite.env["AZURE_STORAGE_CONNECTION_STRING"])
    with client, client.get_container_client(CONTAINER) as container:
        for name in ("run/marker/", "run//twice", "run/.tmp-x"):
            container.upload_blob(f"{prefix}/{name}", b"")
        container.upload_blob(f"{prefix}/run", b"", metadata={"hdi_isfolder": "true"})
    assert names(store) == ["run/a"]
    assert set(names(store, "", "/")) == {"run/"}
    for call in (lambda: store.stat("run"), lambda: store.get("run", io.BytesIO())):
        with pytest.raises(NotFound):
            call()


def test_a_container_that_is_not_there_is_said_with_the_command_that_makes_it(azurite: Azurite) -> None:
    store = open_store(azurite.url("nowhere", "runs"))
    for call in every_call(store):
        with pytest.raises(NotSetUp, match=r"container-rm create --storage-account batontest --name nowhere"):
            call()


def test_what_was_put_outlives_a_killed_server(
    azurite: Azurite, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with Azurite(tmp_path / "own") as own:
        monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", own.env["AZURE_STORAGE_CONNECTION_STRING"])
        own.make_bucket(CONTAINER)
        store = open_store(own.url(CONTAINER))
        store.put("a", b"1")
        time.sleep(6)  # azurite writes its index each 5 s
        own.kill()
        with pytest.raises(Unavailable):
            store.stat("a")
        own.start()
        assert read(store, "a") == b"1"
        own.stop()


# --- what happens on the way


@pytest.fixture
def proxy(azurite: Azurite, store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """Between the stores that are opened from now on and azurite, where "big" and "small" lie."""
    store.put("small", b"some bytes")
    store.put("big", [BIG])
    with Proxy(("127.0.0.1", azurite.port)) as proxy:
        through = azurite.connection_string(f"{proxy.url}/{ACCOUNT}")
        monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", through)
        yield proxy


@pytest.fixture
def far(proxy: Proxy, url: str) -> Store:
    return AzureStore(url, patience=lambda: 1.0)


@pytest.fixture
def calm(proxy: Proxy, url: str) -> Store:
    """Likewise through the proxy, for what takes its time on a busy machine."""
    return AzureStore(url, patience=lambda: 60.0)


BIG = random.Random(0).randbytes(19 * MIB + 7)


def every_call(store: Store, key: str = "small") -> list[Callable[[], object]]:
    return [
        lambda: store.get(key, io.BytesIO()),
        lambda: store.get(key, io.BytesIO(), byte_range=(1, 2)),
        lambda: store.stat(key),
        lambda: list(store.list("")),
        lambda: list(store.list("", delimiter="/")),
        lambda: store.put("new", b"1"),
        lambda: store.put("new", b"1", if_absent=True),
        lambda: store.put("new", [BIG]),
        lambda: store.delete(key),
    ]


def test_a_big_object_goes_in_parts_both_ways_each_with_its_checksum(calm: Store, proxy: Proxy) -> None:
    calm.put("copy", [BIG[:1], BIG[1:]])
    puts = [request for request in proxy.requests if request.method == "PUT"]
    assert sum("comp=block&" in request.target for request in puts) == 3
    assert all("content-md5" in request.headers for request in puts)
    proxy.requests.clear()
    assert read(calm, "copy") == BIG
    assert len(proxy.requests) == 4, "held to the CRC32C in its metadata"
    proxy.requests.clear()
    assert read(calm, "copy", (5 * MIB, 15 * MIB)) == BIG[5 * MIB : 15 * MIB]
    assert [request.headers["x-ms-range-get-content-md5"] for request in proxy.requests] == ["true"] * 3


def test_another_programs_object_is_held_to_the_md5_of_each_range(
    calm: Store, azurite: Azurite, url: str, proxy: Proxy
) -> None:
    service = BlobServiceClient.from_connection_string(azurite.env["AZURE_STORAGE_CONNECTION_STRING"])
    service.get_blob_client(CONTAINER, f"{url.partition(f'{CONTAINER}/')[2]}/theirs").upload_blob(BIG)
    assert read(calm, "theirs") == BIG
    proxy.faults = [Fault("flip", at=5, when=lambda r: r.headers.get("x-ms-range", "").startswith("bytes=8388608-"))]
    with pytest.raises(Damaged):
        calm.get("theirs", io.BytesIO())


def test_two_who_write_one_key_at_once_do_not_mix_their_blocks(calm: Store) -> None:
    """The other's whole put comes between this one's first blocks and its list."""
    others = bytes(len(BIG))

    class Between(Sequence[bytes]):
        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: Any) -> Any:
            if index == 1:
                calm.put("one", [others])
            return (BIG[: 15 * MIB], BIG[15 * MIB :])[index]

    with suppress(Unavailable):  # Azure has dropped the first blocks with the other's list: to be tried again
        calm.put("one", Between())
    assert read(calm, "one") in (BIG, others)


def test_a_slow_link_takes_its_time_and_does_not_fail(proxy: Proxy, url: str) -> None:
    """A block takes longer to send than one may wait for a connection: what counts is that bytes flow."""
    store = AzureStore(url, patience=lambda: 10.0)  # longer than what lies in sockets' buffers takes
    proxy.bytes_per_s = 2e6
    begun = time.monotonic()
    store.put("new", BIG)
    assert time.monotonic() - begun > 8
    proxy.bytes_per_s = None
    assert read(store, "new") == BIG


def no_name(error: int, words: str) -> Callable[..., Any]:
    """In place of the system's resolver, which is of another mind on each machine."""

    def resolve(*_: object, **__: object) -> Any:
        raise socket.gaierror(error, words)

    return resolve


def test_an_account_that_is_not_there_is_said_at_once_and_one_that_was_is_waited_for(
    azurite: Azurite, far: Store, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_alone(monkeypatch, azurite, AZURE_STORAGE_KEY=KEY)
    monkeypatch.delenv("AZURE_STORAGE_SERVICE_ENDPOINT")
    mistyped = open_store("az://acount/runs")
    far.stat("small")
    proxy.stop()
    unknown = no_name(socket.EAI_NONAME, "Name or service not known")
    away = no_name(socket.EAI_AGAIN, "Temporary failure in name resolution")
    for resolve, store, error in (
        (unknown, mistyped, NotSetUp),
        (away, mistyped, Unavailable),
        (unknown, far, Unavailable),
    ):
        monkeypatch.setattr(socket, "getaddrinfo", resolve)
        for call in every_call(store):
            with pytest.raises(error, match="no such name: is the account's name right") as caught:
                call()
            assert "object at" not in str(caught.value)


# --- who asks


def answers(status: int, code: str = "", date: str = "") -> Fault:
    headers = {"x-ms-error-code": code} if code else {}
    return Fault("answer", status=status, headers={**headers, **({"date": date} if date else {})})


@pytest.mark.parametrize("status", [404, 400, 302, 200, 407])
def test_what_answers_in_azures_place_is_no_proof_of_anything(far: Store, proxy: Proxy, status: int) -> None:
    proxy.faults = [answers(status)]
    for call in every_call(far):
        with pytest.raises(Unavailable):
            call()


def test_a_wrong_clock_is_told_as_such(far: Store, proxy: Proxy) -> None:
    """azurite doesn't look at the time of a request: Azure's answer, and its date, are made up."""
    proxy.faults = [answers(403, "AuthenticationFailed", date="Thu, 01 Jan 2015 00:00:00 GMT")]
    for call in every_call(far):
        with pytest.raises(NotSetUp, match="clock"):
            call()


def test_a_wrong_key_is_said_and_never_shown(azurite: Azurite, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = base64.b64encode(b"another").decode()
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", azurite.connection_string(azurite.endpoint, wrong))
    for call in every_call(open_store(url)):
        with pytest.raises(NotSetUp, match=r"key of batontest from AZURE_STORAGE_CONNECTION_STRING") as caught:
            call()
        assert wrong not in str(caught.value)


def use_alone(monkeypatch: pytest.MonkeyPatch, azurite: Azurite, **variables: str) -> None:
    monkeypatch.delenv("AZURE_STORAGE_CONNECTION_STRING", raising=False)
    monkeypatch.setenv("AZURE_STORAGE_SERVICE_ENDPOINT", azurite.endpoint)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def test_an_expired_sas_is_said_with_its_time_and_never_shown(
    azurite: Azurite, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = sas(CONTAINER, hours=-1)
    use_alone(monkeypatch, azurite, AZURE_STORAGE_SAS_TOKEN=token)
    for call in every_call(open_store(url)):
        with pytest.raises(NotSetUp, match=r"SAS token from AZURE_STORAGE_SAS_TOKEN: it expired at 20.*UTC") as caught:
            call()
        assert token.rpartition("sig=")[2][:20] not in str(caught.value)


def test_a_sas_that_may_only_read_is_denied_each_change_and_the_list(
    azurite: Azurite, url: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put("small", b"some bytes")
    use_alone(monkeypatch, azurite, AZURE_STORAGE_SAS_TOKEN=sas(CONTAINER, "r"))
    reader = open_store(url)
    assert read(reader, "small") == b"some bytes"
    with pytest.raises(NotFound):
        reader.stat("absent")
    for call in every_call(reader)[3:]:
        with pytest.raises(PermissionDenied, match="in a SAS sp="):
            call()


def test_the_rights_of_the_pages_sas_are_enough_and_whoever_lacks_one_is_told_which(
    azurite: Azurite, url: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = re.search("generate-sas .*--permissions ([a-z]+)", (REPOSITORY / "docs/stores.md").read_text())
    assert told is not None
    for lacking, which in (("", ""), ("r", "=r"), ("d", "=d"), ("l", "=l"), ("cw", "=cw")):
        rights = "".join(right for right in told[1] if right not in lacking)
        use_alone(monkeypatch, azurite, AZURE_STORAGE_SAS_TOKEN=sas(CONTAINER, rights))
        limited, refused = open_store(url), set()
        store.put("small", b"some bytes")
        store.delete("new")
        for call in every_call(limited):
            try:
                call()
            except AlreadyExists:
                pass
            except PermissionDenied as e:
                refused.add(re.search(r"in a SAS sp(=\w+)", str(e))[1])  # type: ignore[index]
        assert refused == ({which} if lacking else set())


@pytest.mark.parametrize("kind", ["SAS", "key", "connection string"])
def test_a_mounted_file_with_any_secret_is_the_plain_way(
    azurite: Azurite,
    url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    kind: str,
) -> None:
    secrets = {
        "SAS": "?" + sas(CONTAINER),
        "key": KEY,
        "connection string": azurite.connection_string(azurite.endpoint),
    }
    path = tmp_path / "secret"
    path.write_text(secrets[kind] + "\n", encoding="utf-8-sig" if kind == "key" else None)  # as Windows' editors do
    use_alone(monkeypatch, azurite, AZURE_STORAGE_SECRET_FILE=str(path))
    monkeypatch.setattr("storage.azure_login._told", set())
    with caplog.at_level(logging.INFO, "baton.storage"):
        store = open_store(url)
        open_store(url)
    store.put("a", b"1")
    assert read(store, "a") == b"1"
    said = [record.getMessage() for record in caplog.records if record.name == "baton.storage"]
    assert len(said) == 1
    assert "from AZURE_STORAGE_SECRET_FILE" in said[0]
    assert KEY not in caplog.text
    assert "sig=" not in caplog.text


PRINCIPAL = {
    "AZURE_STORAGE_SERVICE_ENDPOINT": "https://x",
    "AZURE_TENANT_ID": "tenant",
    "AZURE_CLIENT_ID": "client",
}


@pytest.mark.parametrize(
    ("variables", "hint"),
    [
        ({"AZURE_STORAGE_SECRET_FILE": "/nowhere/secret"}, "No such file"),
        ({"AZURE_STORAGE_SECRET_FILE": "/dev/null"}, "is empty"),
        ({"AZURE_STORAGE_KEY": "not base64!"}, "not base64"),
        ({"AZURE_STORAGE_KEY": "kä=="}, "not base64"),
        ({"AZURE_STORAGE_KEY": "eA==", "AZURE_STORAGE_SERVICE_ENDPOINT": "https://"}, "is no address"),
        ({"AZURE_STORAGE_KEY": "eA==", "AZURE_STORAGE_SERVICE_ENDPOINT": "https://[::1"}, "SERVICE_ENDPOINT"),
        ({"AZURE_STORAGE_CONNECTION_STRING": "BlobEndpoint=https://x:hush;AccountKey=eA=="}, "is no address"),
        ({"AZURE_STORAGE_SERVICE_ENDPOINT": "https;AccountKey=hush"}, "https:// only"),
        ({"AZURE_STORAGE_CONNECTION_STRING": "AccountName=other;AccountKey=eA=="}, "for the account other"),
        ({"AZURE_STORAGE_CONNECTION_STRING": "AccountName=other AccountKey=hush"}, "no AccountName"),
        ({"AZURE_STORAGE_CONNECTION_STRING": "nonsense"}, "neither AccountKey"),
        ({}, "https:// only"),
        ({"AZURE_FEDERATED_TOKEN_FILE": "/t", "AZURE_STORAGE_SERVICE_ENDPOINT": "https://x"}, "AZURE_TENANT_ID"),
        (
            {**PRINCIPAL, "AZURE_CLIENT_CERTIFICATE_PATH": "/nowhere/c.pem"},
            "/nowhere/c.pem: No such file.*CERTIFICATE_",
        ),
        ({**PRINCIPAL, "AZURE_CLIENT_CERTIFICATE_PATH": "/dev/null"}, "CERTIFICATE_PATH"),
        ({**PRINCIPAL, "AZURE_CLIENT_SECRET": "hush", "AZURE_TENANT_ID": "my tenant"}, "AZURE_TENANT_ID"),
        ({**PRINCIPAL, "AZURE_CLIENT_SECRET": "hush", "AZURE_AUTHORITY_HOST": "http://x"}, "AZURE_AUTHORITY_HOST"),
    ],
)
def test_what_can_be_seen_to_be_no_credentials_is_said_at_once(
    azurite: Azurite, url: str, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], hint: str
) -> None:
    use_alone(monkeypatch, azurite, **variables)
    with pytest.raises(NotSetUp, match=hint) as caught:
        open_store(url)
    assert "\n" not in str(caught.value)
    assert "hush" not in str(caught.value)


def test_a_key_that_ends_like_a_signature_is_a_key(azurite: Azurite, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a SAS it would stand in the address of each request, which proxies write down."""
    use_alone(monkeypatch, azurite, AZURE_STORAGE_KEY="A" * 83 + "sig==")
    assert log_in(ACCOUNT, "az://account/runs").name == f"key of {ACCOUNT} from AZURE_STORAGE_KEY"


def test_a_body_that_is_asked_for_again_with_another_token_is_sent_whole_again(proxy: Proxy) -> None:
    """By the store's transport, below the SDK's own policy for tokens, which it lets nobody use over plain HTTP."""
    challenge = (
        "Bearer authorization_uri=https://login.invalid/tenant/oauth2/authorize resource_id=https://storage.invalid"
    )
    proxy.faults = [Fault("answer", status=401, headers={"WWW-Authenticate": challenge}, times=1), answers(403)]
    tokens = StorageBearerTokenCredentialPolicy(Tokens(), "https://storage.invalid")  # type: ignore[arg-type]
    with Pipeline(_Transport(lambda: 20.0), [tokens]) as pipeline:
        request = HttpRequest("PUT", f"{proxy.url}/{ACCOUNT}/{CONTAINER}/x")
        request.data = BIG
        pipeline.run(request, enforce_https=False)
    assert [r.headers["content-length"] for r in proxy.requests] == [str(len(BIG))] * 2
    assert [r.headers["authorization"] for r in proxy.requests] == ["Bearer 1", "Bearer 2"]


class Tokens:
    """Another one each time."""

    def __init__(self) -> None:
        self._given = 0

    def get_token(self, *_: str, **__: object) -> AccessToken:
        self._given += 1
        return AccessToken(str(self._given), int(time.time()) + 3600)


# --- tokens. The SDK's own credentials ask a fake of the service that stands on Azure's hosts; azurite takes tokens
# over TLS alone, so the store itself is not asked with them here.


@pytest.fixture
def identity_service(azurite: Azurite, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """What IDENTITY_ENDPOINT names in Container Apps; it answers what `faults` say. A proxy must not hinder it."""
    monkeypatch.delenv("AZURE_STORAGE_CONNECTION_STRING")
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with Proxy(("127.0.0.1", 9)) as service:
        monkeypatch.setenv("IDENTITY_ENDPOINT", f"{service.url}/msi/token")
        monkeypatch.setenv("IDENTITY_HEADER", "header")
        monkeypatch.setattr("storage.azure_login._told", set())
        yield service


IDENTITIES = "/subscriptions/s/resourceGroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities"


def token_answer(token: str) -> Fault:
    body = {"access_token": token, "expires_on": str(int(time.time()) + 7200), "resource": "r", "token_type": "Bearer"}
    return Fault("answer", status=200, body=json.dumps(body).encode(), headers={"content-type": "application/json"})


@pytest.mark.parametrize(
    ("named", "asked", "told"),
    [
        ("11111111-2222", "client_id=11111111-2222", "11111111-2222"),
        (f"{IDENTITIES}/baton", f"mi_res_id={IDENTITIES}/baton", "baton"),
    ],
)
def test_on_azure_the_managed_identity_is_asked_by_its_client_id_or_name_and_named_not_shown(
    identity_service: Proxy,
    named: str,
    asked: str,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("AZURE_CLIENT_ID", named)
    identity_service.faults = [token_answer("the-token")]
    login = log_in("account", "az://account/runs")
    assert login.endpoint == "https://account.blob.core.windows.net"
    with caplog.at_level(logging.INFO, "baton.storage"):
        for _ in range(2):
            assert login.credential.get_token_info("https://storage.azure.com/.default").token == "the-token"
    assert asked in identity_service.requests[0].target
    assert "x-ms-client-request-id" not in identity_service.requests[0].headers, "by uuid1(); see storage.azure._Once"
    said = [record.getMessage() for record in caplog.records if record.name == "baton.storage"]
    assert said == [f"credentials: managed identity {told}"]
    assert "the-token" not in caplog.text + repr(login)


def test_an_identity_service_in_trouble_is_waited_for_and_one_without_an_identity_is_said(
    identity_service: Proxy,
) -> None:
    refusal = json.dumps(
        {"statusCode": 400, "message": "No User Assigned or Delegated Managed Identity found"}
    ).encode()
    kinds = {"content-type": "application/json"}
    for fault, error in (
        (Fault("answer", status=503), Unavailable),
        (Fault("reset"), Unavailable),
        (Fault("answer", status=400, body=refusal, headers=kinds), NotSetUp),
    ):
        identity_service.faults = [fault]
        with pytest.raises(error, match="managed identity"):
            log_in("account", "az://account/runs").credential.get_token_info("https://storage.azure.com/.default")


def test_an_identity_service_that_takes_no_connection_is_not_waited_for_by_the_minute(
    identity_service: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(_TIMES, "connection_timeout", 1.0)
    with socket.socket() as full, socket.socket() as only:
        full.bind(("127.0.0.1", 0))
        full.listen(0)  # one may wait to be taken; whoever comes after it hears nothing at all
        only.connect(full.getsockname())
        monkeypatch.setenv("IDENTITY_ENDPOINT", f"http://127.0.0.1:{full.getsockname()[1]}/msi/token")
        credential = log_in("account", "az://account/runs").credential
        begun = time.monotonic()
        with pytest.raises(Unavailable, match="managed identity"):
            credential.get_token_info("https://storage.azure.com/.default")
        assert time.monotonic() - begun < 60


def test_azure_is_known_by_its_machines_tag_without_asking_anyone(azurite: Azurite, tmp_path: Path) -> None:
    tag = tmp_path / "chassis_asset_tag"
    tag.write_text(AZURES_TAG + "\n")
    assert _identity(tag)[1] == "managed identity of this machine"
    tag.write_text("No Asset Tag\n")
    assert _identity(tag)[1] == _identity(tmp_path / "none")[1] == "DefaultAzureCredential"


def test_without_any_credentials_one_line_says_what_to_do_and_nothing_hangs(
    azurite: Azurite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AZURE_STORAGE_CONNECTION_STRING")
    monkeypatch.setenv("PATH", "/nowhere")  # nobody's `az login`
    begun = time.monotonic()
    with pytest.raises(NotSetUp, match=r"no Azure credentials; .*az login; .*AZURE_STORAGE_SECRET_FILE") as caught:
        open_store("az://batonnobody/container").stat("a")
    assert "\n" not in str(caught.value)
    assert time.monotonic() - begun < 5
