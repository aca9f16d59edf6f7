"""Credentials that end and are renewed: by a program, and by a token in a file for which a fake STS gives keys."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar
from urllib.parse import parse_qs

import pytest

from storage import open_store
from storage.errors import NotSetUp, Unavailable
from tests.emulators.metadata import Fault, Metadata
from tests.emulators.moto import MotoS3

BUCKET = "baton-credentials"


@pytest.fixture
def url(moto_emulator: MotoS3, monkeypatch: pytest.MonkeyPatch) -> str:
    """A store that is reached, on a machine without any credentials yet."""
    for name, value in moto_emulator.env.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    moto_emulator.make_bucket(BUCKET)
    return moto_emulator.url(BUCKET, uuid.uuid4().hex)


def soon() -> str:
    """So near that the SDK asks for new ones before each request: it does in the last ten minutes."""
    return (datetime.now(UTC) + timedelta(minutes=5)).strftime("%Y-%m-%dT%H:%M:%SZ")


def ask_program(command: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "config").write_text(f"[default]\ncredential_process = {command}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(folder / "config"))


def test_a_program_that_gives_credentials_is_asked_again_before_they_end(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The way from Google and Azure to S3 in docs/stores.md."""
    given = {"Version": 1, "AccessKeyId": "k", "SecretAccessKey": "hush", "SessionToken": "t", "Expiration": soon()}
    (tmp_path / "given").write_text(json.dumps(given))
    program = tmp_path / "program.py"
    program.write_text(
        "import pathlib\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        "(folder / 'asked').open('a').write('.')\n"
        "print((folder / 'given').read_text())\n"
    )
    ask_program(f"{sys.executable} {program}", tmp_path, monkeypatch)
    caplog.set_level(logging.DEBUG, "baton.storage")
    store = open_store(url)
    store.put("a", b"1")
    before = len((tmp_path / "asked").read_text())
    store.put("a", b"2")
    assert len((tmp_path / "asked").read_text()) > before >= 1
    assert "program named by profile default" in caplog.text
    assert "hush" not in caplog.text


class Tokens(BaseHTTPRequestHandler):
    """Amazon's token service, as far as AssumeRoleWithWebIdentity goes."""

    status = 200
    asked: ClassVar[list[str]] = []

    def do_POST(self) -> None:
        body = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        self.asked.append(body["WebIdentityToken"][0])
        keys = "<AccessKeyId>k</AccessKeyId><SecretAccessKey>hush</SecretAccessKey><SessionToken>t</SessionToken>"
        answer = (
            "<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult>"
            f"<Credentials>{keys}<Expiration>{soon()}</Expiration></Credentials>"
            "</AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"
        )
        if self.status != 200:
            code = "ExpiredTokenException" if self.status == 400 else "ServiceUnavailable"
            answer = (
                f"<ErrorResponse><Error><Code>{code}</Code><Message>Token expired</Message></Error></ErrorResponse>"
            )
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer.encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def tokens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """The mounted file; what is in it is the other cloud's token."""
    monkeypatch.setattr(Tokens, "asked", [])
    file = tmp_path / "token"
    file.write_text("the-first-token")
    with ThreadingHTTPServer(("127.0.0.1", 0), Tokens) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", f"http://127.0.0.1:{server.server_address[1]}")
        monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(file))
        monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/baton")
        yield file
        server.shutdown()


def test_a_federated_role_reads_its_token_file_anew_each_time_its_keys_near_their_end(
    url: str, tokens: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "baton.storage")
    store = open_store(url)
    store.put("a", b"1")
    tokens.write_text("a-later-token")
    store.put("a", b"2")
    assert Tokens.asked[0] == "the-first-token"
    assert Tokens.asked[-1] == "a-later-token"
    assert "role arn:aws:iam::123456789012:role/baton by workload identity federation" in caplog.text
    for value in ("hush", "the-first-token", "a-later-token"):
        assert value not in caplog.text


def test_a_token_file_that_nobody_refreshes_is_a_persons_matter_and_a_service_that_is_away_is_not(
    url: str, tokens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tokens, "status", 400)
    with pytest.raises(NotSetUp, match="out of date") as caught:
        open_store(url).put("a", b"1")
    assert "\n" not in str(caught.value)
    assert "the-first-token" not in str(caught.value)
    monkeypatch.setattr(Tokens, "status", 503)
    with pytest.raises(Unavailable):
        open_store(url).put("a", b"1")


