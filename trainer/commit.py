"""One checkpoint into the store: parts, then metric lines, then the manifest that makes it exist."""

from __future__ import annotations

import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

from trainer.checkpoint import Snapshot
from trainer.history import History
from trainer.manifest import Manifest, PartRef, checkpoint_name
from trainer.parts import Part, encode, grouped
from trainer.settings import Json

SENDERS = 2  # parts on their way at once, while one more is being hashed


class Abandoned(Exception):
    """This save was given up, for a later one."""


class Check(Protocol):
    def __call__(self, *, committing: bool = False) -> None:
        """Raise `Abandoned` where the save was given up."""


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
    lines: Callable[[], list[str]]  # metric lines, JSON, since the manifest before; asked for when they are sent
    taken: float = field(default_factory=time.time)  # when the state was this one, in seconds since 1970


@dataclass(frozen=True, slots=True)
class Committed:
    """A checkpoint that is in the store now."""

    manifest: Manifest
    lines: list[str]  # metric lines that went with it
    sent: int  # bytes of parts
    taken: float  # as the save's


def commit(
    history: History, facts: RunFacts, save: Save, parent: str | None, fresh: frozenset[str], check: Check
) -> Committed:
    """Write one checkpoint.

    `fresh`: parts of this attempt's own newest manifest, which it uploaded itself; they are not sent again.
    Raises `StoreError`, `Superseded`, `Abandoned`.
    """
    snapshot = save.snapshot
    refs, sent, weights_sha256 = _send_parts(history, snapshot, fresh, check)
    name = checkpoint_name(facts.attempt, snapshot.step)
    check()
    lines = save.lines()
    if lines:
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
    manifest = unhashed.with_state_hash()
    history.commit(manifest, lambda: check(committing=True))
    return Committed(manifest, lines, sent, save.taken)


def _encoded(snapshot: Snapshot) -> Iterator[tuple[str, Part]]:
    for section, tensors in (("model", snapshot.model), ("optimizer", snapshot.optimizer)):
        for group in grouped(tensors, snapshot.frozen):
            yield section, encode(group)


def _send_parts(
    history: History, snapshot: Snapshot, fresh: frozenset[str], check: Check
) -> tuple[list[PartRef], int, str]:
    """Put the parts that are not `fresh`, hashing while others are sent; their names, bytes sent, the weights' hash."""
    refs: list[PartRef] = []
    sending: deque[Future[None]] = deque()
    sent = 0
    with ThreadPoolExecutor(SENDERS, "send") as pool:
        for section, part in _encoded(snapshot):
            refs.append(PartRef(section, part.sha256, part.size))
            if part.sha256 in fresh:
                continue
            if len(sending) == SENDERS:  # no more of them in memory
                sending.popleft().result()
            check()
            sending.append(pool.submit(history.put_part, part.sha256, part.chunks))
            sent += part.size
        weights_sha256 = snapshot.weights_sha256()
        for future in sending:
            future.result()
    return refs, sent, weights_sha256
