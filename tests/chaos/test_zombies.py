"""Two real processes of one run, stopped and continued by SIGSTOP and SIGCONT around their store calls, at random.

One of them runs at a time, up to one of its calls; so the older one sleeps through its successor's claim, loads, saves
or end, and wakes in the midst of its own save, sign of life, clean-up or start. Their clocks are ten minutes apart, and
some are killed where they stand, and another copy is started in their place.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from storage import open_store
from tests.chaos.test_every_store_call import CALLS, OPTIONS, quiet, train  # noqa: F401  (a fixture)
from tests.runs import Lab
from trainer.history import History
from trainer.verify import verify

SOAK = int(os.environ.get("BATON_SOAK_SEED", "0"))
COUNT = 20 if SOAK else 5  # `BATON_SOAK_SEED=1` runs the first 20
LONGEST = 45  # calls in about a whole run of these 16 steps
APART_S = 600.0  # between the copies' clocks
KILLED = -signal.SIGKILL


class Stopping:
    """A store whose process stops itself before or after some of its calls, until somebody continues it."""

    def __init__(self, store: Any, stops: Mapping[int | str, str]) -> None:
        """`stops`: number of a call, or the end of a key that it puts -> "before" or "after" it."""
        self._store = store
        self._stops = stops
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)
        if name not in CALLS:
            return method

        def call(*args: Any, **kwargs: Any) -> Any:
            with self._lock:
                when = self._stops.get(next(self._numbers))
            if name == "put":
                when = self._stops.get(str(args[0]).rpartition("/")[2], when)
            if when == "before":
                os.kill(os.getpid(), signal.SIGSTOP)
            try:
                result = method(*args, **kwargs)
                return list(result) if name == "list" else result
            finally:
                if when == "after":
                    os.kill(os.getpid(), signal.SIGSTOP)

        return call


class Copy:
    """A forked process that runs the entrypoint, from one stop to the next. Its clock is `ahead_s` ahead."""

    def __init__(self, work: Callable[[], int], ahead_s: float = 0.0) -> None:
        self.code: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            code, real = 1, time.time
            time.time = lambda: real() + ahead_s
            try:
                code = work()
            finally:
                os._exit(code)

    def until_it_stops(self) -> None:
        _, status = os.waitpid(self.pid, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            self.code = os.waitstatus_to_exitcode(status)

    def go_on(self) -> None:
        os.kill(self.pid, signal.SIGCONT)
        self.until_it_stops()

    def kill(self) -> None:
        if self.code is None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.code = KILLED


def stops(rng: random.Random) -> dict[int | str, str]:
    return {rng.randint(1, LONGEST): rng.choice(["before", "after"]) for _ in range(rng.randint(2, 6))}


@pytest.mark.parametrize("seed", range(COUNT))
def test_two_copies_that_stop_and_wake_lose_nothing_and_end_alike(
    seed: int,
    tmp_path: Path,
    small_cifar: Path,
    quiet: Lab,  # noqa: F811
) -> None:
    rng = random.Random(1000 * SOAK + seed)
    lab = Lab(tmp_path, small_cifar, *OPTIONS)
    logs: list[Path] = []
    copies: list[Copy] = []

    def begin() -> None:
        log, mine = tmp_path / f"{len(logs)}.log", stops(rng)
        logs.append(log)
        ahead_s = rng.choice([-APART_S / 2, APART_S / 2])
        copies.append(Copy(lambda: train(lab, log, lambda store: Stopping(store, mine)), ahead_s))
        copies[-1].until_it_stops()

    try:
        begin()
        begin()
        while running := [copy for copy in copies if copy.code is None]:
            one = rng.choice(running)
            if len(copies) < 4 and rng.random() < 0.2:
                one.kill()
                begin()
            else:
                one.go_on()
    finally:
        for copy in copies:
            copy.kill()
    said = "\n".join(log.read_text() for log in logs)
    assert {copy.code for copy in copies} <= {0, KILLED}, said
    assert [copy.code for copy in copies].count(0) == 2, "another one for each that was killed"
    assert "is bad" not in said
    check_history(lab)
    end = tmp_path / "end.log"
    last = Copy(lambda: train(lab, end))
    last.until_it_stops()
    assert last.code == 0, end.read_text()
    assert "is finished" in end.read_text(), "one of them came to the end, and its result stands"
    assert lab.hashes() == quiet.hashes()


def check_history(lab: Lab) -> None:
    """One line, whole, on which nothing is missing that was there before its successor's claim."""
    history = History(open_store(lab.url), "cifar10")
    assert [verdict.problems for verdict in verify(history) if verdict.problems] == []
    folder = lab.store / "cifar10"
    manifests = {f"{m['attempt']:06d}-{m['step']:08d}": m for m in lab.manifests()}
    chain = lab.chain()
    assert manifests[chain[-1]]["parent"] is None, "back to the start"
    assert [int(name[-8:]) for name in chain] == sorted({int(name[-8:]) for name in chain}, reverse=True)
    for attempt in history.attempts():
        own = [name for name in chain if int(name[:6]) == attempt]
        if not own:
            continue
        parent = str(manifests[own[-1]]["parent"] or "")
        claimed = (folder / "attempts" / f"{attempt:06d}.json").stat().st_mtime_ns
        for name in manifests:
            # linking a finished file into its place sets its ctime: then it was there
            if int(name[:6]) < attempt and (folder / "checkpoints" / f"{name}.json").stat().st_ctime_ns < claimed:
                assert name <= parent, f"{name} was there when attempt {attempt} claimed, which goes on from {parent}"


def test_a_zombie_that_comes_to_the_end_too_leaves_its_successors_result_alone(
    tmp_path: Path,
    small_cifar: Path,
    quiet: Lab,  # noqa: F811
) -> None:
    """It sleeps right before its last manifest: that is an orphan branch by then, and its result would name it."""
    lab = Lab(tmp_path, small_cifar, *OPTIONS)
    logs = [tmp_path / f"{name}.log" for name in ("zombie", "second", "last")]
    zombie = Copy(lambda: train(lab, logs[0], lambda store: Stopping(store, {"000001-00000016.json": "before"})))
    try:
        zombie.until_it_stops()
        assert zombie.code is None, logs[0].read_text()
        second = Copy(lambda: train(lab, logs[1]))
        second.until_it_stops()
        assert second.code == 0, logs[1].read_text()
        zombie.go_on()
    finally:
        zombie.kill()
    assert zombie.code == 0
    assert "superseded: attempt 2 has taken this run over" in logs[0].read_text()
    assert lab.hashes() == quiet.hashes()
    last = Copy(lambda: train(lab, logs[2]))
    last.until_it_stops()
    assert (last.code, "is finished" in logs[2].read_text()) == (0, True), logs[2].read_text()
