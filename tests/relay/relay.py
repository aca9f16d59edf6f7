"""One run handed across machines of three clouds by evictions and a kill, beside one that nobody disturbs.

What starts the image on the next cloud is this program; for real it is SkyPilot, Kubernetes or a person.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from storage import open_store
from tests.clouds import reached
from tests.container.engine import Engine
from tests.relay.janitor import Janitor
from tests.relay.simulated import Cloud, Eviction, Machine
from tests.relay.store import BUCKET, start_store
from tests.runs import HASHES
from trainer.exits import ExitCode, UserError
from trainer.history import History
from trainer.manifest import Manifest
from trainer.verify import verify

# where it runs, and what ends it there; the last one comes to the run's end
COURSE = (("gcp", "notice"), ("aws", "notice"), ("azure", "kill"), ("azure", "notice"), ("gcp", "end"))
SAVES = 20  # in a run: a checkpoint each twentieth of it, so that a kill without notice costs something and not all
# What makes a job's steps short, and data where the image has none; the user's own options come after.
SHORT = {
    "cifar10": ("--batch-size", "128"),
    "cifar100": ("--batch-size", "128", "--data", "synthetic"),
    "mnist": ("--batch-size", "128", "--data", "synthetic"),
    "bert": ("--preset", "scratch", "--batch-size", "8", "--data", "synthetic"),
    "imagenet": ("--preset", "scratch", "--model", "shufflenet_v2_x0_5", "--size", "64", "--batch-size", "16"),
}
MOUNTED = "/photographs"  # where machines see what `data` gives
# One: on a quick machine too the run must outlast four evictions, of which AWS's is seen after 2 s only.
THREADS = {"OMP_NUM_THREADS": "1"}
PATIENCE_S = 120.0  # for a container to start or to come to a step, however busy this machine is


@dataclass(frozen=True)
class Options:
    image: str
    job: str = "cifar10"
    store: str = "gs"
    seed: int = 1
    steps: int = 240
    more: tuple[str, ...] = ()  # further options for the image
    data: Path | None = None  # a folder here with the job's packed data, where nothing stands in for it


@dataclass
class Leg:
    """One machine's part in the run. Times in seconds since 1970."""

    machine: Machine
    ending: str  # "notice", "kill", "end"
    attempt: int
    began_at: int  # the step
    started: float  # the container
    eviction: Eviction | None = None
    killed: float | None = None
    ended: float = 0.0
    exit_code: int = -1
    reached: int = 0  # the newest durable step
    reached_by: float = 0.0  # when the state of that checkpoint was
    first_step: float | None = None
    durable: float | None = None  # when the last save after a notice was

    @property
    def seconds(self) -> float:
        return self.ended - self.started

    @property
    def lost_s(self) -> float:
        """Work that nobody has: from the newest checkpoint to the kill."""
        return self.killed - self.reached_by if self.killed else 0.0


@dataclass
class Outcome:
    legs: list[Leg] = field(default_factory=list)
    quiet: Leg | None = None
    finals: dict[str, Manifest] = field(default_factory=dict)  # by the run's name
    ledger: list[dict[str, object]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)  # promises that were not kept


