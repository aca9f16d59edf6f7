"""`make push-gcp`, `push-aws`, `push-azure` against a real registry, Debian's docker-registry, on loopback.

The registry takes the clouds' own user names with a token, so a push that is let in has really logged in. gcloud, aws
and az are stand-ins that give that token; docker and its daemon are real. The image is a small one with the real one's
shape, a layer of dependencies under a layer of code: tests/container/test_image.py shows that the real one has it.
"""

from __future__ import annotations

import base64
import os
import re
import shutil
import socket
import subprocess
import time
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.container.engine import Engine
from tests.container.test_image import working_copy
from tests.launch.stand_ins import StandIns

pytestmark = pytest.mark.timeout(900)

TOKEN = "short-lived-token"
HASHED = "$2b$04$kEWg2.QXQuvpecUfmAppzex6wRvceYH/0.2u6Ci95P5.A2JR5/6Se"  # bcrypt of it
USERS = {
    "gcp": "oauth2accesstoken",
    "aws": "AWS",
    "azure": "00000000-0000-0000-0000-000000000000",
}
TOOLS = {"gcp": "gcloud", "aws": "aws", "azure": "az"}
DOCKERFILE = """
ARG BASE_IMAGE
ARG FLAVOUR
FROM scratch
COPY dependencies /dependencies
COPY entrypoint.py /app/
ARG CIFAR10
ARG REVISION=unknown
ARG CREATED
ARG SOURCE
LABEL org.opencontainers.image.revision="${REVISION}"
"""


@dataclass
class Registry:
    host: str
    storage: Path

    def stored(self) -> int:
        """Bytes of all layers and manifests that it has."""
        return sum(path.stat().st_size for path in self.storage.rglob("data") if path.is_file())

    def has(self, repository: str, reference: str, user: str) -> bool:
        words = base64.b64encode(f"{user}:{TOKEN}".encode()).decode()
        request = urllib.request.Request(
            f"http://{self.host}/v2/{repository}/manifests/{reference}",
            method="HEAD",
            headers={
                "Authorization": f"Basic {words}",
                "Accept": "application/vnd.docker.distribution.manifest.v2+json",
            },
        )
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as answer:
            return bool(answer.status == 200)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    program = shutil.which("docker-registry")
    if program is None:
        assert os.environ.get("CI") != "true", "docker-registry isn't installed: .ci/run installs it"
        pytest.skip("docker-registry isn't installed (Debian has it)")
    folder = tmp_path_factory.mktemp("registry")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (folder / "users").write_text("".join(f"{user}:{HASHED}\n" for user in USERS.values()))
    (folder / "settings.yml").write_text(
        f"version: 0.1\nlog: {{level: warn}}\nstorage: {{filesystem: {{rootdirectory: {folder}/storage}}}}\n"
        f"http: {{addr: '127.0.0.1:{port}'}}\nauth: {{htpasswd: {{realm: baton, path: {folder}/users}}}}\n"
    )
    (folder / "storage").mkdir()
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([program, "serve", folder / "settings.yml"], stdout=log, stderr=log)
    try:
        until = time.monotonic() + 60
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < until
            time.sleep(0.1)
        yield Registry(f"127.0.0.1:{port}", folder / "storage")
    finally:
        process.kill()
        process.wait()


