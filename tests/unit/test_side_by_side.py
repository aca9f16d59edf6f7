"""Several requests at once: their order, and what becomes of the others when one fails."""

from __future__ import annotations

import threading

import pytest

from trainer.side_by_side import side_by_side


def test_results_come_in_the_order_of_their_items() -> None:
    first = threading.Event()

    def work(item: int) -> int:
        if item == 0:
            assert first.wait(10)
        first.set()
        return item * item

    assert list(side_by_side(work, range(8), 2)) == [n * n for n in range(8)]


def test_after_one_that_raises_no_more_are_begun_also_while_one_before_it_hangs() -> None:
    hangs, begun = threading.Event(), list[int]()

    def work(item: int) -> int:
        begun.append(item)
        if item == 0:
            assert hangs.wait(10)
        if item == 1:
            raise OSError("gone")
        return item

    results = side_by_side(work, range(100), 2)
    threading.Timer(0.5, hangs.set).start()  # long enough for the other worker to go through all hundred
    with pytest.raises(OSError, match="gone"):
        list(results)
    assert sorted(begun) == [0, 1]
