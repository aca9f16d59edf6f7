"""Writers, zombies and cleaners step by step in random order, on a store whose clock is the test's.

Few contents come again and again, so that writers put the same parts; nothing may ever lack a part that it names.
"""

from __future__ import annotations

import hashlib
import io
import os
import random
from collections.abc import Iterator
from typing import Any, BinaryIO

import pytest

from storage import ObjectInfo
from storage.errors import AlreadyExists, NotFound
from trainer.commit import LONGEST_S
from trainer.history import History, Superseded
from trainer.manifest import Manifest, PartRef, checkpoint_name, parse_name
from trainer.retention import SETTLED_S, Retention

SEED = int(os.environ.get("BATON_SOAK_SEED", "7"))
SCHEDULES = 2000 if "BATON_SOAK_SEED" in os.environ else 40
HOUR = 3600.0


class Memory:
    url = "memory://"

    def __init__(self) -> None:
        self.objects: dict[str, tuple[bytes, float]] = {}
        self.now = 1e9

    def put(self, key: str, source: Any, *, if_absent: bool = False) -> ObjectInfo:
        if if_absent and key in self.objects:
            raise AlreadyExists(key)
        data = b"".join(source) if isinstance(source, list) else bytes(source)
        self.objects[key] = data, float(int(self.now))  # in whole seconds, as the coarsest stores have it
        return self.stat(key)

    def get(self, key: str, sink: BinaryIO, *, byte_range: tuple[int, int] | None = None) -> ObjectInfo:
        info = self.stat(key)
        sink.write(self.objects[key][0][slice(*(byte_range or (None, None)))])
        return info

    def stat(self, key: str) -> ObjectInfo:
        if key not in self.objects:
            raise NotFound(key)
        return ObjectInfo(key, len(self.objects[key][0]), self.objects[key][1])

    def list(self, prefix: str, *, delimiter: str | None = None) -> Iterator[ObjectInfo]:
        return iter([self.stat(key) for key in sorted(self.objects) if key.startswith(prefix)])

    def delete(self, key: str) -> None:
        self.objects.pop(key, None)


class Writer:
    """An attempt as trainer/saver.py and trainer/commit.py have it, a step at a time."""

    def __init__(self, store: Memory, dice: random.Random) -> None:
        self.store, self.dice = store, dice
        self.history = History(store, "run")  # type: ignore[arg-type]
        self.attempt = self.history.claim({})
        names = self.history.checkpoints()
        self.parent = checkpoint_name(*names[0]) if names else None
        self.step = names[0][1] if names else 0
        self.fresh: frozenset[str] = frozenset()
        self.retention = Retention(self.history, 2, every_s=0)
        self.saving = self._save()
        self.passed_at: float | None = None  # when it looked at the fence, with its manifest not yet written
        self.alive = True

    def go(self) -> None:
        try:
            next(self.saving)
        except Superseded:
            self.alive, self.passed_at = False, None

    def _save(self) -> Iterator[None]:
        while True:
            self.step += 1
            began = self.store.now
            contents = [f"{section}{self.dice.randrange(4)}".encode() for section in ("model", "optimizer")]
            refs = []
            for section, content in zip(("model", "optimizer"), contents, strict=True):
                refs.append(PartRef(section, hashlib.sha256(content).hexdigest(), len(content)))
                if refs[-1].sha256 not in self.fresh:
                    yield
                    self.history.put_part(refs[-1].sha256, len(content), [memoryview(content)])
            yield
            if self.store.now - began > LONGEST_S:
                continue  # it is given up
            self.history.check_fence(self.attempt)
            self.passed_at = self.store.now
            yield
            made = manifest(self.attempt, self.step, self.parent, refs, self.store.now)
            self.history.create(f"run/checkpoints/{made.name}.json", made.to_json())
            self.passed_at = None
            self.parent, self.fresh = made.name, frozenset(ref.sha256 for ref in refs)
            yield
            if self.dice.random() < 0.5:
                self.retention.between_saves(self.attempt, made.name, lambda: False, lambda: False)


def manifest(attempt: int, step: int, parent: str | None, parts: list[PartRef], now: float) -> Manifest:
    empty = hashlib.sha256().hexdigest()
    return Manifest(
        uuid="a",
        run="run",
        job="cifar10",
        attempt=attempt,
        step=step,
        steps=1000,
        steps_per_epoch=10,
        parent=parent,
        time=now,
        parts=parts,
        scalars={},
        sums={},
        order_sha256=empty,
        weights_sha256=empty,
        metrics={},
        settings={},
        machine={},
        ledger=[],
        synthetic=False,
    ).with_state_hash()


def all_parts_are_there(history: History, store: Memory) -> None:
    for pair in history.checkpoints():
        for ref in history.manifest(checkpoint_name(*pair)).parts:
            assert f"run/parts/{ref.sha256}" in store.objects, f"{pair} lacks a part"


@pytest.mark.parametrize("part", range(4))
def test_no_checkpoint_ever_lacks_a_part_whoever_writes_stalls_and_cleans(part: int) -> None:
    went_early = 0
    for number in range(part, SCHEDULES, 4):
        seed = f"{SEED}.{number}"
        dice, store = random.Random(seed), Memory()
        history = History(store, "run")  # type: ignore[arg-type]
        writers: list[Writer] = []
        for _ in range(150):
            living = [writer for writer in writers if writer.alive]
            action = dice.random()
            if not living or (action < 0.04 and len(living) < 3):
                writers.append(Writer(store, dice))
            elif action < 0.8:
                dice.choice(living[-2:] if dice.random() < 0.8 else living).go()
            elif action < 0.9:
                before = {pair: store.stat(f"run/checkpoints/{checkpoint_name(*pair)}.json") for pair in parsed(store)}
                cleaner = Retention(history, 2)
                cleaner.remove(cleaner.excess(store.now))
                gone = before.keys() - set(parsed(store))
                went_early += sum(store.now - before[pair].modified < 24 * HOUR for pair in gone)
            else:
                store.now += min([dice.choice([1.0, 60.0, 600.0, 1500.0, 3 * HOUR, 20 * HOUR]), *most(writers, store)])
            try:
                all_parts_are_there(history, store)
            except AssertionError as e:
                raise AssertionError(f"schedule {seed}: {e}") from e
    assert went_early > SCHEDULES // 4, "hardly anything went before its 24 hours: this shows nothing"


def most(writers: list[Writer], store: Memory) -> list[float]:
    """How long the clock may run before a step is made: to the one case that trainer/retention.py leaves out.

    That is a manifest that takes an hour after its look at the fence.
    """
    return [writer.passed_at + SETTLED_S - 1 - store.now for writer in writers if writer.passed_at is not None]


def parsed(store: Memory) -> list[tuple[int, int]]:
    names = (key.rpartition("/")[2].removesuffix(".json") for key in store.objects if "/checkpoints/" in key)
    return [pair for name in names if (pair := parse_name(name))]


def test_the_store_used_here_gives_what_was_put() -> None:
    store, sink = Memory(), io.BytesIO()
    store.put("a", [memoryview(b"12"), memoryview(b"3")])
    store.get("a", sink, byte_range=(1, 9))
    assert sink.getvalue() == b"23"
