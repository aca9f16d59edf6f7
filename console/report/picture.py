"""The relay picture: when which cloud's machines had the run, and below it the curves that came of it."""

from __future__ import annotations

import io
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from console.logs import one_line
from console.report.looks import LIGHT, Theme, drawn_in
from console.report.tables import cloud_of, told_name
from trainer.curve import is_number
from trainer.ledger import Entry, Ledger

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

UNITS = ((3 * 86400, 86400, "days"), (3 * 3600, 3600, "hours"), (300, 60, "minutes"), (0, 1, "seconds"))
FEW = 14  # attempts that still have room for words


def relay(
    ledger: Ledger, theme: Theme = LIGHT, *, small: bool = False, form: str = "svg", titled: bool = False
) -> bytes:
    """One run's picture, as SVG or PNG. `small`: for a phone. `titled`: with the run's name, to stand by itself."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with drawn_in(theme, small=small):
        lanes = _Lanes(ledger)
        has_scores = any(is_number(e.metrics.get("accuracy")) for e in ledger.evaluations)
        heights = [max(0.9, 0.52 * lanes.count) + 0.25, *([1.75] if small else [1.6]) * (1 + has_scores)]
        width = 4.3 if small else 10.0
        figure = Figure(figsize=(width, sum(heights) + 0.75 * len(heights) + 0.35), layout="constrained")
        axes = figure.subplots(len(heights), 1, gridspec_kw={"height_ratios": heights}, squeeze=False)[:, 0]
        _draw_time(axes[0], lanes, theme, small=small)
        handovers = [entry.first_step for entry in ledger.entries if entry.useful_steps][1:]
        _draw_loss(axes[1], ledger, theme)
        if has_scores:
            _draw_accuracy(axes[2], ledger, theme)
        for axis in axes[1:]:
            for step in handovers if len(handovers) <= 4 * FEW else ():
                axis.axvline(step, color=theme.quiet, linewidth=0.8, linestyle=(0, (2, 2)), zorder=1)
            axis.set_xlim(0, max(ledger.step, 1) * 1.02)
            axis.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
            axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        if titled:
            figure.suptitle(told_name(ledger), x=0.01, ha="left", fontweight="bold")
        axes[-1].set_xlabel("step" + ("; dashed: another machine goes on" if handovers else ""))
        return rendered(figure, form)


def rendered(figure: Figure, form: str) -> bytes:
    out = io.BytesIO()
    metadata: dict[str, Any] = {"Date": None} if form == "svg" else {"Software": None}
    figure.savefig(out, format=form, dpi=144, metadata=metadata)
    return out.getvalue()


def palette_png(data: bytes) -> bytes:
    """A PNG of few colours, a third of the size."""
    from PIL import Image

    out = io.BytesIO()
    # by coverage: a colour of few points, such as the red cross of a machine that vanished, is kept
    few = (
        Image.open(io.BytesIO(data))
        .convert("RGB")
        .quantize(method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    )
    few.save(out, "PNG", optimize=True)
    return out.getvalue()


class _Lanes:
    """Attempts in rows: one lane a cloud, with more rows where two of a cloud's machines ran at once."""

    def __init__(self, ledger: Ledger) -> None:
        self.entries = [e for e in ledger.entries if e.began is not None and e.wall_s is not None]
        self.origin = min((e.began for e in self.entries if e.began is not None), default=0.0)
        self.names: dict[str, list[int]] = {}  # lane -> its rows
        self.row: dict[int, int] = {}  # attempt -> row
        lanes: dict[str, list[tuple[float, list[Entry]]]] = {}
        for entry in sorted(self.entries, key=lambda e: e.began or 0.0):
            rows = lanes.setdefault(cloud_of(entry) or "no cloud", [])
            begin, end = self.span(entry)
            free = next((i for i, (until, _) in enumerate(rows) if until <= begin), len(rows))
            if free == len(rows):
                rows.append((end, []))
            rows[free] = (end, [*rows[free][1], entry])
        number = 0
        for name, rows in lanes.items():
            self.names[name] = list(range(number, number + len(rows)))
            for _, entries in rows:
                self.row.update({entry.attempt: number for entry in entries})
                number += 1
        self.count = max(1, number)
        self.length = max((self.span(e)[1] for e in self.entries), default=1.0) or 1.0

    def span(self, entry: Entry) -> tuple[float, float]:
        begin = (entry.began or 0.0) - self.origin
        return begin, begin + (entry.wall_s or 0.0)

    def worked(self, entry: Entry) -> tuple[float, float]:
        """From the first step on, as long as the run has what came of it."""
        begin, end = self.span(entry)
        return min(end, begin + (entry.startup_s or 0.0)), min(end, begin + (entry.kept_until or 0.0))


