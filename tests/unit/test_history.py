"""A run's records in a store that tells of them late, and checkpoints that no start could read."""

from __future__ import annotations

import collections
import io
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from storage.errors import Unavailable
from storage.protocol import Store
from storage.retry import Retrying
from tests.checkpoints import chain, history, keys, save, snapshot
from trainer.history import History
from trainer.manifest import MAX_BYTES


class Late:
    """A store whose lists are those of the moment when it was opened; it bears so many puts."""

    def __init__(self, store: Any, puts: int) -> None:
        self._store, self._puts = store, puts
        self._listed = list(store.list(""))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def list(self, prefix: str, *, delimiter: str | None = None) -> Any:
        return (info for info in self._listed if info.key.startswith(prefix))

    def put(self, *args: Any, **options: Any) -> Any:
        self._puts -= 1
        if self._puts < 0:
            raise Unavailable("this goes on for ever")
        return self._store.put(*args, **options)


def test_claims_that_a_list_does_not_tell_of_yet_are_passed_over(tmp_path: Path) -> None:
    run = history(tmp_path)
    run.claim({})
    late = History(Late(run.store, 4), "run")  # type: ignore[arg-type]
    assert [run.claim({}) for _ in range(3)] == [2, 3, 4]
    assert late.claim({}) == 5
    assert run.attempts() == [1, 2, 3, 4, 5]


def test_how_far_the_clock_is_ahead_is_told_by_the_request_of_the_claim_and_none_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each list takes 30 s, as where it is tried again and again."""
    inner, passed, created = history(tmp_path).store, [0.0], [0.0]
    monkeypatch.setattr("trainer.history.time", SimpleNamespace(time=lambda: time.time() + 100 + passed[0]))

    class Slow:
        def __getattr__(self, name: str) -> Any:
            return getattr(inner, name)

        def list(self, *args: Any, **options: Any) -> Any:
            passed[0] += 30
            return inner.list(*args, **options)

        def put(self, *args: Any, **options: Any) -> Any:
            created[0] = passed[0]
            return inner.put(*args, **options)

        def stat(self, key: str) -> Any:
            info = inner.stat(key)
            return replace(info, modified=info.modified + created[0])

    run = History(Slow(), "run")  # type: ignore[arg-type]
    assert run.clock_ahead_s(run.claim({})) == pytest.approx(100, abs=2)


class Unconditional:
    """A store that writes whatever it is asked to create, as servers do that don't know the condition."""

    def __init__(self, store: Any) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def put(self, key: str, source: Any, *, if_absent: bool = False) -> Any:
        return self._store.put(key, source)


def test_a_store_that_would_not_tell_two_copies_apart_is_told_of_at_the_claim(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = history(tmp_path)
    assert run.claim({}) == 1
    assert not caplog.records
    blind = History(Unconditional(run.store), "run")  # type: ignore[arg-type]
    assert blind.claim({}) == 2
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "never start two" in caplog.text
    blind.check_fence(2)


def test_a_checkpoint_that_no_start_could_read_is_not_committed(tmp_path: Path) -> None:
    """Its manifest has grown too long: each later start would find it bad, though it was told to be durable."""
    run = history(tmp_path)
    chain(run, 1, [10])
    long = replace(snapshot(20), scalars={"sgd.0.note": "x" * MAX_BYTES})
    with pytest.raises(ValueError, match="too long for a manifest"):
        save(run, 1, 20, "000001-00000010", long)
    assert keys(run, "checkpoints") == ["000001-00000010.json"]


def test_a_header_that_comes_damaged_is_read_again_as_all_else(tmp_path: Path) -> None:
    """Three times, with pauses: a part of a small network is mostly header."""
    run = history(tmp_path)
    made = chain(run, 1, [10])[0]
    left, pauses = [3], []

    class Flipping:
        url = run.store.url

        def get(self, key: str, sink: Any, **where: Any) -> Any:
            whole = io.BytesIO()
            found = run.store.get(key, whole, **where)
            left[0] -= 1
            sink.write(bytes([whole.getvalue()[0] ^ 1]) + whole.getvalue()[1:] if left[0] >= 0 else whole.getvalue())
            return found

    store: Any = Retrying(cast(Store, Flipping()), lambda tried: 60.0, pauses.append)
    assert History(store, "run").part(made.parts[0]) == run.part(made.parts[0])
    assert len(pauses) == 2


def test_going_back_past_many_bad_checkpoints_costs_each_the_same(tmp_path: Path) -> None:
    """A list for each would be their number squared: hours on a cloud, of a run whose parts somebody's rule deleted."""
    run = history(tmp_path)
    made = chain(run, 1, list(range(10, 130, 10)))
    for manifest in made[1:]:
        for ref in manifest.parts:
            if ref not in made[0].parts:
                run.store.delete(run.key("parts", ref.sha256))
    calls: collections.Counter[str] = collections.Counter()

    class Counting:
        def __getattr__(self, name: str) -> Any:
            calls[name] += 1
            return getattr(run.store, name)

    newest = History(Counting(), "run").newest_good()  # type: ignore[arg-type]
    assert newest is not None
    assert newest.manifest == made[0]
    assert calls["list"] == 1
    assert calls["stat"] == len(made) - 1
