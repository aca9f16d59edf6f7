"""SIGTERM, SIGHUP and SIGINT as notices. PID 1 ignores signals without a handler, so these come first.

Python calls a handler in the main thread, and only between two of its own instructions: a step in torch may last longer
than what is left. So a thread hears of SIGTERM too, at once, for its deadline counts from when it came.
"""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time
from types import FrameType

from watchers.mailbox import Mailbox
from watchers.protocol import Notice

INTERRUPTED = 130  # 128 + SIGINT, as shells say it
LOST = signal.SIGUSR1  # from trainer/processes.py: one of the others has died
OTHER_GONE = "another process of this run is gone"
AT_ONCE = {"SIGINT": "; once more ends it at once"}
_says: int | None = None  # the writing end of a pipe into which Python puts the signals that come


def install(mailbox: Mailbox, stop_grace_s: float) -> None:
    """Handle SIGTERM, which a kill follows after `stop_grace_s`, and SIGINT; a second SIGINT ends at once.

    A terminal that is closed (SIGHUP) is as SIGTERM, unless `nohup` said that it doesn't matter.
    """

    def on_sigterm(number: int, _frame: FrameType | None) -> None:
        now, name = time.time(), signal.Signals(number).name
        mailbox.post(Notice(name, "stop", f"{name}: told to go", name, now, now + stop_grace_s))

    def on_sigint(_number: int, _frame: FrameType | None) -> None:
        if not mailbox.post(Notice("SIGINT", "stop", "Ctrl-C", "SIGINT", time.time())):
            os._exit(INTERRUPTED)

    hears, says = os.pipe()
    os.set_blocking(says, False)

    def listen() -> None:
        with os.fdopen(hears, "rb", buffering=0) as pipe:
            while numbers := pipe.read(64):
                for number in numbers:
                    if signal.getsignal(number) is on_sigterm:  # Ctrl-C has no deadline, and counts how often it comes
                        on_sigterm(number, None)

    signal.signal(signal.SIGTERM, on_sigterm)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, on_sigterm)
    signal.signal(signal.SIGINT, on_sigint)
    signal.set_wakeup_fd(says, warn_on_full_buffer=False)
    global _says
    if _says is not None:
        os.close(_says)  # by which whoever listened before ends
    _says = says
    threading.Thread(target=listen, name="signals", daemon=True).start()
    # whoever started this process may have kept them back until now; trainer/processes.py does
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGHUP, signal.SIGINT))


def heed_launcher(mailbox: Mailbox, stop_grace_s: float) -> None:
    """Handle `LOST`, and take the launcher's own death as a SIGTERM (Linux: prctl(2), PR_SET_PDEATHSIG)."""

    def on_lost(_number: int, _frame: FrameType | None) -> None:
        now = time.time()
        mailbox.post(Notice("process", "stop", OTHER_GONE, "lost", now, now + stop_grace_s))

    signal.signal(LOST, on_lost)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (LOST,))  # kept back until now, as by `install`
    libc = ctypes.CDLL(None)
    if hasattr(libc, "prctl"):
        libc.prctl(1, int(signal.SIGTERM))


def heed_launcher_no_more() -> None:
    """This process ends: that others do too is no news."""
    signal.signal(LOST, signal.SIG_IGN)
