"""Requests to a store, several at once: one alone waits for its answer most of the time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def side_by_side(work: Callable[[T], R], items: Iterable[T], at_once: int) -> Iterator[R]:
    """`work` of each item, in their order; after one that raises, no more are begun."""
    failed: list[BaseException] = []

    def unless_failed(item: T) -> R:
        if failed:  # whoever reads the results may still wait for an item before the one that failed
            raise failed[0]
        try:
            return work(item)
        except BaseException as e:
            failed.append(e)
            raise

    with ThreadPoolExecutor(at_once, "side-by-side") as pool:
        try:
            yield from pool.map(unless_failed, items)
        finally:
            pool.shutdown(cancel_futures=True)
