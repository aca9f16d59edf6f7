"""A stop that was heard and that nobody has come to act on: the work just then may last long, and not show it."""

from __future__ import annotations

import logging
from collections import Counter

from watchers.mailbox import Mailbox
from watchers.protocol import Notice
from watchers.signals import AT_ONCE

log = logging.getLogger("baton.watchers")

LOOKS = 3  # that find the same stop before it is told: 2 to 3 s


class UnheededWatcher:
    """Gives no notices; tells of each in the mailbox that waits for whoever works."""

    name = "unheeded"
    interval_s = 1.0

    def __init__(self, mailbox: Mailbox) -> None:
        self._mailbox = mailbox
        self._looks: Counter[str] = Counter()  # a stop's id -> how often it was found to wait

    def check(self) -> Notice | None:
        stop = self._mailbox.stop
        if stop is not None and not self._mailbox.heeded:
            self._looks[stop.id] += 1
            if self._looks[stop.id] == LOOKS:
                at_once = AT_ONCE.get(stop.source, "")
                log.info("%s: waiting for what is in progress, a step or an evaluation%s", stop.detail, at_once)
        return None
