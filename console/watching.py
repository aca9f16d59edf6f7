"""A page that is looked at again and again until somebody ends it: q, Ctrl-C, or the terminal's end."""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

from console.sheets import Part, Words, drawn, plain
from storage.errors import StoreError
from trainer.exits import ExitCode

T = TypeVar("T")


def watch(look: Callable[[], T], page: Callable[[T], list[Part]], every_s: float) -> int:
    """Show it every so many seconds; a store that is away for a while is said to be, and asked again.

    On a terminal in place, elsewhere one below the other. Raises `KeyboardInterrupt` at Ctrl-C.
    """
    shown: list[Part] = []
    with _keys() as key_within, _screen() as draw:
        while True:
            clock, new = time.strftime("%H:%M:%S"), True
            try:
                shown = page(look())
                words = Words(f"{clock}, again every {every_s:.0f} s; q or Ctrl-C ends", "dim")
            except StoreError as e:
                words, new = Words(f"{clock}, not looked at: {e}", "bold red"), False
            if draw is not None:
                draw([*shown, Words(""), words])
            else:
                print("\n".join(plain([Words(clock), *shown] if new else [words])), flush=True)
            if key_within(every_s) == "q":
                return ExitCode.DONE


@contextmanager
def _screen() -> Iterator[Callable[[list[Part]], None] | None]:
    """Gives what draws a page in the place of the one before; None where there is no terminal."""
    if not sys.stdout.isatty():
        yield None
        return
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(highlight=False), auto_refresh=False) as live:
        yield lambda page: live.update(drawn(page), refresh=True)


@contextmanager
def _keys() -> Iterator[Callable[[float], str]]:
    """Gives a function that waits so many seconds for a key. The terminal is as before afterwards, after a kill too."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):

        def sleep(seconds: float) -> str:
            time.sleep(seconds)
            return ""

        yield sleep
        return
    import termios
    import tty

    def wait(seconds: float) -> str:
        ready, _, _ = select.select([sys.stdin], [], [], seconds)
        return os.read(sys.stdin.fileno(), 1).decode(errors="replace") if ready else ""

    def on_sigterm(number: int, _frame: FrameType | None) -> None:
        sys.exit(128 + number)

    before = termios.tcgetattr(sys.stdin)
    handler = signal.signal(signal.SIGTERM, on_sigterm)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where a shell's background job ignores it
    try:
        tty.setcbreak(sys.stdin)
        yield wait
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
        signal.signal(signal.SIGTERM, handler)
