"""Google Cloud Storage on this machine: gcp-storage-emulator in a process of its own; see gcs_server.py."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest


class GoogleEmulator:
    """Objects that were put and open multipart uploads outlast `kill` and `start`; half-sent resumable ones don't."""

    def __init__(self, folder: Path, *, host: str = "127.0.0.1", port: int = 0, options: tuple[str, ...] = ()) -> None:
        self.folder = folder
        self.options = options
        self.host = host
        self.port = port or _free_port(host)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def env(self) -> dict[str, str]:
        # without the second, a client with no emulator in sight would look for a metadata server
        return {"STORAGE_EMULATOR_HOST": f"http://{self.host}:{self.port}", "NO_GCE_CHECK": "true"}

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        script = Path(__file__).with_name("gcs_server.py")
        with open(self.folder / "log", "ab") as log:
            command = [sys.executable, script, "--host", self.host, "--port", str(self.port), "--data", self.folder]
            self._process = subprocess.Popen([*command, *self.options], stdout=log, stderr=log)
        end = time.monotonic() + 30
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"the emulator did not start: {(self.folder / 'log').read_text()[-2000:]}")
            time.sleep(0.05)

    def _answers(self) -> bool:
        try:
            socket.create_connection((self.host, self.port), timeout=1).close()
        except OSError:
            return False
        return True

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._process = None

    def __enter__(self) -> GoogleEmulator:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def make_bucket(self, name: str) -> None:
        request = urllib.request.Request(
            f"http://{self.host}:{self.port}/storage/v1/b?project=test",
            json.dumps({"name": name}).encode(),
            {"Content-Type": "application/json"},
        )
        urllib.request.urlopen(request, timeout=30).close()

    def url(self, bucket: str, prefix: str = "") -> str:
        return f"gs://{bucket}/{prefix}".rstrip("/")

    def open_uploads(self, url: str) -> list[str]:
        """Names below `url` with a multipart upload that was begun and neither completed nor cancelled."""
        begun = [json.loads(of.read_text()) for of in (self.folder / "uploads").glob("[!.]*/of")]
        return [name for bucket, name in begun if self.url(bucket, name).startswith(f"{url}/")]


def _free_port(host: str) -> int:
    with socket.create_server((host, 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@pytest.fixture(scope="session")
def gcs_emulator() -> Iterator[GoogleEmulator]:
    with tempfile.TemporaryDirectory(prefix="gcs-emulator-") as folder, GoogleEmulator(Path(folder)) as emulator:
        emulator.make_bucket("baton")
        yield emulator
