"""A cloud's store on this machine, where containers of every network reach it."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.emulators.azurite import Azurite
from tests.emulators.gcs import GoogleEmulator
from tests.emulators.moto import MotoS3
from tests.relay.janitor import Janitor

SCHEMES = ("gs", "s3", "az")
BUCKET = "baton-relay"


def start_store(scheme: str, host: str, janitor: Janitor) -> Azurite | GoogleEmulator | MotoS3:
    """An emulator at `host`, this machine's address in one of the networks: docker lets the others reach it too.

    Raises FileNotFoundError where azurite isn't installed, OSError where Docker runs on another machine than this.
    """
    folder = Path(tempfile.mkdtemp(prefix="baton-relay-"))
    janitor.remove_folder(folder)
    emulator: Azurite | GoogleEmulator | MotoS3
    match scheme:
        case "gs":
            emulator = GoogleEmulator(folder, host=host)
        case "s3":
            emulator = MotoS3(host=host)
        case _:
            emulator = Azurite(folder, host=host)
    emulator.start()
    assert emulator._process is not None
    janitor.end_process(emulator._process.pid)
    emulator.make_bucket(BUCKET)
    return emulator
