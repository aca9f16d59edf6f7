"""The users' table, per attempt and per run: one row a list of cells, each with its value and how people read it."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from console.endings import CLOUDS, how
from console.logs import one_line
from console.report.prices import Prices, Rate, machines
from trainer.ledger import Entry, Ledger
from trainer.records import Record
from trainer.settings import Json

UNKNOWN = "unknown"
Value = float | int | str | None


@dataclass(frozen=True, slots=True)
class Cell:
    value: Value  # for machines; None: unknown
    text: str  # for people
    is_number: bool = True

    @property
    def is_unknown(self) -> bool:
        return self.value is None and self.text == UNKNOWN


Row = dict[str, Cell]  # by the column's title


def attempts(ledger: Ledger, prices: Prices) -> list[Row]:
    return [_attempt(ledger, entry, prices) for entry in ledger.entries]


def _attempt(ledger: Ledger, entry: Entry, prices: Prices) -> Row:
    paid, on_demand = prices.paid(entry.machine), prices.on_demand(entry.machine)
    wall, spot = entry.wall_s, entry.machine.get("spot")
    market = "spot" if spot is True else "on demand" if spot is False else None
    per_epoch = ledger.steps_per_epoch
    settings = entry.settings or ledger.settings
    return {
        "run": words(ledger.run),
        "attempt": number(entry.attempt),
        "cloud": words(cloud_of(entry) or ("none" if entry.machine else None)),
        "instance": words(instances(entry)),
        "market": words(market) if market or cloud_of(entry) else Cell(None, "-", is_number=False),
        "region": words(entry.machine.get("zone") or entry.machine.get("region")),
        "host": words(entry.machine.get("host")),
        "began": words(moment(entry.began)),
        "rate $/h": money(paid.usd_per_hour if paid else None),
        "rate from": words(paid.source if paid else None),
        "seconds": seconds(wall),
        "cost $": money(paid.of(wall) if paid and wall is not None else None),
        "on demand $": money(on_demand.of(wall) if on_demand and wall is not None else None),
        "epochs": number(entry.useful_steps / per_epoch if per_epoch else None, "{:.2f}"),
        "learning rate": number(settings.get("lr"), "{:g}"),
        "momentum": number(settings.get("momentum"), "{:g}", none="-"),
        "accuracy": share(of(entry.metrics, "accuracy"), none="-"),
        f"{ledger.unit}/s": number(entry.samples_per_s, "{:,.0f}"),
        "first step": number(entry.first_step),
        "useful steps": number(entry.useful_steps),
        "lost steps": number(entry.lost_steps),
        "useful s": seconds(entry.useful_s),
        "lost s": seconds(entry.lost_s),
        "overhead s": seconds(entry.overhead_s if wall is not None else None),
        "start-up s": seconds(entry.startup_s, none="-"),
        "unseen s": seconds(entry.unseen_s),
        "goodput": share(entry.useful_s / wall if wall else None),
        "ended": words(how_ended(entry)),
    }


def runs(ledgers: Iterable[Ledger], prices: Prices) -> list[Row]:
    return [_run(ledger, prices) for ledger in ledgers]


def _run(ledger: Ledger, prices: Prices) -> Row:
    types = dict.fromkeys(instances(e) or UNKNOWN for e in ledger.entries)
    cost, on_demand = total(ledger, prices.paid), total(ledger, prices.on_demand)
    speeds = [(e.samples_per_s, e.training_s) for e in ledger.entries if e.samples_per_s is not None]
    trained = sum(s for _, s in speeds)
    speed = sum(rate * s for rate, s in speeds) / trained if trained else None
    made = ledger.useful_steps + ledger.lost_steps
    done = sum(rate * s for rate, s in speeds) * ledger.useful_steps / made if made else 0.0
    settings = ledger.settings
    epochs = ledger.useful_steps / ledger.steps_per_epoch if ledger.steps_per_epoch else None
    return {
        "run": replace(words(ledger.run), text=told_name(ledger)),
        "synthetic": words("yes" if ledger.synthetic else "no"),
        "job": words(ledger.job),
        "state": words(ledger.state),
        "attempts": number(len(ledger.entries)),
        "instance": words(", ".join(types)),
        "rate $/h": money(cost / ledger.wall_s * 3600 if cost is not None and ledger.wall_s else None),
        "seconds": seconds(ledger.wall_s),
        "cost $": money(cost),
        "on demand $": money(on_demand),
        "step": Cell(ledger.step, f"{ledger.step:,} of {ledger.steps:,}" if ledger.steps else f"{ledger.step:,}"),
        "epochs": number(epochs, "{:.2f}"),
        "learning rate": number(settings.get("lr"), "{:g}"),
        "momentum": number(settings.get("momentum"), "{:g}", none="-"),
        "accuracy": share(of(ledger.metrics, "accuracy"), none="-"),
        f"{ledger.unit}/s": number(speed, "{:,.0f}"),
        f"{ledger.unit} per $": number(done / cost if cost and done else None, "{:,.0f}"),
        "useful steps": number(ledger.useful_steps),
        "lost steps": number(ledger.lost_steps),
        "useful s": seconds(ledger.useful_s),
        "lost s": seconds(ledger.lost_s),
        "overhead s": seconds(ledger.overhead_s),
        "unseen s": seconds(ledger.unseen_s),
        "goodput": share(ledger.goodput),
        "elapsed s": seconds(ledger.elapsed_s),
    }


def told_name(ledger: Ledger) -> str:
    """A run's name for people, who are told of a stand-in wherever they look."""
    return words(ledger.run).text + (" SYNTHETIC" if ledger.synthetic else "")


