"""Runs side by side: how accurate after how long, and for how much."""

from __future__ import annotations

from typing import TYPE_CHECKING

from console.logs import one_line
from console.report.looks import LIGHT, Theme, drawn_in
from console.report.picture import UNITS, rendered
from console.report.prices import Prices
from trainer.curve import is_number
from trainer.ledger import Ledger

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Points = list[tuple[float, float]]


def accuracy_by_seconds(ledger: Ledger) -> Points:
    """(seconds of all machines so far, accuracy) of each evaluation: what was lost counts as what was kept."""
    before, found = 0.0, []
    by_attempt = {e.attempt: e for e in ledger.evaluations}
    for entry in ledger.entries:
        if entry.attempt in by_attempt:
            for e in ledger.evaluations:
                at, accuracy = e.metrics.get("seconds"), e.metrics.get("accuracy")
                if e.attempt == entry.attempt and is_number(at) and is_number(accuracy):
                    found.append((before + at, accuracy))
        before += entry.wall_s or 0.0
    return found


def accuracy_by_cost(ledger: Ledger, prices: Prices) -> Points:
    """(USD so far, accuracy) of each evaluation; none where an attempt's price is unknown."""
    spans, paid, begin = [], 0.0, 0.0
    for entry in ledger.entries:
        rate, wall = prices.paid(entry.machine), entry.wall_s or 0.0
        if rate is None:
            return []
        spans.append((begin, begin + wall, paid, rate))
        begin, paid = begin + wall, paid + rate.of(wall)
    return [
        (next(p + r.of(at - b) for b, end, p, r in reversed(spans) if at >= b), accuracy)
        for at, accuracy in accuracy_by_seconds(ledger)
    ]


def picture(
    ledgers: list[Ledger], prices: Prices, theme: Theme = LIGHT, *, small: bool = False, form: str = "svg"
) -> bytes | None:
    """SVG or PNG; None where no run has an accuracy."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    by_seconds = [accuracy_by_seconds(ledger) for ledger in ledgers]
    by_cost = [accuracy_by_cost(ledger, prices) for ledger in ledgers]
    if not any(by_seconds):
        return None
    longest = max(at for points in by_seconds for at, _ in points)
    _, per_unit, unit = next(u for u in UNITS if longest >= u[0])
    panels = [([[(x / per_unit, y) for x, y in points] for points in by_seconds], f"machine {unit}")]
    if any(by_cost):
        panels.append((by_cost, "US dollars"))
    with drawn_in(theme, small=small):
        shape = (len(panels), 1) if small else (1, len(panels))
        figure = Figure(figsize=(4.3, 2.7 * len(panels) + 0.5) if small else (10, 3.2), layout="constrained")
        axes: list[Axes] = list(figure.subplots(*shape, squeeze=False, sharey=True).flat)
        for axis, (lines, label) in zip(axes, panels, strict=True):
            for i, points in enumerate(lines):
                if points:
                    color = theme.others[(i + 1) % len(theme.others)]
                    label_ = one_line(ledgers[i].run)[:30] + " SYNTHETIC" * ledgers[i].synthetic
                    axis.plot(*zip(*points, strict=True), color=color, linewidth=1.8, marker="o", ms=4, label=label_)
            axis.set_xlabel(label)
            axis.set_xlim(left=0)
            axis.xaxis.set_major_locator(MaxNLocator(4 if small else 6))
            axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axis.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")
        axes[0].set_title("accuracy")
        axes[0].legend(loc="lower right")
        return rendered(figure, form)
