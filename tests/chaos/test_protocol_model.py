"""The protocol of claims, commits and cleaning, run by the real code in every order of its store calls.

What must hold in every state, whoever is stopped there for good:
- Nothing is lost: an attempt goes on from the newest good checkpoint that there was when it claimed, or a newer one.
- A copy commits one checkpoint at most after its successor's claim: the one that was on its way.
- The history is one line: from the newest checkpoint back, attempts never rise and steps always fall; of an attempt no
  two checkpoints go on from the same one.
- No checkpoint lacks a part that it names, but for the one gap of which `trainer/retention.py` tells.
- A start finds the newest good checkpoint, and never step 0 where there is one.
"""

from __future__ import annotations

import json
import logging
import math
import os
import random
import types
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from storage.errors import NotFound, StoreError
from storage.retry import Retrying
from tests.scheduling import ACTING, Actor, Body, Replay, State, at_random, digest, search
from trainer import commit as committing
from trainer import history, side_by_side
from trainer.checkpoint import Snapshot
from trainer.commit import RunFacts, Save
from trainer.exits import UserError
from trainer.history import History
from trainer.manifest import parse_name
from trainer.retention import YOUNG_S, Retention, store_time
from trainer.saver import Flight, Saver, durable

SOAK = int(os.environ.get("BATON_SOAK_SEED", "0"))
DAY = YOUNG_S + 3600.0
FACTS = RunFacts(
    run="run", job="job", attempt=1, steps=1000, steps_per_epoch=100, settings={}, machine={}, synthetic=False
)


DIES_IN_ITS_SAVE = 10  # calls of a start and of a first save's parts


class Inline:
    """In place of the pools of requests: one after the other, so that an actor has one call at a time."""

    def __init__(self, *_: object) -> None:
        pass

    def __enter__(self) -> Inline:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, call: Callable[..., Any], *args: Any) -> Any:
        try:
            result = call(*args)
        except BaseException as e:
            error = e

            def fail() -> None:
                raise error

            return types.SimpleNamespace(result=fail)
        return types.SimpleNamespace(result=lambda: result)

    def map(self, call: Callable[..., Any], items: Iterable[Any]) -> Iterator[Any]:
        return map(call, items)

    def shutdown(self, *, cancel_futures: bool) -> None:
        pass


@pytest.fixture(autouse=True)
def _all_follows_from_the_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """No time, no randomness and no thread but those of the model."""

    def uuid4() -> Any:
        actor = ACTING[-1]
        actor.uuids += 1
        return types.SimpleNamespace(hex=f"{actor.number:08x}{actor.uuids:024x}")

    for name in ("saver", "history", "store", "retention"):
        monkeypatch.setattr(logging.getLogger(f"baton.{name}"), "disabled", True)
    monkeypatch.setattr("uuid.uuid4", uuid4)
    monkeypatch.setattr(committing, "ThreadPoolExecutor", Inline)
    monkeypatch.setattr(history, "ThreadPoolExecutor", Inline)
    monkeypatch.setattr(side_by_side, "ThreadPoolExecutor", Inline)
    clock = types.SimpleNamespace(time=lambda: ACTING[-1].now, thread_time=lambda: 0.0)
    monkeypatch.setattr(committing, "time", clock)
    monkeypatch.setattr(history, "time", clock)


_SNAPSHOTS: dict[int, Snapshot] = {}


def snapshot(step: int) -> Snapshot:
    """The state after `step` steps, the same whoever computes it: a part that never changes, and one that does."""
    if step not in _SNAPSHOTS:
        model = {"a.frozen": torch.full((2,), 0.5), "b.weight": torch.full((2,), float(step))}
        _SNAPSHOTS[step] = Snapshot(step, "0" * 64, {}, model, {}, {}, frozenset({"a.frozen"}))
    return _SNAPSHOTS[step]


# -- the actors -------------------------------------------------------------------------------------------------


def writer(saves: int, *, patient: bool = True, cleans: bool = False) -> Body:
    """A copy: claims, loads, and saves at every tenth step.

    `patient`: a call without an answer is made again, as `Retrying` does it; else the save fails.
    """

    def body(store: Replay) -> None:
        asked: Any = Retrying(store, lambda tried: math.inf, lambda seconds: None) if patient else store  # type: ignore[arg-type]
        history = History(asked, "run")
        try:
            number = history.claim({"job": "job"})
            newest = history.newest_good()
        except (StoreError, UserError):
            return
        facts = replace(FACTS, attempt=number)
        over: list[object] = []
        retention = Retention(history, 2, every_s=0)

        def between(last: Any) -> None:
            if cleans:
                retention.between_saves(number, last.name, lambda: False, lambda: False)

        parent = durable(newest.manifest) if newest else None
        saver = Saver(history, facts, parent, lambda done: None, over.append, between)
        step = parent.step if parent else 0
        for _ in range(saves):
            step += 10
            saver._fly(Flight(Save(snapshot(step), {}, [], list)))
            if saver._defect is not None:
                raise saver._defect
            if over:
                return

    return body


