"""How an examination goes: checks in lanes, side by side, none of which can hang it.

A check is a small function that returns what it found, or raises; each is one entry of its group's `CHECKS`.
"""

from __future__ import annotations

import math
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from storage import Store, open_store
from storage.errors import InvalidURL, NoSpace, NotSetUp, PermissionDenied, StoreError, Unavailable
from watchers.metadata import Instance

Status = Literal["ok", "warning", "failed", "not tried"]

MAKE_ROOM = "make room (`clean --yes`, `delete --run RUN` of what nobody needs), or choose another --store"


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


class Warn(Trouble):
    """A trouble that one can train with."""

    def __init__(self, detail: str, mend: str) -> None:
        super().__init__(detail, mend, "warning")


@dataclass
class Patient:
    """What is looked at: a store, and the machine as it is seen from `root`."""

    url: str
    opened: Callable[[str], Store] = open_store
    run: str = ""
    halt: str = "/halt"
    data: Path = Path("data")  # the folder of packed data sets
    weights: Path = Path("weights")  # the folder of those that an image brings along
    cloud: str = "auto"
    environment: Mapping[str, str] = field(default_factory=dict)
    root: Path = Path("/")  # where /proc, /sys, /dev are
    # the probe's objects lie in a folder that no run can have
    folder: str = field(default_factory=lambda: f".baton-doctor/{uuid.uuid4().hex}")
    check_s: float = 6.0  # seconds that each check may take
    ends: float = math.inf  # when all must be over, by time.monotonic()
    skew_s: float | None = None  # what one check finds and another needs
    bytes_per_s: float | None = None
    largest: int = 0  # bytes of the largest object that was written
    instance: Instance | None = None
    logins: list[str] = field(default_factory=list)  # kinds and names of credentials, as the stores tell them
    _store: Store | None = None

    @property
    def store(self) -> Store:
        if self._store is None:
            self._store = self.opened(self.url)
        return self._store

    @property
    def left_s(self) -> float:
        """Seconds that a check which begins now may take."""
        return min(self.check_s, self.ends - time.monotonic())

    def key(self, name: str) -> str:
        return f"{self.folder}/{name}"

    def path(self, name: str) -> Path:
        """A file of the system's, such as proc/1/comm."""
        return self.root / name

    def text(self, name: str) -> str:
        """What such a file says, or nothing."""
        try:
            return self.path(name).read_text(errors="replace").strip()
        except OSError:
            return ""

    @property
    def in_container(self) -> bool:
        marks = ("/docker", "/kubepods", "/containerd", "/libpod", "/ecs")
        return (
            self.path(".dockerenv").exists()
            or self.path("run/.containerenv").exists()
            or bool(self.environment.get("KUBERNETES_SERVICE_HOST"))
            or any(mark in self.text("proc/1/cgroup") for mark in marks)
        )


@dataclass(frozen=True, slots=True)
class Check:
    """`needs`: checks of its lane without whose success this one says nothing."""

    group: str
    name: str
    look: Callable[[Patient], str]
    needs: tuple[str, ...] = ()


Lanes = Sequence[Sequence[Check]]


def examine(patient: Patient, lanes: Lanes, *, check_s: float, all_s: float) -> list[Found]:
    """Make each lane's checks in their order, the lanes at once; each for `check_s` at most and all for `all_s`."""
    patient.check_s, patient.ends = check_s, time.monotonic() + all_s
    results: list[list[Found]] = [[] for _ in lanes]
    threads = [
        threading.Thread(target=_go, args=(patient, lane, found), daemon=True)
        for lane, found in zip(lanes, results, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found for lane in results for found in lane]


def _go(patient: Patient, lane: Sequence[Check], found: list[Found]) -> None:
    good: set[str] = set()
    for check in lane:
        lacking = [name for name in check.needs if name not in good]
        left = patient.left_s
        if lacking or left <= 0:
            why = f"it needs: {', '.join(lacking)}" if lacking else "no time left"
            found.append(Found(check.group, check.name, "not tried", why))
            continue
        found.append(_within(left, check, patient))
        if found[-1].status in ("ok", "warning"):
            good.add(check.name)


def _within(seconds: float, check: Check, patient: Patient) -> Found:
    answer: list[Found] = []
    # a daemon: one that hangs is left behind
    thread = threading.Thread(target=lambda: answer.append(_look(check, patient)), name=check.name, daemon=True)
    thread.start()
    thread.join(seconds)
    if answer:
        return answer[0]
    return Found(check.group, check.name, "failed", f"no answer in {seconds:.0f} s", _HUNG.get(check.group, _HUNG[""]))


_NETWORK = "look at the network, a proxy or firewall in between, and the store's address"
_HUNG = {
    "store": _NETWORK,
    "time": _NETWORK,
    "cloud": "look at the network between this container and 169.254.169.254; --cloud none asks nobody",
    "": "a disk or a mount of this machine hangs: dmesg, and df -h one by one",
}


def _look(check: Check, patient: Patient) -> Found:
    try:
        return Found(check.group, check.name, "ok", check.look(patient))
    except Trouble as e:
        return Found(check.group, check.name, e.status, str(e), e.mend)
    except StoreError as e:
        return Found(check.group, check.name, "failed", str(e), _mend(e, patient.url))
    except Exception as e:
        return Found(check.group, check.name, "failed", f"{type(e).__name__}: {e}", "a defect in Baton: tell us")


def _mend(error: StoreError, url: str) -> str:
    match error:
        case PermissionDenied() if url.startswith("file:"):
            return "mount it writable (docker run -v FOLDER:/store, without :ro), a folder of this user's"
        case PermissionDenied():
            return "give this user or role the right to list, read, write and delete there (docs/credentials.md)"
        case NotSetUp() | InvalidURL():
            return "as that line says; more in docs/credentials.md"
        case Unavailable():
            return _NETWORK
        case NoSpace():
            return MAKE_ROOM
        case _:
            return "choose another --store, or mend this one as that line says"
