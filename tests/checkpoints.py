"""Runs of a few kB, made by the code that saves real ones, and aged at will."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import torch

from storage import open_store
from trainer.checkpoint import Snapshot
from trainer.commit import Check, Commit, RunFacts, Save, prepare
from trainer.history import History
from trainer.manifest import Manifest

HOUR = 3600.0


def history(folder: Path, run: str = "run") -> History:
    return History(open_store(f"file://{folder}"), run)


def snapshot(step: int, value: float | None = None, frozen: float = 0.5) -> Snapshot:
    """A model of two tensors, one of which no step changes, and an optimizer's state that each step changes."""
    value = float(step) if value is None else value
    return Snapshot(
        step,
        "0" * 64,
        {"loss": (1.5).hex()},
        {"a.weight": torch.full((300,), value), "b.frozen": torch.full((400,), frozen)},
        {"sgd.0.momentum_buffer": torch.full((300,), -value)},
        {"sgd.0.step": step},
        frozenset(),
    )


def save(
    history: History, attempt: int, step: int, parent: str | None = None, state: Snapshot | None = None
) -> Manifest:
    """Commit a checkpoint of this attempt, which need not be the newest."""
    return committed(history, attempt, step, parent, state).manifest


def committed(
    history: History,
    attempt: int,
    step: int,
    parent: str | None = None,
    state: Snapshot | None = None,
    fresh: frozenset[str] = frozenset(),
) -> Commit:
    """The same, with what it took. `fresh`: parts that this attempt has sent."""
    facts = RunFacts(
        run=history.run,
        job="cifar10",
        attempt=attempt,
        steps=1000,
        steps_per_epoch=100,
        settings={},
        machine={"host": "here"},
        synthetic=False,
    )
    line = Save(state or snapshot(step), {"step": step}, [{"attempt": attempt}], lambda: ['{"step": 1}'])
    return commit(_Unfenced(history.store, history.run), facts, line, parent, fresh, never_given_up)


def commit(
    history: History, facts: RunFacts, save: Save, parent: str | None, fresh: frozenset[str], check: Check
) -> Commit:
    """As a saver does it."""
    done = prepare(history, facts, save, parent, fresh, check)
    done.make(history, check)
    return done


def never_given_up(*, committing: bool = False) -> None:
    pass


class _Unfenced(History):
    """A copy that passed the fence just before its successor claimed: what it commits is an orphan branch."""

    def check_fence(self, attempt: int) -> None:
        pass


def chain(history: History, attempt: int, steps: list[int], parent: str | None = None) -> list[Manifest]:
    made = []
    for step in steps:
        made.append(save(history, attempt, step, parent))
        parent = made[-1].name
    return made


def age(history: History, hours: float, *names: str) -> None:
    """Make every object of the run, or those whose key ends so, that much older by the store's clock."""
    root = Path(history.store.url.removeprefix("file://"))
    for info in list(history.store.list(history.run + "/")):
        if not names or any(info.key.endswith(name) for name in names):
            os.utime(root / info.key, times=(info.modified - hours * HOUR,) * 2)


def keys(history: History, folder: str) -> list[str]:
    """Names in one of the run's folders."""
    return [info.key.rpartition("/")[2] for info in history.store.list(history.key(folder, ""))]


class DyingStore:
    """A store whose `number`-th call that changes something the process does not survive."""

    def __init__(self, store: Any, number: int) -> None:
        self._store = store
        self._left = itertools.count(number, -1)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)
        if name not in ("put", "delete"):
            return method

        def call(*args: Any, **options: Any) -> Any:
            if next(self._left) == 1:
                os._exit(9)
            return method(*args, **options)

        return call
