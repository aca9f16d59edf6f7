"""Docker as the container tests use it: find it, start it where it's down, build the image, run it, leave nothing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
LOCAL_BASE = "debian-base:local"
BASE_PACKAGES = "ca-certificates,python3,python3-venv,tini"


class Missing(Exception):
    """These tests can't be run here; the message says why."""


def find_client() -> str:
    """The first docker on the path that has BuildKit: a newer client without its buildx plug-in has not."""
    for folder in os.environ["PATH"].split(os.pathsep):
        client = Path(folder) / "docker"
        if os.access(client, os.X_OK):
            said = subprocess.run(
                [client, "build", "--help"], env=os.environ | {"DOCKER_BUILDKIT": "1"}, capture_output=True, text=True
            )
            if "--secret" in said.stdout:
                return str(client)
    raise Missing("no docker client with BuildKit on the path")


@contextmanager
def daemon(client: str) -> Iterator[None]:
    """Docker's daemon: the one that runs, else one of our own for as long as this lasts."""
    if _answers(client):
        yield
        return
    if os.geteuid() != 0 or shutil.which("dockerd") is None:
        raise Missing("Docker's daemon doesn't answer, and only root with dockerd at hand could start it")
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(["dockerd"], stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            for _ in range(60):
                if _answers(client):
                    break
                time.sleep(1)
            else:
                log.seek(0)
                raise Missing(f"Docker's daemon did not start: {log.read()[-2000:]}")
            yield
        finally:
            process.terminate()
            process.wait(60)


def _answers(client: str) -> bool:
    return subprocess.run([client, "version"], capture_output=True).returncode == 0


@dataclass
class Engine:
    client: str
    made: list[tuple[str, ...]] = field(default_factory=list)  # commands that remove what was made

    def __call__(self, *args: str, check: bool = True, timeout: float = 120) -> str:
        """Standard output and error of `docker ARGS`, as they came."""
        done = subprocess.run(
            [self.client, *args], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout
        )
        if check and done.returncode != 0:
            raise AssertionError(f"docker {' '.join(args)}: {done.returncode}\n{done.stdout}")
        return done.stdout

    def inspect(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self("inspect", name))[0]
        return found

    def layers(self, image: str) -> list[str]:
        """Digests of the image's layers, from the base up."""
        found: list[str] = self.inspect(image)["RootFS"]["Layers"]
        return found

    def base_image(self) -> str:
        """What to build on: `BATON_TEST_BASE_IMAGE`, else a Debian made here, else (empty) the flavour's own."""
        if given := os.environ.get("BATON_TEST_BASE_IMAGE"):
            return given
        if self("images", "-q", LOCAL_BASE).strip():
            return LOCAL_BASE
        if os.geteuid() != 0 or shutil.which("mmdebstrap") is None:
            return ""
        with tempfile.TemporaryDirectory() as folder:
            tar = f"{folder}/base.tar"
            made = subprocess.run(
                ["mmdebstrap", "--variant=minbase", f"--include={BASE_PACKAGES}", "bookworm", tar],
                capture_output=True,
                text=True,
            )
            if made.returncode != 0:
                return ""
            self("import", tar, LOCAL_BASE)
        return LOCAL_BASE

    def build(self, cifar10: str, folder: Path = REPOSITORY, **more: str) -> tuple[int, str, str]:
        """`make image`: (exit code, its output, the image's name). The image goes when these tests end."""
        name = f"baton-test:{uuid.uuid4().hex[:12]}"
        settings = {
            "FLAVOUR": os.environ.get("BATON_TEST_FLAVOUR", "cpu"),
            "BASE_IMAGE": self.base_image(),
            "CIFAR10": cifar10,
            "IMAGE": name,
            "DOCKER": self.client,
            **more,
        }
        done = subprocess.run(
            ["make", "image", *(f"{key}={value}" for key, value in settings.items())],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.made.append(("rmi", "-f", name))
        return done.returncode, done.stdout, name

    def run(self, image: str, *args: str, options: tuple[str, ...] = ()) -> Container:
        """A container of the image, running in the background."""
        name = f"baton-test-{uuid.uuid4().hex[:12]}"
        self.made.append(("rm", "-fv", name))
        self("run", "-d", "--name", name, *options, image, *args)
        return Container(self, name)

    def clean(self) -> None:
        while self.made:
            self(*self.made.pop(), check=False)


@dataclass
class Container:
    engine: Engine
    name: str

    def logs(self) -> str:
        return self.engine("logs", self.name)

    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = self.engine.inspect(self.name)["State"]
        return state

    def wait_for(self, text: str, timeout_s: float = 90) -> None:
        """Until the log says so; an AssertionError with the log where it never does."""
        until = time.monotonic() + timeout_s
        while text not in self.logs():
            running = self.state()["Running"]
            assert (running and time.monotonic() < until) or text in self.logs(), f"never said {text!r}:\n{self.logs()}"
            time.sleep(0.1)

    def exit_code(self, timeout_s: float = 60) -> int:
        return int(self.engine("wait", self.name, timeout=timeout_s))

    def started_at(self) -> float:
        return seconds(self.state()["StartedAt"])

    def ended_at(self) -> float:
        """By Docker's clock, which is this machine's; seconds since the epoch."""
        return seconds(self.state()["FinishedAt"])


def seconds(docker_time: str) -> float:
    """Seconds since the epoch."""
    # nine decimals, of which Python reads six
    return datetime.fromisoformat(docker_time[:26].rstrip("Z") + "+00:00").timestamp()
