"""Saving beside training: one checkpoint in flight at a time, in a thread; durable before anyone says so."""

from __future__ import annotations

import logging
import math
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from storage.errors import NoSpace, StoreError
from trainer.commit import Abandoned, Commit, RunFacts, Save, prepare
from trainer.curve import is_number
from trainer.history import History, Superseded
from trainer.manifest import Manifest

log = logging.getLogger("baton.saver")

CLOCK = time.monotonic
_OF_ITS_OWN = re.compile(r"[0-9a-f]{64}|[0-9]{6,}-[0-9]{8,}")  # in an error: the names that each save has others of
# A save in which nothing begins for so long is over, where no deadline ends it: a disk or server that hangs for good.
# Generous, for a tensor is one thing, whatever its size: of 1 GB it is on its way for that long at 2.3 Mbit/s.
STUCK_S = 3600.0
TAKE_BACK_S = 2.0  # nobody waits for a copy that is superseded, but it holds a machine
RECENT = 3  # saves whose slowest tells how long the next one may take


@dataclass(frozen=True, slots=True)
class Durable:
    """A checkpoint known to be in the store."""

    name: str
    step: int
    at: float  # seconds since 1970
    evaluated: bool  # whether it holds the evaluation of its own step
    weights_sha256: str
    state_sha256: str
    order_sha256: str
    weights: tuple[str, ...]  # SHA-256 of the parts that hold the model


def durable(manifest: Manifest, clock_ahead_s: float | None = None) -> Durable:
    """`clock_ahead_s`: of this machine's clock, where another machine wrote it: `at` is by this one's."""
    theirs = manifest.ledger[-1].get("tally") if manifest.ledger else None
    ahead = theirs.get("clock_ahead_s") if isinstance(theirs, dict) else None
    off = clock_ahead_s - ahead if clock_ahead_s is not None and is_number(ahead) else 0.0
    return Durable(
        manifest.name,
        manifest.step,
        manifest.time + off,
        manifest.metrics.get("step") == manifest.step,
        manifest.weights_sha256,
        manifest.state_sha256,
        manifest.order_sha256,
        tuple(ref.sha256 for ref in manifest.parts if ref.section == "model"),
    )


class Flight:
    """One save on its way to the store."""

    def __init__(self, save: Save) -> None:
        self.save = save
        self.began = self.moved = CLOCK()  # when a tensor or a part was last begun to be sent
        self.landed = threading.Event()  # made durable, failed or given up
        self._lock = threading.Lock()
        self._committing = self._abandoned = False

    def holds(self, step: int, *, evaluated: bool) -> bool:
        """Whether it is of this step, and has the step's evaluation if that is asked for."""
        return self.save.snapshot.step == step and (not evaluated or self.save.metrics.get("step") == step)

    def abandon(self) -> bool:
        """Give the save up; False if it is being committed at this moment, and so over soon."""
        with self._lock:
            self._abandoned = not self._committing
            return self._abandoned

    @property
    def abandoned(self) -> bool:
        with self._lock:
            return self._abandoned

    @property
    def committing(self) -> bool:
        """Whether its manifest is on its way."""
        with self._lock:
            return self._committing

    def check(self, *, committing: bool = False) -> None:
        """Raise `Abandoned` if it was given up; once `committing`, it can't be any more."""
        self.moved = CLOCK()
        with self._lock:
            if self._abandoned:
                raise Abandoned
            self._committing = committing


def last_save_needs_way(in_flight_s: float, last_s: float, time_left_s: float, grace_s: float) -> bool:
    """Whether the save in flight should be given up for the last one, by their expected seconds.

    Only if the last one fits before the deadline and both do not; and never if what is in flight would land within
    the grace of a SIGTERM, which may follow any notice.
    """
    return in_flight_s + last_s > time_left_s >= last_s and in_flight_s > grace_s


