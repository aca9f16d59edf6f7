"""Progress for people: a live display on a terminal, one whole line every few seconds elsewhere."""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from console import logs

if TYPE_CHECKING:
    from trainer.progress import Progress

log = logging.getLogger("baton")


class Lines:
    """One log line each time."""

    every_s = 5.0

    def show(self, progress: Progress) -> None:
        log.info("%s", describe(progress), extra={"fields": facts(progress)})

    def close(self) -> None:
        pass


class Live:
    """A bar that redraws itself, with log lines above it."""

    every_s = 0.25
    BAR = 5 + 1 + 12 + 1  # columns before the words: the share, the bar, and a blank after each

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bar
        from rich.table import Column

        self._bar = Bar(
            TextColumn("{task.percentage:>3.0f} %", table_column=Column(min_width=5)),
            BarColumn(bar_width=12, table_column=Column(min_width=12)),
            TextColumn("{task.description}", table_column=Column(ratio=1)),
            console=Console(soft_wrap=True),
            expand=True,
            transient=True,
        )
        self._task = self._bar.add_task("starting", total=None)
        self._bar.start()  # redirects what is printed meanwhile to above the bar

    def show(self, progress: Progress) -> None:
        line = logs.marked(describe(progress))
        if len(line) > self._bar.console.width - self.BAR:  # what is to come has a line of its own, in one place
            line = logs.marked("\n".join(map(", ".join, (done(progress), ahead(progress)))))
        self._bar.update(self._task, completed=progress.step, total=progress.steps, description=line)

    def close(self) -> None:
        with suppress(OSError):  # the terminal may be gone
            self._bar.stop()


def describe(progress: Progress) -> str:
    """Everything about a run's progress in one line."""
    return ", ".join([*done(progress), *ahead(progress)])


def done(progress: Progress) -> list[str]:
    """How far it is."""
    words = [f"epoch {progress.epoch}/{progress.epochs}", f"step {progress.step}/{progress.steps}"]
    if progress.loss is not None:
        words.append(f"loss {progress.loss:.3f}")
    if progress.samples_per_s is not None:
        words.append(f"{progress.samples_per_s:,.0f} {progress.unit}/s")
    return words


def ahead(progress: Progress) -> list[str]:
    """How long it will take, and how much would be lost now."""
    words = []
    if progress.evaluated is not None:
        words.append(f"evaluating: {100 * progress.evaluated:.0f} %")
    if progress.seconds_left is not None:
        words.append(f"{duration(progress.seconds_left)} left")
    if progress.save_error is not None:
        words.append("SAVING FAILS")
    if progress.durable is not None:
        age = max(0.0, time.time() - progress.durable.at)
        words.append(f"saved: step {progress.durable.step}, {duration(age)} ago")
    else:
        words.append("nothing saved yet")
    return words


def facts(progress: Progress) -> dict[str, float | str | bool | None]:
    """The same for a program: a field for each word of the line."""
    return {
        "epoch": progress.epoch,
        "epochs": progress.epochs,
        "step": progress.step,
        "steps": progress.steps,
        "loss": progress.loss,
        "samples_per_s": progress.samples_per_s,
        "evaluating": progress.evaluated is not None,
        "evaluated": progress.evaluated,
        "seconds_left": progress.seconds_left,
        "save_error": progress.save_error,
        "durable_step": progress.durable.step if progress.durable else None,
        "durable_age_s": max(0.0, time.time() - progress.durable.at) if progress.durable else None,
    }


def duration(seconds: float) -> str:
    """In the two largest units that matter: 5 s, 3 min 10 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def roughly(seconds: float) -> str:
    """In one unit, rounded down: 5 s, 3 min, 2 h, 12 days."""
    for unit, name in ((86400.0 * 2, "days"), (3600.0, "h"), (60.0, "min")):
        if seconds >= unit:
            return f"{int(seconds // (86400 if name == 'days' else unit))} {name}"
    return f"{int(seconds)} s"
