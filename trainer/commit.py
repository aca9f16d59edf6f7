"""One checkpoint into the store: parts, then metric lines, then the manifest that makes it exist."""

from __future__ import annotations

import hashlib
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from trainer.checkpoint import Snapshot
from trainer.history import History
from trainer.manifest import Manifest, PartRef, checkpoint_name
from trainer.parts import Part, encode, grouped
from trainer.settings import Json

SENDERS = 3  # parts on their way at once; one less while the next is being hashed
COPIED_BYTES = 33 << 20  # of them in copies, while the next is made, which may be another such: 64 MB beside the state


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


@dataclass(frozen=True, slots=True)
class Committed:
    """A checkpoint that is in the store now."""

    manifest: Manifest
    lines: list[str]  # metric lines that went with it
    sent: int  # bytes of parts


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
    return Committed(manifest, lines, sent)


def _encoded(snapshot: Snapshot) -> Iterator[tuple[str, Part]]:
    for section, tensors in (("model", snapshot.model), ("optimizer", snapshot.optimizer)):
        for group in grouped(tensors, snapshot.frozen):
            yield section, encode(group)


def _send_parts(
    history: History, snapshot: Snapshot, fresh: frozenset[str], check: Check
) -> tuple[list[PartRef], int, str]:
    """Put the parts that are not `fresh`, hashing while others are sent; their names, bytes sent, the weights' hash.

    That hash is over the model's raw bytes in row-major order, tensors in the order of their names: so it is taken of
    the parts' chunks as they pass, which are just these, and no tensor is put in order twice.
    """
    refs: list[PartRef] = []
    sending: deque[tuple[Part, Future[None]]] = deque()
    sent = 0
    weights = hashlib.sha256()
    with ThreadPoolExecutor(SENDERS, "send") as pool:
        for section, part in _encoded(snapshot):
            refs.append(PartRef(section, part.sha256, part.size))
            if part.sha256 not in fresh:
                check()
                sending.append((part, pool.submit(history.put_part, part.sha256, part.chunks)))
                sent += part.size
            if section == "model":
                for chunk in part.chunks[1:]:
                    weights.update(chunk)
            # no more of them in memory while the next is made
            while len(sending) == SENDERS or sum(waiting.copied for waiting, _ in sending) > COPIED_BYTES:
                sending.popleft()[1].result()
        for _, future in sending:
            future.result()
    return refs, sent, weights.hexdigest()
