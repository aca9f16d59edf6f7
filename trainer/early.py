"""A call that runs beside others: what can begin before torch is imported, and what a notice may cut short."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from watchers import Mailbox

T = TypeVar("T")


class Early(Generic[T]):
    """A call running in a thread of its own, its result or error waiting to be asked for."""

    def __init__(self, call: Callable[[], T], name: str) -> None:
        self._value: list[T] = []
        self._error: BaseException | None = None

        def work() -> None:
            try:
                self._value.append(call())
            except BaseException as e:  # told to whoever asks for the result
                self._error = e

        # a daemon: a notice that comes during start-up must not wait for a download
        self._thread = threading.Thread(target=work, name=name, daemon=True)
        self._thread.start()

    def result(self, mailbox: Mailbox, patience_s: float = 0.0) -> T:
        """Wait for it, and hand it over: it is given once.

        Raises what the call raised, or `Stopped` when a notice comes first, and it takes `patience_s` more seconds.
        """
        noticed = None
        while self._thread.is_alive():
            if mailbox.stop is not None:
                noticed = noticed or time.monotonic()
                if time.monotonic() - noticed >= patience_s:
                    mailbox.check()
            self._thread.join(0.05)
        if self._error is not None:
            raise self._error
        return self._value.pop()
