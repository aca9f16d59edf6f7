"""A search through the orders in which several actors' calls of one store can fall, with the real code as actors.

What an actor does next follows from what its calls have returned. So it is run with those answers, up to the first
call that has none, and what it then asks for is kept; no threads are needed, and each of its moments is computed once
however many orders lead there. A state is the store's content and each actor's moment. One that takes no turn any more
is dead, or stopped for as long as you like.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from storage import ObjectInfo
from storage.errors import AlreadyExists, NotFound, Unavailable

Body = Callable[[Any], None]
START = 1_000_000_000.0
FAULTS = ("lost", "away")  # a call that writes was done and its reply lost, or it was not done


class _Unanswered(BaseException):
    """Ends an actor's body at the first call that has no answer yet."""


@dataclass(frozen=True, slots=True)
class Call:
    name: str
    key: str
    body: bytes = b""
    if_absent: bool = False
    do: Callable[[State], None] | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    value: Any  # or the exception
    raised: bool
    now: float  # when it came, by the store's clock


class Replay:
    """The store as an actor has it: gives the answers that are known, and ends the actor where they end."""

    url = "memory://"

    def __init__(self, number: int, fast_s: float, answers: Sequence[Answer]) -> None:
        self.number = number
        self._fast_s = fast_s
        self._answers = answers
        self._used = 0
        self.asked: Call | None = None
        self.uuids = 0

    @property
    def now(self) -> float:
        """What this actor's machine takes for the time."""
        return (self._answers[self._used - 1].now if self._used else START) + self._fast_s

    def _ask(self, call: Call) -> Any:
        if self._used == len(self._answers):
            self.asked = self.asked or call
            raise _Unanswered
        answer = self._answers[self._used]
        self._used += 1
        if answer.raised:
            raise type(answer.value)(*answer.value.args)
        return answer.value

    def put(self, key: str, source: Any, *, if_absent: bool = False) -> ObjectInfo:
        body = source if isinstance(source, bytes) else b"".join(source)
        return self._ask(Call("put", key, body, if_absent))

    def get(self, key: str, sink: Any, *, byte_range: tuple[int, int] | None = None) -> ObjectInfo:
        body = self._ask(Call("get", key))
        start, stop = byte_range or (0, len(body))
        sink.write(body[start:stop])
        return ObjectInfo(key, len(body), 0.0)

    def stat(self, key: str) -> ObjectInfo:
        return self._ask(Call("stat", key))

    def list(self, prefix: str, *, delimiter: str | None = None) -> Iterator[ObjectInfo]:
        return iter(self._ask(Call("list", prefix)))

    def delete(self, key: str) -> None:
        self._ask(Call("delete", key))

    def happen(self, what: str, do: Callable[[State], None]) -> None:
        """Something else than a call, in its turn: a bit rots, a day passes."""
        self._ask(Call("happens", what, do=do))


ACTING: list[Replay] = []  # the actor that runs now


class Actor:
    """One participant, as far as it has been seen: its moments, and what it asks for in each."""

    def __init__(self, number: int, body: Body, fast_s: float = 0.0) -> None:
        """`fast_s`: by how much its machine's clock is fast."""
        self.number = number
        self._body = body
        self._fast_s = fast_s
        self._came: list[tuple[int, Answer] | None] = [None]  # moment -> the one before, and what came then
        self._next: dict[tuple[int, Any], int] = {}
        self._asks: dict[int, Call | None] = {}

    def asks(self, moment: int) -> Call | None:
        """The call that it makes; None: it has ended."""
        if moment not in self._asks:
            answers: list[Answer] = []
            at = moment
            while (came := self._came[at]) is not None:
                at, answer = came
                answers.insert(0, answer)
            replay = Replay(self.number, self._fast_s, answers)
            ACTING.append(replay)
            try:
                self._body(replay)
            except _Unanswered:
                pass
            finally:
                ACTING.pop()
            self._asks[moment] = replay.asked
        return self._asks[moment]

    def hears(self, moment: int, answer: Answer) -> int:
        """The moment after `answer`."""
        said = (type(answer.value), str(answer.value)) if answer.raised else answer.value
        key = (moment, (said, answer.now))
        if key not in self._next:
            self._next[key] = len(self._came)
            self._came.append((moment, answer))
        return self._next[key]

    def heard(self, moment: int) -> float:
        """When its last answer came."""
        came = self._came[moment]
        return came[1].now if came else START

    def before(self, moment: int) -> Call | None:
        """The call that it made before this moment."""
        came = self._came[moment]
        return self._asks[came[0]] if came else None


