"""Google Cloud Storage: the whole contract over the emulator, and over a real bucket where BATON_LIVE_GCS names one."""

from __future__ import annotations

import io
import json
import os
import random
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from email.utils import formatdate
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import pytest
from google.cloud.storage import Client
from store_contract import Place, StoreContract, fill, names, read

from storage import Store, open_store
from storage.errors import AlreadyExists, Damaged, InvalidURL, NotFound, NotSetUp, PermissionDenied, Unavailable
from storage.gcs import PART_BYTES, GoogleStore
from storage.gcs_login import AuthRequest
from tests.emulators.gcs import GoogleEmulator
from tests.emulators.metadata import Metadata
from tests.emulators.proxy import Fault, Proxy


@pytest.fixture
def _emulated(gcs_emulator: GoogleEmulator, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in gcs_emulator.env.items():
        monkeypatch.setenv(name, value)


class TestGoogleStore(StoreContract):
    @pytest.fixture
    def place(self, gcs_emulator: GoogleEmulator, _emulated: None) -> Place:
        url = gcs_emulator.url("baton", uuid.uuid4().hex)
        return Place(partial(open_store, url), open_uploads=partial(gcs_emulator.open_uploads, url))


@pytest.fixture(scope="module")
def other_emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GoogleEmulator]:
    with GoogleEmulator(tmp_path_factory.mktemp("other"), options=("--xml", "emulators")) as emulator:
        emulator.make_bucket("baton")
        yield emulator


class TestAnotherEmulator(StoreContract):
    """One that knows the JSON API alone, as others' do."""

    @pytest.fixture
    def place(self, other_emulator: GoogleEmulator, monkeypatch: pytest.MonkeyPatch) -> Place:
        for name, value in other_emulator.env.items():
            monkeypatch.setenv(name, value)
        url = other_emulator.url("baton", uuid.uuid4().hex)
        return Place(partial(open_store, url), big_mib=40, many_keys=200, claim_rounds=3, kills=3)


