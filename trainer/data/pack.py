"""Pack a data set once, from any source, into the file that every start maps into memory; and find it again."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

from trainer.data import sources
from trainer.data.dataset import PACKERS, Archive, Dataset, Splits, named, shown
from trainer.data.download import DownloadError, fetch_unless_held, mark_of, name_of, unsigned
from trainer.data.held import already, held, keep_real
from trainer.data.packed import FILE_NAME, Packed, open_packed, remedy, write_packed
from trainer.data.paths import cache_folder, reading
from trainer.data.pulse import Pulse
from trainer.data.scratch import check_writable, remove_stale, scratch
from trainer.data.sources import Source
from trainer.exits import UserError


class Packer(Protocol):
    """A module that packs data other than small pictures."""

    ACCEPTED: str  # what may be given as a source; the end of a message
    OPTIONS: tuple[str, ...]  # names of the settings that decide what is packed

    def pack(self, source: str | None, folder: Path, options: Mapping[str, Any], pulse: Pulse) -> Packed: ...


def packer(name: str | Dataset) -> Packer | None:
    """Who packs the data of this name; None for the sets of small pictures, which are packed here."""
    module: Any = import_module(PACKERS[name]) if isinstance(name, str) and name in PACKERS else None
    return cast("Packer | None", module)


def pack(
    dataset_name: str | Dataset,
    source: str | None,
    folder: Path,
    *,
    options: Mapping[str, Any] | None = None,
    check: Callable[[], None] = lambda: None,
    say: Callable[[str], None],
) -> Packed:
    """Pack the data set from `source` into `folder`, unless it was packed from the very same already.

    A source is an official archive or its address, an image folder or a tar of one, or "synthetic". None means:
    what is packed already, else the official archive, else, where that can't be fetched and nothing that may be real
    lies there, the SYNTHETIC stand-in.

    `check` is called at least every 0.2 s and may raise to stop; then, and after any error, what was packed before is
    as it was. `say` takes whole lines for people. `options`: the settings that other data than small pictures is packed
    by, such as `model`. Raises `UserError`, and whatever `check` does.
    """
    pulse = Pulse(check, say)
    pulse.check()
    if (other := packer(dataset_name)) is not None:
        remove_stale(folder)
        return other.pack(source, folder, options or {}, pulse)
    dataset = named(dataset_name)
    remove_stale(folder)
    if source is None:
        before = held(folder, dataset.name, pulse, lambda packed: _fits(packed, dataset))
        return already(before, pulse) if before else _official(dataset, folder, pulse)
    if sources.is_address(source):
        return _from_address(dataset, source, folder, pulse)
    return _from_source(dataset, sources.recognise(dataset, source, pulse), folder, pulse)


def locate(
    dataset_name: str | Dataset,
    data: str | None,
    folder: Path,
    *,
    options: Mapping[str, Any] | None = None,
    check: Callable[[], None] = lambda: None,
    say: Callable[[str], None],
    cache: Path | None = None,
) -> Packed:
    """The packed data that `--data` means. Its bytes are not hashed here: `Packed.verify` does.

    None: what is packed in `folder`. A packed folder or file: that one. Any source: packed first, into a folder of its
    own in `cache` ($XDG_CACHE_HOME/baton, or ~/.cache/baton), and found there the next time.
    Raises `UserError`, where nothing is packed with the command that does it; and whatever `check` does.
    """
    other = packer(dataset_name)
    dataset = dataset_name if other and isinstance(dataset_name, str) else named(dataset_name)
    name = dataset if isinstance(dataset, str) else dataset.name
    if not data:
        with reading(folder):
            if not (folder / FILE_NAME).is_file():
                raise UserError(f"{shown(folder)}: no packed data here; {remedy(name)}")
        return _fits(open_packed(folder, name), dataset)
    if data != sources.SYNTHETIC and not sources.is_address(data) and not (other and sources.is_stored(data)):
        accepted = sources.accepted(dataset) if isinstance(dataset, Dataset) else other.ACCEPTED if other else ""
        path = sources.local_path(data, accepted)
        with reading(path):
            if (path / FILE_NAME).is_file() or path.name == FILE_NAME or path.suffix == ".safetensors":
                return _fits(open_packed(path, name), dataset)
        data = os.path.realpath(path)  # Path.resolve fails on a link that leads to itself
    cache = cache or cache_folder() / "baton"
    chosen = {name: (options or {})[name] for name in other.OPTIONS if (options or {}).get(name)} if other else {}
    known = unsigned(data) if sources.is_address(data) else data
    key = hashlib.sha256((known + (repr(chosen) if chosen else "")).encode(errors="surrogateescape")).hexdigest()[:16]
    return pack(dataset, data, cache / name / key, options=chosen, check=check, say=say)


def _fits(packed: Packed, dataset: Dataset | str) -> Packed:
    if isinstance(dataset, str):
        if packed.name != dataset:
            raise UserError(
                f"{shown(packed.path)}: holds {shown(packed.name)}, not data for {dataset}; {remedy(dataset)}"
            )
        return packed
    if packed.name != dataset.name or packed.classes != dataset.classes:
        raise UserError(f"{shown(packed.path)}: holds {shown(packed.name)}, not {dataset.name}; {remedy(dataset.name)}")
    if packed.arrays["train_images"].shape[1:] != dataset.shape:
        raise UserError(f"{shown(packed.path)}: its pictures have another size; {remedy(dataset.name)}")
    return packed


def _official(dataset: Dataset, folder: Path, pulse: Pulse) -> Packed:
    try:
        return _from_address(dataset, dataset.python.url, folder, pulse)
    except DownloadError as e:
        pulse.say(f"the official {dataset.name} can't be had: {e}")
        keep_real(folder, dataset.name)
        pulse.say("using a generated SYNTHETIC stand-in instead: results with it say nothing about the real data")
    return _from_source(dataset, sources.recognise(dataset, sources.SYNTHETIC, pulse), folder, pulse)


def _from_address(dataset: Dataset, url: str, folder: Path, pulse: Pulse) -> Packed:
    name = name_of(url)
    before = held(folder, dataset.name, pulse, lambda packed: _fits(packed, dataset))
    published = _published(dataset, name)
    if before and before.origin.name == name and published and before.origin.mark == f"md5:{published.md5}":
        return already(before, pulse)
    pulse.say(f"fetching {shown(name)}")
    with scratch(folder) as file:
        came = fetch_unless_held(url, file, pulse, before.origin if before else None)
        if came is None:
            assert before is not None  # else there was nothing to know it by
            return already(before, pulse)
        try:
            source = sources.recognise(dataset, str(file.path), pulse, name)
            if published and source.origin.mark != f"md5:{published.md5}":
                raise UserError(f"{shown(name)}: what came isn't it by its MD5, {published.md5}; try again later")
            splits = _read(dataset, source, pulse)
        except UserError as e:
            # people know the file by its own name, not by that of the scratch file
            message = str(e).replace(str(file.path), shown(name))
            raise (DownloadError if published else UserError)(message, e.code) from e
        origin = replace(source.origin, tag=came.tag, address=mark_of(url))
        return write_packed(folder, dataset, splits, origin, synthetic=source.synthetic, pulse=pulse)


def _published(dataset: Dataset, name: str) -> Archive | None:
    return next((archive for archive in (dataset.python, dataset.binary) if archive.name == name), None)


def _from_source(dataset: Dataset, source: Source, folder: Path, pulse: Pulse) -> Packed:
    before = held(folder, dataset.name, pulse, lambda packed: _fits(packed, dataset))
    if before and before.origin == source.origin:
        return already(before, pulse)
    check_writable(folder)
    splits = _read(dataset, source, pulse)
    return write_packed(folder, dataset, splits, source.origin, synthetic=source.synthetic, pulse=pulse)


def _read(dataset: Dataset, source: Source, pulse: Pulse) -> Splits:
    what = "the SYNTHETIC stand-in" if source.synthetic else f"{source.origin.kind} {shown(source.origin.name)}"
    pulse.say(f"packing {dataset.name} from {what}")
    splits = source.read(pulse)
    splits.check(dataset, shown(source.origin.name))
    return splits
