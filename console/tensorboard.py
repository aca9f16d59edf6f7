"""TensorBoard's event files: one continuous curve over all attempts of a run, no step twice and none left out.

A file is written anew from the run's records whenever a copy starts, and then goes on: so what a copy before this one
showed in the same folder and lost is not shown twice, and a machine that has no files gets the whole curve.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from storage.errors import StoreError
from trainer.curve import is_number, losses
from trainer.history import History
from trainer.ledger import Ledger, account
from trainer.records import read
from trainer.settings import Json
from watchers import Stopped

log = logging.getLogger("baton")

SUFFIX = ".baton"  # of files that may be written anew
NO_METRICS = {"step", "epoch", "attempt", "time", "seconds", "train_loss", "samples_per_s"}
FLUSH_S = 10
PATIENCE_S = 2.0  # for what is still to be written when training ends


class Curves:
    """The event file of one run. Raises `OSError` where it can't be written."""

    def __init__(self, folder: Path, run: str) -> None:
        from tensorboardX import SummaryWriter  # type: ignore[import-untyped]

        place = folder / run
        place.mkdir(parents=True, exist_ok=True)
        for old in place.glob(f"events.out.tfevents.*{SUFFIX}"):
            old.unlink()
        self._writer: Any = SummaryWriter(str(place), filename_suffix=SUFFIX, flush_secs=FLUSH_S)
        self._drawn = self._evaluated = -1  # the newest step that has been told of
        self._before: Mapping[str, Json] = {}  # the point before, of which the next one's loss is the difference

    def tell(self, ledger: Ledger) -> None:
        """All that the run's newest checkpoint knows."""
        began = {entry.attempt: entry.began or 0.0 for entry in ledger.entries}
        for line in sorted([*ledger.points, *(e.metrics for e in ledger.evaluations)], key=_place):
            seconds, attempt = line.get("seconds"), line.get("attempt")
            start = began.get(attempt, 0.0) if isinstance(attempt, int) else 0.0
            self.add(line, start + (seconds if is_number(seconds) else 0.0))

    def add(self, line: Mapping[str, Json], at: float) -> None:
        """One metric line, as the trainer keeps them; told at `at`, in seconds since 1970."""
        step = line.get("step")
        if type(step) is not int:
            return
        if "loss_sum" in line:
            if step > self._drawn:
                found = losses([self._before, line])
                if found and found[-1][0] == step:
                    self._writer.add_scalar("train/loss", found[-1][1], step, walltime=at)
                self._drawn, self._before = step, line
        elif step > self._evaluated:
            self._evaluated = step
            for name, value in line.items():
                if name not in NO_METRICS and is_number(value):
                    self._writer.add_scalar(f"test/{name}", value, step, walltime=at)
            if is_number(line.get("samples_per_s")):
                self._writer.add_scalar("speed/samples_per_s", line["samples_per_s"], step, walltime=at)

    def close(self) -> None:
        self._writer.close()


def _place(line: Mapping[str, Json]) -> tuple[int, bool]:
    step = line.get("step")
    return (step if type(step) is int else 0, "loss_sum" not in line)


class Following:
    """Writes while a run is trained, in a thread of its own: a slow disk or store holds nobody up."""

    def __init__(self, folder: Path, history: History) -> None:
        self._lines: queue.Queue[tuple[Mapping[str, Json], float] | None] = queue.Queue()
        self._folder = folder
        self._history = history
        self._thread: threading.Thread | None = None

    def line(self, line: Mapping[str, Json]) -> None:
        """Of a metric line, as it is made."""
        self._lines.put((line, time.time()))

    def begin(self) -> None:
        """The run is claimed: what is on record of it now is what this copy goes on from."""
        self._thread = threading.Thread(target=self._write, name="tensorboard", daemon=True)
        self._thread.start()

    def close(self) -> None:
        if self._thread is not None:
            self._lines.put(None)
            self._thread.join(PATIENCE_S)

    def _write(self) -> None:
        try:
            curves = Curves(self._folder, self._history.run)
            try:
                records = read(self._history)
                if records is not None:
                    curves.tell(account(records))
            except (StoreError, Stopped) as e:
                log.warning("--tensorboard: what was trained before can't be read, and is left out: %s", e)
            while (item := self._lines.get()) is not None:
                curves.add(*item)
            curves.close()
        except OSError as e:
            log.warning("--tensorboard %s: no more curves are written: %s", self._folder, e)
