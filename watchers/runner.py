"""Runs each watcher in a small thread of its own, so that none can delay another."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence

from watchers.mailbox import Mailbox
from watchers.protocol import Watcher

log = logging.getLogger("baton.watchers")


class Watch:
    """Looks at each watcher every `interval_s` and posts what it sees, until closed."""

    def __init__(self, watchers: Sequence[Watcher], mailbox: Mailbox) -> None:
        self._mailbox = mailbox
        self._closed = threading.Event()
        # daemons: a hung metadata service must not hold up the exit
        self._threads = [
            threading.Thread(target=self._look, args=(watcher,), name=f"watch-{watcher.name}", daemon=True)
            for watcher in watchers
        ]
        for thread in self._threads:
            thread.start()

    def _look(self, watcher: Watcher) -> None:
        failed = False
        while True:
            try:
                notice = watcher.check()
                if notice is not None:
                    self._mailbox.post(notice)
                failed = False
            except Exception as e:  # a watcher that fails may never end training
                if not failed:
                    log.warning(
                        "watching %s fails: %s; it is tried again every %g s", watcher.name, e, watcher.interval_s
                    )
                failed = True
            if self._closed.wait(watcher.interval_s):
                return

    def close(self) -> None:
        """Look no more. Waits 1 s at most, for all together: a hung watcher is left behind."""
        self._closed.set()
        give_up = time.monotonic() + 1.0
        for thread in self._threads:
            thread.join(max(0.0, give_up - time.monotonic()))