def cleaner(keep: int = 2) -> Body:
    """`clean --yes`, as somebody runs it by hand."""

    def body(store: Replay) -> None:
        history = History(store, "run")  # type: ignore[arg-type]
        with suppress(StoreError):
            retention = Retention(history, keep)
            retention.remove(retention.excess(store_time(history)))

    return body


def a_day_passes(store: Replay) -> None:
    def do(state: State) -> None:
        state.now += DAY

    store.happen("a day passes", do)


def rot(store: Replay) -> None:
    """A bit flips in what the newest checkpoint alone has."""

    def do(state: State) -> None:
        assert isinstance(state, Run)
        manifests = state.manifests()
        if manifests:
            sha256 = manifests[max(manifests, key=place)][1][-1]
            body, modified = state.objects.get(f"run/parts/{sha256}", (b"", 0.0))
            if body:
                state.objects[f"run/parts/{sha256}"] = (body[:-1] + bytes([body[-1] ^ 1]), modified)
                state.spoiled |= {sha256}

    store.happen("a bit rots", do)


# -- what must hold -----------------------------------------------------------------------------------------------

_PARSED: dict[bytes, tuple[str | None, tuple[str, ...]]] = {}


def parsed(body: bytes) -> tuple[str | None, tuple[str, ...]]:
    """A manifest's parent and parts, read without the code under test."""
    if body not in _PARSED:
        raw = json.loads(body)
        _PARSED[body] = (raw["parent"], tuple(part["sha256"] for part in raw["parts"]))
    return _PARSED[body]


def place(name: str) -> tuple[int, int]:
    """(attempt, step)"""
    return parse_name(name) or (0, 0)


_CHECKED: set[int] = set()  # what stores have held: many states differ only in what the actors know