def test_an_emulator_that_names_no_reason_has_no_bucket_where_a_list_is_not_found(
    other_emulator: GoogleEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an object that is absent it says no more, so that only a list's 404 can tell."""
    for name, value in other_emulator.env.items():
        monkeypatch.setenv(name, value)
    store = GoogleStore("gs://no-such-bucket/p")
    with pytest.raises(NotSetUp, match=r"buckets create gs://no-such-bucket .*docs/stores\.md"):
        list(store.list(""))
    with pytest.raises(NotFound):
        GoogleStore("gs://baton/p").get("absent", io.BytesIO())


@pytest.mark.parametrize("xml", ["none", "loose"])
def test_an_emulator_whose_xml_api_is_none_or_another_will_do(
    xml: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with GoogleEmulator(tmp_path, options=("--xml", xml)) as emulator:
        emulator.make_bucket("baton")
        for name, value in emulator.env.items():
            monkeypatch.setenv(name, value)
        store = open_store("gs://baton/runs")
        with pytest.raises(NotFound):
            store.get("missing", io.BytesIO())
        for data in (b"small", os.urandom(2 * PART_BYTES + 1)):
            store.put("object", data)
            assert read(open_store("gs://baton/runs"), "object") == data


if "BATON_LIVE_GCS" in os.environ:

    class TestLiveGoogleStore(StoreContract):
        @pytest.fixture
        def place(self) -> Iterator[Place]:
            url = f"{os.environ['BATON_LIVE_GCS'].rstrip('/')}/{uuid.uuid4().hex}"
            yield Place(partial(open_store, url), claim_rounds=10, kills=10)
            store = open_store(url)
            for info in store.list(""):
                store.delete(info.key)


# --- a bad network and a busy or unwilling cloud: the same store through a proxy


@pytest.fixture
def proxy(gcs_emulator: GoogleEmulator, _emulated: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    with Proxy(("127.0.0.1", gcs_emulator.port)) as proxy:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.url)
        yield proxy


@pytest.fixture
def store(proxy: Proxy) -> Store:
    return GoogleStore(f"gs://baton/{uuid.uuid4().hex}", patience=lambda: 2.0)


BIG = random.Random(0).randbytes(70 << 20)  # more ranges than there are lanes


def calls(store: Store) -> dict[str, Callable[[], object]]:
    """Every way to ask the store for something."""
    return {
        "get": lambda: store.get("object", io.BytesIO()),
        "range": lambda: store.get("object", io.BytesIO(), byte_range=(1, 2)),
        "stat": lambda: store.stat("object"),
        "list": lambda: list(store.list("")),
        "put": lambda: store.put("object", b"new"),
        "claim": lambda: store.put("claim", b"new", if_absent=True),
        "parts": lambda: store.put("object", BIG),
        "delete": lambda: store.delete("object"),
    }


CALLS = ["get", "range", "stat", "list", "put", "claim", "parts", "delete"]


def test_a_big_object_goes_in_parts_and_comes_in_ranges(store: Store, proxy: Proxy) -> None:
    cuts = [0, 1, 5, PART_BYTES - 1, 2 * PART_BYTES, 2 * PART_BYTES + 7, len(BIG)]
    view = memoryview(BIG)
    assert store.put("object", [view[a:b] for a, b in pairwise(cuts)]).size == len(BIG)
    assert read(store, "object") == BIG
    assert sum(request.method == "PUT" for request in proxy.requests) == -(-len(BIG) // PART_BYTES)
    ranges = [request for request in proxy.requests if "range" in request.headers]
    assert len(ranges) == -(-len(BIG) // PART_BYTES)
    for start, stop in ((5, 3 * PART_BYTES), (PART_BYTES, len(BIG) + 5), (len(BIG) - 1, len(BIG) + 1)):
        assert read(store, "object", (start, stop)) == BIG[start:stop]


def test_an_object_of_another_length_than_was_sent_is_damage(store: Store, proxy: Proxy) -> None:
    told = {"name": f"{store.url.rpartition('/')[2]}/object", "size": "5", "timeCreated": "2026-03-03T09:00:00Z"}
    fault = Fault("answer", status=200, body=json.dumps(told).encode(), headers={"Content-Type": "application/json"})
    for body, which in ((BIG, "/o/"), (b"123456", "/upload/")):
        proxy.faults = [replace(fault, when=lambda request, which=which: which in request.target)]  # type: ignore[misc]
        with pytest.raises(Damaged, match=f"{len(body)} bytes were sent, the store has 5"):
            store.put("object", body)


def refusal(status: int, reason: str, message: str = "") -> Fault:
    """In Google's JSON."""
    error = {"code": status, "message": message, "errors": [{"reason": reason}]}
    return Fault("answer", status=status, body=json.dumps({"error": error}).encode())


def test_only_who_creates_if_absent_is_told_that_it_is_there(store: Store, proxy: Proxy) -> None:
    proxy.faults = [refusal(412, "conditionNotMet", "At least one of the pre-conditions did not hold.")]
    with pytest.raises(Unavailable, match="Google answers 412: At least one"):
        store.put("object", b"new")
    with pytest.raises(AlreadyExists):
        store.put("object", b"new", if_absent=True)


def test_a_policy_of_the_organisation_is_a_persons_matter_and_no_absence_or_presence(
    store: Store, proxy: Proxy
) -> None:
    proxy.faults = [refusal(412, "orgPolicyConstraintFailed", "violates constraints/gcp.resourceLocations")]
    for call in ("get", "put", "claim", "parts"):
        with pytest.raises(NotSetUp, match=r"policy of the organisation .*constraints/gcp\.resourceLocations"):
            calls(store)[call]()


def test_a_machine_without_the_access_scope_is_told_which(store: Store, proxy: Proxy) -> None:
    error = b"<Error><Code>AccessDenied</Code><Message>Provided scope(s) are not authorized</Message></Error>"
    proxy.faults = [Fault("answer", status=403, body=error)]
    with pytest.raises(PermissionDenied, match="--scopes=cloud-platform"):
        store.get("object", io.BytesIO())


@pytest.mark.usefixtures("_emulated")
@pytest.mark.parametrize("call", CALLS)
def test_without_its_bucket_every_call_says_how_to_make_it(call: str) -> None:
    with pytest.raises(NotSetUp, match="gcloud storage buckets create gs://no-such-bucket"):
        calls(GoogleStore("gs://no-such-bucket/p"))[call]()


def test_of_an_answer_that_is_not_googles_nothing_is_taken(store: Store, proxy: Proxy) -> None:
    proxy.faults = [Fault("answer", status=200, body=b"<html>please log in</html>")]
    for call in ("get", "parts"):
        with pytest.raises(Unavailable, match="something between"):
            calls(store)[call]()


def test_what_was_put_outlasts_the_servers_death(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the emulator: what the chaos tests rest on."""
    with GoogleEmulator(tmp_path / "emulator") as emulator:
        emulator.make_bucket("bucket")
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", emulator.env["STORAGE_EMULATOR_HOST"])
        store = GoogleStore(emulator.url("bucket"))
        store.put("small", b"1")
        store.put("big", BIG)
        store.delete("small")
        emulator.kill()
        with pytest.raises(Unavailable):
            store.stat("big")
        emulator.start()
        assert names(store) == ["big"]
        assert read(store, "big") == BIG


def test_pages_of_objects_and_prefixes_come_in_one_order(store: Store, proxy: Proxy) -> None:
    patient = GoogleStore(store.url)  # a thousand objects are more than a busy machine takes without a pause
    fill(patient, [f"{n:04}{'/x' * (n % 2)}" for n in range(1010)])
    assert names(store, "", "/") == [f"{n:04}{'/' * (n % 2)}" for n in range(1010)]
    assert sum("pageToken" in request.target for request in proxy.requests) == 1


def test_objects_that_no_store_could_hold_are_not_listed(store: Store, gcs_emulator: GoogleEmulator) -> None:
    store.put("run/a", b"1")
    raw = Client(project=None).bucket("baton")
    root = store.url.removeprefix("gs://baton/")
    for name in ("run/", "run//b", "run/tab\t", "folder/"):
        raw.blob(f"{root}/{name}").upload_from_string(b"")
    assert names(store) == ["run/a"]
    assert names(store, "run/", "/") == ["run/a"]


@pytest.mark.usefixtures("_emulated")
@pytest.mark.parametrize(
    "url", ["gs://", "gs:///a", "gs://Bucket/a", "gs://ab", "gs://bucket/../a", "gs://bucket/a//b"]
)
def test_an_url_that_is_no_bucket_is_refused(url: str) -> None:
    with pytest.raises(InvalidURL):
        GoogleStore(url)


# --- credentials, against the files and services that Google's own chain looks for; nothing here leaves the machine


class TokenService(BaseHTTPRequestHandler):
    """Google's token exchange (STS) and its metadata service."""

    status = 200
    answer: ClassVar[dict[str, object]] = {}
    asked: ClassVar[list[tuple[str, str]]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        self.asked.append((self.path, body))
        content = json.dumps(self.answer).encode()
        self.send_response(self.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def tokens(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(TokenService, "asked", [])
    with ThreadingHTTPServer(("127.0.0.1", 0), TokenService) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without any credential, and with no metadata service to look for."""
    for name in ("STORAGE_EMULATOR_HOST", "GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_CLOUD_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path / "gcloud"))
    monkeypatch.setattr("google.auth.compute_engine._metadata._NO_GCE_CHECK", True)
    return tmp_path


@pytest.fixture
def opened(tokens: str, gcs_emulator: GoogleEmulator, monkeypatch: pytest.MonkeyPatch) -> str:
    """A token service that lets everybody in to the emulator; its address."""
    monkeypatch.setenv("API_ENDPOINT_OVERRIDE", gcs_emulator.env["STORAGE_EMULATOR_HOST"])
    monkeypatch.setattr(TokenService, "answer", TOKEN)
    return tokens


TOKEN = {
    "access_token": "an-access-token",
    "issued_token_type": "urn:ietf:params:oauth:token-type:access_token",
    "token_type": "Bearer",
    "expires_in": 1,
}


def federation(folder: Path, tokens: str) -> Path:
    """As `gcloud iam workload-identity-pools create-cred-config` writes it, but for the service's address."""
    (folder / "token").write_text("the-others-clouds-token")
    config = {
        "type": "external_account",
        "audience": "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/pool/providers/aws",
        "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
        "token_url": f"{tokens}/v1/token",
        "credential_source": {"file": str(folder / "token")},
    }
    (folder / "federation.json").write_text(json.dumps(config))
    return folder / "federation.json"


def test_without_credentials_one_line_says_what_to_do(bare: Path) -> None:
    start = time.monotonic()
    with pytest.raises(NotSetUp) as caught:
        GoogleStore("gs://bucket/p")
    assert time.monotonic() - start < 2
    assert "GOOGLE_APPLICATION_CREDENTIALS" in str(caught.value)
    assert "service account" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_emulators_address_without_a_scheme_is_told(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "localhost:9023")
    with pytest.raises(NotSetUp, match="http://localhost:9023"):
        open_store("gs://bucket/runs")


def test_a_credentials_file_that_is_missing_or_no_such_file_is_named(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = bare / "key.json"
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(file))
    parts = (
        "no JSON",
        "{}",
        '{"type": "service_account", "private_key": "hush"}',
        '["hush"]',
        '{"type": "impersonated_service_account", "service_account_impersonation_url": "hush"}',
        '{"type": "external_account", "audience": "//iam", "subject_token_type": "x", "credential_source": "hush"}',
    )
    for content in (None, *parts):
        if content is not None:
            file.write_text(content)
        with pytest.raises(NotSetUp) as caught:
            GoogleStore("gs://bucket/p")
        assert str(file) in str(caught.value)
        assert "hush" not in str(caught.value)


def test_federated_credentials_are_named_exchanged_and_refreshed(
    bare: Path, opened: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(federation(bare, opened)))
    caplog.set_level("DEBUG")
    store = GoogleStore(f"gs://baton/{uuid.uuid4().hex}")
    assert "workload identity federation" in caplog.text
    assert "workloadIdentityPools/pool/providers/aws" in caplog.text
    assert TokenService.asked == [], "no token is fetched before it is needed, and no project asked for"
    store.put("object", b"1")
    (bare / "token").write_text("a-later-token")
    store.put("object", b"2")
    assert {path for path, _ in TokenService.asked} == {"/v1/token"}
    assert "the-others-clouds-token" in TokenService.asked[0][1]
    assert "a-later-token" in TokenService.asked[-1][1], "the other cloud's token is read anew"
    for value in ("an-access-token", "the-others-clouds-token", "a-later-token"):
        assert value not in caplog.text


def from_aws(metadata: str) -> dict[str, object]:
    """`create-cred-config --aws --enable-imdsv2`, but for the metadata service's address."""
    return {
        "environment_id": "aws1",
        "region_url": f"{metadata}/latest/meta-data/placement/availability-zone",
        "url": f"{metadata}/latest/meta-data/iam/security-credentials",
        "regional_cred_verification_url": "https://sts.{region}.amazonaws.com?Action=GetCallerIdentity&Version=2011-06-15",
        "imdsv2_session_token_url": f"{metadata}/latest/api/token",
    }


def from_azure(metadata: str) -> dict[str, object]:
    """`create-cred-config --azure --app-id-uri=api://app`, likewise."""
    return {
        "url": f"{metadata}/metadata/identity/oauth2/token?api-version=2018-02-01&resource=api://app",
        "headers": {"Metadata": "True"},
        "format": {"type": "json", "subject_token_field_name": "access_token"},
    }


@pytest.mark.parametrize("cloud", ["aws", "azure"])
def test_a_machine_of_another_cloud_is_let_in_by_what_its_metadata_say_each_time(
    cloud: str, bare: Path, opened: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    with Metadata(cloud) as machine:

        def becomes(who: str) -> None:
            keys = {"AccessKeyId": who, "SecretAccessKey": "hush", "Token": "t"}
            machine.set("/latest/meta-data/iam/security-credentials", "baton")
            machine.set("/latest/meta-data/iam/security-credentials/baton", {"Code": "Success", **keys})
            machine.set("/metadata/identity/oauth2/token", {"access_token": who})

        file = federation(bare, opened)
        config = json.loads(file.read_text())
        kind = "urn:ietf:params:aws:token-type:aws4_request" if cloud == "aws" else config["subject_token_type"]
        source = {"aws": from_aws, "azure": from_azure}[cloud](f"http://127.0.0.1:{machine.port}")
        file.write_text(json.dumps({**config, "subject_token_type": kind, "credential_source": source}))
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(file))
        store = GoogleStore(f"gs://baton/{uuid.uuid4().hex}")
        for who in ("THE-FIRST", "THE-SECOND"):
            becomes(who)
            store.put("object", b"1")
            assert who in TokenService.asked[-1][1], "what is shown to Google is made anew"
        assert "hush" not in str(TokenService.asked)
        machine.fault("answer", status=503)
        with pytest.raises(Unavailable):
            GoogleStore("gs://baton/p", patience=lambda: 1.0).stat("object")


def test_a_mounted_key_is_named_and_never_shown(
    bare: Path, opened: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With a real key, made here, which signs what it sends to the token service; only what it opens is a fake."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    key = rsa.generate_private_key(65537, 2048).private_bytes(*form).decode()
    account = {"type": "service_account", "client_email": "baton@project.iam.gserviceaccount.com"}
    file = bare / "key.json"
    file.write_text(json.dumps({**account, "private_key": key, "token_uri": f"{opened}/token", "project_id": "p"}))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(file))
    caplog.set_level("DEBUG")
    GoogleStore(f"gs://baton/{uuid.uuid4().hex}").put("object", b"1")
    assert f"service account {account['client_email']} by its key ({file})" in caplog.text
    ((path, body),) = TokenService.asked
    assert (path, "assertion=" in body) == ("/token", True)
    for secret in ("an-access-token", key.splitlines()[1]):
        assert secret not in caplog.text


@pytest.mark.parametrize("status", [400, 401])
def test_federated_credentials_that_are_refused_are_a_persons_matter(
    bare: Path, tokens: str, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(federation(bare, tokens)))
    monkeypatch.setattr(TokenService, "status", status)
    answer = {"error": "invalid_grant", "error_description": "ID Token issued at 1 is stale to sign-in."}
    monkeypatch.setattr(TokenService, "answer", answer)
    store = GoogleStore("gs://baton/p")
    with pytest.raises(NotSetUp, match="stale to sign-in") as caught:
        store.stat("object")
    assert "the-others-clouds-token" not in str(caught.value)
    (bare / "token").unlink()
    with pytest.raises(NotSetUp, match="token"):
        store.stat("object")


def test_a_token_service_out_of_reach_is_worth_trying_again(
    bare: Path, tokens: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        nobody = f"http://127.0.0.1:{closed.getsockname()[1]}"
    for address in (nobody, tokens):
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(federation(bare, address)))
        monkeypatch.setattr(TokenService, "status", 503)
        with pytest.raises(Unavailable):
            GoogleStore("gs://baton/p", patience=lambda: 1.0).stat("object")


def test_a_metadata_service_that_hiccups_is_worth_trying_again_and_a_machine_without_an_account_is_not(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Metadata("gcp") as service:
        service.set("/", "")
        monkeypatch.setattr("google.auth.compute_engine._metadata._NO_GCE_CHECK", False)
        monkeypatch.setattr("google.auth.compute_engine._metadata._GCE_METADATA_HOST", f"127.0.0.1:{service.port}")
        monkeypatch.setenv("GCE_METADATA_IP", f"127.0.0.1:{service.port}")
        monkeypatch.setenv("API_ENDPOINT_OVERRIDE", "http://127.0.0.1:9")
        store = GoogleStore("gs://baton/p")
        with pytest.raises(NotSetUp, match="attach a service account"):
            store.stat("object")
        service.fault("answer", status=503, path="service-accounts")
        with pytest.raises(Unavailable, match="503"):
            store.stat("object")


def test_a_proxy_is_never_asked_for_what_the_metadata_service_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.gcs_login.METADATA_HOSTS", ("127.0.0.1",))
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    for proxy in ("HTTP_PROXY", "ALL_PROXY"):
        for name in (proxy, proxy.lower()):
            monkeypatch.setenv(name, "http://127.0.0.1:9")
        with Metadata("gcp") as service:
            url = f"{service.url}/computeMetadata/v1/instance/zone"
            assert AuthRequest(lambda: 5.0)(url, headers={"Metadata-Flavor": "Google"}).status == 200
            assert service.asked("zone")


def test_refused_credentials_say_so_and_how_far_the_clock_is_off(
    bare: Path, tokens: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.setenv("API_ENDPOINT_OVERRIDE", proxy.url)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(federation(bare, tokens)))
    monkeypatch.setattr(TokenService, "answer", TOKEN)
    store = GoogleStore("gs://baton/p")
    late = formatdate(time.time() + 600, usegmt=True)
    for headers, hint in (({"Date": late}, r"clock is (59\d|600) s behind"), ({}, "credentials are refused")):
        proxy.faults = [Fault("answer", status=401, headers=headers)]
        with pytest.raises(NotSetUp, match=hint) as caught:
            store.stat("object")
        assert ("clock" in str(caught.value)) == bool(headers)
        assert "GOOGLE_APPLICATION_CREDENTIALS" in str(caught.value)
