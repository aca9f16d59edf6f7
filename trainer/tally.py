"""Where an attempt's seconds go, by this machine's monotonic clock alone: machines' clocks may be minutes apart.

A piece of work is a step, or a whole evaluation. Work is `training_s` and `evaluation_s`, which are of pieces that were
completed, and `unfinished_s`, of the one in hand. What else of `seconds` there is, is overhead: start-up, stalls for
saving, the last save, the result.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import NamedTuple

from trainer.settings import Json

CLOCK = time.monotonic
_IMPORTED = CLOCK()
MOST_SAVES = 64  # of which the times are kept; then every second one is forgotten


def since_process_began() -> float:
    """Seconds since this process was started; since this module was imported where /proc tells nothing."""
    here = CLOCK() - _IMPORTED
    try:
        # proc_pid_stat(5): field 22, in clock ticks since the machine was booted; field 2 may hold blanks
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        seconds = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return here
    return seconds if here <= seconds < here + 3600 else here


class _Spent(NamedTuple):
    """Replaced whole, so that the thread which leaves signs of life reads one that fits together."""

    training: float = 0.0
    evaluation: float = 0.0
    stall: float = 0.0
    since: float | None = None  # when the piece of work in hand was begun; None: there is none


class Tally:
    def __init__(self, first_step: int = 0, clock_ahead_s: float | None = None) -> None:
        """`first_step`: where this attempt goes on.

        `clock_ahead_s`: how far this machine's clock is ahead of the store's, which is the same for all machines.
        """
        self._first_step = first_step
        self._began = CLOCK() - since_process_began()
        self.clock_ahead_s = clock_ahead_s
        self._spent = _Spent()
        self._evaluating = False
        self._startup_s: float | None = None
        self._unfinished_s = 0.0  # of a piece of work that was given up
        self._saves: list[list[Json]] = []  # [step, seconds] of the states that were made durable
        self._each = 1  # how many saves one of these stands for
        self._left_out = 0

    def work(self, *, evaluating: bool) -> None:
        """Work begins here, or goes on."""
        now = CLOCK()
        if self._startup_s is None:
            self._startup_s = now - self._began
        if self._spent.since is None:
            self._spent = self._spent._replace(since=now)
            self._evaluating = evaluating

    def worked(self, *, evaluating: bool) -> None:
        """The piece of work in hand is complete, if it is of this kind."""
        spent = self._spent
        if spent.since is None or self._evaluating is not evaluating:
            return
        seconds = CLOCK() - spent.since
        if evaluating:
            self._spent = spent._replace(evaluation=spent.evaluation + seconds, since=None)
        else:
            self._spent = spent._replace(training=spent.training + seconds, since=None)

    def stalled(self, seconds: float) -> None:
        """Work stood still for a save, until now."""
        spent = self._spent
        since = None if spent.since is None else spent.since + seconds
        self._spent = spent._replace(stall=spent.stall + seconds, since=since)

    def rest(self) -> None:
        """No more work is done; the piece in hand is given up."""
        spent = self._spent
        if spent.since is not None:
            self._unfinished_s += CLOCK() - spent.since
            self._spent = spent._replace(since=None)

    def saved(self, step: int, seconds: Json) -> None:
        """The state after `step` steps, taken when `now` told these `seconds`, is durable."""
        self._left_out += 1
        if self._left_out < self._each:
            return
        self._left_out = 0
        saves: list[list[Json]] = [*self._saves, [step, seconds]]
        if len(saves) > MOST_SAVES:
            saves, self._each = saves[::2], 2 * self._each
        self._saves = saves

    @property
    def seconds(self) -> float:
        """Since the process began."""
        return round(CLOCK() - self._began, 3)

    def now(self, step: int) -> dict[str, Json]:
        """For the record; seconds each, `step` the newest boundary."""
        spent, now = self._spent, CLOCK()
        unfinished = self._unfinished_s + (0.0 if spent.since is None else now - spent.since)
        return {
            "first_step": self._first_step,
            "step": step,
            "seconds": round(now - self._began, 3),
            "startup_s": None if self._startup_s is None else round(self._startup_s, 3),
            "training_s": round(spent.training, 3),
            "evaluation_s": round(spent.evaluation, 3),
            "unfinished_s": round(unfinished, 3),
            "save_stall_s": round(spent.stall, 3),
            "clock_ahead_s": self.clock_ahead_s,
        }

    def with_saves(self, step: int) -> dict[str, Json]:
        """As `now`, and when saves were made, of which there may be a few dozen."""
        return {**self.now(step), "saves": list(self._saves)}
