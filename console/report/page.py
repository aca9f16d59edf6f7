"""The page: one file that needs nothing else, no network and no script; light and dark, on a phone and on paper."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from console.logs import one_line
from console.progress import duration
from console.report import comparison, picture, tables
from console.report.looks import darkened
from console.report.prices import Prices
from console.report.tables import Row
from trainer.ledger import Entry, Ledger

# What the page shows of the tables; the CSV files have all. UNIT is what a sample of the run is.
UNIT = "UNIT/s"
BILL = ["attempt", "cloud", "instance", "rate $/h", "seconds", "cost $", "on demand $", "epochs"]
BILL += ["learning rate", "momentum", "accuracy", UNIT]
TIME = ["attempt", "market", "useful steps", "lost steps", "useful s", "lost s", "overhead s", "start-up s", "goodput"]
TIME += ["ended"]
RUNS_BILL = ["run", "instance", "rate $/h", "seconds", "cost $", "on demand $", "epochs", "learning rate", "momentum"]
RUNS_BILL += ["accuracy", UNIT]
RUNS_TIME = [
    "run",
    "job",
    "state",
    "attempts",
    "step",
    "useful steps",
    "lost steps",
    "useful s",
    "lost s",
    "overhead s",
]
RUNS_TIME += ["goodput", "elapsed s"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """One run's part of the page."""

    name: str
    synthetic: bool
    facts: list[tuple[str, str, str]]  # title, figure, what it means
    pictures: dict[str, str]
    columns: dict[str, list[str]]  # title of a table -> its columns
    rows: list[Row]
    sources: list[str]  # of the prices
    problems: list[str]


def render(ledgers: list[Ledger], prices: Prices, store: str, now: float) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("console.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    both = len(ledgers) > 1
    units = {ledger.unit for ledger in ledgers}
    unit = units.pop() if len(units) == 1 else "samples"  # of all runs: they share their columns
    return environment.get_template("page.html").render(
        store=one_line(store),
        made=datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%d %H:%M UTC"),
        runs=[_with_speed(ledger, prices, unit) for ledger in ledgers] if both else [],
        compared=_pictures(lambda small: comparison.picture(ledgers, prices, small=small)) if both else {},
        sections=[_section(ledger, prices) for ledger in ledgers],
        run_columns={
            "The bill": _columns(RUNS_BILL, unit),
            "Where the time went": RUNS_TIME,
        },
    )


def _columns(titles: list[str], unit: str) -> list[str]:
    return [f"{unit}/s" if title == UNIT else title for title in titles]


def _with_speed(ledger: Ledger, prices: Prices, unit: str) -> Row:
    """A run's row, its speed in the column of this unit too."""
    (row,) = tables.runs([ledger], prices)
    return {**row, f"{unit}/s": row[f"{ledger.unit}/s"]}


def _section(ledger: Ledger, prices: Prices) -> Section:
    rows = tables.attempts(ledger, prices)
    (run,) = tables.runs([ledger], prices)
    return Section(
        name=ledger.run,
        synthetic=ledger.synthetic,
        facts=_facts(ledger, run, prices),
        pictures=_pictures(lambda small: picture.relay(ledger, small=small)),
        columns={"The bill": _columns(BILL, ledger.unit), "Where the time went": TIME} if rows else {},
        rows=rows,
        sources=list(dict.fromkeys(row["rate from"].text for row in rows if row["rate from"].value is not None)),
        problems=[one_line(problem) for problem in ledger.problems],
    )


def _facts(ledger: Ledger, run: Row, prices: Prices) -> list[tuple[str, str, str]]:
    """What one looks at first."""
    cost, on_demand = tables.total(ledger, prices.paid), tables.total(ledger, prices.on_demand)
    if cost is not None and on_demand:
        told = f"on demand ${run['on demand $'].text}: {100 * (1 - cost / on_demand):.0f} % saved"
    else:
        told = "on demand " + (tables.UNKNOWN if on_demand is None else f"${run['on demand $'].text}")
    if cost is None and (known := [paid for e in ledger.entries if (paid := _paid(e, prices)) is not None]):
        told = f"${tables.money(sum(known)).text} for {len(known)} of {len(ledger.entries)} attempts; {told}"
    if more := tables.total(ledger, prices.paid, unseen=True):
        told = f"up to ${tables.money(more).text} more, for what vanished; {told}"
    lost = f"{ledger.lost_steps:,} more were lost" if ledger.lost_steps else "none is known to be lost"
    clouds = len({name for name in map(tables.cloud_of, ledger.entries) if name})
    elapsed = ledger.elapsed_s
    return [
        ("state", run["state"].text, f"step {run['step'].text}, {lost}"),
        ("accuracy", run["accuracy"].text, f"after {run['epochs'].text} epochs"),
        ("cost", tables.UNKNOWN if cost is None else f"${run['cost $'].text}", told),
        ("goodput", run["goodput"].text, "useful seconds of all machine seconds"),
        ("machines' time", duration(ledger.wall_s), f"{duration(elapsed)} from first to last" if elapsed else ""),
        ("attempts", run["attempts"].text, f"on {clouds} cloud{'s' * (clouds != 1)}" if clouds else "on no cloud"),
    ]


def _paid(entry: Entry, prices: Prices) -> float | None:
    rate = prices.paid(entry.machine)
    return None if rate is None or entry.wall_s is None else rate.of(entry.wall_s)


def _pictures(draw: Callable[[bool], bytes | None]) -> dict[str, str]:
    """Data URIs by theme and width; empty where there is nothing to draw."""
    found = {}
    for width, small in (("wide", False), ("small", True)):
        svg = draw(small)
        if svg is None:
            return {}
        for theme, picture_ in (("light", svg), ("dark", darkened(svg))):
            found[f"{theme}_{width}"] = "data:image/svg+xml;base64," + base64.b64encode(picture_).decode()
    return found
