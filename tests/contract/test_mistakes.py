"""What is wrong on this machine is told at once and in one line, on each cloud, and no secret is in it."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from storage import open_store
from storage.errors import NotSetUp, Unavailable
from tests.certificates import serve_by_tls

URLS = {"s3": "s3://bucket/runs", "gs": "gs://bucket/runs", "az": "az://account/bucket/runs"}
TENANT = {"AZURE_TENANT_ID": "11111111-1111-1111-1111-111111111111", "AZURE_CLIENT_ID": "client"}
ROLE = {"AWS_ROLE_ARN": "arn:aws:iam::123456789012:role/baton", "AWS_REGION": "eu-west-1"}
OURS = ("AWS_", "AZURE_", "GOOGLE_", "STORAGE_", "BATON_IDENTITY", "IDENTITY_", "MSI_", "REQUESTS_", "CURL_")


@pytest.fixture(autouse=True)
def _bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without credentials, proxies or certificates of its own."""
    for name in [n for n in os.environ if n.startswith(OURS) or n.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    for name in ("HOME", "PATH", "CLOUDSDK_CONFIG"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr("google.auth.compute_engine._metadata._NO_GCE_CHECK", True)


def variables(scheme: str, address: str) -> dict[str, str]:
    """Credentials for a store at `address`."""
    return {
        "s3": {
            "AWS_ENDPOINT_URL_S3": address,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "hush",
            "AWS_REGION": "eu-west-1",
        },
        "gs": {"STORAGE_EMULATOR_HOST": address},
        "az": {"AZURE_STORAGE_SERVICE_ENDPOINT": f"{address}/account", "AZURE_STORAGE_KEY": "aHVzaA=="},
    }[scheme]


def ask(scheme: str, *, big: bool) -> object:
    store = open_store(URLS[scheme], patience=lambda: 5.0)
    return store.put("a", bytes(9 << 20)) if big else store.stat("a")


def told(scheme: str, monkeypatch: pytest.MonkeyPatch, given: Mapping[str, str]) -> str:
    """What is said, of whichever call, where these variables are set."""
    with monkeypatch.context() as patch:
        for name, value in given.items():
            patch.setenv(name, value)
        said = set()
        for big in (False, True):
            with pytest.raises(NotSetUp) as caught:
                ask(scheme, big=big)
            said.add(str(caught.value))
    (line,) = said
    assert "\n" not in line
    assert "hush" not in line
    return line


class Silent(BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def tls(tmp_path: Path) -> Iterator[str]:
    """A server whose certificate nobody trusts."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Silent) as server:
        server.handle_error = lambda *_: None  # type: ignore[method-assign]
        serve_by_tls(server, tmp_path)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"https://localhost:{server.server_address[1]}"
        server.shutdown()


def by_token(scheme: str, address: str, folder: Path) -> dict[str, str]:
    """Credentials whose token service is at `address`."""
    (folder / "token").write_text("hush.hush.hush")
    federation = {
        "type": "external_account",
        "audience": "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/pool/providers/aws",
        "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
        "token_url": f"{address}/v1/token",
        "credential_source": {"file": str(folder / "token")},
    }
    (folder / "federation.json").write_text(json.dumps(federation))
    return {
        "s3": {**ROLE, "AWS_WEB_IDENTITY_TOKEN_FILE": str(folder / "token"), "AWS_ENDPOINT_URL_STS": address},
        "gs": {"GOOGLE_APPLICATION_CREDENTIALS": str(folder / "federation.json")},
        "az": {
            **TENANT,
            "AZURE_FEDERATED_TOKEN_FILE": str(folder / "token"),
            "AZURE_AUTHORITY_HOST": address,
            "AZURE_STORAGE_SERVICE_ENDPOINT": address,
        },
    }[scheme]


@pytest.mark.parametrize("asks", ["the store", "the token service"])
@pytest.mark.parametrize("scheme", URLS)
def test_certificates_that_are_not_trusted_or_not_mounted_are_a_persons_matter(
    scheme: str, asks: str, tls: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = variables(scheme, tls) if asks == "the store" else by_token(scheme, tls, tmp_path)
    line = told(scheme, monkeypatch, given)
    assert re.search(r"certificate is not trusted here \(.*self-signed.*\): set this machine's clock", line)
    assert "REQUESTS_CA_BUNDLE" in line
    (tmp_path / "nonsense.pem").write_text("nonsense")
    for name in ("REQUESTS_CA_BUNDLE", "AWS_CA_BUNDLE") if scheme == "s3" else ("REQUESTS_CA_BUNDLE",):
        for file in ("none.pem", "nonsense.pem"):
            line = told(scheme, monkeypatch, {**given, name: str(tmp_path / file)})
            assert re.search(rf"{name}.* names no file of certificates", line)


@pytest.mark.parametrize(
    ("scheme", "answered"), [("s3", "_answered"), ("gs", "_session.answered"), ("az", "_transport.answered")]
)
def test_of_a_store_that_has_answered_before_a_certificate_is_a_fault_that_passes(
    scheme: str, answered: str, tls: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables(scheme, tls).items():
        monkeypatch.setenv(name, value)
    store = open_store(URLS[scheme], patience=lambda: 5.0)
    of, _, name = answered.rpartition(".")
    assert getattr(getattr(store, of) if of else store, name) is False
    monkeypatch.setattr(getattr(store, of) if of else store, name, True)
    with pytest.raises(Unavailable):
        store.stat("a")


@pytest.mark.parametrize("scheme", URLS)
def test_a_proxys_address_that_is_none_is_told_without_its_password(
    scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = variables(scheme, "https://127.0.0.1:9")
    for start in ("http://me:hush/", "http://me:hush#", "http://me:hush?", "socks5://me:"):
        line = told(scheme, monkeypatch, {**given, "HTTPS_PROXY": f"{start}hush@127.0.0.1:9"})
        assert "HTTPS_PROXY is no address of a proxy" in line


@pytest.mark.parametrize(
    ("scheme", "variable", "more"),
    [
        ("gs", "GOOGLE_APPLICATION_CREDENTIALS", {}),
        ("az", "AZURE_STORAGE_SECRET_FILE", {}),
        ("az", "AZURE_FEDERATED_TOKEN_FILE", TENANT),
        ("az", "AZURE_CLIENT_CERTIFICATE_PATH", TENANT),
        ("s3", "AWS_WEB_IDENTITY_TOKEN_FILE", ROLE),
        ("s3", "AWS_SHARED_CREDENTIALS_FILE", {}),
        ("s3", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", {"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://127.0.0.1:9/"}),
    ],
)
def test_a_secret_in_its_files_place_is_not_repeated(
    scheme: str, variable: str, more: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = ('{"private_key": "hush"}', '\n{"private_key":\n"hush"}', "sv=1&sig=hush", "hush.hush.hush", "hush" * 99)
    for content in contents:
        assert variable in told(scheme, monkeypatch, {**more, variable: content})


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            {"AWS_SHARED_CREDENTIALS_FILE": "/nowhere/aws.ini"},
            "AWS_SHARED_CREDENTIALS_FILE: /nowhere/aws.ini is no file",
        ),
        ({"AWS_SHARED_CREDENTIALS_FILE": "[default]\nhush"}, "it wants a file's path, not its content"),
        ({"AWS_PROFILE": "nobody"}, "(nobody) could not be found: look at AWS_PROFILE"),
        ({"AWS_SECRET_ACCESS_KEY": "hush"}, "AWS_SECRET_ACCESS_KEY is set and AWS_ACCESS_KEY_ID is not"),
        ({"AWS_ACCESS_KEY_ID": "hush"}, "AWS_ACCESS_KEY_ID is set and AWS_SECRET_ACCESS_KEY is not"),
    ],
)
def test_what_keeps_amazons_credentials_from_being_found_is_told_by_its_variable(
    given: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert words in told("s3", monkeypatch, {"AWS_REGION": "eu-west-1", **given})


OWN = {
    "s3": "AWS_ENDPOINT_URL_S3 says where",
    "gs": "STORAGE_EMULATOR_HOST says where",
    "az": "AZURE_STORAGE_SERVICE_ENDPOINT says where",
}


@pytest.mark.parametrize("scheme", URLS)
def test_of_a_server_of_ones_own_that_takes_no_connection_it_is_asked_whether_it_runs(
    scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables(scheme, "http://127.0.0.1:9").items():
        monkeypatch.setenv(name, value)
    with pytest.raises(Unavailable, match=f"is it running\\? .*{OWN[scheme]}"):
        ask(scheme, big=False)
