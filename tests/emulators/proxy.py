"""An HTTP proxy in front of an emulator that does what bad networks and busy clouds do.

    with Proxy(("127.0.0.1", 5500)) as proxy:
        proxy.faults = [Fault("answer", status=503, times=2), Fault("flip", at=100, when=lambda r: r.method == "GET")]
        ... the client is told proxy.url instead of the emulator's ...
        assert proxy.requests[0].method == "PUT"

Bodies are streamed, each request on a connection of its own to the emulator, so that a killed and restarted
emulator is found again. The proxy itself says "100 Continue". The Host header is passed as it comes.
"""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

PIECE = 1 << 16


@dataclass(frozen=True)
class Request:
    method: str
    target: str  # path and query, as sent
    headers: dict[str, str]  # names in lower case


@dataclass
class Fault:
    """What befalls a request.

    reset     the connection is reset before the emulator hears of the request
    lose      the emulator does what is asked; its answer is lost in a reset
    break     `at` bytes of the request's body pass, then both sides are reset
    flip_up   one bit of byte `at` of the request's body is flipped
    short_up  byte `at` of the request's body is lost, and its length is told one less
    hang      silence instead of an answer, until the client gives up; the emulator is not asked
    stall     silence after `at` bytes of the answer's body
    cut       the connection is closed after `at` bytes of the answer's body
    flip      one bit of byte `at` of the answer's body is flipped
    slow      the answer trickles, one byte each `pause_s`
    answer    `status`, `headers` and `body` are answered; the emulator is not asked
    flood     the same, but the body comes over and over, `at` times; Expect is not answered
    """

    kind: Literal[
        "reset", "lose", "break", "flip_up", "short_up", "hang", "stall", "cut", "flip", "slow", "answer", "flood"
    ]
    at: int = 0
    status: int = 503
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    pause_s: float = 0.1
    times: int | None = None  # how often it strikes; None: always
    chance: float = 1.0
    when: Callable[[Request], bool] = lambda request: True
    struck: int = field(default=0, init=False)  # how often it did


class Proxy:
    """Listens on loopback; `faults` may be changed at any time, and the first that fits a request strikes it."""

    def __init__(self, upstream: tuple[str, int], *, port: int = 0, seed: int = 0) -> None:
        self.upstream = upstream
        self.port = port  # 0: a free one, kept over stop and start
        self.faults: list[Fault] = []
        self.bytes_per_s: float | None = None  # both ways and over all connections together; None: unbounded
        self.rewrite: Callable[[str], str] = lambda target: target  # what the emulator is asked in its stead
        self.requests: list[Request] = []
        self.connections = 0  # that clients have made
        self._dice = random.Random(seed)
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._listener: socket.socket | None = None
        self._free_at = 0.0  # when the throttled link has sent all that it took

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=256)
        # what a client sends before it is read, which some machines would have be dozens of megabytes
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 18)
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def stop(self) -> None:
        """Refuse connections from now on and end the open ones."""
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
        with self._lock:
            for sock in self._open:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Proxy:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # --- one connection

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                self.connections += 1
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    @contextlib.contextmanager
    def _kept(self, sock: socket.socket) -> Iterator[None]:
        with self._lock:
            self._open.add(sock)
        try:
            yield
        finally:
            with self._lock:
                self._open.discard(sock)
            sock.close()

    def _serve(self, client: socket.socket) -> None:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._kept(client), contextlib.suppress(_Ended, OSError):
            reader = _Reader(client)
            while True:
                self._request(client, reader)

    def _request(self, client: socket.socket, reader: _Reader) -> None:
        first, headers = reader.head()
        method, target, _ = first.split(" ", 2)
        request = Request(method, target, headers)
        fault = self._strike(request)
        kind = fault.kind if fault else None
        if kind == "reset":
            _reset(client)
            raise _Ended
        if fault is not None and kind == "flood":
            if "expect" not in headers:
                for _ in reader.body(headers):
                    pass
            client.sendall(_head(f"HTTP/1.1 {fault.status} Made-Up", {**fault.headers, "connection": "close"}))
            for _ in range(fault.at):
                client.sendall(fault.body)
            raise _Ended
        if headers.pop("expect", "").lower() == "100-continue":
            client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        if kind in ("hang", "answer"):
            for _ in reader.body(headers):
                pass
            if kind == "hang":
                _silence(client)
            client.sendall(_answer(fault))
            return
        try:
            server = socket.create_connection(self.upstream, timeout=120)
        except OSError:
            _reset(client)  # as a dead server's machine answers
            raise _Ended from None
        with self._kept(server):
            try:
                body = _spoilt(reader.body(headers), fault, up=True)
                self._forward(server, f"{method} {self.rewrite(target)} HTTP/1.1", _shortened(headers, fault), body)
                self._return(client, server, method, fault)
            except (_Broken, OSError):
                _reset(server)
                _reset(client)
                raise _Ended from None

    def _strike(self, request: Request) -> Fault | None:
        with self._lock:
            self.requests.append(request)
            for fault in self.faults:
                if fault.times != 0 and fault.when(request) and self._dice.random() < fault.chance:
                    if fault.times is not None:
                        fault.times -= 1
                    fault.struck += 1
                    return fault
        return None

    def _forward(self, server: socket.socket, first: str, headers: dict[str, str], body: Iterator[bytes]) -> None:
        self._send(server, _head(first, {**headers, "connection": "close"}))
        for piece in body:
            self._send(server, piece)

    def _return(self, client: socket.socket, server: socket.socket, method: str, fault: Fault | None) -> None:
        answer = _Reader(server)
        first, headers = answer.head()
        while first.split()[1].startswith("1"):
            first, headers = answer.head()
        if fault and fault.kind == "lose":
            raise _Broken
        headers.pop("connection", None)  # the emulator's side alone is closed
        empty = method == "HEAD" or first.split()[1] in ("204", "304")
        endless = not empty and "content-length" not in headers and "transfer-encoding" not in headers
        send = self._send if fault is None or fault.kind != "slow" else _trickle(fault.pause_s)
        send(client, _head(first, {**headers, "connection": "close"} if endless else headers))
        if not empty:
            for piece in _spoilt(answer.body(headers, endless=endless), fault, up=False):
                if piece is _STALL:
                    _silence(client)
                send(client, piece)
        if endless:
            raise _Ended

    def _send(self, sock: socket.socket, data: bytes) -> None:
        if self.bytes_per_s is not None:
            with self._lock:
                self._free_at = max(self._free_at, time.monotonic()) + len(data) / self.bytes_per_s
                wait = self._free_at - time.monotonic()
            time.sleep(max(0.0, wait))
        sock.sendall(data)


