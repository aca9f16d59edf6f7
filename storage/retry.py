"""Trying again: one wrapper over the Store protocol, for all stores alike. The SDKs' own retries are off."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, BinaryIO, TypeVar

from storage.errors import Damaged, Unavailable, Unsupported
from storage.protocol import ObjectInfo, Source, Store

if TYPE_CHECKING:
    from tenacity import RetryCallState

log = logging.getLogger("baton.store")

T = TypeVar("T")
FIRST_SLEEP_S, LONGEST_SLEEP_S = 0.25, 10.0
DAMAGED_TRIES = 3
PASSING = (Unavailable, Damaged)  # not NoSpace: a full disk doesn't empty itself in seconds


class Retrying:
    """A store whose passing faults are met by trying again; every other error passes at once.

    `left`: given the seconds tried so far, how many more may be spent; asked before each sleep, so a deadline that
    comes closer meanwhile counts. `pause` sleeps for so many seconds; it may end early, or raise to end the trying.
    """

    def __init__(self, store: Store, left: Callable[[float], float], pause: Callable[[float], None]) -> None:
        self.store = store
        self.url = store.url
        self._left = left
        self._pause = pause
        self._away = False  # said once for each time that the store goes away

    def _try(self, call: Callable[[], T]) -> T:
        try:
            result = call()
        except PASSING as e:
            result = self._again(call, e)
        self._away = False
        return result

    def _again(self, call: Callable[[], T], first: Exception) -> T:
        import tenacity  # late: most processes never need it

        errors = [first]
        damaged = 0

        def attempt() -> T:
            nonlocal damaged
            try:
                if errors:
                    raise errors.pop()
                return call()
            except Damaged:
                damaged += 1
                raise

        def is_over(state: RetryCallState) -> bool:
            # bytes that come damaged each time are so in the store: the caller decides what is bad
            return damaged >= DAMAGED_TRIES or state.upcoming_sleep > self._left(state.seconds_since_start or 0.0)

        return tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(PASSING),
            wait=tenacity.wait_random_exponential(multiplier=FIRST_SLEEP_S, max=LONGEST_SLEEP_S),
            stop=is_over,
            sleep=self._pause,
            before_sleep=self._say,
            reraise=True,
        )(attempt)

    def _say(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        text = str(error) if self.url in str(error) else f"{self.url}: {error}"
        log.log(logging.DEBUG if self._away else logging.WARNING, "%s; trying again", text)
        self._away = True

    def put(self, key: str, source: Source, *, if_absent: bool = False) -> ObjectInfo:
        """With `if_absent`, `AlreadyExists` may mean an object that an earlier try wrote: compare the bytes."""
        return self._try(lambda: self.store.put(key, source, if_absent=if_absent))

    def get(self, key: str, sink: BinaryIO, *, byte_range: tuple[int, int] | None = None) -> ObjectInfo:
        """`sink` must be one that can be rewound: each try begins where the first one did."""
        start = sink.tell()

        def get() -> ObjectInfo:
            if sink.tell() != start:
                sink.seek(start)
                sink.truncate()
            return self.store.get(key, sink, byte_range=byte_range)

        return self._try(get)

    def stat(self, key: str) -> ObjectInfo:
        return self._try(lambda: self.store.stat(key))

    def list(self, prefix: str, *, delimiter: str | None = None) -> Iterator[ObjectInfo]:
        """A list that breaks off is begun again, and goes on after what was told already."""
        told = b""

        def rest() -> Iterator[ObjectInfo]:
            had = told
            for info in self.store.list(prefix, delimiter=delimiter):
                key = info.key.encode("utf-8", "surrogateescape")
                if had < key < told:  # goes on it can't, and what it leaves out may be the newest checkpoint
                    raise Unsupported(f"{self.url}: lists {info.key} out of its keys' order: use another store")
                if key > told:
                    yield info

        left = rest()

        def following() -> ObjectInfo | None:
            nonlocal left
            try:
                return next(left, None)
            except PASSING:
                left = rest()
                raise

        while (info := self._try(following)) is not None:
            yield info
            told = info.key.encode("utf-8", "surrogateescape")

    def delete(self, key: str) -> None:
        self._try(lambda: self.store.delete(key))

    def free_bytes(self) -> int | None:
        return self._try(self.store.free_bytes)

    def caveat(self) -> str | None:
        return self.store.caveat()


def bare(store: Store) -> Store:
    """The store itself, below any wrapper that tries again."""
    return store.store if isinstance(store, Retrying) else store
