"""A page that is looked at again and again until somebody ends it: q, Ctrl-C, or the terminal's end."""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import FrameType
from typing import TYPE_CHECKING, TypeVar

from storage.errors import StoreError
from trainer.exits import ExitCode

if TYPE_CHECKING:
    from rich.console import RenderableType

T = TypeVar("T")


def watch(look: Callable[[], T], page: Callable[[T], RenderableType], every_s: float) -> int:
    """Show it every so many seconds; a store that is away for a while is said to be, and asked again.

    On a terminal in place, elsewhere one below the other. Raises `KeyboardInterrupt` at Ctrl-C.
    """
    from rich.console import Console, Group
    from rich.live import Live
    from rich.text import Text

    from console.status import print_whole

    terminal = sys.stdout.isatty()
    shown: RenderableType = Text()
    live = Live(console=Console(highlight=False), auto_refresh=False)
    with _keys() as key_within, live if terminal else nullcontext():
        while True:
            clock = time.strftime("%H:%M:%S")
            try:
                shown = page(look())
                words = Text(f"{clock}, again every {every_s:.0f} s; q or Ctrl-C ends", style="dim")
            except StoreError as e:
                words = Text(f"{clock}, not looked at: {e}", style="bold red")
            if terminal:
                live.update(Group(shown, Text(), words), refresh=True)
            else:
                print_whole(Group(Text(clock), shown) if words.style == "dim" else words)
                sys.stdout.flush()
            if key_within(every_s) == "q":
                return ExitCode.DONE


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
