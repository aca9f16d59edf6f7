"""The ledger: who did which steps, on which machine, for how long; what of it the run has, and what was lost.

A pure function of a run's records. Per attempt, useful + lost + overhead seconds are its wall time:

- useful: steps and evaluations that the run's newest checkpoint holds; each step of the run counts for one attempt;
- lost: steps and evaluations that another attempt had to make again, or that nobody has;
- overhead: all else that the container was there for: start-up, stalls for saving, the last save, the result.

No duration is a difference of two machines' clocks, which may be minutes apart: each is by one machine's monotonic
clock, as its own records have it (`trainer/tally.py`). Of a machine that vanished the last record counts: the
newest of its checkpoints and signs of life, the last of which its successor's claim keeps; so it lasted up to
`unseen_s` longer than told, if its signs came through. Where an attempt stands in time is by the store's clock, one for
all machines.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from trainer.curve import is_number, losses
from trainer.history import SIGN_S, SILENT_S
from trainer.manifest import is_result_of
from trainer.records import Record, Records
from trainer.settings import Json


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One attempt. None: its records don't say. Seconds, unless said otherwise."""

    attempt: int
    machine: Record
    settings: Record
    first_step: int
    last_step: int  # the newest boundary that it told of
    useful_steps: int
    lost_steps: int
    wall_s: float | None
    unseen_s: float  # that it may have been there beyond `wall_s`, at most
    useful_s: float
    lost_s: float
    overhead_s: float
    startup_s: float | None
    save_stall_s: float
    training_s: float
    evaluation_s: float
    samples_per_s: float | None
    began: float | None  # since 1970, by the store's clock where `clock_known`, else by the machine's own
    clock_known: bool
    clock_ahead_s: float  # of the machine
    running: bool
    ended: bool  # it put its end on record; if not, and it isn't running, it vanished
    exit: int | None
    outcome: str | None
    notices: list[Record]
    kept_until: float | None  # seconds since `began` when the state that the run goes on from was taken
    saves: list[tuple[int, float]]  # (step, seconds since `began`) of checkpoints, thinned out
    metrics: Record | None  # its last evaluation that the run has


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    step: int
    attempt: int
    metrics: Record


@dataclass(frozen=True, kw_only=True, slots=True)
class Ledger:
    run: str
    job: str | None
    state: str  # running, stopped, finished
    synthetic: bool
    step: int  # of the newest checkpoint, or of the running attempt
    steps: int | None
    steps_per_epoch: int | None
    unit: str  # what a sample is
    entries: list[Entry]
    points: list[Record]  # metric lines that `losses` are made of
    losses: list[tuple[int, float, int]]  # (step, mean training loss since the one before, attempt)
    evaluations: list[Evaluation]
    metrics: Record  # of the last evaluation
    settings: Record
    problems: list[str] = field(default_factory=list)  # what in the records can't be

    @property
    def wall_s(self) -> float:
        return sum(entry.wall_s or 0.0 for entry in self.entries)

    @property
    def unseen_s(self) -> float:
        return sum(entry.unseen_s for entry in self.entries)

    @property
    def useful_s(self) -> float:
        return sum(entry.useful_s for entry in self.entries)

    @property
    def lost_s(self) -> float:
        return sum(entry.lost_s for entry in self.entries)

    @property
    def overhead_s(self) -> float:
        return sum(entry.overhead_s for entry in self.entries)

    @property
    def useful_steps(self) -> int:
        return sum(entry.useful_steps for entry in self.entries)

    @property
    def lost_steps(self) -> int:
        return sum(entry.lost_steps for entry in self.entries)

    @property
    def goodput(self) -> float | None:
        """Useful seconds of all that were paid for."""
        return self.useful_s / self.wall_s if self.wall_s > 0 else None

    @property
    def elapsed_s(self) -> float | None:
        """From the first attempt's begin to the last one's end, by the store's clock."""
        spans = [(e.began, e.began + (e.wall_s or 0.0)) for e in self.entries if e.began is not None]
        return max(end for _, end in spans) - min(began for began, _ in spans) if spans else None


