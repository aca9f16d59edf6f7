"""Pack photographs of any size and kind: each decoded once, to a square that training crops from.

Their order is that of the source: names in order for a folder or a prefix in a store, the members' for a tar. A picture
that can't be decoded is skipped and counted, or stops the packing with `--strict`; one that can't be read at all stops
it in any case, for it may be there the next time.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from trainer.data.dataset import Bytes, shown
from trainer.data.growing import Growing, alone
from trainer.data.held import held
from trainer.data.packed import Packed, remedy
from trainer.data.photo import Broken, decode
from trainer.data.photo_sources import ACCEPTED as ACCEPTED
from trainer.data.photo_sources import Photo, Photos, opened
from trainer.data.pictures import BATCH_BYTES, in_parallel
from trainer.data.pulse import Pulse
from trainer.data.scratch import remove_stale
from trainer.exits import UserError

NAME, OPTIONS = "imagenet", ("size", "strict")
SIZE = 128  # pixels: the side that a network sees, if nobody says another


def packed_side(size: int) -> int:
    """The side of packed pictures for a network that sees `size` pixels: 8/7 of it, as 256 to 224; an even number."""
    return -(-size * 8 // 7 // 2) * 2


def pack(source: str | None, folder: Path, options: Mapping[str, Any], pulse: Pulse) -> Packed:
    """As trainer/data/pack.py's. `options`: `size` in pixels, `strict`."""
    side, strict = packed_side(options.get("size") or SIZE), bool(options.get("strict"))
    if source is None:
        if (found := held(folder, NAME, pulse, _is_ours)) is None:
            raise UserError(f"no photographs are packed in {shown(folder)}, and nobody publishes them; {remedy(NAME)}")
        return _already(found, pulse)
    with alone(folder, pulse):
        remove_stale(folder)
        found = held(folder, NAME, pulse, lambda packed: _would_do(packed, side, strict))
        with opened(source, folder, pulse, found.origin if found else None) as photos:
            if found is not None and found.origin == photos.origin:
                return _already(found, pulse)
            return _packed(photos, folder, side, strict, pulse)


def _is_ours(packed: Packed) -> bool:
    return packed.name == NAME


def _would_do(packed: Packed, side: int, strict: bool) -> bool:
    """Whether it is what would be packed, if it is from the same source."""
    return _is_ours(packed) and packed.arrays["train_images"].shape[1] == side and not (strict and packed.skipped)


def _already(packed: Packed, pulse: Pulse) -> Packed:
    side = packed.arrays["train_images"].shape[1]
    pulse.say(f"already packed: {side} x {side} from {packed.origin.kind} {shown(packed.origin.name)}")
    return packed


def _packed(photos: Photos, folder: Path, side: int, strict: bool, pulse: Pulse) -> Packed:
    # by its content alone, whatever its address and what the server there says of it
    what = {"source": asdict(replace(photos.origin, address="", tag="")), "side": side, "strict": strict}
    growing = Growing(folder, what, side)
    try:
        if growing.seen:
            pulse.say(f"going on with picture {growing.seen + 1:,}, where packing was stopped")
        _check_room(photos, folder, side, growing.seen)
        pulse.say(f"packing {photos.origin.kind} {shown(photos.origin.name)} at {side} x {side} pixels")
        try:
            _grow(growing, photos, side, strict, pulse)
        finally:
            growing.settle(now=True)
        _tell_skipped(growing, pulse)
        try:
            _check(growing, strict, shown(photos.origin.name), pulse)
        except UserError:
            growing.discard()  # another source is wanted, or this one mended, which changes its mark
            raise
        packed = growing.finish(NAME, photos.origin, pulse)
    finally:
        growing.close()
    pulse.say(
        f"packed {growing.counts[0]:,} training and {growing.counts[1]:,} test pictures of {len(packed.classes):,} "
        f"classes: {shown(packed.path)}, SHA-256 {packed.sha256[:12]}"
    )
    return packed


def _check_room(photos: Photos, folder: Path, side: int, seen: int) -> None:
    need = ((photos.count or 0) - seen) * side * side * 3
    free = shutil.disk_usage(folder).free
    if need > free:
        raise UserError(
            f"{photos.count:,} pictures of {side} x {side} need {need / 1e9:.1f} GB more in {shown(folder)}, which has "
            f"{free / 1e9:.1f} GB free: make room, or choose another folder with --out"
        )


def _grow(growing: Growing, photos: Photos, side: int, strict: bool, pulse: Pulse) -> None:
    began, before = time.monotonic(), growing.seen

    def work(batch: list[Photo]) -> list[Bytes | Broken]:
        return [_decoded(photo, side) for photo in batch]

    left = islice(photos.pictures(), before, None)
    batch = max(1, BATCH_BYTES // (side * side * 3)) if not photos.workers else 8
    for some, images in in_parallel(work, left, pulse, batch=batch, workers=photos.workers):
        for photo, image in zip(some, images, strict=True):
            if not isinstance(image, Broken):
                growing.add(photo.folder, photo.test, image)
            elif strict:
                raise UserError(
                    f"{shown(photo.name)}: broken picture ({image}); mend or remove it, or without --strict"
                )
            else:
                growing.skip(f"{shown(photo.name)} ({image})")
        growing.settle()
        of = f" of {photos.count:,}" if photos.count else ""
        rate = (growing.seen - before) / max(time.monotonic() - began, 1e-3)
        pulse.beat(f"packed {growing.seen:,}{of} pictures, {rate:.0f}/s, {len(growing.skipped):,} skipped as broken")


def _decoded(photo: Photo, side: int) -> Bytes | Broken:
    try:
        return decode(photo.data if isinstance(photo.data, bytes) else photo.data(), side)
    except Broken as e:
        return e


def _tell_skipped(growing: Growing, pulse: Pulse) -> None:
    if growing.skipped:
        more = f" and {len(growing.skipped) - 1:,} more" if len(growing.skipped) > 1 else ""
        pulse.say(f"skipped as broken: {growing.skipped[0]}{more}; --strict stops at the first")


def _check(growing: Growing, strict: bool, name: str, pulse: Pulse) -> None:
    """Raise `UserError` for classes that can't be trained on; say what is odd about others, or raise if `strict`."""
    train, test = (np.bincount(labels, minlength=len(growing.classes)) for labels in growing.labels())
    classes = sorted(growing.classes)
    for split, counts in (("train", train), ("val", test)):
        if not counts.sum():
            raise UserError(f"{name}: no pictures for {split}; wanted is {split}/CLASS/PICTURE for each class")
    if len(classes) < 2:
        raise UserError(f"{name}: has one class alone, {shown(classes[0])}; there is nothing to tell apart")
    if strangers := [c for c, n in zip(classes, train, strict=True) if not n]:
        raise UserError(f"{name}: train has no pictures of {_listed(strangers)}, and val has some; add or remove them")
    odd = []
    if lonely := [c for c, n in zip(classes, train, strict=True) if n == 1]:
        odd.append(f"train has a single picture of {_listed(lonely)}, from which little can be learnt")
    if missing := [c for c, n in zip(classes, test, strict=True) if not n]:
        odd.append(f"val has no pictures of {_listed(missing)}, so the accuracy says nothing of these")
    for line in odd:
        if strict:
            raise UserError(f"{name}: {line}")
        pulse.say(f"{name}: {line}")


def _listed(names: Iterable[str]) -> str:
    all_ = list(names)
    more = f" and {len(all_) - 3:,} more" if len(all_) > 3 else ""
    return ", ".join(map(shown, all_[:3])) + more
