from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from watchers import Mailbox, Notice, Stopped, Watch, Watcher
from watchers.unheeded import UnheededWatcher


def notice(name: str, action: str = "stop") -> Notice:
    return Notice(name, action, f"{name} says so", name, time.time())  # type: ignore[arg-type]


class Quiet:
    def __init__(self, name: str = "quiet", interval_s: float = 0.02) -> None:
        self.name, self.interval_s, self.looks = name, interval_s, 0

    def check(self) -> Notice | None:
        self.looks += 1
        return None


class Telling(Quiet):
    """Tells the same notice from the third look on."""

    def check(self) -> Notice | None:
        super().check()
        return notice(self.name) if self.looks > 2 else None


class Failing(Quiet):
    def check(self) -> Notice | None:
        super().check()
        raise ConnectionError("metadata service is away")


class Babbling(Quiet):
    """Breaks its own protocol: gives what is no notice."""

    def check(self) -> Notice | None:
        super().check()
        return "stop!"  # type: ignore[return-value]


class Hung(Quiet):
    def __init__(self) -> None:
        super().__init__("hung")
        self.free = threading.Event()

    def check(self) -> Notice | None:
        super().check()
        self.free.wait(30)
        return None


@contextmanager
def watching(mailbox: Mailbox, *watchers: Watcher) -> Iterator[Watch]:
    watch = Watch(watchers, mailbox)
    try:
        yield watch
    finally:
        for watcher in watchers:
            if isinstance(watcher, Hung):
                watcher.free.set()
        watch.close()


@pytest.mark.parametrize("bad", [Failing, Babbling, Hung])
def test_a_bad_watcher_never_delays_nor_silences_another(bad: type[Quiet]) -> None:
    mailbox = Mailbox()
    others = [bad() for _ in range(3)]
    with watching(mailbox, *others, Telling("good"), *others):
        assert mailbox.wait(3)
    assert mailbox.stop is not None
    assert mailbox.stop.source == "good"


@pytest.mark.parametrize("bad", [Failing, Babbling])
def test_a_watcher_that_fails_is_tried_again_and_said_once(bad: type[Quiet], caplog: pytest.LogCaptureFixture) -> None:
    mailbox, failing = Mailbox(), bad("cloud")
    with caplog.at_level(logging.WARNING), watching(mailbox, failing):
        end = time.monotonic() + 5
        while failing.looks < 5 and time.monotonic() < end:
            time.sleep(0.01)
    assert failing.looks >= 5
    assert len(caplog.records) == 1
    assert "cloud" in caplog.text
    assert mailbox.stop is None


def test_a_failure_after_a_success_is_said_anew(caplog: pytest.LogCaptureFixture) -> None:
    class Fickle(Quiet):
        def check(self) -> Notice | None:
            super().check()
            if self.looks in (1, 2, 4, 5):
                raise ConnectionError("away")
            return None

    fickle = Fickle("cloud")
    with caplog.at_level(logging.WARNING), watching(Mailbox(), fickle):
        while fickle.looks < 7:
            time.sleep(0.01)
    assert len(caplog.records) == 2


def test_a_notice_told_at_every_look_is_posted_once() -> None:
    mailbox, telling = Mailbox(), Telling("cloud")
    with watching(mailbox, telling):
        while telling.looks < 10:
            time.sleep(0.01)
    assert [n.source for n in mailbox.notices] == ["cloud"]


def test_close_ends_every_thread_within_a_second() -> None:
    before = threading.active_count()
    watch = Watch([Quiet(str(n), interval_s=60) for n in range(10)], Mailbox())
    assert threading.active_count() == before + 10
    began = time.monotonic()
    watch.close()
    assert time.monotonic() - began < 1
    assert threading.active_count() == before


def test_close_waits_no_longer_for_many_hung_watchers_than_for_one() -> None:
    hung = [Hung() for _ in range(4)]
    watch = Watch(hung, Mailbox())
    while not all(one.looks for one in hung):
        time.sleep(0.01)
    began = time.monotonic()
    watch.close()
    assert time.monotonic() - began < 2
    for one in hung:
        one.free.set()
    watch.close()


def test_a_closed_watch_looks_no_more() -> None:
    quiet = Quiet()
    watch = Watch([quiet], Mailbox())
    time.sleep(0.3)
    watch.close()
    looks = quiet.looks
    time.sleep(0.1)
    assert 0 < quiet.looks == looks


def test_threads_of_a_watch_never_hold_up_the_end_of_the_program() -> None:
    with watching(Mailbox(), Quiet("mine")):
        mine = [thread for thread in threading.enumerate() if thread.name == "watch-mine"]
        assert [thread.daemon for thread in mine] == [True]


@pytest.mark.parametrize("heeded", [False, True])
def test_a_stop_that_nobody_comes_to_act_on_is_told_once_and_one_that_is_acted_on_never(
    heeded: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "baton.watchers")
    mailbox = Mailbox()
    watcher = UnheededWatcher(mailbox)
    watcher.check()
    mailbox.post(notice("SIGTERM"))
    for look in range(10):
        assert watcher.check() is None
        if heeded and look == 1:
            with pytest.raises(Stopped):
                mailbox.check()
    told = [record.getMessage() for record in caplog.records]
    assert told == ([] if heeded else ["SIGTERM says so: waiting for what is in progress, a step or an evaluation"])
