"""One container's part in a run, from its claim to its end: what is saved when, and what is put on record."""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from storage.errors import StoreError
from storage.retry import Retrying, bare
from trainer import curve
from trainer.cadence import Cadence, best_interval_s, lifetime_s
from trainer.checkpoint import HostBuffers, Position, settle, take
from trainer.commit import Commit, RunFacts, Save
from trainer.early import Early
from trainer.ending import record_end, told
from trainer.history import History, Superseded
from trainer.job import Task
from trainer.loop import Plan, seen_this_epoch
from trainer.manifest import Manifest
from trainer.progress import Evaluating, Pace, Progress
from trainer.result import write_result
from trainer.retention import Retention
from trainer.saver import CLOCK, Durable, Saver, durable
from trainer.scores import Metric
from trainer.settings import Json
from trainer.signs import Signs
from trainer.tally import Tally
from watchers import Mailbox, Notice

log = logging.getLogger("baton")

TRY_S = 30.0  # how long one save meets faults by trying again; the next one has a newer state to save
LAST_TRY_S = 60.0  # the same for the last save, where no deadline is known
SPARE_S = 1.0  # kept before a deadline, for the end of the process
RECORD_S = 0.3  # for the end's record where even that is over, and of it for what comes after


class Answer(NamedTuple):
    """A checkpoint that a notice led to."""

    step: int
    at: float  # when it was durable, in seconds since 1970


