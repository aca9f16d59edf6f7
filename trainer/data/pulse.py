"""The pulse of long work: look often whether to stop, tell now and then how far it is."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

from trainer.exits import UserError

T = TypeVar("T")
EVERY_S = 2.5  # between two progress lines: whole lines, so that container logs stay readable


class Pulse:
    """`check` may raise to stop the work; `say` takes whole lines."""

    def __init__(
        self,
        check: Callable[[], None] = lambda: None,
        say: Callable[[str], None] = lambda line: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.check = check
        self.say = say
        self._clock = clock
        self._said = clock()

    def beat(self, line: str) -> None:
        """To be called at least every 0.2 s, with the progress line to say if one is due."""
        self.check()
        if self._clock() - self._said >= EVERY_S:
            self.say(line)
            self._said = self._clock()


def beside(work: Callable[[], T], pulse: Pulse) -> T:
    """What `work` gives, made in a thread of its own: a call of native code that takes long lets no notice through.

    Raises what `work` does, and what `pulse.check` does: then `work` is left to itself.
    """
    made: Future[T] = Future()

    def make() -> None:
        try:
            made.set_result(work())
        except BaseException as e:  # told to whoever waits
            made.set_exception(e)

    # a daemon: a process that is told to go must not wait for it
    threading.Thread(target=make, name="beside", daemon=True).start()
    while not wait((made,), timeout=0.1).done:
        pulse.check()
    return made.result()


class FileTrouble(UserError):
    """A file can't be read or written; this says nothing about what is in it."""


def told(error: OSError, what: str) -> FileTrouble:
    """A failure of reading or writing files, in one line; `what` as in "can't read /data/x.tar"."""
    return FileTrouble(f"{what}: {error.strerror or error}")
