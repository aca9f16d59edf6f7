"""Which save goes first before a deadline, and how long one may take."""

from __future__ import annotations

import math
import threading
from pathlib import Path
from typing import Any

import pytest

from storage.errors import Unavailable
from storage.local import LocalStore
from tests.checkpoints import history, snapshot
from tests.unit.test_gpu_trouble import attempt as training
from trainer.attempt import LAST_TRY_S, TRY_S, retry_s
from trainer.commit import RunFacts, Save
from trainer.history import History
from trainer.saver import Saver, last_save_needs_way
from watchers import Mailbox


@pytest.mark.parametrize(
    ("in_flight", "last", "left", "grace", "gives_way"),
    [
        (5, 10, 100, 0, False),  # both fit
        (20, 10, 29.9, 10, True),  # only the last one fits
        (20, 10, 30, 10, False),  # both fit, just so
        (9, 10, 15, 10, False),  # a SIGTERM may follow any notice: what lands within its grace is let land
        (11, 10, 15, 10, True),
        (20, 40, 30, 10, False),  # the last one can't fit: what is in flight is all there will be
        (200, 100, 30, 10, False),  # neither fits
        (200, 100, float("inf"), 10, False),  # nobody is in a hurry
    ],
)
def test_the_save_in_flight_gives_way_only_if_the_last_one_alone_fits(
    in_flight: float, last: float, left: float, grace: float, *, gives_way: bool
) -> None:
    assert last_save_needs_way(in_flight, last, left, grace) is gives_way


class Away:
    """A store that takes nothing until it was asked for so many times."""

    def __init__(self, store: Any, times: int) -> None:
        self._store = store
        self.url = store.url
        self.left = times

    def put(self, *args: Any, **options: Any) -> Any:
        if self.left > 0:
            self.left -= 1
            raise Unavailable("away")
        return self._store.put(*args, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


@pytest.mark.parametrize(("left_s", "saved"), [(0.01, True), (math.inf, False)])
def test_a_failing_last_save_is_tried_until_the_deadline_and_for_a_while_only_where_there_is_none(
    left_s: float, tmp_path: Path, *, saved: bool
) -> None:
    """The while is over at once here: 120 s of a notice are no reason to give up after 60."""
    store = Away(history(tmp_path).store, times=9)
    facts = RunFacts(
        run="run", job="cifar10", attempt=1, steps=9, steps_per_epoch=9, settings={}, machine={}, synthetic=False
    )
    saver = Saver(History(store, "run"), facts, None, lambda _: None, lambda _: None, lambda _: None)
    save = Save(snapshot(5), {}, [], list)
    assert saver.save_now(save, lambda: left_s, 0.0, 0.0, evaluated=False) is saved
    assert (saver.error is None) is saved


def test_what_a_save_waits_for_a_store_follows_the_deadline() -> None:
    assert retry_s(10.0, math.inf, stopping=False) == TRY_S - 10, "the next one has a newer state to save"
    assert retry_s(10.0, math.inf, stopping=True) == LAST_TRY_S - 10
    assert retry_s(LAST_TRY_S + 10, 49.0, stopping=True) == 49, "the last one has all the time that is left"
    assert retry_s(1.0, 3.0, stopping=True) == 3


def test_who_has_given_up_a_store_that_hangs_does_not_wait_for_it_to_take_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, healed, taken = training(tmp_path, "cpu", Mailbox(), []), threading.Event(), []
    monkeypatch.setattr(LocalStore, "put", lambda *_, **__: taken.append(healed.wait(10)))
    mine.saver.stuck = True
    mine.end(74, "not durable")
    assert taken == []
    healed.set()
