"""Sources in a store, streamed: nothing of them is kept on this machine's disk."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from typing import Any

from storage import Store, open_store
from storage.protocol import ObjectInfo
from storage.retry import Retrying
from trainer.data.dataset import shown
from trainer.exits import ExitCode, UserError

RANGE = 8 << 20  # bytes read at a time
TRY_S = 60.0  # how long a store that is away is waited for


def patient(url: str, check: Callable[[], None]) -> Store:
    """The store at `url`; its passing faults are met by trying again, until `check` raises."""

    def pause(seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            check()
            time.sleep(min(0.1, left))

    return Retrying(open_store(url), lambda tried: TRY_S - tried, pause)


def read(store: Store, listed: ObjectInfo, start: int, stop: int) -> bytes:
    """The object's bytes of [start, stop). Raises `UserError` if it is no more what the store `listed`."""
    sink = io.BytesIO()
    info = store.get(listed.key, sink, byte_range=(start, stop))
    # a store may tell another time with the bytes than in its lists: what it lists now decides
    if info != listed and store.stat(listed.key) != listed:
        raise UserError(
            f"{store.url}/{shown(listed.key)}: was written anew while it was read; start again", ExitCode.NOT_DURABLE
        )
    return sink.getvalue()


class StoreFile(io.RawIOBase):
    """An object, read from front to back, the next range on its way while one is used."""

    def __init__(self, store: Store, info: ObjectInfo, check: Callable[[], None]) -> None:
        self._store, self._info, self._check = store, info, check
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="store")
        self.seek(0)

    def readable(self) -> bool:
        return True

    def seek(self, place: int, whence: int = 0) -> int:
        """To the start; there is no other way back."""
        if (place, whence) != (0, 0):
            raise io.UnsupportedOperation("only to the start")
        self._next, self._held = 0, memoryview(b"")
        self._coming: Future[bytes] | None = self._ask()
        return 0

    def _ask(self) -> Future[bytes] | None:
        start, self._next = self._next, min(self._next + RANGE, self._info.size)
        return self._pool.submit(read, self._store, self._info, start, self._next) if start < self._next else None

    def readinto(self, buffer: Any) -> int:
        if not self._held:
            if self._coming is None:
                return 0
            while True:
                self._check()
                try:
                    self._held = memoryview(self._coming.result(timeout=0.1))
                    break
                except NotYet:
                    continue
            self._coming = self._ask()
        size = min(len(buffer), len(self._held))
        buffer[:size] = self._held[:size]
        self._held = self._held[size:]
        return size

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        super().close()
