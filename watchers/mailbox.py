"""The one place where notices arrive, from any thread, and where everyone looks."""

from __future__ import annotations

import threading

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
        # re-entrant: a signal handler posts from the main thread, which may be inside one of these methods
        self._lock = threading.RLock()
        self._event = threading.Event()
        self._saves = 0
        self.notices: list[Notice] = []
        self.stop: Notice | None = None  # read without the lock in the training loop
        self.deadline: float | None = None  # the nearest one that any stop notice gave

    def post(self, notice: Notice) -> bool:
        """Take a notice; False if it was told before."""
        with self._lock:
            if any(known.id == notice.id for known in self.notices):
                return False
            self.notices.append(notice)
            if notice.action == "save":
                self._saves += 1
            else:
                if self.stop is None or _RANK.get(notice.source, 0) > _RANK.get(self.stop.source, 0):
                    self.stop = notice
                if notice.deadline is not None:
                    self.deadline = min(notice.deadline, self.deadline or notice.deadline)
                self._event.set()
            return True

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
        return self._event.wait(seconds)
