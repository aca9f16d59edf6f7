"""Ends containers in the midst of what they do, and tells from their own lines that they were in the midst of it."""

from __future__ import annotations

import random
import re
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from tests.runs import Container, Lab

# how a container ends, and the exit code that it then has
ENDS = {"SIGTERM": 75, "SIGKILL": -9, "halt": 0, "preempt.txt": 75, "SIGINT": 130}
# the line after which it ends, and within how many seconds; None: after the start of its process
MOMENTS: dict[str, tuple[str | None, float]] = {
    "start-up": (None, 2.5),
    "training": ("durable after", 0.02),
    "saving": ("saving the state", 0.02),
    "evaluation": ("evaluating after", 0.02),
}
TRIES = 8  # containers, until one was hit in its start-up
HALT_LOOK_S = 0.5  # between two looks for a halt file


@dataclass(frozen=True)
class Death:
    """An end to come: how, in the midst of what, after how many such lines, and how far into it (0 to 1)."""

    end: str
    moment: str
    occurrence: int
    share: float


@dataclass(frozen=True)
class Place:
    """Where a container was when it was ended: in the midst of what, and the last step that it told of."""

    moments: frozenset[str]
    step: int

    def epoch(self, steps_per_epoch: int) -> int:
        """The evaluation after an epoch counts as its part."""
        return max(0, self.step - ("evaluation" in self.moments)) // steps_per_epoch


def random_deaths(seed: int, count: int) -> list[Death]:
    """Each moment and each end in turn, in random order; three in training and saving first: within one epoch."""
    rng = random.Random(seed)
    ends = [list(ENDS)[i % len(ENDS)] for i in range(count)]
    moments = [list(MOMENTS)[i % len(MOMENTS)] for i in range(count)]
    rng.shuffle(ends)
    rng.shuffle(moments)
    begin = sorted(range(count), key=lambda i: moments[i] not in ("training", "saving"))[:3]
    moments = [moments[i] for i in begin] + [moments[i] for i in range(count) if i not in begin]
    return [
        Death(e, m, rng.randint(1, 3 if m != "evaluation" else 1), rng.random())
        for e, m in zip(ends, moments, strict=True)
    ]


def die(lab: Lab, death: Death, *options: str) -> Iterator[tuple[Container, Place]]:
    """End containers of this run so, each checked to have ended as promised, until one was hit where it should be."""
    for _ in range(TRIES):
        container, place = end(lab, death, *options)
        yield container, place
        if death.moment in place.moments:
            return
        death = replace(death, share=death.share / 2)  # too late for start-up, which comes once
    raise AssertionError(f"missed {TRIES} times: {death}\n{container.text}")


def end(lab: Lab, death: Death, *options: str) -> tuple[Container, Place]:
    """Start a container, and end it so: what was missed is waited for again. The place is where it was just then."""
    container = lab.start(*options)
    line, longest_s = MOMENTS[death.moment]
    delay_s, occurrence = death.share * longest_s, death.occurrence
    hit = False
    while not hit and not container.ended:
        if line is not None:
            container.wait_for(line, times=occurrence)
        time.sleep(delay_s)
        with container.standing_still():
            place = place_of(container.lines)
            hit = line is None or death.moment in place.moments
            if hit and death.end.startswith("SIG"):
                container.signal(getattr(signal, death.end))
            elif hit:
                (lab.halt / death.end).touch()
                time.sleep(1.2 * HALT_LOOK_S)  # so that it looks as soon as it goes on
        occurrence, delay_s = occurrence + 1, delay_s / 2
    code = container.wait()
    (lab.halt / death.end).unlink(missing_ok=True)
    # a container may have come to the run's end, or to Python's start, before it heard of it
    early = {-signal.SIGTERM, -signal.SIGINT} if line is None and not container.lines else set()
    assert code in {ENDS[death.end], 0, *early}, f"{death}: exit {code}\n{container.text}"
    return container, place


def place_of(lines: Sequence[str]) -> Place:
    """By all that a container has printed until now."""

    def last(pattern: str) -> int:
        return max((i for i, line in enumerate(lines) if re.search(pattern, line)), default=-1)

    moments = set()
    if last("saving the state") > last("durable after"):
        moments.add("saving")
    if last("evaluating after") > last(r"epoch \d+ of \d+ ends"):
        moments.add("evaluation")
    if not moments:
        moments.add("training" if last("first step made") >= 0 else "start-up")
    steps = [int(step) for line in lines for step in re.findall(r"\bstep (\d+)", line)]
    return Place(frozenset(moments), steps[-1] if steps else 0)