@dataclass(kw_only=True)
class Run(State):
    """One run's store, watched from outside."""

    spoiled: frozenset[str] = frozenset()  # parts that have ever been rotten
    gapped: frozenset[str] = frozenset()  # put while a cleaner was about to delete what lay there
    lost: frozenset[str] = frozenset()  # checkpoints of which a part went in that gap
    at_claim: tuple[tuple[int, str | None], ...] = ()  # attempt, and the newest good checkpoint when it claimed
    late: frozenset[str] = (
        frozenset()
    )  # checkpoints of a copy that was stopped for a day between its last look and them
    cleaned: frozenset[str] = frozenset()  # checkpoints
    orphans: frozenset[str] = frozenset()  # checkpoints committed after a successor's claim

    def manifests(self) -> dict[str, tuple[str | None, tuple[str, ...]]]:
        """Name -> parent, parts."""
        folder = "run/checkpoints/"
        return {k[len(folder) : -5]: parsed(body) for k, (body, _) in self.objects.items() if k.startswith(folder)}

    def is_good(self, parts: tuple[str, ...]) -> bool:
        found = [self.objects.get(f"run/parts/{sha256}") for sha256 in parts]
        return all(at is not None and digest(at[0]) == sha256 for at, sha256 in zip(found, parts, strict=True))

    def newest_good(self) -> str | None:
        """The newest, else back along its parents, else of other chains."""
        left = self.manifests()
        name: str | None = None
        while left:
            name = name if name in left else max(left, key=place)
            parent, parts = left.pop(name)
            if self.is_good(parts):
                return name
            name = parent
        return None

    def written(self, number: int, key: str, body: bytes) -> None:
        folder, _, name = key.removeprefix("run/").partition("/")
        if folder == "parts":
            self.gapped -= {name}
            if any(is_about_to_delete(a, at, key) for a, at in zip(self.actors, self.moments, strict=True)):
                self.gapped |= {name}
        elif folder == "attempts":
            attempt = int(name.removesuffix(".json"))
            assert attempt not in dict(self.at_claim), f"attempt {attempt} was given twice{self.story()}"
            self.at_claim = tuple(sorted({**dict(self.at_claim), attempt: self.newest_good()}.items()))  # type: ignore[arg-type]
        elif folder == "checkpoints":
            self._check_lineage(name.removesuffix(".json"))
            self._check_fence(name.removesuffix(".json"))
            if self.now - self.actors[number].heard(self.moments[number]) > YOUNG_S:
                self.late |= {name.removesuffix(".json")}

    def deleted(self, key: str) -> None:
        folder, _, name = key.removeprefix("run/").partition("/")
        if folder == "checkpoints":
            self.cleaned |= {name.removesuffix(".json")}
        elif folder == "parts" and name in self.gapped:
            self.lost |= {checkpoint for checkpoint, (_, parts) in self.manifests().items() if name in parts}

    def _check_fence(self, name: str) -> None:
        """Once there is a successor, what is on its way may land, and nothing after it."""
        attempt = place(name)[0]
        if attempt < max(number for number, _ in self.at_claim):
            assert attempt not in {place(orphan)[0] for orphan in self.orphans}, (
                f"{name} is not fenced off{self.story()}"
            )
            self.orphans |= {name}

    def _check_lineage(self, name: str) -> None:
        """What an attempt commits goes on from what was newest at its claim, or is newer."""
        manifests, attempt = self.manifests(), place(name)[0]
        parent = manifests[name][0]
        while parent is not None and place(parent)[0] == attempt:
            if parent not in manifests:
                return  # cleaned up; what it went on from was looked at when it was written
            parent = manifests[parent][0]
        must = dict(self.at_claim).get(attempt)
        if must is None or must not in manifests or self.spoiled & set(manifests[must][1]) or must in self.lost:
            return
        assert parent is not None and place(parent) >= place(must), (  # noqa: PT018
            f"{name} goes on from {parent}: {must}, there at its claim, is lost{self.story()}"
        )

    def remembered(self) -> Any:
        return (self.spoiled, self.gapped, self.lost, self.late, self.at_claim, self.cleaned, self.orphans)

    def check(self) -> None:
        content = hash((self.content(), self.remembered()))
        if content in _CHECKED:
            return
        _CHECKED.add(content)
        manifests = self.manifests()
        for name, (_, parts) in manifests.items():
            for sha256 in parts:
                there = f"run/parts/{sha256}" in self.objects or sha256 in self.gapped or name in self.late
                assert there, f"{name} lacks its part {sha256[:8]}{self.story()}"
        self._check_line(manifests)
        good = self.newest_good()
        try:
            newest = History(Direct(self), "run").newest_good()  # type: ignore[arg-type]
        except UserError:
            assert good is None, self.story()
        else:
            found = newest.manifest.name if newest else None
            assert found == good, f"a start takes {found} and should take {good}{self.story()}"
            assert found is not None or not manifests, self.story()

    def _check_line(self, manifests: dict[str, tuple[str | None, tuple[str, ...]]]) -> None:
        goes_on_from = {(place(name)[0], parent) for name, (parent, _) in manifests.items()}
        assert len(goes_on_from) == len(manifests), f"two checkpoints of an attempt have one parent{self.story()}"
        name = max(manifests, key=place, default=None)
        while name is not None and name in manifests:
            parent = manifests[name][0]
            if parent is not None:
                assert place(parent)[0] <= place(name)[0], self.story()
                assert place(parent)[1] < place(name)[1], self.story()
                assert parent in manifests or parent in self.cleaned, self.story()
            name = parent


class Direct:
    """The store of a state, read from outside."""

    url = "memory://"

    def __init__(self, state: State) -> None:
        self._state = state

    def get(self, key: str, sink: Any, *, byte_range: tuple[int, int]) -> Any:
        if key not in self._state.objects:
            raise NotFound(f"{key}: not there")
        sink.write(self._state.objects[key][0][slice(*byte_range)])
        return self._state._info(key)

    def stat(self, key: str) -> Any:
        if key not in self._state.objects:
            raise NotFound(f"{key}: not there")
        return self._state._info(key)

    def list(self, prefix: str) -> list[Any]:
        return [self._state._info(key) for key in self._state.objects if key.startswith(prefix)]


def is_about_to_delete(actor: Actor, moment: int, key: str) -> bool:
    """Whether it has asked for the age of what is there, and deletes it next."""
    if moment < 0:
        return False
    before, asks = actor.before(moment), actor.asks(moment)
    questions = {(call.name, call.key) for call in (before, asks) if call is not None}
    return questions == {("stat", key), ("delete", key)}


# -- the beginnings -----------------------------------------------------------------------------------------------


def beside(*bodies: Body, before: State | None = None, faults: int = 0, age: float = 0.0) -> Run:
    """These actors, over what the store holds after `before`, `age` seconds later."""
    # ten minutes apart
    actors = [Actor(number, body, (-300.0, 300.0)[number % 2]) for number, body in enumerate(bodies)]
    seen = before if isinstance(before, Run) else Run(actors=[])
    return Run(
        actors=actors,
        objects=dict(seen.objects),
        now=seen.now + age,
        faults_left=faults,
        at_claim=seen.at_claim,
        cleaned=seen.cleaned,
    )


