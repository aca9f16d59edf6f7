"""The halt folder: the operator's way to stop a run from outside its container.

/halt/halt           stop, and stay stopped (exit 0)
/halt/preempt.txt    a rehearsed eviction: stop, to be started again elsewhere (exit 75)
/halt                itself a file with something in it: as /halt/halt
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from watchers.protocol import Notice


class HaltWatcher:
    name = "halt"
    interval_s = 0.5

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)

    def check(self) -> Notice | None:
        halt, preempt = self._path / "halt", self._path / "preempt.txt"
        if _is_there(halt):
            return self._notice("halt", halt)
        if _is_there(preempt):
            return self._notice("preempt", preempt)
        if self._path.is_file() and self._path.stat().st_size:
            return self._notice("halt", self._path)
        return None

    @staticmethod
    def _notice(source: str, path: Path) -> Notice:
        return Notice(source, "stop", f"halt file {path} is there", f"{source}:{path}", time.time())


def _is_there(path: Path) -> bool:
    # lexists: a dangling link that an operator made still means halt
    return os.path.lexists(path)
