from __future__ import annotations

import itertools
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from watchers import Mailbox, Notice, Stopped


def stop(source: str, deadline: float | None = None, told: object = "") -> Notice:
    return Notice(source, "stop", f"{source} says so", f"{source}{told}", time.time(), deadline)


def save(told: object = "") -> Notice:
    return Notice("aws", "save", "a rebalance is recommended", f"save{told}", time.time())


RANKS = ["halt", "superseded", "SIGINT", "SIGTERM"]


@pytest.mark.parametrize("order", list(itertools.permutations(RANKS)), ids="-".join)
def test_the_highest_in_rank_counts_whatever_the_order(order: tuple[str, ...]) -> None:
    for present in range(1, 5):
        mailbox = Mailbox()
        for source in order[:present]:
            mailbox.post(stop(source))
        assert mailbox.stop is not None
        assert mailbox.stop.source == min(order[:present], key=RANKS.index)


@pytest.mark.parametrize("others", [("SIGTERM", "aws"), ("aws", "SIGTERM"), ("preempt", "gcp")])
def test_of_equal_ranks_the_first_counts(others: tuple[str, str]) -> None:
    mailbox = Mailbox()
    for source in others:
        mailbox.post(stop(source))
    assert mailbox.stop is not None
    assert mailbox.stop.source == others[0]


def test_the_nearest_deadline_counts_whoever_gave_it() -> None:
    for deadlines in itertools.permutations([130.0, 110.0, None, 120.0, 0.0]):
        mailbox = Mailbox()
        for n, deadline in enumerate(deadlines):
            mailbox.post(stop("aws", deadline, n))
            given = [d for d in deadlines[: n + 1] if d is not None]
            assert mailbox.deadline == min(given, default=None)


def test_a_halt_without_a_deadline_leaves_that_of_the_machine() -> None:
    mailbox = Mailbox()
    mailbox.post(stop("SIGTERM", 100.0))
    mailbox.post(stop("halt"))
    assert mailbox.stop is not None
    assert (mailbox.stop.source, mailbox.deadline) == ("halt", 100.0)


def test_the_deadline_is_known_before_the_stop_is_seen() -> None:
    """The training thread reads both without a lock."""
    seen_without = []

    class Watched(Mailbox):
        def __setattr__(self, name: str, value: object) -> None:
            if name == "stop" and value is not None and self.deadline is None:
                seen_without.append(value)
            super().__setattr__(name, value)

    Watched().post(stop("SIGTERM", 100.0))
    assert seen_without == []


def test_the_same_notice_is_taken_once() -> None:
    mailbox = Mailbox()
    assert mailbox.post(stop("aws", 120.0)) is True
    assert mailbox.post(stop("aws", 120.0)) is False
    assert mailbox.post(save()) is True
    assert mailbox.post(save()) is False
    assert [n.id for n in mailbox.notices] == ["aws", "save"]
    assert mailbox.deadline == 120.0


def test_the_same_event_told_again_with_a_nearer_deadline_replaces_it_and_with_a_later_one_does_not() -> None:
    mailbox = Mailbox()
    for deadline, news in ((None, True), (120.0, True), (60.0, True), (90.0, False), (None, False)):
        assert mailbox.post(stop("aws", deadline)) is news
    assert mailbox.deadline == 60.0
    assert [n.deadline for n in mailbox.notices] == [60.0]


def test_of_equal_ranks_the_most_urgent_counts() -> None:
    for order in itertools.permutations([("aws", 120.0), ("SIGTERM", 10.0), ("preempt", None)]):
        mailbox = Mailbox()
        for source, deadline in order:
            mailbox.post(stop(source, deadline))
        assert mailbox.stop is not None
        assert mailbox.stop.source == "SIGTERM"


def test_a_pause_ends_with_a_nearer_deadline_for_what_was_known() -> None:
    mailbox = Mailbox()
    mailbox.post(stop("aws", 120.0))
    threading.Timer(0.1, mailbox.post, [stop("aws", 60.0)]).start()
    began = time.monotonic()
    mailbox.pause(60)
    assert time.monotonic() - began < 30


