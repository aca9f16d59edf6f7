"""The `doctor` command: is this machine ready to train, and if not, what mends it. First its store and credentials.

A check is a small function that returns what it found, or raises; each is one entry in `CHECKS`.
"""

from __future__ import annotations

import io
import json
import sys
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from storage import Store, open_store
from storage.errors import AlreadyExists, InvalidURL, NotFound, NotSetUp, PermissionDenied, StoreError, Unavailable
from trainer.exits import ExitCode

CHECK_S = 4.0  # a store that needs longer for one request is none to train on
ALL_S = 13.0  # for all checks together, with some time to spare in the 15 s that are promised
SKEW_WARN_S, SKEW_FAIL_S = 60.0, 300.0  # clouds refuse signatures that are 5 to 15 minutes off
ROOM_WARN = 1 << 30
BODY = bytes(range(256))

Status = Literal["ok", "warning", "failed", "not tried"]


@dataclass(frozen=True, slots=True)
class Found:
    """What a check found; `mend` says what to do about it where it is not ok."""

    group: str
    check: str
    status: Status
    detail: str
    mend: str = ""


class Trouble(Exception):
    """Raised by a check: what is wrong, and what mends it."""

    def __init__(self, detail: str, mend: str, status: Status = "failed") -> None:
        super().__init__(detail)
        self.mend = mend
        self.status = status


class Patient:
    """What is looked at. The probe's objects lie in a folder that no run can have."""

    def __init__(self, url: str, opened: Callable[[str], Store] = open_store) -> None:
        self.url = url
        self._open = opened
        self._store: Store | None = None
        self.folder = f".baton-doctor/{uuid.uuid4().hex}"
        self.skew_s: float | None = None

    @property
    def store(self) -> Store:
        if self._store is None:
            self._store = self._open(self.url)
        return self._store

    def key(self, name: str) -> str:
        return f"{self.folder}/{name}"


def reachable(patient: Patient) -> str:
    try:
        patient.store.stat(patient.key("nothing"))
    except NotFound:
        return f"{patient.url} answers"
    return f"{patient.url} answers"


def listable(patient: Patient) -> str:
    names = [info.key for info in patient.store.list("", delimiter="/") if info.is_prefix]
    return f"{len(names)} folders at its top" if names else "it is empty"


def writable(patient: Patient) -> str:
    begun = time.time()
    info = patient.store.put(patient.key("probe"), BODY)
    ended = time.time()
    # the store's clock against the nearest moment of the request that it can mean
    patient.skew_s = info.modified - min(max(info.modified, begun), ended)
    return f"{len(BODY)} bytes written in {1000 * (ended - begun):.0f} ms"


def readable(patient: Patient) -> str:
    if _read(patient, "probe") != BODY:
        raise Trouble("what was read is not what was written", "use another store: this one keeps not what it takes")
    return "the same bytes came back"


def conditional(patient: Patient) -> str:
    """Without it two copies could both believe that they own a run."""
    patient.store.put(patient.key("once"), b"first", if_absent=True)
    try:
        patient.store.put(patient.key("once"), b"second", if_absent=True)
    except AlreadyExists:
        if _read(patient, "once") != b"first":
            raise Trouble("a refused write was made all the same", "use another store") from None
        return "a second create of one name is refused"
    raise Trouble(
        "two creates of one name both succeed, so two copies could own a run at once",
        "use a store with conditional writes (If-None-Match): S3, Google Cloud Storage, Azure Blob, or a local disk",
    )


def overwritable(patient: Patient) -> str:
    patient.store.put(patient.key("probe"), BODY[::-1])
    if _read(patient, "probe") != BODY[::-1]:
        raise Trouble("after an overwrite the old bytes are read", "turn off caches or retention locks on the bucket")
    return "the new bytes are read at once"


def ranges(patient: Patient) -> str:
    sink = io.BytesIO()
    patient.store.get(patient.key("probe"), sink, byte_range=(10, 20))
    if sink.getvalue() != BODY[::-1][10:20]:
        raise Trouble("a range of bytes is not what was asked for", "use a store that serves ranges (RFC 9110)")
    return "parts of an object are served"


def deletable(patient: Patient) -> str:
    for name in ("probe", "once"):
        patient.store.delete(patient.key(name))
    if list(patient.store.list(patient.folder + "/")):
        raise Trouble("what was deleted is still listed", "allow deletes, or clean up by hand: " + patient.folder)
    return "nothing of this check is left"


def clock(patient: Patient) -> str:
    assert patient.skew_s is not None
    off = abs(patient.skew_s)
    if off > SKEW_WARN_S:
        which = "behind" if patient.skew_s > 0 else "ahead of"
        raise Trouble(
            f"this machine's clock is {off:.0f} s {which} the store's",
            "set it, for example with chrony or systemd-timesyncd; clouds refuse requests of a wrong time",
            "failed" if off > SKEW_FAIL_S else "warning",
        )
    return f"{off:.0f} s from the store's" if off >= 1 else "agrees with the store's"


