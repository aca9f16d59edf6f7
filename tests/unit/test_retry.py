"""Trying again, over a store that fails as it is told to. A made-up store: no real one fails on demand in unit tests;
tests/chaos/ has real servers that do."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from storage import open_store
from storage.errors import AlreadyExists, Damaged, NoSpace, NotFound, PermissionDenied, Unavailable, Unsupported
from storage.retry import Retrying


class Failing:
    """A local store whose calls first raise `errors`, in turn, some of them in the midst."""

    def __init__(self, folder: Path, *errors: Exception, after: int = 0) -> None:
        self.store = open_store(f"file://{folder}")
        self.url = self.store.url
        self.errors = list(errors)
        self.after = after  # objects or bytes that come before the error
        self.calls = 0

    def _fail(self) -> None:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)

    def put(self, *args: Any, **kwargs: Any) -> Any:
        self._fail()
        return self.store.put(*args, **kwargs)

    def stat(self, key: str) -> Any:
        self._fail()
        return self.store.stat(key)

    def get(self, key: str, sink: Any, *, byte_range: Any = None) -> Any:
        whole = io.BytesIO()
        info = self.store.get(key, whole, byte_range=byte_range)
        sink.write(whole.getvalue()[: self.after])
        self._fail()
        sink.write(whole.getvalue()[self.after :])
        return info

    def list(self, prefix: str, *, delimiter: str | None = None) -> Iterator[Any]:
        for number, info in enumerate(self.store.list(prefix, delimiter=delimiter)):
            if number == self.after:
                self._fail()
            yield info


def retrying(store: Any, seconds: float = 60.0) -> Retrying:
    return Retrying(store, lambda tried: seconds - tried, lambda _: None)


@pytest.mark.parametrize(("error", "times"), [(Unavailable("away"), 9), (Damaged("other bytes"), 2)])
def test_what_may_pass_is_tried_again_until_it_works(tmp_path: Path, error: Exception, times: int) -> None:
    store = Failing(tmp_path, *[error] * times)
    retrying(store).put("key", b"bytes")
    assert store.calls == times + 1
    assert store.store.stat("key").size == 5


@pytest.mark.parametrize(
    "error", [PermissionDenied("no"), NotFound("no"), AlreadyExists("there"), NoSpace("full"), ValueError("a defect")]
)
def test_what_does_not_pass_is_told_at_once(tmp_path: Path, error: Exception) -> None:
    store = Failing(tmp_path, error)
    with pytest.raises(type(error)):
        retrying(store).put("key", b"bytes")
    assert store.calls == 1


@pytest.mark.parametrize("away", [0, 1, 5])
def test_what_comes_damaged_each_time_is_told_after_three(away: int, tmp_path: Path) -> None:
    """Three times damaged: that it was not reached before, or in between, shows nothing of its bytes."""
    errors = [*[Unavailable("away")] * away, Damaged("other bytes"), *[Unavailable("away")] * away]
    store = Failing(tmp_path, *errors, *[Damaged("other bytes")] * 9)
    with pytest.raises(Damaged):
        retrying(store).put("key", b"bytes")
    assert store.calls == 2 * away + 3


def test_the_last_error_is_told_when_the_time_is_up(tmp_path: Path) -> None:
    store = Failing(tmp_path, *[Unavailable(f"away {n}") for n in range(100)])
    slept: list[float] = []

    def left(tried_s: float) -> float:
        return 5.0 - sum(slept)

    with pytest.raises(Unavailable, match="away"):
        Retrying(store, left, slept.append).stat("key")
    assert 1 < store.calls < 100
    assert sum(slept) <= 5.0
    assert len(set(slept)) == len(slept), "jitter"


def test_a_get_begins_anew_and_leaves_no_half(tmp_path: Path) -> None:
    store = Failing(tmp_path, Unavailable("cut"), Unavailable("cut"), after=3)
    store.store.put("key", b"all the bytes")
    sink = io.BytesIO(b"before ")
    sink.seek(7)
    retrying(store).get("key", sink)
    assert sink.getvalue() == b"before all the bytes"


def test_a_store_that_lists_in_no_order_is_refused_and_hides_nothing(tmp_path: Path) -> None:
    class Unordered(Failing):
        def list(self, prefix: str, *, delimiter: str | None = None) -> Iterator[Any]:
            return reversed(list(self.store.list(prefix, delimiter=delimiter)))

    store = Unordered(tmp_path)
    for key in ("a", "b"):
        store.store.put(key, b"")
    with pytest.raises(Unsupported, match="lists a out of"):
        list(retrying(store).list(""))


@pytest.mark.parametrize("delimiter", [None, "/"])
def test_a_list_goes_on_where_it_broke_off(tmp_path: Path, delimiter: str | None) -> None:
    store = Failing(tmp_path, Unavailable("cut"), Unavailable("cut"), after=4)
    keys = ["a/x", "a0", "b", "c/d/e", "ö", "日本", "z"]
    for key in keys:
        store.store.put(key, b"")
    expected = [info.key for info in store.store.list("", delimiter=delimiter)]
    assert [info.key for info in retrying(store).list("", delimiter=delimiter)] == expected
    assert store.calls == 3