@dataclass(frozen=True, slots=True)
class _Link:
    """What one attempt has in the newest checkpoint."""

    first_step: int
    last_step: int
    tally: Record


def account(records: Records) -> Ledger:
    """A run's ledger."""
    problems: list[str] = []
    chain = _chain(records, problems)
    newest, status = records.newest, records.status or {}
    last = max([*records.claims, *chain], default=0)
    silent_s = records.silent_s
    running = last not in records.ends and silent_s is not None and silent_s < SILENT_S
    drawn, evaluations = _curves(records, chain)
    points = [point for point, _ in drawn]
    made_by: dict[object, int] = {point["step"]: attempt for point, attempt in drawn}
    numbers = sorted({*records.claims, *chain})
    entries = [_entry(records, n, chain.get(n), n == last and running, evaluations) for n in numbers]
    plan = _object(records.claims.get(last, {}).get("plan"))
    result = records.result or {}
    finished = newest is not None and is_result_of(result, newest)
    step = newest.step if newest else 0
    if running:
        step = max(step, entries[-1].last_step)
    claim = records.claims.get(last, {})
    return Ledger(
        run=records.run,
        job=_text(claim.get("job")) or (newest.job if newest else None),
        state="finished" if finished else "running" if running else "stopped",
        synthetic=newest.synthetic if newest else _object(claim.get("data")).get("synthetic") is True,
        step=step,
        steps=newest.steps if newest else _whole(plan.get("steps")),
        steps_per_epoch=newest.steps_per_epoch if newest else _whole(plan.get("steps_per_epoch")),
        unit=_text(plan.get("unit")) or "samples",
        entries=entries,
        points=points,
        losses=[(step, loss, made_by[step]) for step, loss in losses(points)],
        evaluations=evaluations,
        metrics=_object(result.get("metrics"))
        if finished
        else newest.metrics
        if newest
        else _object(status.get("metrics")),
        settings=newest.settings if newest else _object(claim.get("settings")),
        problems=problems,
    )


def _chain(records: Records, problems: list[str]) -> dict[int, _Link]:
    """Who made which steps of the newest checkpoint, by its own ledger: from step 0 on, without a gap."""
    links: dict[int, _Link] = {}
    at, before = 0, 0
    for entry in records.newest.ledger if records.newest else []:
        attempt, first, last = (_whole(entry.get(name)) for name in ("attempt", "first_step", "last_step"))
        if attempt is None or first is None or last is None or attempt <= before or first != at or last < at:
            problems.append(f"the ledger of checkpoint {records.newest.name} does not go on from step {at}")  # type: ignore[union-attr]
            return links
        links[attempt] = _Link(first, last, _object(entry.get("tally")))
        at, before = last, attempt
    return links