class Saver:
    """Takes a save from the training thread and makes it durable in a thread of its own."""

    def __init__(
        self,
        history: History,
        facts: RunFacts,
        parent: Durable | None,
        on_durable: Callable[[Commit], None],
        on_superseded: Callable[[Superseded], None],
        between: Callable[[Durable], None],
    ) -> None:
        """`between` is called with the newest checkpoint after each save, and where there was no room for one; it ends
        as soon as the saver is busy."""
        self._between = between
        self._history = history
        self._facts = facts
        self._on_durable = on_durable
        self._on_superseded = on_superseded
        self._fresh: frozenset[str] = frozenset()
        self._flight: Flight | None = None
        self._unsure: Commit | None = None  # the store may have it: no answer came
        self._defect: BaseException | None = None
        self._superseded = False
        self._recent: list[float] = []  # seconds of the last saves
        self.durable = parent  # the newest checkpoint of this run's history that is known to be in the store
        self.began = CLOCK()  # when the last save began
        self.error: str | None = None  # why the last save failed; None once one worked
        self.fault: type[StoreError] | None = None  # the same as a kind: an error itself would keep its save in memory
        self.stuck = False  # the store hangs, and nobody waits for it any more
        self.busy_s = 0.0  # processor time that saving has taken

    @property
    def busy(self) -> bool:
        flight = self._flight
        return flight is not None and not flight.landed.is_set()

    @property
    def expected_s(self) -> float | None:
        """How long a save takes, boundary to durable; None if none has been measured."""
        return max(self._recent, default=None)

    def start(self, save: Save) -> None:
        """Begin to make `save` durable, and return. Nothing may be in flight."""
        if self._defect is not None:
            raise self._defect
        assert not self.busy
        flight = Flight(save)
        # a daemon: at a deadline the process must end, whatever a request still waits for
        threading.Thread(target=self._fly, args=(flight,), name="saver", daemon=True).start()
        self._flight, self.began = flight, flight.began  # only now: one without a thread would never land

    def save_now(
        self, save: Save, time_left: Callable[[], float], grace_s: float, try_s: float, *, evaluated: bool
    ) -> bool:
        """Make the stopped run's last state durable. True if it is.

        `time_left()`: seconds until the machine goes, asked again and again. A failing save is tried again for as long,
        or for `try_s` seconds where it is infinite, because nobody said. `evaluated`: the checkpoint must hold its
        step's evaluation. Raises the defect that this save met, but no earlier one's. Nothing is given up that moves.
        """
        began, mine, told = CLOCK(), None, False
        while not self._superseded:
            if self._is_durable(save.snapshot.step, evaluated=evaluated):
                return True
            flight, left = self._flight, time_left()
            if left <= 0:
                return False
            if flight is not None and self.busy:
                if self._is_stuck(flight, began, left):
                    return False
                if flight is not mine and not flight.holds(save.snapshot.step, evaluated=evaluated):
                    self._make_way(flight, left, grace_s)
                flight.landed.wait(min(0.1, left))
            elif mine is None or self._defect is not None or left < math.inf or CLOCK() - began < try_s:
                if mine is None:
                    self._defect = None  # an earlier save's: this state is tried all the same
                elif self._defect is None:
                    if not told:  # the same fault may have been told of long ago
                        told, more = True, left if left < math.inf else try_s - (CLOCK() - began)
                        log.warning("trying for another %.0f s to save the last state: %s", more, self.error)
                    time.sleep(min(1.0, left))
                self.start(save)
                mine = self._flight
            else:
                return False
        return False

    def take_back(self, time_left: Callable[[], float]) -> None:
        """Give up what is in flight, for a newer copy has the run, and wait until it leaves nothing half written."""
        flight = self._flight
        if flight is not None:
            flight.abandon()
            flight.landed.wait(max(0.0, min(TAKE_BACK_S, time_left())))

    def land(self, step: int, time_left: Callable[[], float]) -> bool:
        """Wait for what is in flight, for no more than `time_left()` seconds. True if `step` is durable then."""
        flight, began = self._flight, CLOCK()
        while flight is not None and not flight.landed.is_set() and (left := time_left()) > 0:
            if self._is_stuck(flight, began, left):
                break
            flight.landed.wait(min(0.1, left))
        return self._is_durable(step, evaluated=False)

    def _is_durable(self, step: int, *, evaluated: bool) -> bool:
        last = self.durable
        return last is not None and last.step == step and (last.evaluated or not evaluated)

    def _is_stuck(self, flight: Flight, waiting_since: float, left: float) -> bool:
        if left == math.inf and CLOCK() - max(waiting_since, flight.moved) > STUCK_S:
            self.stuck, self.error = True, f"the store has hung for {STUCK_S / 60:.0f} minutes"
        return self.stuck

    def _make_way(self, flight: Flight, left: float, grace_s: float) -> None:
        """Abandon what is in flight if only the last save fits before the deadline."""
        if self.expected_s is None:
            return  # unknown speed: finish what is in flight
        elapsed = CLOCK() - flight.began
        takes = max(self.expected_s, 1.25 * elapsed)  # one that is late already shows a slower link
        if last_save_needs_way(takes - elapsed, takes, left, grace_s) and flight.abandon():
            log.warning(
                "only one more save fits in the %.0f s that are left: the one of step %d is given up for the last one",
                left,
                flight.save.snapshot.step,
            )
            self._flight = None

    def _fly(self, flight: Flight) -> None:
        busy = time.thread_time()
        try:
            self._save(flight)
        except Abandoned:
            log.debug("the save of step %d was given up", flight.save.snapshot.step)
        except Superseded as e:
            self._on_superseded(e)
            self._superseded = True  # after whoever waits for it has the reason
        except BaseException as e:
            if flight.abandoned:  # the last save has taken its place: its trouble is nobody's any more
                log.debug("the save of step %d was given up, and failed: %s", flight.save.snapshot.step, e)
            elif isinstance(e, StoreError):
                self._failed(flight, e)
            else:  # a defect: told to the training thread, which ends with it
                self._defect = e
        finally:
            self.busy_s += time.thread_time() - busy
            flight.landed.set()
        if self.durable is not None and self.fault in (None, NoSpace) and not self._superseded:
            self._between(self.durable)

    def _save(self, flight: Flight) -> None:
        if self._superseded:
            return
        step = flight.save.snapshot.step
        log.debug("saving the state at step %d", step)
        unsure = self._unsure
        if unsure is not None and (unsure.manifest.step != step or unsure.manifest.metrics == flight.save.metrics):
            # first: else both would have one parent, and who finds the later one bad would not come to this one
            if unsure.was_made(self._history, flight.check):
                self._made(unsure, newest=unsure.manifest.step == step)
            self._unsure = None
            if self._is_durable(step, evaluated=False):
                return
        parent = self.durable.name if self.durable else None
        done = prepare(self._history, self._facts, flight.save, parent, self._fresh, flight.check)
        self.busy_s += done.busy_s
        try:
            done.make(self._history, flight.check)
        except StoreError:
            if flight.committing:
                self._unsure = done
            raise
        self._unsure = None
        seconds = CLOCK() - flight.began
        self._recent = [*self._recent, seconds][-RECENT:]
        self._made(done, newest=True)
        log.debug("checkpoint %s durable after %.3f s, %.1f MB sent", done.manifest.name, seconds, done.sent / 1e6)

    def _made(self, done: Commit, *, newest: bool) -> None:
        """`newest`: it is the one that was to be saved, and not an earlier one on the way to that."""
        manifest = done.manifest
        if newest:
            if self.error is not None:
                log.warning("saving works again: checkpoint at step %d is durable", manifest.step)
            self.error = self.fault = None
        self._fresh = frozenset(ref.sha256 for ref in manifest.parts)
        self.durable = durable(manifest)
        self._on_durable(done)

    def _failed(self, flight: Flight, fault: StoreError) -> None:
        age = f"the last durable one is of step {self.durable.step}" if self.durable else "none is durable yet"
        why = str(fault)
        again = self.error is not None and _OF_ITS_OWN.sub("", self.error) == _OF_ITS_OWN.sub("", why)
        level = logging.DEBUG if again else logging.WARNING  # said once, tried on and on
        step = flight.save.snapshot.step
        log.log(level, "checkpoint at step %d could not be saved, trying again: %s; %s", step, why, age)
        self.error, self.fault = why, type(fault)
