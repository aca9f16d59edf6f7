"""Data order and chance are arithmetic: the same on every machine, and nothing shares a stream."""

from __future__ import annotations

import hashlib

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from trainer import order

seeds = st.integers(0, (1 << 63) - 1)


@given(seeds, st.integers(0, 10_000), st.integers(1, 3000))
def test_an_epoch_is_a_permutation(seed: int, epoch: int, n: int) -> None:
    assert np.array_equal(np.sort(order.permutation(seed, epoch, n)), np.arange(n))


def test_orders_are_fixed_for_ever() -> None:
    """Another order in a later version would break every run that an older one has begun."""
    assert order.permutation(0, 0, 8).tolist() == [7, 5, 1, 2, 3, 6, 4, 0]
    digest = hashlib.sha256(order.permutation(7, 3, 50_000).astype("<u8").tobytes()).hexdigest()
    assert digest[:16] == "6afcfb5fbe055337"


@given(seeds, st.integers(0, 100))
def test_epochs_and_seeds_have_orders_of_their_own(seed: int, epoch: int) -> None:
    first = order.permutation(seed, epoch, 500)
    assert not np.array_equal(first, order.permutation(seed, epoch + 1, 500))
    assert not np.array_equal(first, order.permutation(seed + 1, epoch, 500))


def test_every_position_is_as_likely_for_every_sample() -> None:
    counts = np.zeros((10, 10))
    for epoch in range(5000):
        counts[np.arange(10), order.permutation(1, epoch, 10)] += 1
    # chi-square with 81 degrees of freedom: 99.99 % are below 136
    assert ((counts - 500) ** 2 / 500).sum() < 136


@given(seeds, st.integers(1, 1000))
def test_random_integers_are_below_their_bound_and_depend_on_the_counter_alone(key: int, n: int) -> None:
    counters = np.arange(200)
    values = order.below(key, counters, n)
    assert values.min() >= 0
    assert values.max() < n
    assert np.array_equal(values[::-1], order.below(key, counters[::-1], n))


def test_random_integers_are_uniform() -> None:
    counts = np.bincount(order.below(order.stream(3, "flip", 9), np.arange(90_000), 9), minlength=9)
    assert ((counts - 10_000) ** 2 / 10_000).sum() < 33  # chi-square, 8 degrees of freedom: 99.99 % are below 31.8


def test_streams_of_other_names_have_nothing_in_common() -> None:
    names = [(seed, name, number) for seed in range(20) for name in ("order", "step", "flip") for number in range(50)]
    assert len({order.stream(*name) for name in names}) == len(names)


def test_the_order_hash_is_as_the_documents_define_it() -> None:
    samples = np.array([3, 1, 2], np.int64)
    expected = hashlib.sha256(bytes(32) + b"".join(int(i).to_bytes(8, "little") for i in samples)).digest()
    assert order.extend_hash(order.NO_SAMPLES, samples) == expected
