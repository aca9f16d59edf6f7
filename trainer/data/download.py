"""Fetch an archive over HTTP: bounded waiting, whole or not at all, and stopped at once by a notice.

The network is read on a thread of its own, because a look-up of a name or a silent server can hold a thread far longer
than a notice may wait; the caller's thread only ever waits 0.1 s.
"""

from __future__ import annotations

import hashlib
import http.client
import queue
import re
import socket
import ssl
import string
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from trainer.data.dataset import shown
from trainer.data.packed import Origin
from trainer.data.pulse import Pulse
from trainer.data.scratch import Scratch
from trainer.exits import ExitCode, UserError

SILENCE_S = 10.0  # without an answer, or without a byte of it
CHUNK = 1 << 18  # bytes
AGAIN = ExitCode.NOT_DURABLE  # the code for which a container is started again
BUSY = (408, 425, 429)  # HTTP statuses of a client's doing by their number, and of the moment by their meaning
# What holds a signature in an address -> what stands beside it, and may mean something else where no signature is.
# "User delegation SAS" (Azure), "Signing and authenticating REST requests" (S3), "Using a canned policy" (CloudFront)
_SIGNATURES = {
    "sig": (
        "sv",
        "se",
        "sr",
        "sp",
        "skoid",
        "sktid",
        "skt",
        "ske",
        "sks",
        "skv",
        "st",
        "spr",
        "sip",
        "sdd",
        "ss",
        "srt",
    ),
    "signature": ("expires", "awsaccesskeyid", "googleaccessid", "ossaccesskeyid", "key-pair-id", "policy"),
}
_WAITING = 16  # chunks read and not yet written
_NEVER_IN_A_URL = re.compile(r"[\s\x00-\x1f\x7f]")  # urllib drops some of them, and asks for another address
_NO_URL = "the address is no URL that can be read; in one a space is written %20"


class DownloadError(UserError):
    """The address gave no whole file. A fault that may pass by itself has the exit code for trying again."""


@dataclass(frozen=True, slots=True)
class _Start:
    """What the server said before the content."""

    total: int | None  # bytes
    tag: str
    content_type: str


@dataclass(frozen=True, slots=True)
class Fetched:
    """What came."""

    tag: str  # the server's of this version; "" if it has none
    sha256: str  # of all its bytes


def name_of(url: str) -> str:
    """The file's name in a URL. Raises `UserError`, which shows nothing of a wrong one: a secret may stand there."""
    try:
        parts = urlsplit(url)
        good = parts.hostname and parts.port != 0 and not _NEVER_IN_A_URL.search(url)
    except ValueError:
        good = False
    if not good:
        raise UserError(_NO_URL)
    if "@" in parts.netloc:
        raise UserError(
            "the address has an '@' before its path, and is not shown, as a password may stand there: none is sent "
            "from here; fetch the file by other means, and give its path"
        )
    return unquote(parts.path).rstrip("/").rpartition("/")[2] or "download"


def _in_ascii(url: str) -> str:
    """As it is asked for; a host's name is put into ASCII by the library."""
    parts = urlsplit(url)
    path, query = (quote(part, string.punctuation, errors="surrogateescape") for part in (parts.path, parts.query))
    return urlunsplit((parts.scheme, parts.netloc, path, query, ""))


def fetch(url: str, into: Scratch, pulse: Pulse, *, known: str = "", silence_s: float = SILENCE_S) -> Fetched | None:
    """Write what `url` gives. None, and nothing written, if the server's tag is still `known`.

    Raises `DownloadError`, and `UserError` for a full disk.
    """
    answers: queue.Queue[_Start | bytes | Exception | None] = queue.Queue(_WAITING)
    stop = threading.Event()
    name = name_of(url)
    threading.Thread(
        target=_read, args=(_in_ascii(url), answers, stop, silence_s), name="download", daemon=True
    ).start()
    got, digest, start, began = 0, hashlib.sha256(), _Start(None, "", ""), time.monotonic()
    try:
        while (answer := _next(answers, pulse, name, silence_s)) is not None:
            if isinstance(answer, Exception):
                raise _plain(name, answer, silence_s) from answer
            if isinstance(answer, _Start):
                start = answer
                if start.content_type == "text/html":
                    raise DownloadError(f"{shown(name)}: the address gives a web page, not an archive; check it")
                if start.tag and start.tag == known:
                    return None
                continue
            into.write(answer)
            digest.update(answer)
            got += len(answer)
            pulse.beat(_progress(name, got, start.total, time.monotonic() - began))
    finally:
        stop.set()
    if start.total is not None and got != start.total:
        why = f"the download ended early, after {got:,} of {start.total:,} bytes; try again"
        raise DownloadError(f"{shown(name)}: {why}", AGAIN)
    into.sync()
    return Fetched(start.tag, digest.hexdigest())


