"""Pack labelled texts: read once, tokenized once, into the file that every start maps into memory.

A source is a CSV or JSON-lines file, of which a thousand texts (a fifth of a small file), and of each class one at
least, are held out for evaluation; or a folder with train.csv and test.csv (or .jsonl, or val); or "synthetic". Which
texts are held out follows from their content alone: the lowest SHA-256 hashes; rows of one text stay together. The
tokenizer goes into the packed file too.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from trainer import pretrained
from trainer.data import rows
from trainer.data.dataset import shown
from trainer.data.held import already, held
from trainer.data.packed import FILE_NAME, TEXTS, Origin, Packed, open_packed, remedy, write_arrays
from trainer.data.paths import reading
from trainer.data.pulse import Pulse
from trainer.data.rows import Row
from trainer.data.scratch import check_writable
from trainer.data.sources import SYNTHETIC, local_path
from trainer.data.synthetic_texts import generate
from trainer.exits import UserError

NAME, OPTIONS = "bert", ("model",)
ACCEPTED = (
    "accepted are a CSV or JSON-lines file of label and text, a folder with train.csv and test.csv (or .jsonl), and "
    f"the word {SYNTHETIC}"
)
HELD_OUT = 1000  # texts for evaluation, of a file that has no test part of its own
SHARE = 5  # but no more than one of so many
MAX_CLASSES = 256
ENDINGS = (".csv", ".jsonl", ".json")
_NUMBER = re.compile("-?[0-9]{1,18}")  # Python makes no numbers of thousands of digits


@dataclass(frozen=True, slots=True)
class Source:
    """A source found; `files`: the training part and, of a folder, the test part."""

    origin: Origin
    files: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class Texts:
    """Labelled texts, split."""

    classes: tuple[str, ...]
    train: list[Row]
    test: list[Row]


def pack(source: str | None, folder: Path, options: Mapping[str, Any], pulse: Pulse) -> Packed:
    """As `trainer.data.pack.pack`. `options["model"]`: whose tokenizer to take; without one it is learned."""
    if source is None:
        with reading(folder):
            if (folder / FILE_NAME).exists():
                return already(open_packed(folder, NAME), pulse)
        raise UserError(f"{shown(folder)}: nothing is packed here; {remedy(NAME)}; {ACCEPTED}")
    files, model = _tokenizer(str(options.get("model") or ""))
    found = _recognise(source, files, model, pulse)
    if (before := held(folder, NAME, pulse, lambda packed: packed.origin == found.origin)) is not None:
        return already(before, pulse)
    check_writable(folder)
    synthetic = source == SYNTHETIC
    what = "the SYNTHETIC stand-in" if synthetic else f"{found.origin.kind} {shown(found.origin.name)}"
    pulse.say(f"packing texts from {what}")
    texts = generate_texts(pulse) if synthetic else read(found.files, pulse)
    arrays, words = _tokenized(texts, files, model, pulse)
    rows_ = {name: (array, None) for name, array in arrays.items()}
    packed = write_arrays(folder, NAME, texts.classes, rows_, found.origin, synthetic=synthetic, pulse=pulse)
    names = ", ".join(f"{shown(name):.40}" for name in texts.classes[:8]) + (", ..." if len(texts.classes) > 8 else "")
    pulse.say(
        f"packed {len(arrays['train_labels']):,} training and {len(arrays['test_labels']):,} test texts"
        f"{' (SYNTHETIC)' if synthetic else ''} of {len(texts.classes)} classes ({names}), "
        f"{np.diff(arrays['train_offsets']).mean():.0f} tokens on average, by {words}: {shown(packed.path)}, "
        f"SHA-256 {packed.sha256[:12]}"
    )
    return packed


def _tokenized(
    texts: Texts, files: Mapping[str, str] | None, model: Path | None, pulse: Pulse
) -> tuple[dict[str, Any], str]:
    """The packed file's arrays, and whose tokenizer it is, for people."""
    from trainer.data import tokens  # its library is wanted here alone

    whose = f"the tokenizer of {shown(model.name)}" if model else "a vocabulary learned from them"
    files = files or tokens.learn([row.text for row in texts.train], pulse)
    tokenizer, most = tokens.loaded(files, whose), pretrained.longest(files, model)
    labels = {label: i for i, label in enumerate(texts.classes)}
    arrays: dict[str, Any] = dict.fromkeys(TEXTS)  # in file order
    for name, some in (("train", texts.train), ("test", texts.test)):
        flat, offsets, cut = tokens.encoded(tokenizer, [row.text for row in some], most, pulse, name)
        if cut:
            pulse.say(f"{cut:,} of the texts for {name} are longer than {most} tokens: cut to their beginning")
        kept, offsets = _with_tokens(some, offsets, name, pulse)
        arrays[f"{name}_offsets"], arrays[f"{name}_tokens"] = offsets, flat
        arrays[f"{name}_labels"] = np.array([labels[row.label] for row in kept], np.uint8)
        if lacking := sorted(labels.keys() - {row.label for row in kept}):
            raise UserError(
                f"no text of class {shown(lacking[0]):.100} is left for {name}: {whose} makes no tokens of any"
            )
    # ids may have gaps, and those of a template need not be in the vocabulary
    used = (int(arrays[f"{name}_tokens"].max()) for name in ("train", "test"))
    if max(*tokenizer.get_vocab().values(), *used) < 1 << 16:
        arrays |= {f"{name}_tokens": arrays[f"{name}_tokens"].astype(np.uint16) for name in ("train", "test")}
    arrays["tokenizer"] = np.frombuffer(json.dumps(dict(files), sort_keys=True).encode(), np.uint8)
    return arrays, whose