@dataclass(kw_only=True)
class State:
    """Objects, the time, and each actor's moment. Subclasses say what must hold, and may remember more."""

    actors: Sequence[Actor]
    objects: dict[str, tuple[bytes, float]] = field(default_factory=dict)  # key -> bytes, modified
    now: float = START
    faults_left: int = 0
    moments: tuple[int, ...] = ()
    path: Any = None  # how it came to this: (path before, actor, call, how)

    def __post_init__(self) -> None:
        self.moments = self.moments or (0,) * len(self.actors)

    def choices(self, last: int = 0) -> list[tuple[int, str]]:
        found: list[tuple[int, str]] = []
        for actor, moment in zip(self.actors, self.moments, strict=True):
            call = actor.asks(moment) if moment >= 0 else None
            if call is not None:
                found.append((actor.number, "ok"))
                if self.faults_left and call.name == "put":
                    found += [(actor.number, fault) for fault in FAULTS]
        return found

    def after(self, number: int, how: str) -> State:
        """The state after this actor's turn."""
        actor, moment = self.actors[number], self.moments[number]
        call = actor.asks(moment)
        assert call is not None
        new = replace(
            self,
            objects=dict(self.objects),
            faults_left=self.faults_left - (how != "ok"),
            path=(self.path, number, call, how),
        )
        try:
            value, raised = (new.do(number, call) if how != "away" else None), False
            if how != "ok":
                value, raised = Unavailable(f"{call.key}: no answer"), True
        except (AlreadyExists, NotFound) as e:
            value, raised = (e if how == "ok" else Unavailable(f"{call.key}: no answer")), True
        at = actor.hears(moment, Answer(value, raised, new.now))
        new.moments = (*self.moments[:number], at, *self.moments[number + 1 :])
        return new

    def do(self, number: int, call: Call) -> Any:
        """The call itself, as a store does it."""
        key = call.key
        match call.name:
            case "put":
                if call.if_absent and key in self.objects:
                    raise AlreadyExists(key)
                self.objects[key] = (call.body, self.now)
                self.written(number, key, call.body)
                return self._info(key)
            case "get":
                if key not in self.objects:
                    raise NotFound(f"{key}: not there")
                return self.objects[key][0]
            case "stat":
                return self._info(key)
            case "list":
                return tuple(self._info(found) for found in sorted(self.objects) if found.startswith(key))
            case "delete":
                if self.objects.pop(key, None) is not None:
                    self.deleted(key)
                return None
            case "happens":
                assert call.do is not None
                call.do(self)
                return None
        raise AssertionError(call.name)

    def _info(self, key: str) -> ObjectInfo:
        if key not in self.objects:
            raise NotFound(f"{key}: not there")
        body, modified = self.objects[key]
        return ObjectInfo(key, len(body), modified)

    def content(self) -> int:
        """Hash of what the store holds."""
        return hash(frozenset((key, digest(body), modified) for key, (body, modified) in self.objects.items()))

    def story(self) -> str:
        """What happened, for whoever must understand a failure."""
        lines: list[str] = []
        path = self.path
        while path is not None:
            path, number, call, how = path
            lines.insert(0, f"  {number} {call.name} {call.key} {'' if how == 'ok' else how}")
        return "\n" + "\n".join(lines)

    # -- for subclasses ---------------------------------------------------------------------------------------

    def written(self, number: int, key: str, body: bytes) -> None:
        """This actor has written an object just now."""

    def deleted(self, key: str) -> None:
        """An object was deleted just now."""

    def remembered(self) -> Any:
        """What `check` goes by besides content and moments; hashable."""

    def check(self) -> None:
        """What must hold in every state."""


_DIGESTS: dict[bytes, str] = {}


def digest(body: bytes) -> str:
    if body not in _DIGESTS:
        _DIGESTS[body] = hashlib.sha256(body).hexdigest()
    return _DIGESTS[body]


@dataclass
class Searched:
    """How much of a space has been seen."""

    states: int = 0
    turns: int = 0
    ends: int = 0  # states in which every actor has ended

    def __str__(self) -> str:
        return f"{self.states} states, {self.turns} turns between them, {self.ends} ends"


def search(start: State, most: int = 2_000_000) -> Searched:
    """Follow every order of turns, and check every state. Fails where there are more than `most`."""
    found, seen = Searched(), set[int]()
    left = [start]
    while left:
        state = left.pop()
        key = hash((state.content(), state.moments, state.faults_left, state.now, state.remembered()))
        if key in seen:
            continue
        seen.add(key)
        assert len(seen) <= most, f"more than {most} states"
        state.check()
        choices = state.choices()
        found.ends += not choices
        found.turns += len(choices)
        left += [state.after(*choice) for choice in choices]
    found.states = len(seen)
    return found


def at_random(state: State, rng: random.Random) -> State:
    """Follow one random order to its end: one actor for long, or turn by turn; some calls fail, some actors die."""
    stay, fails, dies = rng.choice([0.0, 0.5, 0.9, 0.97]), rng.choice([0.0, 0.1]), rng.choice([0.0, 0.01])
    current = -1
    state.check()
    while choices := state.choices():
        same = [choice for choice in choices if choice[0] == current]
        choices = same if same and rng.random() < stay else choices
        failing = [choice for choice in choices if choice[1] != "ok"]
        current, how = rng.choice(failing if failing and rng.random() < fails else [c for c in choices if c[1] == "ok"])
        state = state.after(current, how)
        state.check()
        if rng.random() < dies:
            state.moments = (*state.moments[:current], -1, *state.moments[current + 1 :])
    return state
