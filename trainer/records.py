"""All that a store has on record of a run, read for whoever accounts for it; few requests, small objects, no parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from storage.errors import NotFound
from trainer import strict
from trainer.history import Bad, History
from trainer.manifest import Manifest, checkpoint_name, parse_name
from trainer.settings import Json
from trainer.side_by_side import side_by_side

Record = Mapping[str, Json]
T = TypeVar("T")
R = TypeVar("R")

AT_ONCE = 16  # requests
MAX_CHUNK_BYTES = 8 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Records:
    """One run's. Nothing in the records is checked yet but that each is an object."""

    run: str
    claims: Mapping[int, Record]  # by attempt; empty where one can't be read
    ends: Mapping[int, Record] = field(default_factory=dict)
    status: Record | None = None
    silent_s: float | None = None  # since the newest attempt's last sign of life, by the store's clock
    result: Record | None = None
    newest: Manifest | None = None  # the newest checkpoint that can be read
    own: Mapping[int, list[Record]] = field(default_factory=dict)  # each attempt's, in its newest checkpoint's ledger
    lines: Mapping[tuple[int, int], list[Record]] = field(default_factory=dict)  # metrics by (attempt, step) of a chunk


def read(history: History) -> Records | None:
    """None where there is no such run. Raises `StoreError`."""
    numbers = history.attempts()
    checkpoints = history.checkpoints()
    if not numbers and not checkpoints:
        return None
    claims = _each(lambda n: history.read_sign("attempts", f"{n:06d}.json"), numbers)
    ends = _each(lambda n: history.read_record("attempts", f"{n:06d}.end.json"), numbers)
    mine: dict[int, list[tuple[int, int]]] = {}
    for pair in checkpoints:
        mine.setdefault(pair[0], []).append(pair)
    newest: Manifest | None = None
    own: dict[int, list[Record]] = {}
    for n, head in _each_in_turn(lambda n: _first_readable(history, mine[n]), sorted(mine)):
        if head is not None:  # all of each ledger would be the attempts' number squared
            newest, own[n] = head, [entry for entry in head.ledger if entry.get("attempt") == n]
    folder = history.key("metrics", "")
    names = [info.key.removeprefix(folder).removesuffix(".jsonl") for info in history.store.list(folder)]
    chunks = _each(lambda pair: _lines(history, pair), sorted(p for p in map(parse_name, names) if p))
    status = history.read_sign("status.json")
    last = claims[numbers[-1]] if numbers else None
    if status is not None and numbers and status.record.get("attempt") == numbers[-1]:
        last = status
    return Records(
        run=history.run,
        claims={n: claim.record if claim is not None else {} for n, claim in claims.items()},
        ends={n: end for n, end in ends.items() if end is not None},
        status=status.record if status is not None else None,
        silent_s=last.age_s if last is not None else None,
        result=history.read_record("result.json"),
        newest=newest,
        own=own,
        lines=chunks,
    )


def _each(call: Callable[[T], R], of: Iterable[T]) -> dict[T, R]:
    return dict(_each_in_turn(call, list(of)))


def _each_in_turn(call: Callable[[T], R], items: Sequence[T]) -> Iterator[tuple[T, R]]:
    return zip(items, side_by_side(call, items, AT_ONCE), strict=True)


def _first_readable(history: History, newest_first: list[tuple[int, int]]) -> Manifest | None:
    for pair in newest_first:
        try:
            return history.manifest(checkpoint_name(*pair))
        except Bad:
            continue
    return None


def _lines(history: History, chunk: tuple[int, int]) -> list[Record]:
    """The lines of a metrics chunk that are objects."""
    try:
        text = history.read(history.key("metrics", f"{checkpoint_name(*chunk)}.jsonl"), MAX_CHUNK_BYTES)
    except NotFound:
        return []
    found: list[Record] = []
    for line in text.splitlines():
        try:
            value = strict.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            found.append(value)
    return found
