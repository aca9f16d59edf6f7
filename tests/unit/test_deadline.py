"""Which save goes first before a deadline, and how long one may take."""

from __future__ import annotations

import pytest

from trainer.saver import last_save_needs_way


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