def _with_tokens(
    rows_: Sequence[Row], offsets: np.ndarray[Any, Any], name: str, pulse: Pulse
) -> tuple[list[Row], np.ndarray[Any, Any]]:
    """The rows that a tokenizer makes anything of, and where their tokens begin and end. Of no tokens attention is NaN.

    A model's own tokenizer may drop all characters of a text, and put nothing around it.
    """
    filled = np.diff(offsets) > 0
    if not filled.all():
        first = min(row.line for row, some in zip(rows_, filled, strict=True) if not some)
        pulse.say(f"texts for {name}: {(~filled).sum():,} rows without a text left out, the first in line {first}")
    return [row for row, some in zip(rows_, filled, strict=True) if some], offsets[np.append(True, filled)]


def _tokenizer(model: str) -> tuple[Mapping[str, str] | None, Path | None]:
    """(the files of the model's tokenizer, or None: to be learned; its folder). Raises `UserError`."""
    if not model or model in pretrained.SIZES:
        return None, None
    folder = pretrained.find(model)
    if folder is None:
        raise pretrained.missing(model)
    return pretrained.tokenizer_files(folder), folder


def _recognise(source: str, files: Mapping[str, str] | None, model: Path | None, pulse: Pulse) -> Source:
    digest = hashlib.sha256(json.dumps(dict(files or {}), sort_keys=True).encode())
    if files is not None:  # models that share a tokenizer take texts of other lengths
        digest.update(b" %d " % pretrained.longest(files, model))
    if source == SYNTHETIC:
        return Source(Origin(SYNTHETIC, SYNTHETIC, f"1 {digest.hexdigest()}"), ())
    path = local_path(source, ACCEPTED)
    with reading(path):
        if not path.exists():
            raise UserError(f"{shown(source)}: no such file or folder; {ACCEPTED}")
        kind = "folder" if path.is_dir() else "file"
        parts = _parts(path) if kind == "folder" else (path,)
    for file in parts:
        with reading(file), file.open("rb") as raw:
            # where one ends: rows that move from train to test are other parts, of the same bytes
            digest.update(b"%d " % os.fstat(raw.fileno()).st_size)
            while chunk := raw.read(4 << 20):
                digest.update(chunk)
                pulse.beat(f"checking {shown(file.name)}")
    return Source(Origin(kind, path.resolve().name, f"sha256:{digest.hexdigest()}"), parts)


def _parts(folder: Path) -> tuple[Path, ...]:
    found = []
    for names in (("train",), ("test", "val", "dev")):
        there = [
            folder / (name + ending) for name in names for ending in ENDINGS if (folder / (name + ending)).is_file()
        ]
        if len(there) != 1:
            what = " and ".join(p.name for p in there) if there else f"no {names[0]}.csv"
            raise UserError(f"{shown(folder)}: {what} in it; wanted is one of each part; {ACCEPTED}")
        found.append(there[0])
    return tuple(found)