def total(ledger: Ledger, rate: Callable[[Record], Rate | None], *, unseen: bool = False) -> float | None:
    """USD of all attempts; None where one's price or length is unknown: a part of a sum says nothing.

    `unseen`: of the seconds alone that machines which vanished may have been there beyond what is on record.
    """
    sums = 0.0
    for entry in ledger.entries:
        found = rate(entry.machine)
        if found is None or entry.wall_s is None:
            return None
        sums += found.of(entry.unseen_s if unseen else entry.wall_s)
    return sums if ledger.entries else None


def as_csv(rows: list[Row]) -> str:
    """Of what is unknown the word, so that nobody takes it for nothing."""
    titles = list(dict.fromkeys(title for row in rows for title in row))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([harmless(title) for title in titles])
    for row in rows:
        writer.writerow([_for_csv(row[title]) if title in row else "" for title in titles])
    return out.getvalue()


def _for_csv(cell: Cell) -> Value:
    if cell.value is None:
        return UNKNOWN if cell.is_unknown else ""
    return harmless(cell.value) if isinstance(cell.value, str) else cell.value


def harmless(text: str) -> str:
    """A spreadsheet takes text that begins so for a formula; records in a store are others' words."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r", "\n") else text


def words(value: Json) -> Cell:
    if not isinstance(value, str) or not value:
        return Cell(None, UNKNOWN, is_number=False)
    text = one_line(value)
    text = text if len(text) <= 120 else text[:117] + "..."
    return Cell(text, text, is_number=False)


def number(value: Json, form: str = "{:,}", none: str = UNKNOWN) -> Cell:
    if not isinstance(value, int | float) or type(value) is bool or not math.isfinite(value):
        return Cell(None, none)
    return Cell(value, form.format(value))


def seconds(value: float | None, none: str = UNKNOWN) -> Cell:
    return Cell(None, none) if value is None else Cell(round(value, 3), f"{value:,.1f}")


def money(value: float | None) -> Cell:
    if value is None:
        return Cell(None, UNKNOWN)
    return Cell(round(value, 6), f"{value:,.2f}" if value >= 10 else f"{value:.3f}" if value >= 0.1 else f"{value:.5f}")


def share(value: Json, none: str = UNKNOWN) -> Cell:
    if not isinstance(value, int | float) or type(value) is bool or not math.isfinite(value):
        return Cell(None, none)
    return Cell(round(value, 6), f"{100 * value:.1f} %")


def of(metrics: object, name: str) -> Json:
    return metrics.get(name) if isinstance(metrics, dict) else None


def cloud_of(entry: Entry) -> str | None:
    cloud = entry.machine.get("cloud")
    return CLOUDS.get(cloud, cloud) if isinstance(cloud, str) else None


def instances(entry: Entry) -> str | None:
    """The type of its machine, of several machines each type and how many; None: not known of all."""
    types = [one.get("instance_type") for one in machines(entry.machine)]
    counts = Counter(name for name in types if isinstance(name, str) and name)
    if sum(counts.values()) < len(types):
        return None if len(types) == 1 else f"{len(types)} machines"
    return ", ".join(f"{n} x {name}" if n > 1 else name for name, n in counts.items())


def moment(at: float | None) -> str | None:
    try:
        return None if at is None else datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (OverflowError, ValueError, OSError):
        return None


def how_ended(entry: Entry) -> str:
    """In words."""
    if entry.running:
        return "running"
    if not entry.ended:
        return f"vanished; it may have gone on for {entry.unseen_s:.0f} s"
    told = how(entry.outcome, [dict(notice) for notice in entry.notices], entry.lost_steps)
    return f"{told}, exit {entry.exit if entry.exit is not None else UNKNOWN}"
