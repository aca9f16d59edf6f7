"""What the image brings along: packed data, whole and unchanged, and which commit it was built from."""

from __future__ import annotations

from console.checks.examination import Check, Patient, Trouble, Warn
from trainer.exits import UserError


def data(patient: Patient) -> str:
    """Every packed data set is read whole and held to its own SHA-256."""
    from trainer.data.packed import FILE_NAME, open_packed, remedy

    folders = sorted(path.parent for path in patient.data.glob(f"*/{FILE_NAME}"))
    if not folders:
        raise Warn(f"none packed in {patient.data}", remedy("cifar10"))
    names = []
    for folder in folders:
        try:
            packed = open_packed(folder)
            packed.verify()
        except UserError as e:
            raise Trouble(str(e), remedy(folder.name)) from e
        names.append(f"{packed.name}{' (SYNTHETIC)' if packed.synthetic else ''}")
        if packed.synthetic:
            raise Warn(
                f"{packed.name} is SYNTHETIC, a stand-in for the real pictures",
                f"pack the real ones: entrypoint.py data {packed.name} --source ARCHIVE; make image CIFAR10=ARCHIVE",
            )
    return f"{', '.join(names)}: every byte as it was packed"


def revision(patient: Patient) -> str:
    text = patient.environment.get("BATON_REVISION", "")
    if text.endswith("-dirty"):
        raise Warn(
            f"{text}: built from changes that no commit holds", "commit, and make image: else nobody can build it again"
        )
    return text[:12] if text not in ("", "unknown") else "not an image, or one whose builder didn't say"


CHECKS = (
    Check("content", "data", data),
    Check("content", "revision", revision),
)
