"""Saving beside training: one checkpoint in flight at a time, in one thread; durable before anyone says so."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from storage.errors import StoreError
from trainer.checkpoint import Snapshot
from trainer.history import History, Superseded
from trainer.manifest import Manifest, PartRef, checkpoint_name
from trainer.parts import encode, grouped
from trainer.settings import Json

log = logging.getLogger("baton.saver")

CLOCK = time.monotonic


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFacts:
    """What every manifest of this attempt says alike."""

    run: str
    job: str
    attempt: int
    steps: int
    steps_per_epoch: int
    settings: dict[str, Json]
    machine: dict[str, Json]
    synthetic: bool


@dataclass(frozen=True, slots=True)
class Save:
    """One checkpoint to make: the state, and the records that go with it."""

    snapshot: Snapshot
    metrics: dict[str, Json]
    ledger: list[dict[str, Json]]
    lines: list[str]  # metric lines, JSON, since the manifest before


@dataclass(frozen=True, slots=True)
class Durable:
    """A checkpoint known to be in the store."""

    name: str
    step: int
    at: float  # seconds since 1970
    weights_sha256: str
    state_sha256: str
    order_sha256: str


def commit(history: History, facts: RunFacts, save: Save, parent: str | None, fresh: frozenset[str]) -> Manifest:
    """Write one checkpoint: parts, then metric lines, then the manifest that makes it exist.

    `fresh`: parts of this attempt's own newest manifest, which it uploaded itself; they are not sent again.
    Raises `StoreError`, `Superseded`.
    """
    refs = []
    snapshot = save.snapshot
    for section, tensors in (("model", snapshot.model), ("optimizer", snapshot.optimizer)):
        for group in grouped(tensors):
            part = encode(group)
            if part.sha256 not in fresh:
                history.put_part(part.sha256, part.chunks)
            refs.append(PartRef(section, part.sha256, part.size))
    name = checkpoint_name(facts.attempt, snapshot.step)
    if save.lines:
        history.store.put(history.key("metrics", f"{name}.jsonl"), "".join(f"{x}\n" for x in save.lines).encode())
    unhashed = Manifest(
        uuid=uuid.uuid4().hex,
        run=facts.run,
        job=facts.job,
        attempt=facts.attempt,
        step=snapshot.step,
        steps=facts.steps,
        steps_per_epoch=facts.steps_per_epoch,
        parent=parent,
        time=time.time(),
        parts=refs,
        scalars=snapshot.scalars,
        sums=snapshot.sums,
        order_sha256=snapshot.order_sha256,
        weights_sha256=snapshot.weights_sha256(),
        metrics=save.metrics,
        settings=facts.settings,
        machine=facts.machine,
        ledger=save.ledger,
        synthetic=facts.synthetic,
    )
    manifest = unhashed.with_state_hash()
    history.commit(manifest)
    return manifest


class Saver:
    """Takes a save from the training thread and makes it durable in a thread of its own."""

    def __init__(
        self,
        history: History,
        facts: RunFacts,
        parent: Durable | None,
        on_durable: Callable[[Save], None],
        on_superseded: Callable[[Superseded], None],
        between: Callable[[Durable], None],
    ) -> None:
        """`between` is called with the newest checkpoint after each save; it ends as soon as the saver is busy."""
        self._between = between
        self._history = history
        self._facts = facts
        self._on_durable = on_durable
        self._on_superseded = on_superseded
        self._fresh: frozenset[str] = frozenset()
        self._wake = threading.Condition()
        self._current: Save | None = None  # what is in flight
        self._defect: BaseException | None = None
        self.durable = parent  # the newest checkpoint of this run's history that is known to be in the store
        self.began = CLOCK()  # when the last save began
        self.error: str | None = None  # why the last save failed; None once one worked
        self.seconds: float | None = None  # how long the last save took
        self._superseded = False
        threading.Thread(target=self._work, name="saver", daemon=True).start()

    @property
    def busy(self) -> bool:
        return self._current is not None

    def start(self, save: Save) -> None:
        """Begin to make `save` durable, and return. Nothing may be in flight."""
        with self._wake:
            if self._defect is not None:
                raise self._defect
            assert self._current is None
            self._current = save
            self.began = CLOCK()
            self._wake.notify_all()

    def wait(self, seconds: float) -> bool:
        """Wait until nothing is in flight; False if there still is after `seconds`."""
        with self._wake:
            done = self._wake.wait_for(lambda: self._current is None, seconds)
            if self._defect is not None:
                raise self._defect
            return done

    def save_now(self, save: Save, give_up_at: Callable[[], float]) -> bool:
        """Make the stopped run's last state durable, trying until `give_up_at()` (monotonic seconds). True if it is."""
        tried = False
        while not self._superseded:
            while not self.wait(0.1):
                if CLOCK() > give_up_at():
                    return False
            if self.durable is not None and self.durable.step == save.snapshot.step:
                return True
            if tried:
                if CLOCK() + 1.0 > give_up_at():
                    return False
                time.sleep(1.0)
            tried = True
            self.start(save)
        return False

    def _work(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._current is not None)
                save = self._current
            assert save is not None
            try:
                self._save(save)
            except BaseException as e:  # a defect: told to the training thread, which ends with it
                self._defect = e
            with self._wake:
                self._current = None
                self._wake.notify_all()
            if self.durable is not None and self.error is None and not self._superseded:
                self._between(self.durable)

    def _save(self, save: Save) -> None:
        if self._superseded:
            return
        step = save.snapshot.step
        parent = self.durable.name if self.durable else None
        begun = CLOCK()
        log.debug("saving the state at step %d", step)
        try:
            manifest = commit(self._history, self._facts, save, parent, self._fresh)
        except Superseded as e:
            self._superseded = True
            self._on_superseded(e)
            return
        except StoreError as e:
            age = f"the last durable one is of step {self.durable.step}" if self.durable else "none is durable yet"
            level = logging.DEBUG if self.error == str(e) else logging.WARNING  # said once, tried on and on
            log.log(level, "checkpoint at step %d could not be saved, trying again: %s; %s", step, e, age)
            self.error = str(e)
            return
        if self.error is not None:
            log.warning("saving works again: checkpoint at step %d is durable", step)
        self.error = None
        self.seconds = CLOCK() - begun
        self._fresh = frozenset(ref.sha256 for ref in manifest.parts)
        self.durable = durable(manifest)
        self._on_durable(save)
        log.debug("checkpoint %s durable after %.3f s", manifest.name, self.seconds)


def durable(manifest: Manifest) -> Durable:
    return Durable(
        manifest.name,
        manifest.step,
        manifest.time,
        manifest.weights_sha256,
        manifest.state_sha256,
        manifest.order_sha256,
    )
