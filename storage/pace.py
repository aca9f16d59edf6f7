"""Answers that trickle, or have no end, are given up, for every SDK that rests on urllib3.

A socket's time-out is for each byte: a sick or hostile server that sends one now and then would hold a request, and
with it the last save before a deadline, for ever. Here all that is read of an answer, its head and its body, must come
at a pace: `LEAST` bytes, or the answer's end, in each stretch of waiting that is as long as one's patience, which is
asked anew at each read and so follows the deadline. Time in which nobody reads does not count.

And it must come to its end: the SDKs read an error's words, a list or a token whole, however long they are. What sends
gigabytes of them would fill the memory.
"""

from __future__ import annotations

import http.client
import io
import socket
import time
from collections.abc import Callable
from typing import Any

from urllib3 import HTTPConnectionPool, HTTPSConnectionPool

LEAST = 64 << 10  # bytes that must come while patience lasts
MOST_WORDS = 1 << 20  # bytes of a head; of the body of a refusal, or of an answer to what reads no object and no list
MOST_CONTENT = 32 << 20  # bytes that are taken of any other: a store asks for 8 MiB; a list of Azure's has 5,000 names

Patience = Callable[[], float]


def most_of(method: str | None, status: int) -> int:
    """How many bytes are taken of the body of such an answer."""
    return MOST_CONTENT if method == "GET" and 200 <= status < 300 else MOST_WORDS


def too_long(most: int) -> OSError:
    return OSError(f"the answer is longer than {most >> 20} MiB: what answers may be no store")


class _Paced(io.RawIOBase):
    """What comes from the socket, as long as it comes at a pace and up to `most` bytes, which may be set anew.

    Raises `TimeoutError` and `OSError`, which urllib3 knows.
    """

    def __init__(self, inner: Any, sock: socket.socket, patience: Patience) -> None:
        self._inner = inner
        self._sock = sock
        self._patience = patience
        self._waited = 0.0  # seconds since the stretch began
        self._got = 0  # bytes in it
        self._all = 0
        self.most = MOST_WORDS
        self._begun = False  # waiting for the first byte is the server's thinking, and the socket's time-out is enough

    def readable(self) -> bool:
        return True

    def readinto(self, into: Any) -> int | None:
        patience = self._patience()
        self._sock.settimeout(patience)
        since = time.monotonic()
        got: int | None = self._inner.readinto(into)
        self._all += got or 0
        if self._all > self.most:
            raise too_long(self.most)
        if self._begun:
            self._waited += time.monotonic() - since
            self._got += got or 0
        self._begun = True
        if self._waited > patience:
            if got and self._got < LEAST:
                raise TimeoutError(f"timed out: the answer trickles, {self._got} bytes in {self._waited:.1f} s")
            self._waited, self._got = 0.0, 0
        return got

    def close(self) -> None:
        if not self.closed:
            self._inner.close()
        super().close()


def pools(
    patience: Patience,
    http_pool: type[HTTPConnectionPool] = HTTPConnectionPool,
    https_pool: type[HTTPConnectionPool] = HTTPSConnectionPool,
) -> dict[str, type[HTTPConnectionPool]]:
    """A connection manager's `pool_classes_by_scheme`: the given ones, but with answers at a pace, that end."""

    class Answer(http.client.HTTPResponse):
        def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
            super().__init__(sock, *args, **kwargs)
            self._paced = _Paced(self.fp.detach(), sock, patience)
            self.fp = io.BufferedReader(self._paced)

        def begin(self) -> None:
            super().begin()
            method = self._method  # type: ignore[attr-defined]  # whose answer it is
            self._paced.most = MOST_WORDS + most_of(method, self.status)  # the head is counted as well

    def paced(pool: type[HTTPConnectionPool]) -> type[HTTPConnectionPool]:
        connection = type(pool.ConnectionCls.__name__, (pool.ConnectionCls,), {"response_class": Answer})
        return type(pool.__name__, (pool,), {"ConnectionCls": connection})

    return {"http": paced(http_pool), "https": paced(https_pool)}
