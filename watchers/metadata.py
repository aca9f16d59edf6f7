"""One question at a time to a cloud's metadata service: bounded in time and size, never through a proxy.

Whatever answers at that address may be slow, silent, endless or somebody else; nothing here waits longer than it was
told, reads more than 64 KB or follows a redirect.
"""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

LINK_LOCAL = "http://169.254.169.254"  # the same on all three clouds
TIMEOUT_S = 1.0
MAX_BYTES = 64 << 10


class Odd(Exception):
    """The service can't be asked, or answers what it should not; one line that says how."""


class Silent(Odd):
    """It took the connection and does not answer in time."""


@dataclass(frozen=True, slots=True)
class Instance:
    """The machine that this is; None: not told."""

    cloud: str
    instance_type: str | None = None
    region: str | None = None
    zone: str | None = None
    spot: bool | None = None
    instance_id: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: Mapping[str, str]  # names in lower case
    body: bytes

    def text(self) -> str:
        return self.body.decode("utf-8", "replace").strip()

    def json(self) -> Any:
        """Raises `Odd`."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError) as e:
            raise Odd(f"its answer is not JSON: {short(self.text())}") from e


def short(value: object) -> str:
    """What a service answered, fit for one line for people."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


class Service:
    """A metadata service, asked over one kept-alive connection. For one thread, but for `close`."""

    def __init__(self, base: str, *, until: float | None = None) -> None:
        """`until`: when to give up whatever is asked, by time.monotonic(). Raises `ValueError` for a base of no use."""
        parts = urlsplit(base)
        if parts.scheme != "http" or not parts.hostname:
            raise ValueError(f"{base}: not the address of a metadata service, such as {LINK_LOCAL}")
        self.base = base.rstrip("/")
        self._prefix = parts.path.rstrip("/")
        self._address = parts.hostname, parts.port or 80
        self._until = until
        self._lock = threading.Lock()
        self._socket: _Socket | None = None
        self._connection: http.client.HTTPConnection | None = None
        self._closed = False

    def ask(
        self,
        path: str,
        headers: Mapping[str, str],
        *,
        method: str = "GET",
        body: bytes | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> Answer:
        """What the service answers, whatever its status. Raises `Odd`."""
        now = time.monotonic()
        give_up = min(now + timeout_s, self._until or now + timeout_s)
        while True:
            kept = self._connection is not None
            try:
                return self._ask(path, headers, method, body, give_up)
            except ConnectionError as e:
                self._drop()
                if not kept or self._closed:  # one that was kept may have been closed meanwhile
                    raise Odd(f"{self.base}: {e.strerror or 'closes the connection'}") from e
            except TimeoutError as e:
                connected = self._connection is not None
                self._drop()
                if connected:
                    raise Silent(f"{self.base} does not answer within {max(0.0, give_up - now):.1f} s") from e
                raise Odd(f"{self.base} can't be reached: nobody answers") from e
            except OSError as e:
                self._drop()
                raise Odd(f"{self.base} can't be reached: {e.strerror or e}") from e
            except (http.client.HTTPException, ValueError) as e:
                self._drop()
                raise Odd(f"{self.base} does not speak HTTP: {str(e)[:60] or type(e).__name__}") from e
            except Odd:
                self._drop()
                raise

    def _ask(self, path: str, headers: Mapping[str, str], method: str, body: bytes | None, give_up: float) -> Answer:
        connection = self._connection or self._connect(give_up)
        assert self._socket is not None
        self._socket.give_up = give_up
        connection.request(method, self._prefix + path, body, dict(headers))
        response = connection.getresponse()
        data = response.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise Odd(f"{self.base} answers with more than {MAX_BYTES >> 10} KB")
        answer = Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, data)
        if not response.isclosed() or response.will_close:
            self._drop()
        return answer

    def _connect(self, give_up: float) -> http.client.HTTPConnection:
        family, kind, protocol, _, address = socket.getaddrinfo(*self._address, type=socket.SOCK_STREAM)[0]
        sock = _Socket(family, kind, protocol)
        with self._lock:
            if self._closed:
                sock.close()
                raise Odd(f"{self.base} is asked no more")
            self._socket = sock
        sock.settimeout(max(0.01, min(TIMEOUT_S, give_up - time.monotonic())))
        sock.connect(address)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connection = http.client.HTTPConnection(*self._address)
        self._connection.sock = sock
        return self._connection

    def _drop(self) -> None:
        with self._lock:
            sock, self._socket, self._connection = self._socket, None, None
        if sock is not None:
            sock.close()

    def close(self) -> None:
        """From another thread: ask no more, and end at once what is being asked."""
        with self._lock:
            self._closed = True
            if self._socket is not None:
                with suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)


class _Socket(socket.socket):
    """Gives up at one moment for a whole answer: a time-out alone begins anew with each byte that trickles in."""

    give_up = 0.0

    def recv_into(self, *args: Any) -> int:
        left = self.give_up - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self.settimeout(left)
        return super().recv_into(*args)
