"""The story of a relay as lines, and its end as a table."""

from __future__ import annotations

import time

from tests.relay.relay import Leg, Outcome
from tests.runs import HASHES


class Story:
    """One line for each event, with the seconds since the start."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def __call__(self, who: str, what: str) -> None:
        print(f"{time.monotonic() - self._began:6.1f} s  {who:8}{what}", flush=True)


HEADS = ("who", "attempt", "steps", "seconds", "lost", "start to first step", "notice to durable", "exit")


def table(outcome: Outcome) -> str:
    """Who ran which steps, for how long, and what each hand-over cost; last the run that nobody disturbed."""
    rows = [HEADS, *(_row(leg) for leg in outcome.legs)]
    totals = f"{outcome.legs[-1].reached - outcome.legs[0].began_at}", f"{sum(leg.seconds for leg in outcome.legs):.1f}"
    rows.append(("the relay", "", *totals, f"{sum(leg.lost_s for leg in outcome.legs):.1f} s", "", "", ""))
    if outcome.quiet is not None:
        rows.append(("undisturbed", *_row(outcome.quiet)[1:]))
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines)


def _row(leg: Leg) -> tuple[str, ...]:
    notice = f"{leg.durable - leg.eviction.sent:.2f} s" if leg.eviction and leg.durable else "-"
    return (
        leg.machine.cloud.name,
        str(leg.attempt),
        f"{leg.began_at} to {leg.reached}",
        f"{leg.seconds:.1f}",
        f"{leg.lost_s:.1f} s" if leg.killed else "nothing",
        f"{leg.first_step - leg.started:.1f} s" if leg.first_step else "-",
        "none came" if leg.killed else notice,
        f"{leg.exit_code}{' (killed)' if leg.killed else ''}",
    )


def comparison(outcome: Outcome) -> str:
    """The relay's hashes beside those of the run that nobody disturbed."""
    mine, quiet = outcome.finals["relay"], outcome.finals["undisturbed"]
    lines = [f"{'':15} {'the relay':18} undisturbed"]
    for name in HASHES:
        ours, theirs = getattr(mine, name), getattr(quiet, name)
        lines.append(f"{name:15} {ours[:16]}   {theirs[:16]}   {'equal' if ours == theirs else 'DIFFERENT'}")
    return "\n".join(lines)