class Desk:
    """A clone of the tree with a commit, on which somebody pushes."""

    def __init__(self, engine: Engine, registry: Registry, folder: Path) -> None:
        self.engine, self.registry = engine, registry
        self.tree = folder / "tree"
        self.tree.mkdir()
        working_copy(self.tree)
        (self.tree / "Dockerfile").write_text(DOCKERFILE)
        (self.tree / ".dockerignore").write_text("*\n!dependencies\n!entrypoint.py\n")
        (self.tree / "dependencies").write_bytes(os.urandom(3 << 20))  # which no compression makes small
        self.home = folder / "home"
        self.home.mkdir()
        self.stand_ins = StandIns(folder / "bin")
        # in a file: what a stand-in's own shell is told would be traced with the rest
        self.token = folder / "token"
        self.token.write_text(TOKEN + "\n")
        self.image = f"baton-test:push-{uuid.uuid4().hex[:12]}"
        engine.made.append(("rmi", "-f", self.image))
        self.git("init", "-q")
        self.commit("first")

    def git(self, *words: str) -> str:
        who = ("-c", "user.name=Tester", "-c", "user.email=tester@example.com", "-c", "commit.gpgsign=false")
        done = subprocess.run(["git", *who, *words], cwd=self.tree, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def commit(self, message: str) -> str:
        self.git("add", "-A")
        self.git("commit", "-q", "-m", message)
        return self.git("rev-parse", "HEAD")

    def push(self, cloud: str, **settings: str) -> tuple[int, str]:
        settings = {
            f"{cloud.upper()}_REGISTRY": f"{self.registry.host}/{cloud}",
            "AWS_REGION": "eu-west-1",
            "FLAVOUR": "cpu",
            "BASE_IMAGE": "none",
            "CIFAR10": "synthetic",
            "IMAGE": self.image,
            "DOCKER": self.engine.client,
            "TAG": "v1",
        } | settings
        done = subprocess.run(
            ["make", f"push-{cloud}", *(f"{name}={value}" for name, value in settings.items() if value)],
            cwd=self.tree,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # bash tells each command as it runs it, with all its arguments
            env=self.stand_ins.environment | {"HOME": str(self.home), "SHELLOPTS": "xtrace"},
        )
        for name in (f"v1 {self.git('rev-parse', 'HEAD')[:12]}-cpu").split():
            self.engine.made.append(("rmi", "-f", f"{self.registry.host}/{cloud}/baton:{name}"))
        return done.returncode, done.stdout


@pytest.fixture
def desk(engine: Engine, registry: Registry, tmp_path: Path) -> Iterator[Desk]:
    kept = len(engine.made)
    yield Desk(engine, registry, tmp_path)
    while len(engine.made) > kept:
        engine(*engine.made.pop(), check=False)


@pytest.mark.parametrize("cloud", USERS)
def test_it_builds_logs_in_as_the_cloud_wants_it_pushes_and_says_how_to_run_it(cloud: str, desk: Desk):
    desk.stand_ins.add(TOOLS[cloud], f"cat {desk.token}")
    code, said = desk.push(cloud, BATON_STORE="gs://bucket/runs")
    assert code == 0, said
    digest = re.search(r"^digest: (sha256:[0-9a-f]{64})$", said, re.MULTILINE)
    run = re.search(r"^run it: docker rm baton 2>/dev/null; (docker run .*)$", said, re.MULTILINE)
    assert digest is not None, said
    assert run is not None, said
    commit = desk.git("rev-parse", "HEAD")
    for reference in (digest[1], "v1", f"{commit[:12]}-cpu"):
        assert desk.registry.has(f"{cloud}/baton", reference, USERS[cloud])
    assert f"{desk.registry.host}/{cloud}/baton@{digest[1]} cifar10" in run[1]
    assert "-e BATON_STORE=gs://bucket/runs" in run[1]
    assert ("--network host" in run[1]) == (cloud == "aws")
    # the token went by a pipe and is kept nowhere
    assert TOKEN not in said
    assert not (desk.home / ".docker" / "config.json").exists()


def test_a_second_push_after_a_code_change_sends_less_than_a_megabyte_and_an_unchanged_commit_nothing(desk: Desk):
    desk.stand_ins.add("gcloud", f"cat {desk.token}")
    before = desk.registry.stored()
    code, said = desk.push("gcp")
    assert code == 0, said
    first = desk.registry.stored() - before
    assert first > 3 << 20
    code, said = desk.push("gcp")
    assert code == 0, said
    assert "is this commit's already" in said
    assert desk.registry.stored() - before == first
    with (desk.tree / "entrypoint.py").open("a") as code_file:
        code_file.write("# changed\n")
    desk.commit("second")
    code, said = desk.push("gcp")
    assert code == 0, said
    assert 0 < desk.registry.stored() - before - first < 1_000_000


def test_changes_that_no_commit_holds_are_pushed_under_a_name_that_says_so(desk: Desk):
    desk.stand_ins.add("gcloud", f"cat {desk.token}")
    (desk.tree / "entrypoint.py").write_text("# changed\n")
    code, said = desk.push("gcp")
    desk.engine.made.append(
        ("rmi", "-f", f"{desk.registry.host}/gcp/baton:{desk.git('rev-parse', 'HEAD')[:12]}-dirty-cpu")
    )
    assert code == 0, said
    assert re.search(r"^tags: +[0-9a-f]{12}-dirty-cpu v1$", said, re.MULTILINE), said


def test_who_is_not_let_in_hears_it_with_the_command_that_mends_it(desk: Desk):
    desk.stand_ins.add("gcloud", "echo expired-token")
    code, said = desk.push("gcp")
    assert code != 0
    assert "did not let you in: gcloud auth login" in said
    desk.stand_ins.add("gcloud", "echo 'You do not have an active account' >&2; exit 1")
    code, said = desk.push("gcp")
    assert code != 0
    assert "did not let you in: gcloud auth login" in said


@pytest.mark.parametrize("cloud", USERS)
def test_a_missing_tool_or_setting_is_one_line_with_what_mends_it(cloud: str, desk: Desk):
    # nothing but what the scripts themselves need: no gcloud, aws or az
    for name in ("bash", "git", "make", "sed", "dirname", "mktemp", "rm", "cut", "env", "sh"):
        (desk.stand_ins.folder / name).symlink_to(str(shutil.which(name)))
    bare = desk.stand_ins.environment | {"PATH": str(desk.stand_ins.folder)}
    where = f"{cloud.upper()}_REGISTRY"

    def said(**settings: str) -> str:
        words = [f"{name}={value}" for name, value in settings.items()]
        done = subprocess.run(
            ["make", f"push-{cloud}", *words],
            cwd=desk.tree,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=bare,
        )
        assert done.returncode != 0
        return done.stdout.splitlines()[0]

    assert said().startswith(f"{where} is not set: echo '{where}=")
    assert said(**{where: "127.0.0.1:1/x", "AWS_REGION": "x"}).startswith(f"{TOOLS[cloud]} isn't there: ")
