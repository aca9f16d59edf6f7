"""SIGTERM and SIGINT as notices. A process that is PID 1 ignores signals without a handler, so these come first."""

from __future__ import annotations

import os
import signal
import time
from types import FrameType

from watchers.mailbox import Mailbox
from watchers.protocol import Notice

INTERRUPTED = 130  # 128 + SIGINT, as shells say it


def install(mailbox: Mailbox, stop_grace_s: float) -> None:
    """Handle SIGTERM, which a kill follows after `stop_grace_s`, and SIGINT; a second SIGINT ends at once."""

    def on_sigterm(_number: int, _frame: FrameType | None) -> None:
        now = time.time()
        mailbox.post(Notice("SIGTERM", "stop", "SIGTERM: told to go", "SIGTERM", now, now + stop_grace_s))

    def on_sigint(_number: int, _frame: FrameType | None) -> None:
        if not mailbox.post(Notice("SIGINT", "stop", "Ctrl-C: stopping; again to end at once", "SIGINT", time.time())):
            os._exit(INTERRUPTED)

    signal.signal(signal.SIGTERM, on_sigterm)
    signal.signal(signal.SIGINT, on_sigint)
