"""What the image brings along: packed data and weights, whole and unchanged, and which commit it was built from."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path

from console.checks.examination import Check, Patient, Trouble, Warn
from trainer.exits import UserError

SUMS = "SHA256SUMS"  # which the image's build writes beside the weights
CHUNK = 8 << 20  # bytes read between two looks at the clock


class _NoTime(Exception):
    """What there is to read is larger than the time for it."""


def data(patient: Patient) -> str:
    """Every packed data set is read whole and held to its own SHA-256."""
    from trainer.data.packed import FILE_NAME, open_packed, remedy

    folders = sorted(path.parent for path in patient.data.glob(f"*/{FILE_NAME}"))
    if not folders:
        raise Warn(f"none packed in {patient.data}", remedy("cifar10"))
    names, on_time, good = [], _until(patient), "every byte as it was packed"
    for folder in folders:
        try:
            packed = open_packed(folder)
            if packed.synthetic:
                raise Warn(
                    f"{packed.name} is SYNTHETIC, a stand-in for the real pictures",
                    f"pack the real ones: entrypoint.py data {packed.name} --source FILE; make image CIFAR10=FILE",
                )
            names.append(packed.name)
            packed.verify(on_time)
        except UserError as e:
            raise Trouble(str(e), remedy(folder.name)) from e
        except _NoTime:
            good = "too large to be read whole in this time, which a start does; --seconds 300 reads more"
    return f"{', '.join(names)}: {good}"


def weights(patient: Patient) -> str:
    """Every file that the image's build noted is there, and is what it was."""
    try:
        noted = (patient.weights / SUMS).read_text().splitlines()
    except OSError:
        return "none baked in"
    mend = "pull the image anew, by its digest; or make image WEIGHTS=... and push it"
    on_time = _until(patient)
    for expected, name in (line.split("  ", 1) for line in noted):
        try:
            actual = _sha256(patient.weights / name, on_time)
        except OSError as e:
            raise Trouble(f"{name} can't be read: {e.strerror}", mend) from e
        except _NoTime:
            return f"{len(noted)} files: too large to be read whole in this time; --seconds 300 reads more"
        if actual != expected:
            raise Trouble(f"{name}: its bytes have changed since the image was built", mend)
    return f"{len(noted)} files: every byte as it was built in"


def _sha256(path: Path, on_time: Callable[[], None]) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(CHUNK):
            on_time()
            digest.update(piece)
    return digest.hexdigest()


def _until(patient: Patient) -> Callable[[], None]:
    """Raises `_NoTime` once half the check's time is gone: what is too large doesn't look like a disk that hangs."""
    end = time.monotonic() + patient.check_s / 2

    def on_time() -> None:
        if time.monotonic() > end:
            raise _NoTime

    return on_time


def revision(patient: Patient) -> str:
    text = patient.environment.get("BATON_REVISION", "")
    if text.endswith("-dirty"):
        raise Warn(
            f"{text}: built from changes that no commit holds", "commit, and make image: else nobody can build it again"
        )
    return text[:12] if text not in ("", "unknown") else "not an image, or one whose builder didn't say"


CHECKS = (
    Check("content", "data", data),
    Check("content", "weights", weights),
    Check("content", "revision", revision),
)
