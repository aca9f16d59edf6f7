"""How an emulator of Google's store is read that knows the JSON API alone (STORAGE_EMULATOR_HOST)."""

from __future__ import annotations

import base64
import io
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from urllib.parse import quote

from storage.errors import Unavailable
from storage.gcs_wire import AS_STORED, Found, Session, receive
from storage.headers import moment_of, size_told
from storage.protocol import ObjectInfo

NOT_KNOWN = (400, 404, 405, 501)  # how an emulator refuses a kind of request that it has no code for


def ask_json(
    session: Session,
    blob: Any,
    info_of: Callable[[Any], ObjectInfo],
    start: int,
    stop: int,
    generation: str | None,
    into: memoryview | None,
) -> Found | None:
    """As `GoogleStore._ask_range`, of the SDK's `blob`.

    The JSON API tells nothing of the object beside its bytes: it is asked before and after. A range is received whole
    here, for only then is it known which generation it is of.
    """
    blob.reload(retry=None)
    while generation in (None, told := str(blob.generation)):
        info, crc = info_of(blob), int.from_bytes(base64.b64decode(blob.crc32c), "big")
        if start >= info.size:
            return None
        answer = session.ask(
            "GET",
            f"{blob.client.api_endpoint}/download/storage/v1/b/{blob.bucket.name}/o/{quote(blob.name, safe='')}",
            params={"alt": "media"},
            headers={"Range": f"bytes={start}-{stop - 1}", **AS_STORED},
            stream=True,
        )
        size_told(answer.headers["Content-Range"], start)
        size = min(stop, info.size) - start
        memory = memoryview(bytearray(size)) if into is None else into[:size]
        answer.raw = _Received(receive(answer, memory, threading.Event()))
        blob.reload(retry=None)
        if told == str(blob.generation):
            info = replace(info, answered=moment_of(answer.headers.get("Date")))
            return Found(answer, info, start + size, told, crc)
    raise Unavailable(f"{info_of(blob).key}: was replaced while it was read")


class _Received(io.RawIOBase):
    """Bytes that an answer has brought, to be read as if it still did; they may lie where they are read to."""

    def __init__(self, memory: memoryview) -> None:
        self._left = memory

    def readinto(self, into: memoryview) -> int:  # type: ignore[override]
        count = min(into.nbytes, self._left.nbytes)
        into[:count] = self._left[:count]
        self._left = self._left[count:]
        return count