class Relay:
    def __init__(self, options: Options, engine: Engine, say: Callable[[str, str], None]) -> None:
        """`say(who, what)` tells the story as it goes."""
        self.options = options
        self._engine = engine
        self._say = say
        self._every = max(1, options.steps // SAVES)
        self._steps_per_s = 0.0

    def run(self) -> Outcome:
        """All of it. Promises not kept are in the outcome.

        Raises what docker and the emulators fail with, and `UserError` where the image can't do the job.
        """
        options, outcome = self.options, Outcome()
        mounts = ("-v", f"{options.data.resolve()}:{MOUNTED}:ro") if options.data else ()
        with ExitStack() as stack:
            janitor = stack.enter_context(Janitor(self._engine.client))
            self._clouds = {
                key: Cloud(key, self._engine, options.image, janitor, mounts)
                for key in dict.fromkeys(k for k, _ in COURSE)
            }
            for cloud in self._clouds.values():
                cloud.wait()
            emulator = start_store(options.store, next(iter(self._clouds.values())).gateway, janitor)
            variables = {**emulator.env, **THREADS}
            stack.enter_context(reached(variables))
            self._url, self._variables = emulator.url(BUCKET, "runs"), tuple(variables)
            self._say("", f"three clouds and the store {self._url} are up")
            try:
                outcome.quiet = self._undisturbed(outcome)
                self._hand_over(outcome)
                self._compare(outcome)
            except Broken as e:
                outcome.wrong.append(str(e))
        return outcome

    def _undisturbed(self, outcome: Outcome) -> Leg:
        self._say("Google", "first a run that nobody disturbs, to compare with")
        leg = self._start("gcp", "end", "undisturbed")
        self._to_the_end(leg, outcome, "undisturbed")
        made = outcome.finals["undisturbed"].ledger[-1]["seconds"]
        assert isinstance(made, float)
        self._steps_per_s = self.options.steps / made
        self._say("Google", f"it took {leg.seconds:.1f} s; in training it makes {self._steps_per_s:.1f} steps a second")
        return leg

    def _hand_over(self, outcome: Outcome) -> None:
        before = ""
        for (key, ending), step in zip(COURSE, [*self.eviction_steps(), self.options.steps], strict=True):
            name = self._clouds[key].name
            if before:
                self._say("", f"now who starts the image on {name}{' again' * (name == before)}?")
            before = name
            leg = self._start(key, ending, "relay")
            outcome.legs.append(leg)
            if ending == "end":
                self._to_the_end(leg, outcome, "relay")
            else:
                self._until(leg, step)
                self._take_away(leg, outcome)

    def eviction_steps(self) -> list[int]:
        """Where machines are taken away, by the seed: a tenth of the run between them at least, three at its end."""
        dice, cuts, tenth = random.Random(self.options.seed), len(COURSE) - 1, self.options.steps // 10
        slack = self.options.steps - (cuts + 3) * tenth
        places = sorted(dice.randint(0, slack) for _ in range(cuts))
        return [place + (i + 1) * tenth for i, place in enumerate(places)]

    def _start(self, key: str, ending: str, run: str) -> Leg:
        options = self.options
        data = ("--data", MOUNTED) if options.data else ()
        machine = self._clouds[key].start(
            self._variables,
            *(options.job, "--store", self._url, "--run", run, "--steps", str(options.steps)),
            *("--checkpoint-every", f"{self._every}steps", *SHORT.get(options.job, ()), *data, *options.more),
        )
        line = machine.log.wait_for(r"attempt \d+ .* at step \d+", PATIENCE_S)
        found = re.search(r"attempt (\d+) .*?at step (\d+)", line or "")
        if found is None:
            code = machine.container.exit_code()
            if code in (ExitCode.SETUP, ExitCode.USAGE):
                raise UserError(machine.log.lines[-1].partition(" ")[2], ExitCode(code))
            raise Broken(f"{machine.cloud.name}: the container ended without training:\n{machine.log.text}")
        leg = Leg(machine, ending, int(found[1]), int(found[2]), machine.container.started_at())
        if run == "relay":
            goes = f"goes on at step {leg.began_at}" if leg.began_at else "starts at step 0"
            self._say(machine.cloud.name, f"attempt {leg.attempt} {goes}")
        return leg

    def _until(self, leg: Leg, step: int) -> None:
        """Wait until the machine is at about this step, by its last checkpoint before and the first run's pace."""
        at = leg.began_at
        wanted = max(step - step % self._every, at - at % self._every + self._every)  # one of its own at least
        history, give_up = self._history("relay"), time.monotonic() + PATIENCE_S
        while at < wanted:
            if leg.machine.log.ended or time.monotonic() > give_up:
                raise Broken(f"{leg.machine.cloud.name} never came to step {wanted}:\n{leg.machine.log.text}")
            time.sleep(0.1)
            at = max([s for attempt, s in history.checkpoints() if attempt == leg.attempt], default=at)
        time.sleep(max(0.0, (step - at) / self._steps_per_s))

    def _take_away(self, leg: Leg, outcome: Outcome) -> None:
        name = leg.machine.cloud.name
        if leg.ending == "kill":
            leg.killed = time.time()
            leg.exit_code = leg.machine.kill()
            self._say(name, "the machine is gone, without any notice")
            self._close(leg, outcome, "relay", 137)
            steps = round(leg.lost_s * self._steps_per_s)
            lost = f"{leg.lost_s:.1f} s of work, about {steps} step{'s' * (steps != 1)}"
            self._say(name, f"the newest checkpoint is of step {leg.reached}: lost are {lost}")
            return
        leg.eviction = leg.machine.cloud.evict()
        self._say(name, f"evicted: the machine goes in {leg.eviction.goes - leg.eviction.sent:.0f} s")
        leg.exit_code = leg.machine.wait(leg.eviction.goes)
        self._close(leg, outcome, "relay", 75)
        told = f"exit {leg.exit_code} after {leg.ended - leg.eviction.sent:.2f} s"
        if leg.durable is None:
            outcome.wrong.append(f"attempt {leg.attempt} did not say that its last checkpoint is durable")
            self._say(name, told)
        else:
            durable = f"step {leg.reached} durable {leg.durable - leg.eviction.sent:.2f} s after the notice"
            self._say(name, f"{durable}, nothing lost; {told}")

    def _to_the_end(self, leg: Leg, outcome: Outcome, run: str) -> None:
        leg.exit_code = leg.machine.wait(time.time() + 4 * PATIENCE_S)
        self._close(leg, outcome, run, 0)
        finished = next((line for line in leg.machine.log.lines if "finished:" in line), "")
        self._say(leg.machine.cloud.name, finished.partition("finished: ")[2].partition(";")[0])
        newest = self._history(run).newest_good()
        assert newest is not None
        outcome.finals[run] = newest.manifest

    def _close(self, leg: Leg, outcome: Outcome, run: str, expected: int) -> None:
        """Fill in what is known now that the machine has gone."""
        machine, history = leg.machine, self._history(run)
        machine.log.wait()
        leg.ended = machine.container.ended_at()
        leg.durable = machine.time_of("last checkpoint durable at step")
        attempt, leg.reached = history.checkpoints()[0]
        newest = history.manifest(f"{attempt:06d}-{leg.reached:08d}")
        if attempt == leg.attempt:
            entry = newest.ledger[-1]
            leg.first_step = float(entry["first_step_made"])  # type: ignore[arg-type]
            leg.reached_by = float(entry["started"]) + float(entry["seconds"])  # type: ignore[arg-type]
        if leg.exit_code != expected:
            ended = f"ended with {leg.exit_code}, not {expected}"
            outcome.wrong.append(f"attempt {leg.attempt} on {machine.cloud.name} {ended}:\n{machine.log.text}")
        if leg.ending == "notice" and "0 steps lost" not in machine.log.text:
            outcome.wrong.append(f"attempt {leg.attempt} on {machine.cloud.name} lost steps though it was told")

    def _compare(self, outcome: Outcome) -> None:
        mine, quiet = outcome.finals["relay"], outcome.finals["undisturbed"]
        for name in HASHES:
            if getattr(mine, name) != getattr(quiet, name):
                outcome.wrong.append(f"{name} differs from the undisturbed run's")
        at = 0
        for entry, leg in zip(mine.ledger, outcome.legs, strict=False):
            if (entry["attempt"], entry["first_step"], entry["last_step"]) != (leg.attempt, at, leg.reached):
                outcome.wrong.append(f"the ledger doesn't follow from step {at}: {entry}")
            at = leg.reached
        if len(mine.ledger) != len(outcome.legs) or at != self.options.steps:
            outcome.wrong.append(f"the ledger counts {at} steps of {len(mine.ledger)} machines")
        bad = [f"{v.name}: {v.problems}" for v in verify(self._history("relay")) if v.problems]
        outcome.wrong.extend(f"checkpoint {problem}" for problem in bad)

    def _history(self, run: str) -> History:
        return History(open_store(self._url), run)


class Broken(Exception):
    """The relay can't go on."""