def fetch_unless_held(url: str, into: Scratch, pulse: Pulse, held: Origin | None) -> Fetched | None:
    """As `fetch`. None also where `held`, of what is packed already, is what `url` gives, or where that gives nothing
    and `held` came from there.
    """
    known = held.tag if held and held.name == name_of(url) else ""
    try:
        return fetch(url, into, pulse, known=known)
    except DownloadError as e:
        if held is None or held.address != mark_of(url):
            raise
        pulse.say(f"{e}; what was packed from there before is taken")
        return None


def mark_of(url: str) -> str:
    """By which an address is known again, whatever token lets one in there today, and not found out."""
    return hashlib.sha256(unsigned(url).encode(errors="surrogateescape")).hexdigest()[:32]


def unsigned(url: str) -> str:
    """The address without what a signature adds to it, which is another each time; the rest may name the file."""
    address, mark, query = url.partition("?")
    parts = [(part.partition("=")[0].lower(), part) for part in query.split("&")]
    names = {name for name, _ in parts}
    signing = {name for signature, beside in _SIGNATURES.items() if signature in names for name in (signature, *beside)}
    kept = [part for name, part in parts if name not in signing and not name.startswith(("x-amz-", "x-goog-"))]
    return address + mark * bool(kept) + "&".join(kept)


def _next(
    answers: queue.Queue[_Start | bytes | Exception | None], pulse: Pulse, name: str, silence_s: float
) -> _Start | bytes | Exception | None:
    end = time.monotonic() + silence_s + 1  # later than the socket's own time-out, which tells more
    while True:
        pulse.check()
        try:
            return answers.get(timeout=0.1)
        except queue.Empty:
            if time.monotonic() > end:
                raise _silent(name, silence_s) from None


def _read(
    url: str, answers: queue.Queue[_Start | bytes | Exception | None], stop: threading.Event, silence_s: float
) -> None:
    def put(answer: _Start | bytes | Exception | None) -> None:
        while not stop.is_set():
            try:
                answers.put(answer, timeout=0.1)
                break
            except queue.Full:
                continue

    try:
        request = urllib.request.Request(url, headers={"User-Agent": "baton", "Accept-Encoding": "identity"})  # noqa: S310 (schemes: _opener)
        with _opener().open(request, timeout=silence_s) as response:
            put(_start(response.headers))
            while not stop.is_set() and (chunk := response.read1(CHUNK)):
                put(chunk)
        put(None)
    except Exception as e:  # whatever it is, the waiting thread shall hear of it
        put(e)


def _opener() -> urllib.request.OpenerDirector:
    """HTTP and HTTPS alone: urllib's own opener would follow a redirection to FTP."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPErrorProcessor,
        urllib.request.UnknownHandler,
    ):
        opener.add_handler(handler())
    return opener


def _start(headers: http.client.HTTPMessage) -> _Start:
    length = headers.get("Content-Length", "")
    tag = headers.get("ETag") or headers.get("Last-Modified") or ""
    total = int(length) if length.isascii() and length.isdigit() else None
    return _Start(total, f"{tag} {length}" if tag else "", headers.get_content_type())


def _plain(name: str, error: Exception, silence_s: float) -> DownloadError:
    if isinstance(error, urllib.error.HTTPError):
        what = f"{shown(name)}: the server answers {error.code} {shown(error.reason)}"
        if error.code >= 500 or error.code in BUSY:
            return DownloadError(f"{what}; try again", AGAIN)
        return DownloadError(f"{what}; check the address")
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, TimeoutError):
        return _silent(name, silence_s)
    if isinstance(reason, (http.client.InvalidURL, ValueError)) and not isinstance(reason, OSError):
        return DownloadError(f"{shown(name)}: {_NO_URL}")  # the library's words are parts of it, a password among them
    said = reason.strerror if isinstance(reason, OSError) and reason.strerror else reason
    what = f"{shown(name)}: can't be fetched: {shown(said)}; check the network and the address"
    return DownloadError(what, AGAIN if _may_pass(reason) else ExitCode.SETUP)


def _silent(name: str, silence_s: float) -> DownloadError:
    return DownloadError(f"{shown(name)}: no answer in {silence_s:g} s; check the network and the address", AGAIN)


def _may_pass(reason: object) -> bool:
    """Whether a fault other than an HTTP status can go away by itself; a wrong address, name or certificate doesn't."""
    if isinstance(reason, socket.gaierror):
        return reason.errno != socket.EAI_NONAME
    if isinstance(reason, ssl.SSLCertVerificationError):
        return False
    return isinstance(reason, (OSError, http.client.HTTPException))


def _progress(name: str, got: int, total: int | None, seconds: float) -> str:
    of = f" of {total / 1e6:.0f}" if total else ""
    return f"{shown(name)}: {got / 1e6:.0f}{of} MB, {got / 1e6 / max(seconds, 1e-3):.1f} MB/s"
