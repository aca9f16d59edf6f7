"""A machine of one cloud logs in to another's store as itself, by no secret and no file: every pair that needs it.

The metadata services are the repository's fakes, over HTTP. Fake, too, are the token services, Amazon's and Microsoft's
(over TLS, with a certificate made here); the stores are emulators, and Azure's is not asked: it takes a token over TLS
alone. The way to Google's store is its own library's, `tests/contract/test_store_gcs.py` has it.
"""

from __future__ import annotations

import base64
import datetime
import json
import logging
import os
import threading
import time
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs

import pytest
from botocore.session import Session  # type: ignore[import-untyped]

from storage import open_store
from storage.azure_login import log_in
from storage.errors import NotSetUp, StoreError, Unavailable
from tests.certificates import serve_by_tls
from tests.emulators.metadata import Metadata
from tests.emulators.moto import MotoS3

ROLE = "arn:aws:iam::123456789012:role/baton"
SCOPE = "https://storage.azure.com/.default"


def token(audience: str) -> str:
    """Looks like what a cloud signs; a new one each time."""
    claims = base64.urlsafe_b64encode(json.dumps({"aud": audience, "jti": uuid.uuid4().hex}).encode()).decode()
    return f"hush.{claims.rstrip('=')}.hush"


class Services(BaseHTTPRequestHandler):
    """Amazon's token service and Microsoft's, as far as they are asked here."""

    asked: ClassVar[list[dict[str, str]]] = []
    refuse: ClassVar[tuple[int, str] | None] = None

    def do_POST(self) -> None:
        body = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        form = {name: values[0] for name, values in body.items()}
        self.asked.append(form)
        end = (datetime.datetime.now(datetime.UTC) + datetime.timedelta(minutes=5)).strftime("%Y-%m-%dT%H:%M:%SZ")
        status = 200
        if self.refuse is not None:
            status, code = self.refuse
            answer = f"<ErrorResponse><Error><Code>{code}</Code><Message>no</Message></Error></ErrorResponse>"
        elif form.get("Action") == "AssumeRoleWithWebIdentity":
            keys = "<AccessKeyId>k</AccessKeyId><SecretAccessKey>hush</SecretAccessKey><SessionToken>t</SessionToken>"
            answer = (
                "<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult>"
                f"<Credentials>{keys}<Expiration>{end}</Expiration></Credentials>"
                "</AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"
            )
        elif form.get("Action") == "GetWebIdentityToken":
            given = token(form["Audience.member.1"])
            answer = (
                "<GetWebIdentityTokenResponse><GetWebIdentityTokenResult>"
                f"<WebIdentityToken>{given}</WebIdentityToken><Expiration>{end}</Expiration>"
                "</GetWebIdentityTokenResult></GetWebIdentityTokenResponse>"
            )
        else:
            answer = json.dumps({"token_type": "Bearer", "expires_in": 60, "access_token": "the-stores-token"})
        self.send_response(status)
        self.send_header("Content-Length", str(len(answer)))
        self.send_header("Content-Type", "application/json" if answer.startswith("{") else "text/xml")
        self.end_headers()
        self.wfile.write(answer.encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(autouse=True)
def _nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without credentials of its own, behind a proxy at which nobody is."""
    monkeypatch.setattr(Services, "asked", [])
    for name in ("AZURE_CLIENT_ID", "AZURE_TENANT_ID", "AWS_ROLE_ARN", "BATON_IDENTITY_AUDIENCE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")  # the stores and token services; the metadata services are at localhost
    monkeypatch.setattr("storage.azure_login._told", set())


def served(server: ThreadingHTTPServer) -> int:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return int(server.server_address[1])


@pytest.fixture
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Metadata]:
    """A machine on Google or Azure, whose metadata service gives tokens."""
    with Metadata(request.param) as service:
        monkeypatch.setenv(f"BATON_{request.param.upper()}_METADATA", f"http://localhost:{service.port}")
        monkeypatch.setenv("BATON_IDENTITY", {"gcp": "google"}.get(request.param, request.param))
        give(service, token("x"))
        yield service


def give(service: Metadata, text: str | None) -> None:
    if service.cloud == "gcp":
        service.set("/computeMetadata/v1/instance/service-accounts/default/identity", text)
    else:
        answer = None if text is None else {"access_token": text, "expires_in": "3599"}
        service.set("/metadata/identity/oauth2/token", answer)


@pytest.fixture
def s3(moto_emulator: MotoS3, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name, value in moto_emulator.env.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    moto_emulator.make_bucket("baton-identity")
    with ThreadingHTTPServer(("127.0.0.1", 0), Services) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", f"http://127.0.0.1:{served(server)}")
        monkeypatch.setenv("AWS_ROLE_ARN", ROLE)
        yield moto_emulator.url("baton-identity", uuid.uuid4().hex)
        server.shutdown()


@pytest.fixture
def entra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Microsoft's token service, over TLS, by a certificate that this test makes and trusts; past the proxy."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Services) as server:
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(serve_by_tls(server, tmp_path)))
        port = served(server)
        monkeypatch.setenv("AZURE_AUTHORITY_HOST", f"https://localhost:{port}")
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.setenv(name, f"127.0.0.1,localhost:{port}")
        monkeypatch.setenv("AZURE_TENANT_ID", "11111111-1111-1111-1111-111111111111")
        monkeypatch.setenv("AZURE_CLIENT_ID", "22222222-2222-2222-2222-222222222222")
        yield
        server.shutdown()


def clean(text: str) -> bool:
    return "hush" not in text and "the-stores-token" not in text


@pytest.mark.parametrize("machine", ["gcp", "azure"], indirect=True)
def test_a_machine_of_google_or_azure_takes_a_role_on_aws_and_shows_a_new_token_each_time(
    machine: Metadata, s3: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "baton.storage")
    if machine.cloud == "azure":
        with pytest.raises(NotSetUp, match="BATON_IDENTITY_AUDIENCE"):
            open_store(s3).put("a", b"")
        monkeypatch.setenv("BATON_IDENTITY_AUDIENCE", "api://baton")
        monkeypatch.setenv("AZURE_CLIENT_ID", "one-of-several")
    first, second = token("x"), token("x")
    give(machine, first)
    store = open_store(s3)
    store.put("a", b"1")
    give(machine, second)
    store.put("a", b"2")  # the keys end so soon that new ones are asked for at each request
    shown = [form["WebIdentityToken"] for form in Services.asked]
    assert (shown[0], shown[-1]) == (first, second)
    assert {(form["Action"], form["RoleArn"]) for form in Services.asked} == {("AssumeRoleWithWebIdentity", ROLE)}
    asked = str(machine.log)
    ours = "resource=api%3A%2F%2Fbaton&client_id=one-of-several"
    assert ("audience=sts.amazonaws.com" if machine.cloud == "gcp" else ours) in asked
    assert f"role {ROLE} by workload identity federation" in caplog.text
    assert clean(caplog.text)


@pytest.mark.parametrize("machine", ["gcp"], indirect=True)
def test_a_machine_of_google_logs_in_to_azure(machine: Metadata, entra: None, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "baton.storage")
    given = token("x")
    give(machine, given)
    assert log_in("account", "az://account/runs").credential.get_token_info(SCOPE).token == "the-stores-token"
    (form,) = Services.asked
    assert form["client_assertion"] == given
    assert (form["client_id"][:2], form["scope"]) == ("22", SCOPE)
    assert "audience=api%3A%2F%2FAzureADTokenExchange" in str(machine.log)
    assert "workload identity 22222222" in caplog.text
    assert clean(caplog.text)


def test_a_token_file_logs_in_to_azure_and_one_that_is_gone_is_a_persons_matter(
    entra: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As the kubelet writes it. It is read anew with each new login; the SDK keeps what it read for ten minutes."""
    caplog.set_level(logging.DEBUG, "baton.storage")
    file = tmp_path / "token"
    monkeypatch.setenv("AZURE_FEDERATED_TOKEN_FILE", str(file))
    with pytest.raises(NotSetUp, match=str(file)):
        log_in("account", "az://account/runs").credential.get_token_info(SCOPE)
    for given in (token("x"), token("x")):
        file.write_text(given)
        assert log_in("account", "az://account/runs").credential.get_token_info(SCOPE).token == "the-stores-token"
        assert Services.asked[-1]["client_assertion"] == given
    assert "workload identity 22222222" in caplog.text
    assert clean(caplog.text)


def test_a_machine_of_aws_logs_in_to_azure_by_a_token_of_its_role(
    s3: str, entra: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BATON_IDENTITY", "aws")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "k")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    assert log_in("account", "az://account/runs").credential.get_token_info(SCOPE).token == "the-stores-token"
    asked, shown = Services.asked
    assert (asked["Action"], asked["Audience.member.1"]) == ("GetWebIdentityToken", "api://AzureADTokenExchange")
    assert shown["client_assertion"].startswith("hush.")
    refusals: list[tuple[int, str, type[StoreError]]] = [
        (400, "OutboundWebIdentityFederationDisabled", NotSetUp),
        (403, "AccessDenied", NotSetUp),
        (503, "ServiceUnavailable", Unavailable),
    ]
    for status, code, meant in refusals:
        monkeypatch.setattr(Services, "refuse", (status, code))
        with pytest.raises(meant, match=code) as caught:
            log_in("account", "az://account/runs").credential.get_token_info(SCOPE)
        assert clean(str(caught.value))
    monkeypatch.delenv("AWS_REGION")
    with pytest.raises(NotSetUp, match="AWS_REGION"):
        log_in("account", "az://account/runs").credential.get_token_info(SCOPE)


@pytest.mark.parametrize(
    ("variables", "meant", "told"),
    [
        ({"AWS_PROFILE": "typo"}, NotSetUp, "typo"),
        ({"AWS_ACCESS_KEY_ID": "k"}, NotSetUp, "AWS_SECRET_ACCESS_KEY"),
        ({"AWS_REGION": "eu west 1"}, NotSetUp, "eu west 1"),
        ({"AWS_ENDPOINT_URL_STS": "https://localhost:{tls}"}, NotSetUp, "certificate is not trusted"),
        ({"AWS_ENDPOINT_URL_STS": "http://127.0.0.1:9"}, Unavailable, "127.0.0.1:9"),
    ],
)
def test_what_keeps_a_machine_of_aws_from_its_token_is_a_persons_matter_but_for_the_network(
    variables: dict[str, str],
    meant: type[StoreError],
    told: str,
    s3: str,
    entra: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("BATON_IDENTITY", "aws")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    if told not in ("AWS_SECRET_ACCESS_KEY", "typo"):
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "k")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    for name, value in variables.items():
        monkeypatch.setenv(name, value.replace("https://localhost:{tls}", os.environ["AZURE_AUTHORITY_HOST"]))
    with pytest.raises(meant, match=told) as caught:
        log_in("account", "az://account/runs").credential.get_token_info(SCOPE)
    assert "\n" not in str(caught.value)
    assert clean(str(caught.value))


@pytest.mark.parametrize("machine", ["gcp"], indirect=True)
def test_the_token_service_on_aws_is_that_of_the_region(
    machine: Metadata, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The global one's tokens are refused in regions that one must opt in to; China has one of its own."""
    monkeypatch.delenv("AWS_ENDPOINT_URL_STS")
    made = Session.create_client
    asked = []

    def create_client(session: Session, service: str, *args: Any, **more: Any) -> Any:
        client = made(session, service, *args, **more)
        if service == "sts":
            asked.append(client.meta.endpoint_url)
            raise ValueError("asked")
        return client

    monkeypatch.setattr(Session, "create_client", create_client)
    for region, end in (("eu-south-2", "com"), ("cn-north-1", "com.cn")):
        monkeypatch.setenv("AWS_REGION", region)
        with pytest.raises(NotSetUp, match="asked"):
            open_store(s3).put("a", b"")
        assert asked.pop() == f"https://sts.{region}.amazonaws.{end}"


@pytest.mark.parametrize("machine", ["gcp", "azure"], indirect=True)
def test_a_metadata_service_that_hiccups_is_worth_trying_again_and_one_that_has_nobody_is_not(
    machine: Metadata, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BATON_IDENTITY_AUDIENCE", "api://baton")
    answers = [("answer", {"status": status}) for status in (503, 429, 410)]  # 410: Azure's is being renewed
    for kind, more in [*answers, ("reset", {}), ("hang", {})]:
        machine.fault(kind, **more)
        begun = time.monotonic()
        with pytest.raises(Unavailable, match="this machine's identity"):
            open_store(s3, patience=lambda: 20.0 if kind == "answer" else 0.5).put("a", b"")  # noqa: B023
        assert time.monotonic() - begun < 45
        machine.heal()
    for answer in ("<html>log in</html>", "hush"):
        give(machine, answer)
        with pytest.raises(Unavailable, match="no token") as unfit:
            open_store(s3).put("a", b"")
        assert clean(str(unfit.value))
    with Metadata(machine.cloud) as another:
        give(another, token("x"))
        path = machine.log[-1]["path"]
        machine.fault("answer", status=302, headers={"Location": f"http://localhost:{another.port}{path}"})
        with pytest.raises(NotSetUp, match="302"):  # whoever it is, he doesn't speak for this machine
            open_store(s3).put("a", b"")
        assert another.log == []
        machine.heal()
    give(machine, None)
    with pytest.raises(NotSetUp, match="404") as caught:
        open_store(s3).put("a", b"")
    assert "\n" not in str(caught.value)
    give(machine, token("x"))
    open_store(s3).put("a", b"")
    monkeypatch.setattr(Services, "refuse", (403, "AccessDenied"))
    with pytest.raises(NotSetUp, match="trust policy"):
        open_store(s3).put("a", b"")


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"BATON_IDENTITY": "gogle"}, "google, azure, aws"),
        ({"BATON_IDENTITY": "google", "AWS_ROLE_ARN": ""}, "AWS_ROLE_ARN"),
    ],
)
def test_half_a_setting_is_told(variables: dict[str, str], told: str, s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(NotSetUp, match=told):
        open_store(s3).put("a", b"")


def test_at_home_the_clouds_own_chain_counts(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATON_IDENTITY", "aws")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "k")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    open_store(s3).put("a", b"")
    assert Services.asked == []
