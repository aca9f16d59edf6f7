"""How much of what passes through a store lies in memory at once, for all its callers together."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import TypeVar

T = TypeVar("T")


class Room:
    """Room for so many parts of objects. Of each object one may be in it in any case, so that nobody ever waits for
    another, who could be waiting for him: of all objects together there are as many as that, and one for each caller
    but the first."""

    def __init__(self, parts: int) -> None:
        self.parts = parts
        self._taken = 0
        self._lock = threading.Lock()

    def _take(self, *, anyway: bool) -> bool:
        with self._lock:
            if self._taken >= self.parts and not anyway:
                return False
            self._taken += 1
            return True

    def _give(self) -> None:
        with self._lock:
            self._taken -= 1

    def side_by_side(
        self, pool: Executor, work: Iterable[Callable[[], T]], first: Iterable[T] = ()
    ) -> Generator[T, None, None]:
        """What comes first, while the work begins, then the work's results in order; it is asked for when there is
        room to do it. A result has its room until the next one is asked for: keep none."""
        under_way: deque[Future[T]] = deque()
        left = iter(work)
        try:
            self._begin(pool, left, under_way, anyway=False)
            yield from first
            self._begin(pool, left, under_way)
            while under_way:
                yield under_way[0].result()
                under_way.popleft()
                self._give()
                self._begin(pool, left, under_way)
        finally:
            for future in under_way:
                future.cancel()
                self._give()

    def _begin(
        self, pool: Executor, left: Iterator[Callable[[], T]], under_way: deque[Future[T]], *, anyway: bool = True
    ) -> None:
        while self._take(anyway=anyway and not under_way):
            work = None
            try:
                work = next(left, None)
            finally:
                if work is None:
                    self._give()
            if work is None:
                return
            under_way.append(pool.submit(work))
            del work  # it may hold a part