def after(*bodies: Body, turns: int = 10_000, before: State | None = None) -> Run:
    """These actors one after the other, the last one for so many turns."""
    state: State = before or beside()
    for body in bodies:
        state = beside(body, before=state)
        left = turns if body is bodies[-1] else 10_000
        while state.choices() and left:
            state, left = state.after(0, "ok"), left - 1
    assert isinstance(state, Run)
    return state


def every_order(name: str, start: Run) -> None:
    print(f"{name}: {search(start)}")


def test_two_copies_in_every_order() -> None:
    """Each may be stopped at any call, for a moment or for good, and go on at any other's."""
    before = after(writer(1))
    every_order("two copies of a new run", beside(writer(1), writer(1)))
    every_order("two copies of a run with a checkpoint", beside(writer(2), writer(2), before=before))
    every_order("a call that fails and is made again", beside(writer(1), writer(1), before=before, faults=1))
    impatient = writer(2, patient=False)
    every_order("a call that fails for good", beside(impatient, writer(1, patient=False), before=before, faults=1))


def test_corruption_in_every_order() -> None:
    """Who falls back past it computes the same bytes again, and so mends them."""
    every_order("two copies and a bit that rots", beside(writer(1), writer(1), rot, before=after(writer(2))))


def test_cleaning_in_every_order() -> None:
    """The copy before died in a save, a day ago: what it left is old, unnamed, and the very bytes that come next."""
    died = after(writer(3), writer(1), turns=DIES_IN_ITS_SAVE)
    assert len(died.objects) == 3 + 5 + 2, "manifests, parts, claims: the last save has its part, and no manifest"
    every_order("a copy and a cleaner", beside(writer(2), cleaner(), before=died, age=DAY))
    every_order("a copy and two cleaners", beside(writer(1), cleaner(), cleaner(), before=died, age=DAY))
    every_order("a copy stopped for a day", beside(writer(1), cleaner(), a_day_passes, before=after(writer(3))))


@pytest.mark.skipif(not SOAK, reason="minutes; `make soak` runs it")
def test_more_actors_in_every_order() -> None:
    died = after(writer(3), writer(1), turns=DIES_IN_ITS_SAVE)
    every_order("three copies", beside(writer(1), writer(1), writer(1)))
    every_order("two copies and a cleaner", beside(writer(1), writer(1), cleaner(), before=died, age=DAY))
    clean = writer(1, cleans=True)
    every_order("two copies that clean up", beside(clean, clean, before=died, age=DAY))


@pytest.mark.parametrize("seed", range(SOAK * 1000, SOAK * 1000 + (200 if SOAK else 20)))
def test_random_orders_of_all_there_is(seed: int) -> None:
    """Copies that save often and clean up, cleaners, rot, lost replies, deaths and days, all at once."""
    rng = random.Random(seed)
    state: State = after(writer(rng.randrange(4)))
    for _ in range(2):
        bodies = [writer(rng.randint(1, 4), patient=rng.random() < 0.5, cleans=rng.random() < 0.5) for _ in range(2)]
        others = [cleaner(), rot, a_day_passes, writer(1)]
        rng.shuffle(others)
        age = rng.choice([0.0, DAY])
        start = beside(*bodies, *others[: rng.randint(0, 3)], before=state, faults=rng.randrange(4), age=age)
        state = at_random(start, rng)


def test_a_part_deleted_in_the_gap_costs_one_checkpoint_and_no_more() -> None:
    """A cleaner stopped between its last question and its deletion, while a copy puts the same part again."""
    died = after(writer(3), writer(1), turns=DIES_IN_ITS_SAVE)
    named = {sha256 for _, parts in died.manifests().values() for sha256 in parts}
    part = next(key for key in died.objects if "/parts/" in key and key.rpartition("/")[2] not in named)
    state: State = beside(writer(2), cleaner(), before=died, age=DAY)

    def until(number: int, name: str, key: str) -> None:
        nonlocal state
        while (call := state.actors[number].asks(state.moments[number])) and (call.name, call.key) != (name, key):
            state = state.after(number, "ok")
        assert call is not None

    until(1, "delete", part)
    until(0, "put", "run/checkpoints/000003-00000040.json")
    state = state.after(0, "ok").after(1, "ok")
    assert isinstance(state, Run)
    assert "000003-00000040" in state.manifests()
    assert state.newest_good() == "000001-00000030", "the gap: one checkpoint is lost"
    while choices := state.choices():
        state = state.after(*choices[0])
    assert isinstance(state, Run)
    assert state.newest_good() == "000003-00000050"