class Attempt:
    """Hears of every boundary from the loop; saves when due; signs; keeps the records."""

    def __init__(
        self,
        history: History,
        facts: RunFacts,
        plan: Plan,
        task: Task,
        position: Position,
        mailbox: Mailbox,
        *,
        cadence: Cadence,
        keep: int,
        resumed_from: Manifest | None,
        ledger: Sequence[dict[str, Json]],
        unsaved: Sequence[dict[str, Json]] = (),
        stop_grace_s: float,
        show: Callable[[Progress], None],
        show_every_s: float,
        tally: Tally | None = None,
        tell_line: Callable[[Mapping[str, Json]], None] = lambda line: None,
    ) -> None:
        """`ledger`: of the attempts before, as far as the checkpoint that this one goes on from; `unsaved`: those that
        it knows nothing of, as they ended before they saved.

        `tell_line` hears of each metric line at once, before it is durable.
        """
        store = bare(history.store)
        self.history = history.through(Retrying(store, self._retry_s, mailbox.pause))
        self.facts = facts
        self.position = position
        self.metrics: dict[str, Json] = dict(resumed_from.metrics) if resumed_from else {}
        self.plan = plan
        self.task = task
        self._mailbox = mailbox
        self.cadence = cadence
        self.interval_why = ""  # why `auto` saves as often as it does
        self._show = show
        self._show_every_s = show_every_s
        self.superseded: Superseded | None = None
        self.lost_state: str | None = None  # why the state can't be read any more
        self.stopped_at: float | None = None  # when a notice had stopped the loop, in seconds since 1970
        self.answers: dict[str, Answer] = {}  # a notice's id -> the first state saved that is as new as it
        self._stop_grace_s = stop_grace_s
        self._lines: list[tuple[int, str]] = []  # metric lines that no manifest has yet, each with its step
        self._tell_line = tell_line
        self._points: list[tuple[dict[str, float], Tensor]] = []  # of the curve, whose sums the device has as yet
        self._drawn = position.step  # the newest step that has a point of the curve, or had its chance
        self._buffers = HostBuffers()
        self._owed = False  # a save fell due while another was in flight
        self._ledger_before = list(ledger)
        self._unsaved = list(unsaved)
        self.tally = tally or Tally(position.step)
        self.first_step = position.step  # from which this attempt goes on
        self.started, self._began = time.time(), CLOCK()  # a machine's clock may be set meanwhile, by days
        self._first_step_made: float | None = None
        self._stall_s = 0.0
        self._first_stall_s = 0.0  # of these, the first save's, which makes the buffers that later ones use again
        self._saves = 0
        self._evaluation_s = 0.0
        self._evaluation_began: float | None = None
        self.pace = Pace(plan, task, position.step)
        self._retention = Retention(self.history, keep)
        self.saver = Saver(
            self.history,
            facts,
            durable(resumed_from, self.tally.clock_ahead_s) if resumed_from else None,
            on_durable=self._on_durable,
            on_superseded=self.on_superseded,
            between=self._clean_up,
        )
        self.signs = Signs(self, history.through(store), mailbox)
        self.signs.begin()

    # -- what the loop tells ----------------------------------------------------------------------------------

    def boundary(self, *, evaluating: bool, evaluated: float = 0.0) -> None:
        if evaluating and self._evaluation_began is None:
            settle(self.plan.device)  # what a GPU has yet to compute is training
        now = CLOCK()
        self.tally.worked(evaluating=False)
        if evaluating:
            self.tally.work(evaluating=True)
        if self._first_step_made is None and self.position.step > self.first_step:
            self._first_step_made = time.time()
            log.debug("first step made")
        self._draw()
        if evaluating and self._evaluation_began is None:
            self._evaluation_began = now
            log.debug("evaluating after step %d", self.position.step)
        if now - self.pace.told >= self._show_every_s:
            self._read_points()
            loss = self.position.sums.get("loss")
            part = Evaluating(evaluated, now - self._evaluation_began) if self._evaluation_began is not None else None
            self._show(self.pace.tell(self.position.step, loss, self.saver, part))
        if self._is_due(now, evaluating):
            if self.saver.busy:
                self._owed = True
            else:
                self._owed = False
                self.tally.work(evaluating=evaluating)  # what a GPU has yet to compute is no stall
                settle(self.plan.device)
                self.tally.worked(evaluating=False)
                begun = CLOCK()
                self.saver.start(self._take(copy=True))
                stall = CLOCK() - begun
                self._stall_s += stall
                self._first_stall_s = self._first_stall_s or stall
                self.tally.stalled(stall)
                self._saves += 1
        self.tally.work(evaluating=evaluating)

    def _draw(self) -> None:
        """Add the loss curve's point of this boundary to the metric lines."""
        step, total = self.position.step, self.position.sums.get("loss")
        if step <= self._drawn or total is None or not curve.is_due(step, self.plan.steps):
            return
        self._drawn = step
        line: dict[str, float] = {
            "step": step,
            "epoch": -(-step // self.plan.steps_per_epoch),
            "seen": seen_this_epoch(self.plan, step),
            "attempt": self.facts.attempt,
            "seconds": self.tally.seconds,
        }
        self._points.append((line, total))
        if not total.is_cuda:
            self._read_points()

    def _read_points(self) -> None:
        """Put the curve's points on record. A GPU is asked for all at once: it would stand still after each."""
        for line, total in self._points:
            self._add_line(int(line["step"]), finite({"step": line["step"], "loss_sum": float(total), **line}))
        self._points.clear()

    def _add_line(self, step: int, line: dict[str, Json]) -> None:
        self._lines.append((step, json.dumps(line)))
        self._tell_line(line)

    def evaluated(self, metrics: dict[str, Metric]) -> None:
        self.tally.worked(evaluating=True)
        self._read_points()
        step = self.position.step
        seen = seen_this_epoch(self.plan, step)
        train_loss = float(self.position.sums["loss"]) / seen
        self.metrics = {"step": step, **finite({**metrics, "train_loss": train_loss})}
        now = CLOCK()
        began = now if self._evaluation_began is None else self._evaluation_began
        self._evaluation_s += now - began
        self._evaluation_began = None
        self.pace.evaluated(began, now)
        epoch = -(-step // self.plan.steps_per_epoch)
        line: dict[str, Json] = {
            **self.metrics,
            "epoch": epoch,
            "attempt": self.facts.attempt,
            "time": time.time(),
            "seconds": self.tally.seconds,
            "samples_per_s": self.pace.last.samples_per_s if self.pace.last else None,
        }
        self._add_line(step, line)
        log.info(
            "epoch %d of %d ends: %s",
            epoch,
            -(-self.plan.steps // self.plan.steps_per_epoch),
            told(self.metrics),
            extra={"fields": {"step": step, "epoch": epoch, **self.metrics}},
        )
        if not math.isfinite(train_loss):
            log.warning("the loss is no longer a number: a smaller --lr may help; the run goes on as it was told")

    # -- saving -----------------------------------------------------------------------------------------------

    def _is_due(self, now: float, evaluating: bool) -> bool:
        step, saver = self.position.step, self.saver
        if step == 0 or (saver.durable is not None and saver.durable.step == step):
            return False
        if evaluating and step == self.plan.steps:
            return False  # the run's last checkpoint holds its evaluation, and an attempt has one of a step
        since_last = now - saver.began
        if saver.error is not None and not saver.busy:
            return since_last >= min(5.0, self.cadence.seconds or 5.0)
        if self._owed or (self._mailbox.take_save()):
            return True
        if evaluating and not self.cadence.seconds:
            return False  # the step's save comes after its evaluation, and holds the result
        return self.cadence.due(step, self.plan.steps_per_epoch, since_last)

    def _take(self, *, copy: bool) -> Save:
        step = self.position.step
        self._read_points()
        on_gpu = self.plan.device.type == "cuda"  # whose memory is copied in any case, into what is pinned already
        reused = copy or (on_gpu and not self.saver.busy)
        snapshot = take(self.task, self.position, self._buffers if reused else None)

        def lines() -> list[str]:
            return [line for at, line in list(self._lines) if at <= step]

        return Save(snapshot, dict(self.metrics), [*self._ledger_before, self._ledger_entry()], lines)

    def _ledger_entry(self) -> dict[str, Json]:
        return {
            **self.facts.machine,
            "attempt": self.facts.attempt,
            "first_step": self.first_step,
            "last_step": self.position.step,
            "started": self.started,
            "first_step_made": self._first_step_made,
            "seconds": CLOCK() - self._began,
            "evaluation_s": self._evaluation_s,
            "save_stall_s": self._stall_s,
            "tally": self.tally.now(self.position.step),
        }

    def _on_durable(self, done: Commit) -> None:
        del self._lines[: len(done.lines)]
        tally = done.manifest.ledger[-1]["tally"]
        assert isinstance(tally, dict)
        self.tally.saved(done.manifest.step, tally["seconds"])
        self.signs.news()
        for notice in list(self._mailbox.notices):
            if done.taken >= notice.seen:
                self.answers.setdefault(notice.id, Answer(done.manifest.step, time.time()))
        if self.cadence.auto and self._saves:
            self._choose_interval()

    def _choose_interval(self) -> None:
        """Young's interval from what saves have cost here and how long this run's machines have lasted."""
        on_cpu = self.plan.device.type == "cpu"  # there, saving takes processors from training
        cost_s = self._stall_s / self._saves
        if self._saves > 1:  # what the next one costs is as the later ones
            cost_s = (self._stall_s - self._first_stall_s) / (self._saves - 1)
        if on_cpu:
            cost_s += self.saver.busy_s / torch.get_num_threads() / self._saves
        lifetime = lifetime_s([*self._ledger_before, *self._unsaved], CLOCK() - self._began)
        interval = best_interval_s(cost_s, self.saver.expected_s or 0.0, lifetime)
        changed = not 0.67 < interval / self.cadence.seconds < 1.5 or not self.interval_why
        self.cadence = replace(self.cadence, seconds=interval)
        self.interval_why = (
            f"a save costs {1000 * cost_s:.0f} ms of training and takes {self.saver.expected_s or 0.0:.1f} s, "
            f"a machine is expected to last {lifetime / 3600:.1f} h"
        )
        if changed and self.position.step < self.plan.steps and self._mailbox.stop is None:  # there is a next save
            log.info("saving every %.0f s from now on: %s", interval, self.interval_why)

    def _clean_up(self, newest: Durable) -> None:
        self._retention.between_saves(
            self.facts.attempt, newest.name, lambda: self.saver.busy, lambda: self._mailbox.stop is not None
        )

    def on_superseded(self, why: Superseded) -> None:
        self.superseded = why  # before the notice, whose reader looks here
        self._mailbox.post(Notice("superseded", "stop", str(why), f"superseded:{why.attempt}", time.time()))

    def _time_left(self) -> float:
        """Seconds until the process must end; a nearer deadline may come at any moment."""
        deadline = self._mailbox.deadline
        return math.inf if deadline is None else deadline - time.time() - SPARE_S

    def _retry_s(self, tried_s: float) -> float:
        """How much longer a store's faults are met by trying again."""
        return retry_s(tried_s, self._time_left(), stopping=self._mailbox.stop is not None)

    def save_last(self, *, final: bool) -> bool:
        """Make the stopped run's state durable within what the notices leave of time; True if it is.

        `final`: at the run's end, with its evaluation.
        """
        self.tally.rest()
        if self.superseded is not None:
            self.saver.take_back(self._time_left)
            return False
        if self.position.step == 0 and self.saver.durable is None:
            return True  # nothing was trained, so nothing can be lost
        if self.lost_state is not None:
            return self.saver.land(self.position.step, self._time_left)
        return self.saver.save_now(
            self._take(copy=False), self._time_left, self._stop_grace_s, LAST_TRY_S, evaluated=final
        )

    # -- its end ------------------------------------------------------------------------------------------------------

    def write_result(self, classes: Sequence[str]) -> None:
        """Raises `StoreError`; `Stopped` if a notice came and it takes longer than the grace of a SIGTERM allows."""
        last = self.saver.durable
        assert last is not None

        def write() -> None:
            write_result(self.history, self.facts, self.task, last, self.metrics, classes)

        try:
            Early(write, "result").result(self._mailbox, self._stop_grace_s / 2)
        except Superseded as e:
            self.on_superseded(e)

    def end(self, exit_code: int, outcome: str) -> None:
        """Put the end on record. A store that is away, or too slow for the deadline, is no reason not to end."""
        self.tally.rest()
        self.signs.end()
        # a daemon, and left behind at the deadline: one request to a slow store may last longer than all that is left
        thread = threading.Thread(target=self._put_end_on_record, args=(exit_code, outcome), name="end", daemon=True)
        thread.start()
        began = CLOCK()
        while thread.is_alive():
            if CLOCK() - began > RECORD_S and (self.saver.stuck or self._time_left() < RECORD_S - SPARE_S):
                why = "the store hangs" if self.saver.stuck else "no time is left"
                log.warning("the end of this attempt is not put on record: %s", why)
                return
            thread.join(0.05)

    def _is_superseded(self) -> bool:
        """Also where it was not heard of yet, by who slept since the last save."""
        if self.superseded is None:
            try:
                self.history.check_fence(self.facts.attempt)
            except Superseded:
                return True
            except StoreError as e:  # the record is tried all the same
                log.debug("whether another copy has come could not be found out: %s", e)
        return self.superseded is not None

    def _put_end_on_record(self, exit_code: int, outcome: str) -> None:
        try:
            superseded = self._is_superseded()
            if superseded and not self.history.holds_claim(self.facts.attempt):
                return  # the run was deleted: a record of this number is its heir's
            record_end(self.history, self.facts.attempt, exit_code, outcome, self._mailbox, self)
            if not superseded:  # whatever else came: else the newer copy's sign would be overwritten
                self.signs.last("finished" if outcome == "finished" else "stopped", exit_code, outcome)
        except Exception as e:
            # after a save that failed it says nothing new, and what was said last is what to do
            level = logging.DEBUG if outcome == "not durable" else logging.WARNING
            log.log(level, "the end of this attempt could not be put on record: %s", e)


def retry_s(tried_s: float, left_s: float, *, stopping: bool) -> float:
    """How much longer a store's faults are met by trying again, after `tried_s` seconds of it.

    `left_s`: until the process must end, infinite if nobody said. `stopping`: there is no later save than this one.
    """
    if not stopping:
        return TRY_S - tried_s
    return left_s if left_s < math.inf else LAST_TRY_S - tried_s


def finite(values: Mapping[str, Metric]) -> dict[str, Json]:
    """JSON has no NaN and no infinity: null in their place."""
    return {n: value if isinstance(value, list) or math.isfinite(value) else None for n, value in values.items()}
