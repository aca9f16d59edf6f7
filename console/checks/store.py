"""The store: everything that training asks of it is really tried, with a few bytes that are deleted again."""

from __future__ import annotations

import io
import time

from console.checks.examination import MAKE_ROOM, Check, Patient, Trouble, Warn
from storage.errors import AlreadyExists, NotFound

SKEW_WARN_S, SKEW_FAIL_S = 60.0, 300.0  # clouds refuse signatures that are 5 to 15 minutes off
ROOM_WARN = 1 << 30
BODY = bytes(range(256))


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
        raise Warn(f"{free / 1e6:.0f} MB free", MAKE_ROOM)
    return f"{free / 1e9:.1f} GB free"


def place(patient: Patient) -> str:
    caveat = patient.store.caveat()
    if caveat is not None:
        raise Warn(caveat, "as that line says; else checkpoints are lost with this container or machine")
    return "outlives this container"


def leftovers(patient: Patient) -> str:
    """Whether uploads in parts that a kill left half-done go by themselves: on S3 a bucket's rule sees to it, and on
    Google, where only who may read the bucket's own settings could ask."""
    keep = getattr(patient.store, "keeps_abandoned_uploads", None)
    if keep is None:
        return "nothing piles up there"
    if (kept := keep()) is None:
        raise Trouble(
            "the bucket's rules could not be asked for: without one, what a kill leaves of an upload stays, unseen",
            "set the lifecycle rule of docs/stores.md, if that isn't done",
            "not tried",
        )
    if kept:
        raise Warn(
            "the bucket has no rule for abandoned uploads: what a kill leaves of one stays, unseen, and is paid for",
            "set the lifecycle rule of docs/stores.md (aws s3api put-bucket-lifecycle-configuration)",
        )
    return "a rule of the bucket's drops abandoned uploads"


def credentials(patient: Patient) -> str:
    """Kind and name, as the store has told them on its way; never a value."""
    if patient.url.startswith("file://"):
        return "none needed for a folder"
    if not patient.logins:
        raise Trouble("none is known yet", "", "not tried")
    return patient.logins[-1]


def _read(patient: Patient, name: str) -> bytes:
    sink = io.BytesIO()
    patient.store.get(patient.key(name), sink)
    return sink.getvalue()


CHECKS = (
    Check("store", "reachable", reachable),
    Check("store", "credentials", credentials),  # where they are refused it matters most whose they are
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
    Check("store", "leftovers", leftovers, ("reachable",)),
)