def _draw_time(axis: Axes, lanes: _Lanes, theme: Theme, *, small: bool) -> None:
    _, per_unit, unit = next(u for u in UNITS if lanes.length >= u[0])
    for entry in lanes.entries:
        _draw_bar(axis, lanes, entry, theme, per_unit)
    _draw_handovers(axis, lanes, theme, per_unit)
    few = len(lanes.entries) <= (FEW // 2 if small else FEW)
    least = lanes.length * (0.1 if small else 0.05)
    for entry in lanes.entries if few else ():
        begin, end = lanes.span(entry)
        started, kept = lanes.worked(entry)
        is_wide = kept - started > least  # else the number stands on the pale part
        at = (started + kept) / 2 if is_wide else (begin + end) / 2
        if end - begin > least:
            axis.annotate(
                str(entry.attempt),
                (at / per_unit, lanes.row[entry.attempt]),
                ha="center",
                va="center",
                color=theme.paper if is_wide else theme.ink,
                fontsize="small",
                fontweight="bold",
                zorder=6,
            )
    axis.set_ylim(lanes.count - 0.35, -0.65)
    axis.set_yticks([sum(rows) / len(rows) for rows in lanes.names.values()], [one_line(n)[:20] for n in lanes.names])
    for label in axis.get_yticklabels():
        label.set(fontsize="medium", fontweight="bold", color=theme.cloud(label.get_text()))
    axis.set_xlim(-0.01 * lanes.length / per_unit, 1.02 * lanes.length / per_unit)
    axis.grid(visible=False, axis="y")
    axis.set_title("who had the run")
    axis.set_xlabel(unit)
    _legend(axis, lanes, theme, small=small)


def _draw_bar(axis: Axes, lanes: _Lanes, entry: Entry, theme: Theme, per_unit: float) -> None:
    """Pale: overhead; full: work that the run has; hatched: work that was lost."""
    begin, end = lanes.span(entry)
    row, color = lanes.row[entry.attempt], theme.cloud(cloud_of(entry) or "no cloud")

    def bar(start: float, stop: float, **look: Any) -> None:
        if stop > start:
            axis.barh(row, (stop - start) / per_unit, left=start / per_unit, height=0.5, **look)

    bar(begin, end, color=color, alpha=0.28, linewidth=0, zorder=3)
    started, kept = lanes.worked(entry)
    bar(started, kept, color=color, linewidth=0, zorder=4)
    if entry.lost_steps or entry.lost_s > 0.02 * (entry.wall_s or 0.0):
        look = {"facecolor": theme.paper, "edgecolor": theme.lost, "hatch": "/////", "linewidth": 0.8, "zorder": 4}
        bar(max(started, kept), min(end, max(started, kept) + entry.lost_s), **look)
    saves = [begin + at for _, at in entry.saves if at <= (entry.wall_s or 0.0)]
    axis.plot([s / per_unit for s in saves], [row + 0.33] * len(saves), "|", color=theme.quiet, ms=4, mew=1, zorder=5)
    for seen in _told_to_go(entry):
        at = min(end, max(begin, seen - entry.clock_ahead_s - lanes.origin))
        axis.plot([at / per_unit], [row - 0.36], "v", color=theme.ink, ms=6, mew=0, zorder=7, clip_on=False)
    if not entry.ended and not entry.running:
        axis.plot([end / per_unit], [row], "X", color=theme.lost, ms=9, mec=theme.paper, mew=1.2, zorder=8)


def _told_to_go(entry: Entry) -> list[float]:
    """When its machine was to go, by its own clock; what an operator does is another matter, and a newer attempt."""
    others = ("superseded", "halt", "SIGINT")
    stops = [n for n in entry.notices if n.get("action") == "stop" and n.get("source") not in others]
    return [seen for n in stops if is_number(seen := n.get("seen"))]


def _draw_handovers(axis: Axes, lanes: _Lanes, theme: Theme, per_unit: float) -> None:
    """From where the state was taken to whoever went on with it."""
    if len(lanes.entries) > 4 * FEW:
        return
    carriers = [entry for entry in lanes.entries if entry.kept_until is not None and entry.useful_steps]
    for before, after in pairwise(carriers):
        start = lanes.span(before)[0] + (before.kept_until or 0.0)
        begin = lanes.span(after)[0]
        axis.annotate(
            "",
            (begin / per_unit, lanes.row[after.attempt]),
            (max(start, 0.0) / per_unit, lanes.row[before.attempt]),
            arrowprops={
                "arrowstyle": "-|>",
                "color": theme.quiet,
                "linewidth": 1.1,
                "shrinkA": 0,
                "shrinkB": 0,
                "mutation_scale": 9,
            },
            zorder=5,
        )


def _legend(axis: Axes, lanes: _Lanes, theme: Theme, *, small: bool) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    def mark(sign: str, color: str, words: str, size: float = 6) -> Line2D:
        return Line2D([], [], color=color, marker=sign, linestyle="", ms=size, label=words, mew=1 if sign == "|" else 0)

    handles: list[Any] = [
        Patch(color=theme.quiet, label="useful work"),
        Patch(color=theme.quiet, alpha=0.28, label="overhead"),
    ]
    if any(entry.lost_steps for entry in lanes.entries):
        handles.append(Patch(facecolor=theme.paper, edgecolor=theme.lost, hatch="/////", label="lost work"))
    if any(entry.saves for entry in lanes.entries):
        handles.append(mark("|", theme.quiet, "save"))
    if any(_told_to_go(entry) for entry in lanes.entries):
        handles.append(mark("v", theme.ink, "told to go"))
    if any(not entry.ended and not entry.running for entry in lanes.entries):
        handles.append(mark("X", theme.lost, "vanished", 7))
    below = (0, -0.3 if lanes.count < 4 else -0.2)
    axis.legend(
        handles=handles,
        loc="upper left" if small else "lower right",
        bbox_to_anchor=below if small else (1.0, 1.0),
        ncols=3 if small else len(handles),
        columnspacing=1.2,
        handlelength=1.4,
        handletextpad=0.5,
        borderaxespad=0.3,
    )


def _draw_loss(axis: Axes, ledger: Ledger, theme: Theme) -> None:
    """The training loss, each stretch in the colour of the cloud that made it, one line all the same."""
    clouds = {entry.attempt: cloud_of(entry) or "no cloud" for entry in ledger.entries}
    points = ledger.losses
    begin = 0
    for i in range(1, len(points) + 1):
        if i == len(points) or points[i][2] != points[begin][2]:
            stretch = points[max(0, begin - 1) : i]  # from the last point of whoever was before
            color = theme.cloud(clouds.get(points[begin][2]))
            axis.plot([p[0] for p in stretch], [p[1] for p in stretch], color=color, linewidth=1.8, zorder=3)
            begin = i
    tested = [(e.step, e.metrics["loss"]) for e in ledger.evaluations if is_number(e.metrics.get("loss"))]
    if tested:
        look = {"marker": "o", "markersize": 4, "markerfacecolor": theme.paper, "linewidth": 0, "zorder": 4}
        axis.plot(*zip(*tested, strict=True), color=theme.ink, label="on test data", **look)  # type: ignore[arg-type]
        axis.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.3, handletextpad=0.2)
    if not points and not tested:
        axis.text(0.5, 0.5, "nothing on record yet", transform=axis.transAxes, ha="center", color=theme.quiet)
    axis.set_title("loss")


def _draw_accuracy(axis: Axes, ledger: Ledger, theme: Theme) -> None:
    clouds = {entry.attempt: cloud_of(entry) or "no cloud" for entry in ledger.entries}
    found = []
    for e in ledger.evaluations:
        accuracy = e.metrics.get("accuracy")
        if is_number(accuracy):
            found.append((e.step, 100 * accuracy, clouds.get(e.attempt)))
    steps, scores = [f[0] for f in found], [f[1] for f in found]
    axis.plot(steps, scores, color=theme.quiet, alpha=0.45, linewidth=1.6, zorder=2)
    axis.scatter(steps, scores, color=[theme.cloud(f[2]) for f in found], s=26 if len(found) < 60 else 8, zorder=3)
    axis.annotate(
        f"{scores[-1]:.1f} %", (steps[-1], scores[-1]), (-4, 7), textcoords="offset points", ha="right", va="bottom"
    )
    axis.margins(y=0.22)
    axis.set_title("accuracy, %")
