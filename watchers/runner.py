"""Runs each watcher in a small thread of its own, so that none can delay another."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence

from watchers.mailbox import Mailbox
from watchers.protocol import Interruptible, Notice, Watcher

log = logging.getLogger("baton.watchers")


class Watch:
    """Looks at each watcher every `interval_s` and posts what it sees, until closed."""

    def __init__(self, watchers: Sequence[Watcher], mailbox: Mailbox) -> None:
        self._mailbox = mailbox
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._watchers: list[Watcher] = []
        self._threads: list[threading.Thread] = []
        self._looked: list[threading.Event] = []  # each watcher's first look is over
        self.add(watchers)

    def add(self, watchers: Sequence[Watcher]) -> None:
        """Watch these too."""
        with self._lock:
            if self._closed.is_set():
                return
            for watcher in watchers:
                looked = threading.Event()
                # daemons: a hung metadata service must not hold up the exit
                thread = threading.Thread(
                    target=self._look, args=(watcher, looked), name=f"watch-{watcher.name}", daemon=True
                )
                self._watchers.append(watcher)
                self._looked.append(looked)
                self._threads.append(thread)
                thread.start()

    def first_looks(self, seconds: float) -> None:
        """Wait until each watcher has looked once, but no longer than this."""
        give_up = time.monotonic() + seconds
        for looked in list(self._looked):
            looked.wait(max(0.0, give_up - time.monotonic()))

    def _look(self, watcher: Watcher, looked: threading.Event) -> None:
        failed = False
        told: Notice | None = None  # the stop notice that this watcher stands by
        while True:
            try:
                notice = watcher.check()
                if notice is not None and self._mailbox.post(notice):
                    _say(notice)
                stop = notice if notice is not None and notice.action == "stop" else None
                if told is not None and stop is None:
                    self._mailbox.withdraw(told)
                    log.warning("no longer told, but what it began goes on: %s", told.detail)
                told, failed = stop, False
            except Exception as e:  # a watcher that fails may never end training
                if not failed and not self._closed.is_set():
                    log.warning(
                        "watching %s fails: %s; it is tried again every %g s", watcher.name, e, watcher.interval_s
                    )
                failed = True
            looked.set()
            if self._closed.wait(watcher.interval_s):
                return

    def close(self) -> None:
        """Look no more. Waits 1 s at most, for all together: a hung watcher is left behind."""
        with self._lock:
            self._closed.set()
        give_up = time.monotonic() + 1.0
        for watcher in self._watchers:
            if isinstance(watcher, Interruptible):
                watcher.close()
        for thread in self._threads:
            thread.join(max(0.0, give_up - time.monotonic()))


def _say(notice: Notice) -> None:
    """What a cloud tells, when it does; other stops are told of where they are heeded."""
    if notice.action == "save":
        log.info("%s: saving now, and going on", notice.detail)
    elif notice.deadline is not None:
        log.info("%s; %.0f s are left", notice.detail, notice.deadline - time.time())
