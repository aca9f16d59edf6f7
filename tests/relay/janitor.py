"""Leaves nothing behind, whatever ends the relay: a small process that outlives it and clears up after it.

It reads from a pipe whose other end only the relay holds. When that is closed, by a word of the relay's own, by Ctrl-C,
an error or `kill -9`, it removes what the relay made: containers and networks by their label, processes, folders.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

LATE_S = 2.0  # a killed relay's last `docker run` may still be under way


class Janitor:
    """Whatever is made between enter and exit carries `label`, or is told to it."""

    def __init__(self, client: str) -> None:
        self.id = uuid.uuid4().hex[:8]
        self.label = f"baton.relay={self.id}"
        # a session of its own: the terminal's Ctrl-C is for the relay alone
        self._process = subprocess.Popen(
            [sys.executable, __file__, client, self.label], stdin=subprocess.PIPE, text=True, start_new_session=True
        )

    def end_process(self, pid: int) -> None:
        """A child of this process, not waited for until the janitor is through: its number stays its own."""
        self._tell(f"process {pid}")

    def remove_folder(self, folder: Path) -> None:
        self._tell(f"folder {folder}")

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()

    def __enter__(self) -> Janitor:
        return self

    def __exit__(self, *_: object) -> None:
        """Clear up now. A Ctrl-C in the meantime is not heard."""
        heard = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            self._tell("in good order")
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait()
        finally:
            signal.signal(signal.SIGINT, heard)


def main() -> None:
    client, label = sys.argv[1:]
    told = [line.rstrip("\n").partition(" ") for line in sys.stdin]
    _sweep(client, label)
    if ("in", " ", "good order") not in told:
        time.sleep(LATE_S)
        _sweep(client, label)
    for kind, _, what in reversed(told):
        if kind == "process":
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(what), signal.SIGKILL)
        elif kind == "folder":
            shutil.rmtree(what, ignore_errors=True)


def _sweep(client: str, label: str) -> None:
    for listing, removing in ((("ps", "-aq"), ("rm", "-fv")), (("network", "ls", "-q"), ("network", "rm"))):
        found = subprocess.run([client, *listing, "--filter", f"label={label}"], capture_output=True, text=True)
        if names := found.stdout.split():
            subprocess.run([client, *removing, *names], capture_output=True)


if __name__ == "__main__":
    main()
