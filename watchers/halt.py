"""The halt folder: the operator's way to stop a run from outside its container.

/halt/halt           stop, and stay stopped (exit 0)
/halt/preempt.txt    a rehearsed eviction: stop, to be started again elsewhere (exit 75)
/halt                itself a file with something in it, or one that wasn't there at first: as /halt/halt
"""

from __future__ import annotations

import logging
import os
import stat
import time
from pathlib import Path

from watchers.protocol import Notice

log = logging.getLogger("baton.watchers")


class HaltWatcher:
    name = "halt"
    interval_s = 0.5

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._blind = False
        self._empty_at_first: bool | None = None  # such a file is a place to write to, as one that is mounted there

    def check(self) -> Notice | None:
        try:
            notice = self._look()
        except OSError as e:  # also called outside the watch: what can't be read may not end training, nor be silent
            if not self._blind:
                log.warning("can't look for a halt file in %s: %s", self._path, e.strerror or e)
            self._blind = True
            return None
        self._blind = False
        return notice

    def _look(self) -> Notice | None:
        for source, path in (("halt", self._path / "halt"), ("preempt", self._path / "preempt.txt")):
            if _look_at(path) is not None:  # not stat: a dangling link that an operator made still means halt
                return self._notice(source, path)
        itself = _look_at(self._path, follow=True)
        is_file = itself is not None and stat.S_ISREG(itself.st_mode)
        if self._empty_at_first is None:
            self._empty_at_first = is_file
        if itself is not None and is_file and (itself.st_size or not self._empty_at_first):
            return self._notice("halt", self._path)
        return None

    @staticmethod
    def _notice(source: str, path: Path) -> Notice:
        return Notice(source, "stop", f"halt file {path} is there", f"{source}:{path}", time.time())


def _look_at(path: Path, *, follow: bool = False) -> os.stat_result | None:
    """None if nothing is there; unlike os.path.lexists it doesn't take a missing right for an absence."""
    try:
        return os.stat(path, follow_symlinks=follow)
    except (FileNotFoundError, NotADirectoryError):
        return None
