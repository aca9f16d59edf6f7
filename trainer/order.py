"""Data order and chance as arithmetic: which samples a step sees, and every random choice, from the seed alone.

Nothing here keeps a state, so a resumed run has nothing to restore and seeking to any step costs nothing.
The generator is splitmix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014) used
as a hash of counters: integer arithmetic, so every machine and library version gives the same numbers.
"""

from __future__ import annotations

import hashlib
import zlib

import numpy as np
from numpy.typing import NDArray

UInt64s = NDArray[np.uint64]
Int64s = NDArray[np.int64]

_GOLDEN = 0x9E3779B97F4A7C15
_MULTIPLIER_1, _MULTIPLIER_2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_MASK = (1 << 64) - 1


def _mix(x: UInt64s) -> UInt64s:
    """splitmix64's finalizer; `x` is changed in place."""
    x ^= x >> np.uint64(30)
    x *= np.uint64(_MULTIPLIER_1)
    x ^= x >> np.uint64(27)
    x *= np.uint64(_MULTIPLIER_2)
    x ^= x >> np.uint64(31)
    return x


def stream(*words: int | str) -> int:
    """A 64-bit key for the stream of chance named by `words`: those of two names have nothing in common."""
    key = 0
    for word in words:
        x = (key + (zlib.crc32(word.encode()) if isinstance(word, str) else word) * _GOLDEN + _GOLDEN) & _MASK
        x = (x ^ (x >> 30)) * _MULTIPLIER_1 & _MASK
        x = (x ^ (x >> 27)) * _MULTIPLIER_2 & _MASK
        key = x ^ (x >> 31)
    return key


def bits(key: int, counters: Int64s) -> UInt64s:
    """64 random bits for each counter in the stream `key`; uint64 of the same shape."""
    x = counters.astype(np.uint64)
    x += np.uint64(1)
    x *= np.uint64(_GOLDEN)
    x += np.uint64(key)
    return _mix(_mix(x))


def below(key: int, counters: Int64s, n: int) -> Int64s:
    """A random integer in [0, n) for each counter, n < 2^32; int64. The bias is under n / 2^32."""
    high = bits(key, counters) >> np.uint64(32)
    return ((high * np.uint64(n)) >> np.uint64(32)).astype(np.int64)


def permutation(seed: int, epoch: int, n: int) -> Int64s:
    """The order of `n` samples in one epoch; int64 [n]."""
    keys = bits(stream(seed, "order", epoch), np.arange(n, dtype=np.int64))
    return np.argsort(keys, kind="stable")


def by_length(seed: int, epoch: int, lengths: Int64s, batch_size: int, pool: int) -> Int64s:
    """An order in which the samples of a batch have about one length; int64 [n].

    The samples are shuffled as by `permutation`, those of each `pool` batches sorted by length, the batches shuffled.
    What doesn't fill a batch comes last, as shuffled.
    """
    order = permutation(seed, epoch, len(lengths))
    whole = len(order) // batch_size * batch_size
    for start in range(0, whole, pool * batch_size):
        some = order[start : min(start + pool * batch_size, whole)]
        some[:] = some[np.argsort(lengths[some], kind="stable")]
    batches = order[:whole].reshape(-1, batch_size)
    order[:whole] = batches[np.argsort(bits(stream(seed, "batches", epoch), np.arange(len(batches))))].ravel()
    return order


def extend_hash(previous: bytes, samples: Int64s) -> bytes:
    """h <- SHA-256(h, this step's sample indices as little-endian uint64); it starts as 32 zero bytes."""
    return hashlib.sha256(previous + samples.astype("<u8").tobytes()).digest()


NO_SAMPLES = bytes(32)
