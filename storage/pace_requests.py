"""storage/pace.py for the SDKs that rest on requests: Google's and Azure's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from requests.exceptions import ContentDecodingError, SSLError

from storage.pace import Patience, most_of, pools, too_long

RECEIVED, MOST_RECEIVED = 256 << 10, 8 << 20  # bytes that are taken from a connection at once


class PacedAdapter(HTTPAdapter):
    """Of `connections` that are kept; answers come at a pace, nothing is tried again.

    `piece`: bytes of a body's file that go to the socket at once.
    """

    def __init__(self, patience: Patience, connections: int = 10, *, piece: int = 16 << 10) -> None:
        self._pools = pools(patience)
        self._piece = piece
        super().__init__(pool_maxsize=connections)

    def build_response(self, request: Any, answer: Any) -> requests.Response:
        response = super().build_response(request, answer)
        response.__class__ = _Response
        return response

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **more: Any) -> None:
        super().init_poolmanager(connections, maxsize, block, blocksize=self._piece, **more)
        self.poolmanager.pool_classes_by_scheme = self._pools

    def cert_verify(self, *args: Any) -> None:
        """As it is, but where the file of certificates is missing an error that is the connection's, and no OSError."""
        try:
            super().cert_verify(*args)
        except OSError as e:
            raise SSLError(e) from e

    def proxy_manager_for(self, proxy: str, **more: Any) -> Any:
        manager = super().proxy_manager_for(proxy, blocksize=self._piece, **more)
        manager.pool_classes_by_scheme = self._pools
        return manager


class _Response(requests.Response):
    def iter_content(self, chunk_size: int | None = 1, decode_unicode: bool = False) -> Any:
        # requests itself reads a body in pieces of 10 KB, which costs more than hashing it; and pieces that are joined,
        # or cut from a body that was read before, take its room twice
        told = self.headers.get("Content-Length", "")
        size = max(chunk_size or 0, RECEIVED, min(int(told) if told.isdecimal() else 0, MOST_RECEIVED))
        pieces = super().iter_content(None if self._content_consumed else size, decode_unicode)  # type: ignore[call-overload]
        return _bounded(pieces, most_of(self.request.method, self.status_code))


def _bounded(pieces: Iterator[bytes], most: int) -> Iterator[bytes]:
    """The same, but an error where they are more than `most` bytes: compressed, they are a thousandth of it."""
    got = 0
    for piece in pieces:
        got += len(piece)
        if got > most:
            raise ContentDecodingError(too_long(most))
        yield piece
