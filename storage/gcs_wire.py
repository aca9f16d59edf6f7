"""How bytes travel to and from Google: the SDK's session, and pieces of the caller's memory side by side."""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import google_crc32c
import requests
import urllib3
from google.api_core.exceptions import from_http_response
from google.auth.credentials import Credentials
from google.auth.transport.requests import AuthorizedSession

from storage.errors import Unavailable
from storage.gcs_login import AuthRequest
from storage.pace_requests import PacedAdapter
from storage.protocol import ObjectInfo

PART_BYTES = 8 << 20  # Google's least is 5 MiB
CONNECTIONS = 32  # kept open: 5 who put, 4 who get, what their rooms hold beside, and small requests
PIECE_BYTES = 1 << 17  # handed to or taken from a socket at once
CONNECT_S = 5.0
SMALL_BYTES = 16 << 10
# Else Google decompresses what was put with Content-Encoding: gzip, all of it whatever range is asked for
# (cloud.google.com/storage/docs/transcoding). `receive` decodes nothing.
AS_STORED = {"Accept-Encoding": "gzip"}


class Session(AuthorizedSession):
    """The SDK's connections: kept, enough of them, each request with the time-outs of its moment."""

    def __init__(self, credentials: Credentials, patience: Callable[[], float]) -> None:
        super().__init__(credentials, auth_request=AuthRequest(patience))  # type: ignore[no-untyped-call]
        self._patience = patience
        self.answered = False  # Google, at least once
        for scheme in ("https://", "http://"):
            self.mount(scheme, PacedAdapter(patience, CONNECTIONS))

    def request(  # type: ignore[override]
        self, method: str, url: str, data: Any = None, headers: Any = None, **more: Any
    ) -> requests.Response:
        wait = self._patience()
        more["timeout"] = (min(CONNECT_S, wait), wait)
        answer = super().request(method, url, data, headers, **more)  # type: ignore[no-untyped-call]
        self.answered = True
        return cast(requests.Response, answer)

    def ask(self, method: str, url: str, *, fine: Sequence[int] = (), **more: Any) -> requests.Response:
        """An answer of success or with a status that is `fine`; else raises `GoogleAPICallError`."""
        answer = self.request(method, url, **more)
        if answer.ok or answer.status_code in fine:
            return answer
        with answer:
            raise from_http_response(answer)  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class Found:
    """A range of an object, whose bytes are still to be read from the answer."""

    answer: requests.Response
    info: ObjectInfo
    stop: int
    generation: str
    crc: int  # CRC32C of the whole object


class Body:
    """A request's body in pieces of the caller's memory.

    A socket's time-out is for all bytes that one call hands to it, so 8 MB at once would time out on a slow link.
    It can be sent again, as after a refused token.
    """

    def __init__(self, views: Sequence[memoryview], given_up: threading.Event | None = None) -> None:
        self._views = views
        self._given_up = given_up

    def __len__(self) -> int:
        return sum(view.nbytes for view in self._views)

    def __iter__(self) -> Iterator[memoryview]:
        for view in self._views:
            for at in range(0, view.nbytes, PIECE_BYTES):
                if self._given_up and self._given_up.is_set():
                    raise Unavailable("given up")
                yield view[at : at + PIECE_BYTES]


def receive(answer: requests.Response, into: memoryview, given_up: threading.Event) -> memoryview:
    """Fill `into` from the answer's body."""
    at = 0
    while at < into.nbytes:
        if given_up.is_set():
            answer.close()
            raise Unavailable("given up")
        got = answer.raw.readinto(into[at : at + PIECE_BYTES])
        if not got:
            raise urllib3.exceptions.ProtocolError(f"ended {into.nbytes - at} bytes early")
        at += got
    return into


@contextmanager
def lanes(count: int, given_up: threading.Event) -> Iterator[ThreadPoolExecutor]:
    """Threads that stop at once, in the midst of a part, when the work fails or is left."""
    pool = ThreadPoolExecutor(count)
    try:
        yield pool
    except BaseException:
        given_up.set()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def parts_of(views: Iterable[memoryview]) -> Iterator[list[memoryview]]:
    """The same bytes in parts of PART_BYTES, the last of which may be smaller; nothing is copied."""
    part: list[memoryview] = []
    room = PART_BYTES
    for view in views:
        while view.nbytes >= room:
            yield [*part, view[:room]]
            view, part, room = view[room:], [], PART_BYTES
        if view.nbytes:
            part.append(view)
            room -= view.nbytes
    if part:
        yield part


def crc32c(views: Iterable[memoryview]) -> str:
    """The checksum of all their bytes, as Google writes it."""
    crc = 0
    for view in views:
        crc = google_crc32c.extend(crc, readable(view))
    return base64.b64encode(crc.to_bytes(4, "big")).decode()


def readable(view: memoryview) -> bytes:
    """The view as google_crc32c takes it, which refuses a memoryview; only a small one is copied."""
    if view.nbytes <= SMALL_BYTES:
        return bytes(view)
    import numpy as np  # late: `status` reads small objects alone, and its import takes longer than all of them

    return cast(bytes, np.frombuffer(view, np.uint8))
