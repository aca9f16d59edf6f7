"""The one place where notices arrive, from any thread, and where everyone looks."""

from __future__ import annotations

import threading
import time
from contextlib import suppress

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
        self.notices: list[Notice] = []
        self.stop: Notice | None = None  # read without the lock in the training loop
        self.deadline: float | None = None  # the nearest one that any stop notice gave; set before `stop` is

    def post(self, notice: Notice) -> bool:
        """Take a notice; False if it was told before."""
        told, action = notice.id, notice.action  # before anything is kept: what is no notice may spoil nothing
        with self._lock:
            if any(known.id == told for known in self.notices):
                return False
            self.notices.append(notice)
            if action == "save":
                self._saves += 1
            else:
                self._judge()
                with suppress(RuntimeError):  # open since an earlier notice
                    self._gate.release()
            return True

    def _judge(self) -> None:
        """Settle which stop notice counts: the highest in rank, of equal ones the first."""
        judged = 0
        while judged != len(self.notices):  # a signal's notice may come in between: then again, with it
            judged = len(self.notices)
            stops = [notice for notice in self.notices[:judged] if notice.action != "save"]
            self.deadline = min((n.deadline for n in stops if n.deadline is not None), default=None)
            self.stop = max(stops, key=lambda n: _RANK.get(n.source, 0))

    def take_save(self) -> bool:
        """True once after each time that a notice asked for a save."""
        with self._lock:
            asked, self._saves = self._saves > 0, 0
            return asked

    def check(self) -> None:
        """Raise `Stopped` if a stop notice is there."""
        if self.stop is not None:
            raise Stopped(self.stop)

    def wait(self, seconds: float) -> bool:
        """Sleep, but no longer than until a stop notice comes; True if one is there."""
        if self.stop is None and self._gate.acquire(timeout=min(max(0.0, seconds), threading.TIMEOUT_MAX)):
            with suppress(RuntimeError):
                self._gate.release()  # the next one who waits comes through too
        return self.stop is not None

    def pause(self, seconds: float) -> None:
        """Sleep, but no longer than until the next notice of any kind, whatever came before."""
        known, end = len(self.notices), time.monotonic() + seconds
        while len(self.notices) == known and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, 0.05))
