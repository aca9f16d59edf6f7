"""How much lies in memory at once, whoever fails or leaves: room that is lost makes every later transfer slower."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from storage.room import Room

PARTS = 3


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


def begun_ahead(room: Room, pool: ThreadPoolExecutor) -> int:
    """How many of ten are asked for before the first result is taken."""
    asked: list[int] = []

    def work() -> Iterator[Callable[[], int]]:
        for n in range(10):
            asked.append(n)
            yield lambda: n  # noqa: B023

    with closing(room.side_by_side(pool, work())) as results:
        next(results)
        return len(asked)


def to_its_end(room: Room, pool: ThreadPoolExecutor) -> None:
    assert list(room.side_by_side(pool, [lambda n=n: n for n in range(10)], [-2, -1])) == list(range(-2, 10))


def left_early(room: Room, pool: ThreadPoolExecutor) -> None:
    for taken in (0, 1, 5):
        with closing(room.side_by_side(pool, [lambda: 0] * 10, [0])) as results:
            for _ in range(taken):
                next(results)


def with_work_that_fails(room: Room, pool: ThreadPoolExecutor) -> None:
    def fails() -> int:
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        list(room.side_by_side(pool, [lambda: 0, fails, *[lambda: 0] * 10]))


def with_a_source_that_fails(room: Room, pool: ThreadPoolExecutor) -> None:
    def work() -> Iterator[Callable[[], int]]:
        yield lambda: 0
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        list(room.side_by_side(pool, work()))


@pytest.mark.parametrize("ends", [to_its_end, left_early, with_work_that_fails, with_a_source_that_fails])
def test_room_comes_back_however_the_work_ends(
    ends: Callable[[Room, ThreadPoolExecutor], None], pool: ThreadPoolExecutor
) -> None:
    room = Room(PARTS)
    assert begun_ahead(room, pool) == PARTS
    for _ in range(PARTS):
        ends(room, pool)
    assert begun_ahead(room, pool) == PARTS


def test_all_callers_together_have_so_many_and_each_one_in_any_case(pool: ThreadPoolExecutor) -> None:
    """One has all the room and takes none of his results: the others come to their end all the same, one by one."""
    room, lock = Room(PARTS), threading.Lock()
    held, most = 0, 0

    def work() -> Iterator[Callable[[], None]]:
        nonlocal held, most
        for _ in range(20):
            with lock:
                held += 1
                most = max(most, held)
            yield lambda: None

    def take(results: Iterator[None]) -> None:
        nonlocal held
        for _ in results:
            with lock:
                held -= 1

    with closing(room.side_by_side(pool, work())) as slow:
        next(slow)
        others = [threading.Thread(target=take, args=(room.side_by_side(pool, work()),), daemon=True) for _ in range(4)]
        for other in others:
            other.start()
        for other in others:
            other.join(60)
        assert not any(other.is_alive() for other in others)
    assert PARTS < most <= PARTS + len(others)
