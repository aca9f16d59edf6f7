"""Time: whether a save is over before a notice is."""

from __future__ import annotations

import time
from contextlib import suppress

from console.checks.examination import Check, Patient, Trouble, Warn
from storage.errors import StoreError
from trainer.history import Bad, History
from trainer.manifest import Manifest, checkpoint_name
from trainer.place import runs
from trainer.side_by_side import side_by_side

MEASURE_S = 1.5  # seconds of writing that give the speed
PIECE = 1 << 18  # bytes of the first object; each next is twice as large
MOST = 32 << 20
LARGE = 9 << 20  # in parts on each cloud
FEW = 3  # checkpoints of a run that are looked at
MOST_RUNS, AT_ONCE = 200, 8
GRACE_S = 10.0  # docker's own, between SIGTERM and the kill
NOTICE_S = {"aws": 120.0, "gcp": 30.0, "azure": 30.0}
SHORTEST_S = min(NOTICE_S.values())


def upload(patient: Patient) -> str:
    """Bytes of which no two objects are alike, so that no cache or deduplication flatters the speed."""
    seed, size, sent = int.from_bytes(patient.folder.encode()[-8:]), PIECE, 0
    begun = time.monotonic()
    names = []
    while size <= MOST and time.monotonic() - begun < MEASURE_S:
        names.append(f"speed-{size}")
        patient.store.put(patient.key(names[-1]), (seed + size).to_bytes(16) * (size // 16))
        sent += size
        size *= 2
        patient.largest = size // 2
    seconds = time.monotonic() - begun
    for name in names:
        patient.store.delete(patient.key(name))
    patient.bytes_per_s = sent / max(seconds, 1e-6)
    return f"{patient.bytes_per_s / 1e6:.1f} MB/s, by {sent / 1e6:.1f} MB"


def in_parts(patient: Patient) -> str:
    """What large tensors are saved by: more than 8 MB go up in parts, for which Google wants rights of its own."""
    if patient.largest < LARGE:
        _send_large(patient)
    return "an object of more than 8 MB was written"


def _send_large(patient: Patient) -> None:
    assert patient.bytes_per_s is not None
    needs = LARGE / patient.bytes_per_s
    if needs > patient.left_s / 2:
        raise Trouble(
            f"an object of more than 8 MB was not written: at this speed it may need {needs:.0f} s",
            f"give it time: --seconds {5 * needs + 20:.0f}",
            "not tried",
        )
    patient.store.put(patient.key("large"), bytes(LARGE))
    patient.store.delete(patient.key("large"))


def save(patient: Patient) -> str:
    """The newest checkpoint's size at that speed, against the shortest time in which a machine may go."""
    assert patient.bytes_per_s is not None
    size, whose = _checkpoint_bytes(patient)
    if size is None:
        hundred = 100e6 / patient.bytes_per_s
        return f"no checkpoint there yet; one of 100 MB would need {hundred:.1f} s"
    needs = size / patient.bytes_per_s + 1.0  # two small requests more, and the manifest's own
    grace = stop_grace_s(patient)
    told = f"a save of {size / 1e6:.1f} MB ({whose}) needs {needs:.1f} s at most"
    if needs > SHORTEST_S:
        raise Trouble(
            f"{told}; Google's and Azure's notices give {SHORTEST_S:.0f} s, AWS's {NOTICE_S['aws']:.0f}",
            "take a store in this machine's region, a machine with more network, or save more often "
            "(--checkpoint-every 60s): what is lost then is at most that",
            "warning" if needs <= NOTICE_S["aws"] else "failed",
        )
    if needs > grace:
        raise Warn(
            f"{told}; docker stop gives {grace:.0f} s",
            f"docker run --stop-timeout {needs + 5:.0f} -e BATON_STOP_GRACE={needs + 5:.0f}",
        )
    return f"{told}, the shortest notice gives {SHORTEST_S:.0f}, docker stop {grace:.0f}"


def stop_grace_s(patient: Patient) -> float:
    """BATON_STOP_GRACE; what can't be read is told by the container's own check."""
    try:
        return float(patient.environment.get("BATON_STOP_GRACE", GRACE_S))
    except ValueError:
        return GRACE_S


def _checkpoint_bytes(patient: Patient) -> tuple[int | None, str]:
    """Bytes of the newest checkpoint of the run, or of the largest of all runs, up to 200; and which that is."""

    def size(run: str) -> tuple[int, str]:
        try:
            manifest = _newest(History(patient.store, run))
        except (StoreError, ValueError):
            return 0, ""
        return (sum(part.size for part in manifest.parts), f"{run}, step {manifest.step}") if manifest else (0, "")

    all_runs = [patient.run] if patient.run else runs(patient.store)[:MOST_RUNS]
    largest, whose = max(side_by_side(size, all_runs, AT_ONCE), default=(0, ""))
    return largest or None, whose


def _newest(history: History) -> Manifest | None:
    """Of the newest few, the first whose manifest is good: how large it is matters here, not which it is."""
    for attempt, step in history.checkpoints()[:FEW]:
        with suppress(Bad):  # told by a start, and by `verify`
            return history.manifest(checkpoint_name(attempt, step))
    return None


CHECKS = (
    Check("time", "upload", upload, ("write", "delete")),
    Check("time", "save", save, ("upload",)),
    Check("time", "in parts", in_parts, ("upload",)),
)
