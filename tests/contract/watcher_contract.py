"""What every watcher promises. A watcher's own tests supply only its source and how to make it speak; see
test_watchers.py."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import pytest

from watchers import Mailbox, Notice, Watch, Watcher


@dataclass(frozen=True)
class Source:
    """A source of notices, quiet at first, this test's alone."""

    open: Callable[[], Watcher]
    stop: Callable[[], None]  # from now on it says that the machine goes
    withdraw: Callable[[], None]  # from now on it says so no more
    faults: dict[str, Callable[[], None]]  # from now on it can't be asked, or answers what it should not
    heal: Callable[[], None]  # it can be asked again, and is as it was before
    deadline_s: float | None  # how long after `stop` the machine goes; None if nobody says
    stop_late: Callable[[], None] | None = None  # it says that the machine went already
    hang: Callable[[], None] = field(default=lambda: None)  # it takes what it is asked, and says nothing
    bound_s: float = 2.0  # no look takes longer, whatever its source does


def stops(mailbox: Mailbox) -> list[Notice]:
    return [notice for notice in mailbox.notices if notice.action == "stop"]


class WatcherContract:
    """Subclass it with a fixture `source`."""

    @pytest.fixture
    def source(self) -> Source:
        raise NotImplementedError

    def test_a_quiet_source_gives_no_notice(self, source: Source) -> None:
        watcher = source.open()
        assert [watcher.check() for _ in range(3)] == [None] * 3
        assert watcher.name
        assert 0 < watcher.interval_s <= 5

    def test_a_notice_says_who_when_and_why(self, source: Source) -> None:
        watcher = source.open()
        told = time.time()
        source.stop()
        notice = watcher.check()
        assert notice is not None
        assert notice.action == "stop"
        assert notice.source
        assert notice.detail
        assert notice.detail.isprintable(), "one line for people"
        assert told - 0.01 <= notice.seen <= time.time()
        if source.deadline_s is None:
            assert notice.deadline is None
        else:
            assert notice.deadline == pytest.approx(told + source.deadline_s, abs=2)

    def test_the_same_notice_bears_the_same_id_to_each_who_looks(self, source: Source) -> None:
        source.stop()
        watcher = source.open()
        ids = {notice.id for notice in (watcher.check(), watcher.check(), source.open().check()) if notice}
        assert len(ids) == 1

    def test_a_notice_is_seen_within_an_interval_and_told_once(self, source: Source) -> None:
        def seconds() -> float:
            watcher, mailbox = source.open(), Mailbox()
            watch = Watch([watcher], mailbox)
            try:
                time.sleep(watcher.interval_s * 0.6)
                assert mailbox.stop is None
                told = time.monotonic()
                source.stop()
                assert mailbox.wait(30)
                took = time.monotonic() - told
                time.sleep(watcher.interval_s * 2)
                assert len(stops(mailbox)) == 1
            finally:
                watch.close()
            source.withdraw()
            return took - watcher.interval_s

        # a busy machine may delay one try by itself; a watcher that is late is late each time
        assert any(seconds() < 0.1 for _ in range(5))

    def test_what_goes_wrong_ends_nothing_tells_nothing_and_hides_nothing(self, source: Source, fault: str) -> None:
        watcher, mailbox = source.open(), Mailbox()
        with suppress(Exception):  # the watch bears it, and says it once
            assert watcher.check() is None
        source.faults[fault]()
        began = time.monotonic()
        notice = None
        with suppress(Exception):
            notice = watcher.check()
        assert notice is None
        assert time.monotonic() - began < source.bound_s + 10, "bounded; the rest is for a busy machine"
        watch = Watch([watcher], mailbox)
        try:
            time.sleep(min(0.5, watcher.interval_s * 2))
            assert mailbox.notices == []
            source.heal()
            source.stop()
            assert mailbox.wait(30)
            assert len(stops(mailbox)) == 1
        finally:
            watch.close()

    def test_a_notice_that_is_taken_back_is_not_told_on_and_said_to_be(self, source: Source) -> None:
        watcher, mailbox = source.open(), Mailbox()
        watch = Watch([watcher], mailbox)
        try:
            source.stop()
            assert mailbox.wait(30)
            source.withdraw()
            end = time.monotonic() + 30
            while not mailbox.withdrawn and time.monotonic() < end:
                time.sleep(0.01)
        finally:
            watch.close()
        assert [*mailbox.withdrawn] == [stops(mailbox)[0].id]
        assert mailbox.stop is not None, "who began to stop goes on"

    def test_what_is_late_already_is_told_without_a_deadline(self, source: Source) -> None:
        if source.stop_late is None:
            return  # its notices never say when
        source.stop_late()
        notice = source.open().check()
        assert notice is not None
        assert (notice.action, notice.deadline) == ("stop", None)

    def test_its_thread_ends_within_a_second_whatever_it_waits_for(self, source: Source) -> None:
        def seconds() -> float:
            watcher = source.open()
            watch = Watch([watcher], Mailbox())
            watch.first_looks(30)
            source.hang()
            time.sleep(watcher.interval_s + 0.2)
            began = time.monotonic()
            watch.close()
            assert not any(thread.is_alive() for thread in watch._threads)
            source.heal()
            return time.monotonic() - began

        assert any(seconds() < 1 for _ in range(3))
