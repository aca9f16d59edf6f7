"""The one place where notices arrive, from any thread, and where everyone looks."""

from __future__ import annotations

import math
import threading
import time
from contextlib import suppress
from dataclasses import replace

from watchers.protocol import Notice

# Who wins when several say stop: the operator's own word outranks the machine's, so that a run which
# was halted on purpose is not started again (exit 0 rather than 75).
_RANK = {"halt": 3, "superseded": 2, "SIGINT": 1}


class Stopped(Exception):
    """Raised by `Mailbox.check` where work should be given up because of `notice`."""

    def __init__(self, notice: Notice) -> None:
        super().__init__(notice.detail)
        self.notice = notice


class Mailbox:
    """Keeps every notice once, and the stop notice that counts."""

    def __init__(self) -> None:
        # A signal handler posts from the main thread, which may be inside any of these methods. So this lock is
        # re-entrant, and waiting is on a bare lock that is released once and for all: the one inside a
        # threading.Event is not re-entrant, and a handler that sets the event its thread waits on hangs for ever.
        self._lock = threading.RLock()
        self._gate = threading.Lock()
        self._gate.acquire()
        self._saves = 0
        self._news = 0  # counts what was news
        self.notices: list[Notice] = []
        self.withdrawn: dict[str, float] = {}  # id of a notice -> when its source took it back, in seconds since 1970
        self.stop: Notice | None = None  # read without the lock in the training loop
        self.heeded = False  # whoever works has come to see that there is one
        self.deadline: float | None = None  # the nearest one that any stop notice gave; set before `stop` is

    def post(self, notice: Notice) -> bool:
        """Take a notice; False if it is no news: told before, with this deadline or a nearer one."""
        told, action = notice.id, notice.action  # before anything is kept: what is no notice may spoil nothing
        with self._lock:
            for place, known in enumerate(self.notices):
                if known.id == told:
                    if action == "save" or not _nearer(notice.deadline, known.deadline):
                        return False
                    self.notices[place] = replace(known, detail=notice.detail, deadline=notice.deadline)
                    break
            else:
                self.notices.append(notice)
                if action == "save":
                    self._saves += 1
            self._news += 1
            if action != "save":
                self._judge()
                with suppress(RuntimeError):  # open since an earlier notice
                    self._gate.release()
            return True

    def withdraw(self, notice: Notice) -> None:
        """Its source takes a notice back. Who began to stop goes on: others may have acted on it already."""
        self.withdrawn.setdefault(notice.id, time.time())

    def _judge(self) -> None:
        """Settle which stop notice counts: the highest in rank, of these the most urgent, of these the first."""
        judged = -1
        while judged != self._news:  # a signal's notice may come in between: then again, with it
            judged = self._news
            stops = [notice for notice in list(self.notices) if notice.action != "save"]
            self.deadline = min((n.deadline for n in stops if n.deadline is not None), default=None)
            self.stop = max(stops, key=_urgency)

    def take_save(self) -> bool:
        """True once after each time that a notice asked for a save."""
        with self._lock:
            asked, self._saves = self._saves > 0, 0
            return asked

    def check(self) -> None:
        """Raise `Stopped` if a stop notice is there."""
        if self.stop is not None:
            self.heeded = True
            raise Stopped(self.stop)

    def wait(self, seconds: float) -> bool:
        """Sleep, but no longer than until a stop notice comes; True if one is there."""
        if self.stop is None and self._gate.acquire(timeout=min(max(0.0, seconds), threading.TIMEOUT_MAX)):
            with suppress(RuntimeError):
                self._gate.release()  # the next one who waits comes through too
        return self.stop is not None

    def pause(self, seconds: float) -> None:
        """Sleep, but no longer than until the next notice of any kind, whatever came before."""
        known, end = self._news, time.monotonic() + seconds
        while self._news == known and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, 0.05))


def _nearer(deadline: float | None, known: float | None) -> bool:
    return deadline is not None and (known is None or deadline < known)


def _urgency(notice: Notice) -> tuple[int, float]:
    return _RANK.get(notice.source, 0), -math.inf if notice.deadline is None else -notice.deadline