@pytest.mark.parametrize("begun", [False, True], ids=["first request", "later"])
def test_a_token_service_that_is_silent_is_waited_for_no_longer_than_the_rest(
    begun: bool, url: str, tokens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patience = [5.0]
    store = open_store(url, patience=lambda: patience[0])
    if begun:
        store.put("a", b"1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", f"http://127.0.0.1:{silent.getsockname()[1]}")
        patience[0] = 0.5  # a deadline comes closer
        since = time.monotonic()
        with pytest.raises(Unavailable):
            store.put("a", b"2")
        assert time.monotonic() - since < 10


def test_a_token_file_that_vanishes_fails_each_request_until_it_is_back(url: str, tokens: Path) -> None:
    """In the store's own words: any other error is a defect, which ends a training."""
    store = open_store(url)
    store.put("a", b"1")
    tokens.unlink()
    for size in (1, 9 << 20):
        with pytest.raises(NotSetUp, match="AWS_WEB_IDENTITY_TOKEN_FILE") as caught:
            store.put("a", bytes(size))
        assert str(tokens) in str(caught.value)
    with pytest.raises(NotSetUp):
        open_store(url).stat("a")
    tokens.write_text("a-later-token")
    store.put("a", b"2")


PAST = json.dumps({"Version": 1, "AccessKeyId": "k", "SecretAccessKey": "hush", "Expiration": "2020-01-01T00:00:00Z"})


@pytest.mark.parametrize("printed", [None, "no JSON", PAST], ids=["no program", "no JSON", "keys past their end"])
def test_a_program_that_gives_no_credentials_is_a_persons_matter(
    printed: str | None, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "printed").write_text(printed or "")
    ask_program(f"cat {tmp_path}/printed" if printed else f"{tmp_path}/program", tmp_path, monkeypatch)
    with pytest.raises(NotSetUp, match="credential_process") as caught:
        open_store(url).put("a", b"1")
    assert "\n" not in str(caught.value)
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize("profile", ["program", "role"])
def test_a_program_that_hangs_is_waited_for_no_longer_than_the_rest_and_has_no_input(
    profile: str, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A profile's own, and that of a role's source; with a process of its own that keeps its output open."""
    program = tmp_path / "program"
    program.write_text('#!/bin/sh\n[ -z "$(cat)" ] && touch asked\nsleep 60 & echo $! > child\nwait\n')
    program.chmod(0o700)
    ask_program(str(program), tmp_path, monkeypatch)
    role = "[profile role]\nrole_arn = arn:aws:iam::123456789012:role/baton\nsource_profile = program\n"
    config = (tmp_path / "config").read_text().replace("[default]", "[profile program]") + role
    (tmp_path / "config").write_text(config)
    monkeypatch.setenv("AWS_PROFILE", profile)
    monkeypatch.chdir(tmp_path)
    ours, kept_open = os.pipe()  # a terminal, at which nobody types
    stdin = os.dup(0)
    os.dup2(ours, 0)
    begun = time.monotonic()
    try:
        with pytest.raises(Unavailable, match="credential_process has given no credentials for 1 s") as caught:
            open_store(url, patience=lambda: 1.0).put("a", b"1")
    finally:
        os.dup2(stdin, 0)
        for one in (ours, kept_open, stdin):
            os.close(one)
    assert time.monotonic() - begun < 45
    os.kill(int((tmp_path / "child").read_text()), signal.SIGKILL)
    assert (tmp_path / "asked").exists()
    assert str(caught.value).startswith(url)
    assert "\n" not in str(caught.value)


def test_a_pods_token_file_that_is_missing_is_a_persons_matter(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://127.0.0.1:9/v1/credentials")
    monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", str(tmp_path / "none"))
    with pytest.raises(NotSetUp, match="AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"):
        open_store(url).put("a", b"1")


ROLES = "/latest/meta-data/iam/security-credentials/"


@pytest.fixture
def instance(monkeypatch: pytest.MonkeyPatch) -> Iterator[Metadata]:
    """The metadata service of an instance with a role; a proxy is set, at which nobody is."""
    monkeypatch.delenv("AWS_EC2_METADATA_DISABLED", raising=False)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")  # the store
    with Metadata("aws") as service:
        keys = {"AccessKeyId": "k", "SecretAccessKey": "hush", "Token": "t", "Expiration": soon()}
        service.set(ROLES, "baton")
        service.set(f"{ROLES}baton", {"Code": "Success", **keys})
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"http://localhost:{service.port}/")
        yield service


def test_an_instances_role_is_never_asked_of_a_proxy(
    url: str, instance: Metadata, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "baton.storage")
    open_store(url).put("a", b"1")
    assert "role of the instance" in caplog.text


def test_a_metadata_service_that_hiccups_is_worth_trying_again_and_no_missing_role(
    url: str, instance: Metadata
) -> None:
    instance.fault("reset", times=1)  # at the SDK's only look, by default
    open_store(url).put("a", b"1")
    for path in ("", ROLES, f"{ROLES}baton"):
        instance.fault("answer", status=503, path=path)
        with pytest.raises(Unavailable, match="503"):
            open_store(url).put("a", b"1")
        instance.heal()
    instance.set(ROLES, None)
    with pytest.raises(NotSetUp, match="instance profile"):
        open_store(url).put("a", b"1")


def test_a_container_agent_that_hiccups_is_worth_trying_again_and_one_that_refuses_is_not(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Metadata("aws") as agent:
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{agent.url}/v1/credentials")
        for status, meant in ((503, Unavailable), (429, Unavailable), (403, NotSetUp)):
            agent.faults = [Fault("answer", status=status)]
            with pytest.raises(meant, match=str(status)):
                open_store(url).put("a", b"1")