def test_a_notice_taken_back_is_put_down_and_stops_all_the_same() -> None:
    mailbox = Mailbox()
    notice = stop("aws", 120.0)
    mailbox.post(notice)
    mailbox.withdraw(notice)
    assert [*mailbox.withdrawn] == [notice.id]
    assert mailbox.stop is notice


def test_a_save_notice_asks_for_one_save_and_stops_nothing() -> None:
    mailbox = Mailbox()
    assert mailbox.take_save() is False
    mailbox.post(save(1))
    mailbox.post(save(1))
    mailbox.check()
    assert (mailbox.stop, mailbox.deadline, mailbox.wait(0)) == (None, None, False)
    assert [mailbox.take_save(), mailbox.take_save()] == [True, False]
    mailbox.post(save(2))
    assert [mailbox.take_save(), mailbox.take_save()] == [True, False]


def test_check_raises_the_notice_that_counts() -> None:
    mailbox = Mailbox()
    mailbox.check()
    mailbox.post(stop("SIGTERM"))
    mailbox.post(stop("halt"))
    with pytest.raises(Stopped, match="halt says so") as caught:
        mailbox.check()
    assert caught.value.notice is mailbox.stop


def test_wait_ends_soon_after_a_stop_for_all_who_wait_and_not_for_a_save() -> None:
    def slowest() -> float:
        mailbox = Mailbox()

        def wait() -> tuple[bool, float]:
            return mailbox.wait(20), time.monotonic()

        with ThreadPoolExecutor(8) as pool:
            waits = [pool.submit(wait) for _ in range(8)]
            time.sleep(0.1)
            mailbox.post(save())
            time.sleep(0.1)
            assert not any(w.done() for w in waits)
            posted = time.monotonic()
            mailbox.post(stop("aws"))
            ends = [w.result() for w in waits]
        assert all(told for told, _ in ends)
        assert [mailbox.wait(20) for _ in range(3)] == [True] * 3
        assert time.monotonic() - posted < 10, "once stopped, nobody sleeps"
        return max(ended for _, ended in ends) - posted

    # a busy machine may delay one try by itself; a mailbox that is late is late each time
    assert any(slowest() < 0.1 for _ in range(5))


@pytest.mark.parametrize("seconds", [-1.0, 0.0, 0.05])
def test_wait_without_a_notice_lasts_as_long_as_it_was_told(seconds: float) -> None:
    began = time.monotonic()
    assert Mailbox().wait(seconds) is False
    assert max(0.0, seconds) <= time.monotonic() - began + 0.001 < max(0.0, seconds) + 1


def test_a_wait_may_be_as_long_as_one_likes() -> None:
    mailbox = Mailbox()
    threading.Timer(0.05, mailbox.post, [stop("aws")]).start()
    assert mailbox.wait(float("inf"))


def test_many_threads_lose_no_notice_and_double_none() -> None:
    threads, each = 8, 200
    mailbox = Mailbox()
    together = threading.Barrier(threads + 2, timeout=30)
    taken = []

    def post(n: int) -> int:
        dice = random.Random(n)
        together.wait()
        new = 0
        for i in range(each):
            told = dice.randrange(50)
            deadline = 1000.0 + told if told else None
            new += mailbox.post(save(told) if i % 3 == 0 else stop("halt" if told == 25 else "aws", deadline, told))
        return new

    def look() -> None:
        together.wait()
        while not done.is_set():
            taken.append(mailbox.take_save())
            found = mailbox.stop
            assert mailbox.wait(0) is True or found is None

    done = threading.Event()
    with ThreadPoolExecutor(threads + 2) as pool:
        looks = [pool.submit(look) for _ in range(2)]
        posts = [pool.submit(post, n) for n in range(threads)]
        new = sum(p.result() for p in posts)
        done.set()
        for each_look in looks:
            each_look.result()
    ids = [n.id for n in mailbox.notices]
    assert len(ids) == len(set(ids)) == new
    assert mailbox.stop is not None
    assert mailbox.stop.source == "halt"
    given = [n.deadline for n in mailbox.notices if n.action == "stop" and n.deadline is not None]
    assert mailbox.deadline == min(given)
    assert any(taken) or mailbox.take_save()
    assert mailbox.wait(10)
