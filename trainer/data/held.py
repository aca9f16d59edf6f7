"""What is packed in a folder already: looked at before anything is packed anew, alike for every kind of data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from trainer.data.dataset import shown
from trainer.data.packed import FILE_NAME, Packed, open_packed
from trainer.data.paths import reading
from trainer.data.pulse import Pulse
from trainer.exits import UserError


def held(folder: Path, name: str, pulse: Pulse, fits: Callable[[Packed], object]) -> Packed | None:
    """What is packed in `folder`, if it is whole and `fits`; what that one raises as `UserError` is said.

    `name`: of the data set that is wanted.
    """
    with reading(folder):
        if not (folder / FILE_NAME).exists():
            return None
    try:
        packed = open_packed(folder, name)
        if not fits(packed):
            return None
        packed.verify(pulse.check)
    except UserError as e:
        pulse.say(f"packed before, but of no use: {e}")
        return None
    return packed


def already(packed: Packed, pulse: Pulse) -> Packed:
    """Say that nothing need be packed."""
    what = f"from {shown(packed.origin.kind)} {shown(packed.origin.name)}"
    if packed.synthetic:
        what = "the SYNTHETIC stand-in (--source gives real data)"
    pulse.say(f"already packed: {packed.name}, {what}, in {shown(packed.path)}")
    return packed
