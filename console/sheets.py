"""Tables for people: on a terminal as it fits, by rich; elsewhere plain lines, which need no import of it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from console.logs import one_line

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

LONGEST_WORD = 16  # characters that are not broken


@dataclass(frozen=True, slots=True)
class Words:
    text: str
    look: str = ""


@dataclass(frozen=True, slots=True)
class Sheet:
    titles: Sequence[str]
    rows: Sequence[tuple[Sequence[str], str]]  # cells, and the look of the second one


Part = Words | Sheet


def sheet(titles: Sequence[str], rows: Sequence[tuple[Sequence[str], str]]) -> Sheet:
    """Records are others' words: no line breaks, no end of the page."""
    return Sheet(titles, [([one_line(f"{cell:.200}") for cell in cells], look) for cells, look in rows])


def show(parts: Sequence[Part]) -> None:
    if sys.stdout.isatty():
        from rich.console import Console

        Console(highlight=False).print(drawn(parts))
    else:
        print("\n".join(plain(parts)))


def plain(parts: Sequence[Part]) -> list[str]:
    """Each row as one line, however long, with nothing after its end."""
    lines = []
    for part in parts:
        if isinstance(part, Words):
            lines.append(part.text)
            continue
        rows = [part.titles, *(cells for cells, _ in part.rows)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines += ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    return lines


def drawn(parts: Sequence[Part]) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    return Group(*(Text(p.text, style=p.look) if isinstance(p, Words) else _table(p) for p in parts))


def _table(what: Sheet) -> Table:
    """A narrow terminal breaks lines between words, not within."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for i, title in enumerate(what.titles):
        longest = max(len(word) for word in (title, *(word for cells, _ in what.rows for word in cells[i].split())))
        table.add_column(title, overflow="fold", min_width=min(longest, LONGEST_WORD))
    for cells, look in what.rows:
        table.add_row(*[Text(cell, style=look if i == 1 else "") for i, cell in enumerate(cells)])
    return table