def read(files: Sequence[Path], pulse: Pulse) -> Texts:
    """The texts of these files, in the order of their hashes, split. Raises `UserError`."""
    found = [rows.read(file, pulse) for file in files]
    for file, some in zip(files, found, strict=True):
        if some.empty:
            first = f"the first in line {some.first_empty}"
            pulse.say(f"{shown(file.name)}: {some.empty:,} rows without a text left out, {first}")
    parts = [sorted(some.rows, key=_hash) for some in found]
    name = shown(files[0].name)
    labels = {row.label for row in parts[0]}
    if len(labels) > MAX_CLASSES:
        raise UserError(
            f"{name}: {len(labels):,} different labels; more than {MAX_CLASSES} are no classes: {rows.WANTED}"
        )
    if len(labels) < 2:
        raise UserError(f"{name}: every label is {shown(*labels):.100}; there must be two classes or more")
    _refuse_header(name, found)
    if len(parts) == 1:
        parts = _held_out(parts[0])
    _check(files, labels, *parts)
    return Texts(*_named(labels, all(some.is_ag_news for some in found), *parts))


def _refuse_header(name: str, found: Sequence[rows.Rows]) -> None:
    """Raise `UserError` where each first line names columns by other names, which would be a class of its own."""
    firsts = {(file.rows[0].label, file.rows[0].text) for file in found if not file.has_header}
    alone = (sum(row.label == file.rows[0].label for row in file.rows) == 1 for file in found)
    if len(firsts) == 1 and not any(file.has_header for file in found) and all(alone):
        label, _ = firsts.pop()
        raise UserError(
            f"{name}: its first line names no `label` and `text`, and no other has its label, {shown(label):.100}: if "
            f"it is no text, name them there; if it is one, its class needs more; {rows.WANTED}"
        )


def _held_out(rows: list[Row]) -> list[list[Row]]:
    """[for training, for evaluation], of rows in the order of their hashes. Those of one text lie in one part."""
    room = min(HELD_OUT, len(rows) // SHARE)
    groups = [list(some) for _, some in groupby(rows, key=lambda row: row.text)]
    held: set[int] = set()
    by_class: dict[str, list[int]] = {}
    for number, group in enumerate(groups):
        if len(group) <= room:
            held.add(number)
            room -= len(group)
        for label in dict.fromkeys(row.label for row in group):
            by_class.setdefault(label, []).append(number)

    def is_shared(number: int) -> bool:
        return len({row.label for row in groups[number]}) > 1  # whose move could take another class's only one

    for numbers in by_class.values():
        if len(numbers) > 1:  # of a rare class too there is one in each part
            if not held.intersection(numbers):
                held.add(min(numbers, key=lambda number: (is_shared(number), len(groups[number]))))
            elif held.issuperset(numbers):
                held.remove(max(numbers, key=lambda number: (not is_shared(number), number)))
    return [[row for n, group in enumerate(groups) if (n in held) == test for row in group] for test in (False, True)]


def _hash(row: Row) -> bytes:
    return hashlib.sha256(row.text.encode()).digest() + row.label.encode()


def _check(files: Sequence[Path], labels: set[str], train: list[Row], test: list[Row]) -> None:
    """Raise `UserError` for a label that is not in both parts."""
    for row in test:
        if row.label not in labels:
            near = difflib.get_close_matches(row.label, labels, n=1)
            hint = (
                f"did you mean {shown(near[0])}?"
                if near
                else f"there are: {', '.join(map(shown, sorted(labels)[:12]))}"
            )
            raise UserError(f"{shown(files[-1].name)}, line {row.line}: unknown label {shown(row.label):.100}; {hint}")
    for some, others, what in ((train, test, "train"), (test, train, "test")):
        counts = Counter(row.label for row in some)
        if missing := sorted({row.label for row in others} - counts.keys()):
            row = next(row for row in others if row.label == missing[0])
            raise UserError(
                f"{shown(files[0].name)}: no text of class {shown(missing[0]):.100} is left for {what} (one is in line "
                f"{row.line}): a class needs more texts, which differ, or a folder with a train.csv and a test.csv of "
                "your own"
            )


def _named(
    labels: set[str], is_ag_news: bool, train: list[Row], test: list[Row]
) -> tuple[tuple[str, ...], list[Row], list[Row]]:
    """The classes in order, numbers by their value, AG News' by their names. `is_ag_news`: so far as layout tells."""
    if is_ag_news and labels == rows.AG_NEWS.keys():
        renamed = [[Row(r.line, rows.AG_NEWS[r.label], r.text) for r in part] for part in (train, test)]
        return tuple(rows.AG_NEWS.values()), renamed[0], renamed[1]
    numbers = all(_NUMBER.fullmatch(label) for label in labels)
    return tuple(sorted(labels, key=lambda label: (int(label) if numbers else 0, label))), train, test


def generate_texts(pulse: Pulse) -> Texts:
    """The SYNTHETIC stand-in."""
    classes, train, test = generate(pulse)
    return Texts(classes, *([Row(0, *pair) for pair in part] for part in (train, test)))
