"""Azure Blob Storage on this machine: azurite, Microsoft's own emulator, as a process of its own.

`azurite-blob` is looked for in BATON_TEST_AZURITE, in node_modules/.bin of the repository and on PATH.
It keeps its data on disk, but writes its index each 5 s only: what was put in the last seconds before a `kill` is lost
though it said "created", which Azure itself never does. Tests that kill it wait 6 s first, or count on that; `stop`
loses nothing.
"""

from __future__ import annotations

import base64
import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
ACCOUNT = "batontest"
KEY = base64.b64encode(b"no secret: it opens an emulator " * 2).decode()


def find() -> str | None:
    """The program's path, or None where it isn't installed."""
    set_by_hand = os.environ.get("BATON_TEST_AZURITE")
    local = REPOSITORY / "node_modules/.bin/azurite-blob"
    return set_by_hand or (str(local) if local.exists() else shutil.which("azurite-blob"))


class Azurite:
    """Its data and its log lie in `folder`. It listens on `host`, on a free port unless one is given."""

    def __init__(self, folder: Path, *, host: str = "127.0.0.1", port: int = 0, options: tuple[str, ...] = ()) -> None:
        self.folder = folder
        self.host = host
        self.port = port or _free_port(host)
        self.options = options
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"http://{self.host}:{self.port}/{ACCOUNT}"

    @property
    def env(self) -> dict[str, str]:
        """With these variables a process finds the emulator."""
        return {"AZURE_STORAGE_CONNECTION_STRING": self.connection_string(self.endpoint)}

    def connection_string(self, endpoint: str, key: str = KEY) -> str:
        return f"AccountName={ACCOUNT};AccountKey={key};BlobEndpoint={endpoint}"

    def start(self) -> None:
        program = find()
        if program is None:
            raise FileNotFoundError("azurite-blob is not installed")
        self.folder.mkdir(parents=True, exist_ok=True)
        command = [program, "--blobHost", self.host, "--blobPort", str(self.port), "--location", str(self.folder)]
        command += ["--skipApiVersionCheck", "--disableTelemetry", "--silent", *self.options]
        with (self.folder / "azurite.log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "AZURITE_ACCOUNTS": f"{ACCOUNT}:{KEY}"},
            )
        end = time.monotonic() + 60
        while time.monotonic() < end and self._process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection((self.host, self.port), timeout=1):
                return
            time.sleep(0.05)
        raise RuntimeError(f"azurite did not start: {(self.folder / 'azurite.log').read_text()[-500:]}")

    def stop(self) -> None:
        """In good order: what it was told is on disk."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self.kill()
            self._process = None

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def __enter__(self) -> Azurite:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def make_bucket(self, name: str) -> None:
        from azure.core.exceptions import ResourceExistsError
        from azure.storage.blob import BlobServiceClient

        client = BlobServiceClient.from_connection_string(self.env["AZURE_STORAGE_CONNECTION_STRING"])
        with client, contextlib.suppress(ResourceExistsError):
            client.create_container(name)

    def url(self, bucket: str, prefix: str = "") -> str:
        return f"az://{ACCOUNT}/{bucket}/{prefix}".rstrip("/")


def _free_port(host: str) -> int:
    with socket.create_server((host, 0)) as probe:
        return int(probe.getsockname()[1])


def sas(bucket: str, rights: str = "racwdl", hours: float = 1) -> str:
    """A token for one container, as the query of an address."""
    from azure.storage.blob import ContainerSasPermissions, generate_container_sas

    return generate_container_sas(
        ACCOUNT,
        bucket,
        account_key=KEY,
        permission=ContainerSasPermissions.from_string(rights),
        expiry=datetime.now(UTC) + timedelta(hours=hours),
    )


@pytest.fixture(scope="session")
def azurite_emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Azurite]:
    if find() is None:
        why = "azurite is not installed: npm install azurite@3.35.0 in the repository, or set BATON_TEST_AZURITE"
        if os.environ.get("CI") == "true":
            pytest.fail(why)
        pytest.skip(why)
    with Azurite(tmp_path_factory.mktemp("azurite")) as azurite:
        yield azurite
