"""The watcher contract, kept by every watcher that is known here. A new watcher is one line in `SOURCES`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from watcher_contract import Source, WatcherContract

from watchers import HaltWatcher


def halt_folder(folder: Path, name: str) -> Source:
    halt = folder / "halt"
    halt.mkdir()

    def fail() -> None:  # a loop of links: what even root can't look into
        halt.rename(folder / "aside")
        halt.symlink_to(halt)

    def heal() -> None:
        halt.unlink()
        (folder / "aside").rename(halt)

    return Source(lambda: HaltWatcher(halt), (halt / name).touch, fail, heal, deadline_s=None)


# name -> a quiet source, given a folder that is this test's alone
SOURCES: dict[str, Callable[[Path], Source]] = {
    "halt": lambda folder: halt_folder(folder, "halt"),
    "preempt": lambda folder: halt_folder(folder, "preempt.txt"),
}


class TestWatchers(WatcherContract):
    @pytest.fixture(params=SOURCES)
    def source(self, request: pytest.FixtureRequest, tmp_path: Path) -> Source:
        return SOURCES[request.param](tmp_path)
