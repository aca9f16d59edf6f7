"""The pulse of long work: look often whether to stop, tell now and then how far it is."""

from __future__ import annotations

import time
from collections.abc import Callable

from trainer.exits import UserError

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


def told(error: OSError, what: str) -> UserError:
    """A failure of reading or writing files, in one line; `what` as in "can't read /data/x.tar"."""
    return UserError(f"{what}: {error.strerror or error}")
