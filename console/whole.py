"""Data and weights are had whole or not at all: who makes them ready looks for notices as a training does."""

from __future__ import annotations

import logging
from collections.abc import Callable

from console.commands import stop_grace_s
from trainer.ending import exit_code_for
from trainer.exits import ExitCode
from trainer.settings import Settings
from watchers import HaltWatcher, Mailbox, Stopped, Watch, signals

log = logging.getLogger("baton")


def whole_or_not(settings: Settings, what: str, work: Callable[[Callable[[], None]], object]) -> int:
    """Do `work`, until a halt file or a signal ends it; returns the exit code.

    `work` is given a call that raises where it must end, and leaves then what was there before.
    """
    mailbox = Mailbox()
    signals.install(mailbox, stop_grace_s())
    halt = HaltWatcher(settings.halt)
    if (notice := halt.check()) is not None:
        log.info("not started: %s; remove it to start", notice.detail)
        return exit_code_for(Stopped(notice), settings)
    watch = Watch([halt], mailbox)
    try:
        work(mailbox.check)
    except Stopped as e:
        if (notice := halt.check()) is not None:  # it outranks a SIGTERM that came with it
            mailbox.post(notice)
        stop = mailbox.stop or e.notice
        log.info("%s stopped, nothing was changed: %s", what, stop.detail)
        return exit_code_for(Stopped(stop), settings)
    finally:
        watch.close()
    return ExitCode.DONE