class _Ended(Exception):
    """The client's connection is done with."""


class _Broken(Exception):
    """Both connections are to be reset."""


class _Reader:
    """HTTP/1.1 from a socket (RFC 9112): heads, and bodies piece by piece, chunked ones with their framing."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._have = b""

    def _more(self) -> bytes:
        data = self._sock.recv(PIECE)
        if not data:
            raise _Ended
        return data

    def _until(self, mark: bytes) -> bytes:
        while mark not in self._have:
            self._have += self._more()
        part, _, self._have = self._have.partition(mark)
        return part + mark

    def _exactly(self, count: int) -> Iterator[bytes]:
        while count:
            data = self._have or self._more()
            yield data[:count]
            count, self._have = count - len(data[:count]), data[count:]

    def head(self) -> tuple[str, dict[str, str]]:
        first, *lines = self._until(b"\r\n\r\n").decode("latin-1").rstrip("\r\n").split("\r\n")
        pairs = (line.partition(":") for line in lines)
        return first, {name.strip().lower(): value.strip() for name, _, value in pairs}

    def body(self, headers: dict[str, str], *, endless: bool = False) -> Iterator[bytes]:
        if "chunked" in headers.get("transfer-encoding", "").lower():
            while True:
                size = self._until(b"\r\n")
                yield _Framing(size)
                if int(size.split(b";")[0], 16) == 0:
                    break
                yield from self._exactly(int(size.split(b";")[0], 16))
                yield _Framing(self._until(b"\r\n"))
            while True:
                line = self._until(b"\r\n")
                yield _Framing(line)
                if line == b"\r\n":
                    return
        elif endless:
            yield self._have
            while data := self._sock.recv(PIECE):
                yield data
        else:
            yield from self._exactly(int(headers.get("content-length", 0)))


class _Framing(bytes):
    """Bytes of a chunked body that are none of its content."""


_STALL = _Framing()


def _spoilt(pieces: Iterator[bytes], fault: Fault | None, *, up: bool) -> Iterator[bytes]:
    """The body with what the fault does to it; `up` says whether it is a request's."""
    mine = ("break", "flip_up", "short_up") if up else ("cut", "stall", "flip")
    kind = fault.kind if fault and fault.kind in mine else None
    if fault is None or kind is None:
        yield from pieces
        return
    left = fault.at
    for piece in pieces:
        if isinstance(piece, _Framing) or len(piece) < left or left < 0:
            yield piece
            left -= 0 if isinstance(piece, _Framing) else len(piece)
            continue
        if kind.startswith(("flip", "short")):
            changed = bytes([piece[left] ^ 1]) if left < len(piece) and kind != "short_up" else b""
            yield piece[:left] + changed + piece[left + 1 :]
            left -= len(piece)
            continue
        yield piece[:left]
        if kind == "break":
            raise _Broken
        if kind == "cut":
            raise _Ended
        yield _STALL


def _shortened(headers: dict[str, str], fault: Fault | None) -> dict[str, str]:
    size = int(headers.get("content-length", 0))
    if fault is None or fault.kind != "short_up" or size <= fault.at:
        return headers
    return {**headers, "content-length": str(size - 1)}


def _head(first: str, headers: dict[str, str]) -> bytes:
    lines = [first, *(f"{name}: {value}" for name, value in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def _answer(fault: Fault) -> bytes:
    headers = {"content-length": str(len(fault.body)), **fault.headers}
    return _head(f"HTTP/1.1 {fault.status} Made-Up", headers) + fault.body


def _trickle(pause_s: float) -> Callable[[socket.socket, bytes], None]:
    def send(sock: socket.socket, data: bytes) -> None:
        for n in range(len(data)):
            sock.sendall(data[n : n + 1])
            time.sleep(pause_s)

    return send


def _silence(client: socket.socket) -> None:
    """Return only by `_Ended`, once the client has gone."""
    while client.recv(PIECE):
        pass
    raise _Ended


def _reset(sock: socket.socket) -> None:
    """Close so that the other side sees a reset, not an end."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()
