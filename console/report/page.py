"""The page: one file that needs nothing else, no network and no script; light and dark, on a phone and on paper."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from console.logs import one_line
from console.progress import duration
from console.report import comparison, picture, tables
from console.report.looks import DARK, LIGHT, Theme
from console.report.prices import Prices
from console.report.tables import Cell, Row
from trainer.ledger import Ledger

# columns that the CSV files have and that a page has no room for
LEFT_OUT = {"run", "market", "region", "host", "began", "rate from", "first step", "start-up s"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """One run's part of the page."""

    name: str
    synthetic: bool
    facts: list[tuple[str, Cell, str]]  # title, figure, what it means
    pictures: dict[str, str]
    rows: list[Row]
    sources: list[str]  # of the prices
    problems: list[str]


def render(ledgers: list[Ledger], prices: Prices, store: str, now: float) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("console.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    both = len(ledgers) > 1
    return environment.get_template("page.html").render(
        store=one_line(store),
        made=datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%d %H:%M UTC"),
        runs=tables.runs(ledgers, prices) if both else [],
        compared=_pictures(lambda theme, small: comparison.picture(ledgers, prices, theme, small=small))
        if both
        else {},
        sections=[_section(ledger, prices) for ledger in ledgers],
        left_out=LEFT_OUT,
    )


def _section(ledger: Ledger, prices: Prices) -> Section:
    rows = tables.attempts(ledger, prices)
    (run,) = tables.runs([ledger], prices)
    return Section(
        name=ledger.run,
        synthetic=ledger.synthetic,
        facts=_facts(ledger, run, prices),
        pictures=_pictures(lambda theme, small: picture.relay(ledger, theme, small=small)),
        rows=rows,
        sources=list(dict.fromkeys(row["rate from"].text for row in rows if row["rate from"].value is not None)),
        problems=[one_line(problem) for problem in ledger.problems],
    )


def _facts(ledger: Ledger, run: Row, prices: Prices) -> list[tuple[str, Cell, str]]:
    """What one looks at first."""
    cost, on_demand = tables.total(ledger, prices.paid), tables.total(ledger, prices.on_demand)
    if cost is not None and on_demand:
        told = f"${run['on demand $'].text} on demand: {100 * (1 - cost / on_demand):.0f} % saved"
    else:
        told = "on demand: unknown" if on_demand is None else f"on demand ${run['on demand $'].text}"
    lost = f"{ledger.lost_steps:,} of them were made twice" if ledger.lost_steps else "none was made twice"
    machines = [tables.cloud_of(entry) for entry in ledger.entries]
    clouds = len({name for name in machines if name})
    elapsed = ledger.elapsed_s
    return [
        ("state", run["state"], f"step {run['step'].text}, {lost}"),
        ("accuracy", run["accuracy"], f"after {run['epochs'].text} epochs"),
        ("cost $", run["cost $"], told),
        ("goodput", run["goodput"], "useful seconds of all that were paid for"),
        ("time", run["seconds"], "on machines" + (f", {duration(elapsed)} from first to last" if elapsed else "")),
        (
            "attempts",
            run["attempts"],
            f"on {clouds} cloud{'s' * (clouds != 1)}" if clouds else "on machines of no cloud",
        ),
    ]


def _pictures(draw: Callable[[Theme, bool], bytes | None]) -> dict[str, str]:
    """Data URIs by theme and width; empty where there is nothing to draw."""
    found = {}
    for theme in (LIGHT, DARK):
        for small in (False, True):
            svg = draw(theme, small)
            if svg is None:
                return {}
            name = f"{theme.name}_{'small' if small else 'wide'}"
            found[name] = "data:image/svg+xml;base64," + base64.b64encode(svg).decode()
    return found