def _entry(records: Records, number: int, link: _Link | None, running: bool, evaluations: list[Evaluation]) -> Entry:
    claim, end = records.claims.get(number, {}), records.ends.get(number)
    tallies = list(_tallies(records, number, link))
    last = max(tallies, key=lambda tally: _seconds(tally, "seconds"), default={})
    at_end = _object((end or {}).get("tally"))
    if is_number(at_end.get("seconds")):  # a sign of life that came after it tells of nothing more
        last = at_end
    wall = _seconds(last, "seconds") if tallies else None
    first = link.first_step if link else _whole(last.get("first_step")) or 0
    reached = max([_whole(tally.get("step")) or 0 for tally in tallies] + [link.last_step if link else first])
    work = min(wall or 0.0, sum(_seconds(last, name) for name in ("training_s", "evaluation_s", "unfinished_s")))
    kept = link.last_step if link else first
    useful = min(work, sum(_seconds(link.tally, name) for name in ("training_s", "evaluation_s"))) if link else 0.0
    if running:  # what it does may yet be saved
        kept, useful = reached, work
    ahead = next((t["clock_ahead_s"] for t in tallies if is_number(t.get("clock_ahead_s"))), None)
    claimed, at_claim = claim.get("time"), _seconds(_object(claim.get("tally")), "seconds")
    offset = ahead if is_number(ahead) else 0.0
    batch = _whole(_object(claim.get("plan")).get("batch_size"))
    training = _seconds(last, "training_s")
    speed = (reached - first) * batch / training if batch and training and reached > first else None
    return Entry(
        attempt=number,
        machine=_object(claim.get("machine")),
        settings=_object(claim.get("settings")),
        first_step=first,
        last_step=reached,
        useful_steps=kept - first,
        lost_steps=reached - kept,
        wall_s=wall,
        unseen_s=0.0 if running or end is not None else SIGN_S,
        useful_s=useful,
        lost_s=work - useful,
        overhead_s=(wall or 0.0) - work,
        startup_s=_seconds(last, "startup_s") if is_number(last.get("startup_s")) else None,
        save_stall_s=_seconds(last, "save_stall_s"),
        training_s=training,
        evaluation_s=_seconds(last, "evaluation_s"),
        samples_per_s=speed,
        began=claimed - at_claim - offset if is_number(claimed) else None,
        clock_known=ahead is not None,
        clock_ahead_s=offset,
        running=running,
        ended=end is not None,
        exit=_whole((end or {}).get("exit")),
        outcome=_text((end or {}).get("outcome")),
        notices=[notice for notice in _list((end or {}).get("notices")) if isinstance(notice, dict)],
        kept_until=wall if running else _seconds(link.tally, "seconds") if link else None,
        saves=_saves(tallies),
        metrics=next((e.metrics for e in reversed(evaluations) if e.attempt == number), None),
    )


def _tallies(records: Records, number: int, link: _Link | None) -> Iterator[Record]:
    """All that an attempt's own records say of its seconds, from whatever moment."""
    found: list[Json] = [records.claims.get(number, {}).get("tally"), records.ends.get(number, {}).get("tally")]
    for sign in [_object(claim.get("before")) for claim in records.claims.values()] + [records.status or {}]:
        if sign.get("attempt") == number:
            found.append(sign.get("tally"))
    found += [entry.get("tally") for entry in records.own.get(number, ())]
    if link is not None:
        found.append(dict(link.tally))
    return (tally for tally in found if isinstance(tally, dict) and is_number(tally.get("seconds")))


def _saves(tallies: list[Record]) -> list[tuple[int, float]]:
    newest = max((t for t in tallies if "saves" in t), key=lambda tally: _seconds(tally, "seconds"), default={})
    pairs = [pair for pair in _list(newest.get("saves"))[:1000] if isinstance(pair, list) and len(pair) == 2]
    return [(p[0], float(p[1])) for p in pairs if type(p[0]) is int and is_number(p[1]) and p[1] >= 0]


def _curves(records: Records, chain: Mapping[int, _Link]) -> tuple[list[tuple[Record, int]], list[Evaluation]]:
    """The metric lines that led to the newest checkpoint, each step once: (point, attempt), and the evaluations."""
    points: dict[int, tuple[Record, int]] = {}
    evaluated: dict[int, tuple[Record, int]] = {}
    for (attempt, at), lines in sorted(records.lines.items()):
        link = chain.get(attempt)
        if link is None or at > link.last_step:
            continue
        for line in lines:
            step = _whole(line.get("step"))
            if step is None or not link.first_step <= step <= link.last_step:
                continue
            if "loss_sum" in line:
                points.setdefault(step, (line, attempt))
            else:
                evaluated[step] = (line, attempt)
    found = [
        Evaluation(step=step, attempt=evaluated[step][1], metrics=evaluated[step][0]) for step in sorted(evaluated)
    ]
    return [points[step] for step in sorted(points)], found


def _seconds(tally: Record, name: str) -> float:
    value = tally.get(name)
    return max(0.0, float(value)) if is_number(value) else 0.0


def _whole(value: Json) -> int | None:
    return value if type(value) is int and 0 <= value < 10**15 else None


def _text(value: Json) -> str | None:
    return value if isinstance(value, str) and value else None


def _object(value: Json) -> Record:
    return value if isinstance(value, dict) else {}


def _list(value: Json) -> list[Json]:
    return value if isinstance(value, list) else []
