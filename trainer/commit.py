"""One checkpoint into the store: parts, then metric lines, then the manifest that makes it exist."""

from __future__ import annotations

import hashlib
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import ParamSpec, Protocol, TypeVar, overload

from storage.errors import StoreError, Transient, Unavailable
from storage.protocol import Chunk
from trainer.checkpoint import Snapshot
from trainer.header import check_start
from trainer.history import Absent, Bad, History, Superseded
from trainer.manifest import Manifest, PartRef, checkpoint_name
from trainer.parts import encode, grouped
from trainer.settings import Json

P = ParamSpec("P")
R = TypeVar("R")

SENDERS = 5  # parts that are sent at once; these and the one that is being made lie in memory
LONGEST_S = 12 * 3600.0  # for which a save's parts may lie there unnamed: half of what `trainer.retention` leaves alone


class Abandoned(Exception):
    """This save was given up, for a later one."""


class Check(Protocol):
    def __call__(self, *, committing: bool = False) -> None:
        """Raise `Abandoned` where the save was given up."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFacts:
    """What all that this attempt writes says alike."""

    run: str
    job: str
    attempt: int
    steps: int
    steps_per_epoch: int
    settings: dict[str, Json]
    machine: dict[str, Json]
    synthetic: bool
    arguments: tuple[str, ...] = ()  # the command line that goes on with the run; in its records, not in manifests


@dataclass(frozen=True, slots=True)
class Save:
    """One checkpoint to make: the state, and the records that go with it."""

    snapshot: Snapshot
    metrics: dict[str, Json]
    ledger: list[dict[str, Json]]
    lines: Callable[[], list[str]]  # metric lines, JSON, since the manifest before; asked for when they are sent
    taken: float = field(default_factory=time.time)  # when the state was this one, in seconds since 1970


@dataclass(frozen=True, slots=True)
class Commit:
    """A checkpoint whose parts and metric lines are in the store; with its manifest it exists."""

    manifest: Manifest
    lines: list[str]  # metric lines that went with it
    sent: int  # bytes of parts
    busy_s: float  # processor time in threads beside the caller's
    taken: float  # as the save's
    began: float  # in seconds since 1970

    def make(self, history: History, check: Check) -> None:
        """Write the manifest; once more is no harm. Raises `StoreError`, `Superseded`, `Abandoned`."""

        def last_look() -> None:
            if time.time() - self.began > LONGEST_S:
                raise Unavailable("this save has taken so long that its parts may have been cleaned up")
            check(committing=True)

        history.commit(self.manifest, last_look)

    def was_made(self, history: History, check: Check) -> bool:
        """Make sure of one for which the store gave no answer: it is there, or is written now.

        False where it can't be: it is damaged, refused, or was not written for so long that its parts may be gone.
        Raises `StoreError` for what may pass or is about all, `Superseded`, `Abandoned`.
        """
        try:
            if history.manifest(self.manifest.name).uuid == self.manifest.uuid:
                check(committing=True)
                return True
        except Absent:
            if time.time() - self.began > LONGEST_S:
                return False
        except Bad:
            return False
        try:
            self.make(history, check)
        except Transient:
            raise
        except StoreError:
            return False
        return True


def prepare(
    history: History, facts: RunFacts, save: Save, parent: str | None, fresh: frozenset[str], check: Check
) -> Commit:
    """Send all of a checkpoint but its manifest.

    `fresh`: parts of this attempt's own newest manifest, which it uploaded itself; they are not sent again if they
    are still there.
    Raises `StoreError`, `Superseded`, `Abandoned`.
    """
    snapshot, began = save.snapshot, time.time()
    clock = _Clock()
    refs, sent, weights_sha256 = _send_parts(history, snapshot, fresh, check, clock)
    name = checkpoint_name(facts.attempt, snapshot.step)
    check()
    lines = save.lines()
    if lines:
        if not history.holds_claim(facts.attempt):
            raise Superseded(facts.attempt, "the run was deleted meanwhile")  # these would be its heir's
        history.store.put(history.key("metrics", f"{name}.jsonl"), "".join(f"{x}\n" for x in lines).encode())
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
        weights_sha256=weights_sha256,
        metrics=save.metrics,
        settings=facts.settings,
        machine=facts.machine,
        ledger=save.ledger,
        synthetic=facts.synthetic,
    )
    return Commit(unhashed.with_state_hash(), lines, sent, clock.seconds, save.taken, began)


class _Recalled(Sequence[Chunk]):
    """A part's chunks until the save is given up: a store that meets `Abandoned` sends no more of them, and leaves the
    link to the last save. What is too small for several requests has been asked for by then, and goes its way."""

    def __init__(self, chunks: Sequence[Chunk], check: Check) -> None:
        self._chunks = chunks
        self._check = check

    def __len__(self) -> int:
        return len(self._chunks)

    @overload
    def __getitem__(self, index: int) -> Chunk: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Chunk]: ...
    def __getitem__(self, index: int | slice) -> Chunk | Sequence[Chunk]:
        self._check()
        return self._chunks[index]


class _Clock:
    """Adds up the processor time of work in several threads."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._lock = threading.Lock()

    def __call__(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        begun = time.thread_time()
        try:
            return work(*args, **kwargs)
        finally:
            with self._lock:
                self.seconds += time.thread_time() - begun


def _send_parts(
    history: History, snapshot: Snapshot, fresh: frozenset[str], check: Check, clock: _Clock
) -> tuple[list[PartRef], int, str]:
    """Put the parts that are not `fresh` or have gone, hashing while others are sent.

    Returns their names, bytes sent, and the weights' hash: over the model's raw bytes in row-major order, tensors in
    the order of their names, which is that of the parts.
    """
    refs: list[PartRef] = []
    sending: deque[Future[int]] = deque()
    sent = 0
    weights = hashlib.sha256()
    groups = ((s, g) for s in ("model", "optimizer") for g in grouped(getattr(snapshot, s), snapshot.frozen))
    with ThreadPoolExecutor(SENDERS, "send") as pool:
        for section, group in groups:
            part = encode(group)
            check_start(bytes(part.chunks[0][: part.head]), part.size)  # ValueError for one that no start could read
            refs.append(PartRef(section, part.sha256, part.size))
            for data in part.data() if section == "model" else ():
                weights.update(data)
            if len(sending) == SENDERS:
                sent += sending.popleft().result()
            check()
            send = history.keep_part if part.sha256 in fresh else history.put_part
            sending.append(pool.submit(clock, send, part.sha256, part.size, _Recalled(part.chunks, check)))
        sent += sum(future.result() for future in sending)
    return refs, sent, weights.hexdigest()
