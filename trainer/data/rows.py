"""Labelled texts in a file: CSV or JSON lines, recognised by content. What can't be right is said with its line."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from trainer.data.dataset import shown
from trainer.data.pulse import Pulse, told
from trainer.exits import UserError

LABEL = ("label", "class", "category", "class index")
TEXT = ("text", "sentence", "title", "description", "content")
AG_NEWS_HEADER = ["class index", "title", "description"]  # of most copies of AG News; the original has none
AG_NEWS = {"1": "World", "2": "Sports", "3": "Business", "4": "Sci/Tech"}
FIELD_LIMIT = 64 << 20  # characters of one field of a CSV
WANTED = (
    "wanted is a CSV with a first line that names `label` and `text`, or without one and label,text or "
    "class,title,description in each line, or JSON lines with label and text"
)
OTHERS = {"\t": "tabs", ";": "semicolons"}  # that part columns in files that are no CSV


@dataclass(frozen=True, slots=True)
class Row:
    line: int  # where it ends
    label: str
    text: str


@dataclass(slots=True)
class Rows:
    """A file's rows but those without a text."""

    rows: list[Row] = field(default_factory=list)
    empty: int = 0  # rows without a text, left out
    first_empty: int = 0  # line of the first of them
    has_header: bool = True  # or wants none, as JSON lines; else the first line is a row
    is_ag_news: bool = False  # by its layout


def read(path: Path, pulse: Pulse) -> Rows:
    """Raises `UserError`."""
    found = Rows()
    for number, row in enumerate(_rows(path, found)):
        if number % 1000 == 0:
            pulse.beat(f"reading {shown(path.name)}: {number:,} rows")
        if not row.label:
            raise UserError(f"{shown(path)}, line {row.line}: has no label")
        if row.text:
            found.rows.append(row)
        else:
            found.empty, found.first_empty = found.empty + 1, found.first_empty or row.line
    if not found.rows:
        why = f"all {found.empty} rows are without a text" if found.empty else "no rows in it"
        raise UserError(f"{shown(path)}: {why}; {WANTED}")
    return found


def _rows(path: Path, found: Rows) -> Iterator[Row]:
    """What `found` says of the layout is right once the first row is out."""
    try:
        with path.open("rb") as raw:
            head = raw.read(4096)
        if head.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise UserError(f"{shown(path)}: is UTF-16; convert it: iconv -f UTF-16 -t UTF-8")
        if b"\0" in head:
            raise UserError(f"{shown(path)}: not a text file; {WANTED}")
        begin = b"".join(head.removeprefix(b"\xef\xbb\xbf").split())[:2]
        if begin == b"[{":
            raise UserError(f"{shown(path)}: is one JSON array; one object a line is wanted: jq -c '.[]' {shown(path)}")
        is_json = begin.startswith(b"{")
        with path.open(encoding="utf-8-sig", newline="") as file:  # -sig: with or without a byte-order mark
            yield from _json_rows(path, file) if is_json else _csv_rows(path, file, found)
    except UnicodeDecodeError as e:
        line = _line_of_wrong_byte(path)
        raise UserError(
            f"{shown(path)}, line {line}: not UTF-8 (byte 0x{e.object[e.start]:02x}); if it is Windows' or Latin-1 "
            "text, convert it: iconv -f WINDOWS-1252 -t UTF-8"
        ) from e
    except OSError as e:
        raise told(e, f"can't read {shown(path)}") from e


def _line_of_wrong_byte(path: Path) -> int:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return 0


# -- CSV ------------------------------------------------------------------------------------------------------


def _csv_rows(path: Path, file: TextIO, found: Rows) -> Iterator[Row]:
    csv.field_size_limit(FIELD_LIMIT)
    reader = csv.reader(file, strict=True)
    pick: Callable[[list[str]], tuple[str, str]] | None = None
    width = 0
    try:
        for cells in reader:
            if not cells:
                continue
            if pick is None:
                width = len(cells)
                columns = _columns(path, cells)
                pick = _picked(columns or ([0], list(range(1, width))))
                found.has_header = columns is not None
                found.is_ag_news = width == 3 and (columns is None or _names(cells) == AG_NEWS_HEADER)
                if columns is not None:
                    continue
            if len(cells) != width:
                raise UserError(
                    f"{shown(path)}, line {reader.line_num}: {len(cells)} columns, the lines before have {width}; "
                    'a text with commas or line breaks stands in double quotes, and a quote in it is ""'
                )
            yield Row(reader.line_num, *pick(cells))
    except csv.Error as e:
        raise UserError(f"{shown(path)}, line {reader.line_num}: not CSV: {e}") from e


def _columns(path: Path, first: list[str]) -> tuple[list[int], list[int]] | None:
    """(columns of the label, those of the text) by the names in the first line; None where it names none."""
    names = _names(first)
    label = [names.index(name) for name in LABEL if name in names][:1]
    text = [names.index(name) for name in TEXT if name in names]
    text = text[:1] if text and names[text[0]] in ("text", "sentence") else text
    if label and text:
        return label, text
    if label or text or not 2 <= len(first) <= 3:
        found = ", ".join(shown(name) for name in first[:8])
        lacks = "the text" if label else "the label"
        other = next(
            (f", with {name} where commas are wanted" for mark, name in OTHERS.items() if mark in first[0]), ""
        )
        raise UserError(f"{shown(path)}: lacks a column for {lacks}: its first line is {found:.200}{other}; {WANTED}")
    return None


def _names(first: list[str]) -> list[str]:
    return [cell.strip().lower() for cell in first]


def _picked(columns: tuple[list[int], list[int]]) -> Callable[[list[str]], tuple[str, str]]:
    (label,), texts = columns
    return lambda cells: (cells[label].strip(), " ".join(cells[i].strip() for i in texts).strip())


# -- JSON lines -----------------------------------------------------------------------------------------------


def _json_rows(path: Path, file: TextIO) -> Iterator[Row]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as e:
            raise UserError(f"{shown(path)}, line {number}: not JSON: {getattr(e, 'msg', e)}; {WANTED}") from e
        if not isinstance(record, dict):
            raise UserError(f"{shown(path)}, line {number}: not a JSON object; {WANTED}")
        yield Row(number, *_of_record(path, number, {str(k).lower(): v for k, v in record.items()}))


def _of_record(path: Path, number: int, record: dict[str, Any]) -> tuple[str, str]:
    label = next((name for name in LABEL if name in record), None)
    texts = [name for name in TEXT if name in record]
    texts = texts[:1] if texts and texts[0] in ("text", "sentence") else texts
    if label is None or not texts:
        raise UserError(f"{shown(path)}, line {number}: lacks {'text' if label else 'label'}; {WANTED}")
    value, parts = record[label], [record[name] for name in texts]
    if type(value) not in (int, str) or not all(part is None or isinstance(part, str) for part in parts):
        raise UserError(f"{shown(path)}, line {number}: the label must be a whole number or a text, the text a text")
    row = str(value).strip(), " ".join((part or "").strip() for part in parts).strip()
    try:
        "".join(row).encode()
    except UnicodeEncodeError as e:
        half = e.object[e.start]
        raise UserError(f"{shown(path)}, line {number}: {half!a} is half a character; mend or remove it") from e
    return row