def room(patient: Patient) -> str:
    free = patient.store.free_bytes()
    if free is None:
        return "no end known"
    if free < ROOM_WARN:
        raise Trouble(f"{free / 1e6:.0f} MB free", "make room, or choose another --store", "warning")
    return f"{free / 1e9:.1f} GB free"


def place(patient: Patient) -> str:
    caveat = patient.store.caveat()
    if caveat is not None:
        raise Trouble(caveat, "without that, checkpoints are lost with this container or machine", "warning")
    return "outlives this container"


@dataclass(frozen=True, slots=True)
class Check:
    """`needs`: checks without whose success this one says nothing."""

    group: str
    name: str
    look: Callable[[Patient], str]
    needs: tuple[str, ...] = ()


CHECKS = (
    Check("store", "reachable", reachable),
    Check("store", "list", listable, ("reachable",)),
    Check("store", "write", writable, ("reachable",)),
    Check("store", "read", readable, ("write",)),
    Check("store", "create once", conditional, ("write", "read")),
    Check("store", "overwrite", overwritable, ("write", "read")),
    Check("store", "ranges", ranges, ("overwrite",)),
    Check("store", "delete", deletable, ("write",)),
    Check("store", "clock", clock, ("write",)),
    Check("store", "room", room, ("reachable",)),
    Check("store", "place", place),
)


def examine(
    patient: Patient, checks: Sequence[Check] = CHECKS, *, check_s: float = CHECK_S, all_s: float = ALL_S
) -> list[Found]:
    """Make the checks in their order, each for `check_s` at most and all for `all_s`: none can hang the doctor."""
    found: list[Found] = []
    good: set[str] = set()
    give_up = time.monotonic() + all_s
    for check in checks:
        lacking = [name for name in check.needs if name not in good]
        left = min(check_s, give_up - time.monotonic())
        if lacking or left <= 0:
            why = f"it needs: {', '.join(lacking)}" if lacking else "no time left"
            found.append(Found(check.group, check.name, "not tried", why))
            continue
        found.append(_within(left, check, patient))
        if found[-1].status in ("ok", "warning"):
            good.add(check.name)
    return found


def _within(seconds: float, check: Check, patient: Patient) -> Found:
    answer: list[Found] = []
    # a daemon: one that hangs is left behind
    thread = threading.Thread(target=lambda: answer.append(_look(check, patient)), name=check.name, daemon=True)
    thread.start()
    thread.join(seconds)
    if answer:
        return answer[0]
    mend = "look at the network, a proxy or firewall in between, and the store's address"
    return Found(check.group, check.name, "failed", f"no answer in {seconds:.0f} s", mend)


def _look(check: Check, patient: Patient) -> Found:
    try:
        return Found(check.group, check.name, "ok", check.look(patient))
    except Trouble as e:
        return Found(check.group, check.name, e.status, str(e), e.mend)
    except StoreError as e:
        return Found(check.group, check.name, "failed", str(e), _mend(e))
    except Exception as e:
        return Found(check.group, check.name, "failed", f"{type(e).__name__}: {e}", "a defect in Baton: tell us")


def _mend(error: StoreError) -> str:
    match error:
        case PermissionDenied():
            return "give this user or role the right to list, read, write and delete there"
        case NotSetUp() | InvalidURL():
            return "as that line says"
        case Unavailable():
            return "look at the network, a proxy or firewall in between, and the store's address"
        case _:
            return "choose another --store, or mend this one as that line says"


def _read(patient: Patient, name: str) -> bytes:
    sink = io.BytesIO()
    patient.store.get(patient.key(name), sink)
    return sink.getvalue()


def doctor(url: str, *, as_json: bool) -> int:
    """Examine, print, and return the exit code: 0, or 78 where something failed."""
    found = examine(Patient(url))
    if as_json:
        print(json.dumps([asdict(f) for f in found], indent=2))
    else:
        _print(found)
    return ExitCode.SETUP if any(f.status == "failed" for f in found) else ExitCode.DONE


def _print(found: list[Found]) -> None:
    from rich.console import Console
    from rich.text import Text

    terminal = sys.stdout.isatty()
    console = Console(highlight=False, soft_wrap=not terminal)
    looks = {"ok": "green", "warning": "yellow", "failed": "bold red", "not tried": "dim"}
    group = ""
    for f in found:
        if f.group != group:
            group = f.group
            console.print(Text(group, style="bold"))
        console.print(Text.assemble("  ", (f"{f.status:<10}", looks[f.status]), f"{f.check:<12} {_one_line(f.detail)}"))
        if f.mend:
            console.print(Text(f"{'':<12}{'':<12} to mend it: {f.mend}"))
    failed = sum(f.status == "failed" for f in found)
    warned = sum(f.status == "warning" for f in found)
    if failed:
        console.print(Text(f"{failed} of {len(found)} checks failed: not ready to train", style="bold red"))
    else:
        console.print(Text("ready to train" + (f", with {warned} warnings" if warned else ""), style="bold green"))


def _one_line(text: str) -> str:
    return " ".join(text.split("\n"))
