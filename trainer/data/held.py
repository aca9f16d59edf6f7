"""What is packed in a folder already: looked at before anything is packed anew, alike for every kind of data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from trainer.data.dataset import shown
from trainer.data.packed import FILE_NAME, Packed, open_packed
from trainer.data.paths import reading
from trainer.data.pulse import FileTrouble, Pulse
from trainer.exits import UserError


def held(folder: Path, name: str, pulse: Pulse, fits: Callable[[Packed], object]) -> Packed | None:
    """What is packed in `folder`, if it is whole and `fits`; what that one raises as `UserError` is said.

    `name`: of the data set that is wanted. Raises `UserError` for a file that can't be read: it may be whole, and
    nothing may be packed over it.
    """
    with reading(folder):
        if not (folder / FILE_NAME).exists():
            return None
    try:
        packed = open_packed(folder, name)
        if not fits(packed):
            return None
        packed.verify(pulse.check)
    except FileTrouble as e:
        raise UserError(f"{e}; nothing is packed over what can't be read: make it readable, or remove it") from e
    except UserError as e:
        pulse.say(f"packed before, but of no use: {e}")
        return None
    return packed


def keep_real(folder: Path, name: str) -> None:
    """Raise `UserError` where a stand-in that nobody asked for would take the place of data that may be real."""
    path = folder / FILE_NAME
    with reading(folder):
        if not path.exists():
            return
    try:
        if open_packed(folder, name).synthetic:
            return
    except UserError:
        pass  # too damaged to say what it was
    short = "CIFAR10=... or " if name == "cifar10" else ""
    raise UserError(
        f"{shown(path)}: of no use, but it may be real data, which the SYNTHETIC stand-in doesn't replace unasked: "
        f"give its source again ({short}--source ARCHIVE-OR-FOLDER), or remove that file"
    )


def already(packed: Packed, pulse: Pulse) -> Packed:
    """Say that nothing need be packed."""
    what = f"from {shown(packed.origin.kind)} {shown(packed.origin.name)}"
    if packed.synthetic:
        what = "the SYNTHETIC stand-in (--source gives real data)"
    pulse.say(f"already packed: {packed.name}, {what}, in {shown(packed.path)}")
    return packed
