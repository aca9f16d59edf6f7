"""What every watcher promises. A watcher's own tests supply only its source and how to make it speak; see
test_watchers.py."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import pytest

from watchers import Mailbox, Notice, Watch, Watcher


@dataclass(frozen=True)
class Source:
    """A source of notices, quiet at first, this test's alone."""

    open: Callable[[], Watcher]
    stop: Callable[[], None]  # from now on it says that the machine goes
    fail: Callable[[], None]  # from now on it can't be asked
    heal: Callable[[], None]  # it can be asked again, and is as it was before
    deadline_s: float | None  # how long after `stop` the machine goes; None if nobody says
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
        watcher, mailbox = source.open(), Mailbox()
        watch = Watch([watcher], mailbox)
        try:
            time.sleep(watcher.interval_s * 0.6)
            assert mailbox.stop is None
            told = time.monotonic()
            source.stop()
            assert mailbox.wait(watcher.interval_s + 0.1)
            assert time.monotonic() - told < watcher.interval_s + 0.1
            time.sleep(watcher.interval_s * 2)
            assert len(stops(mailbox)) == 1
        finally:
            watch.close()

    def test_a_source_that_fails_ends_nothing_and_is_heard_again_once_it_works(self, source: Source) -> None:
        watcher, mailbox = source.open(), Mailbox()
        source.fail()
        began = time.monotonic()
        notice = None
        with suppress(Exception):  # the watch bears it, and says it once
            notice = watcher.check()
        assert notice is None
        assert time.monotonic() - began < source.bound_s
        watch = Watch([watcher], mailbox)
        try:
            time.sleep(watcher.interval_s * 2)
            assert mailbox.notices == []
            source.heal()
            source.stop()
            assert mailbox.wait(source.bound_s + watcher.interval_s + 0.1)
        finally:
            watch.close()
