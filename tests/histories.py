"""Random histories of a run: copies start, overlap, are told to go, are killed, or end it. Written by the real code.

Each copy is `trainer.run.train` with its loop, saver and records in a thread of its own; only time is made up. Of all
copies the one that is least far in true time goes on next, until it has spent some. A machine's wall clock is off by
minutes; the store has the true time. What happened is kept beside, for tests to hold the records to.
"""

from __future__ import annotations

import random
import threading
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from storage import open_store
from storage.protocol import ObjectInfo
from trainer import attempt, commit, ending, history, progress, result, run, saver, signs, tally
from trainer.checkpoint import restore
from trainer.history import History
from trainer.job import Batch, Task
from trainer.loop import Plan
from trainer.ranks import Rank
from trainer.settings import Settings
from trainer.startup import put_off_compiler
from watchers import Mailbox, Notice, Stopped

put_off_compiler()
SIGN_S = signs.SIGN_S
EPOCH = 1.7e9  # when all of it begins, in seconds since 1970
LATER_S = 10**6  # after that, somebody looks


class Killed(BaseException):
    """The machine is gone at this moment: nothing more is written."""


@dataclass(frozen=True)
class Piece:
    """A step, or an evaluation after `step` steps, in true time."""

    step: int
    begin: float
    end: float
    evaluation: bool = False


@dataclass
class Copy:
    """What befalls one copy, and what it did."""

    begins: float  # true time: seconds since all began
    start_up_s: float
    ahead_s: float  # its clock
    told_at: float | None  # true time of a notice
    killed_at: float | None
    step_s: float
    mailbox: Mailbox = field(default_factory=Mailbox)
    now: float = 0.0
    pieces: list[Piece] = field(default_factory=list)
    number: int | None = None  # its attempt
    over: bool = False
    ended: float = 0.0
    exit: int | None = None  # None: killed
    sign: Any = None
    signed: float = 0.0

    def __post_init__(self) -> None:
        self.now = self.begins


class World:
    """The copies, their turns and their clocks."""

    def __init__(self, copies: list[Copy]) -> None:
        self.copies = copies
        self._turns = threading.Condition()
        self.acting: Copy = copies[0]

    # -- time, as the acting copy's machine has it ---------------------------------------------------------------

    def monotonic(self) -> float:
        return self.acting.now + 1000.0 * self.copies.index(self.acting)

    def wall(self) -> float:
        return EPOCH + self.acting.now + self.acting.ahead_s

    def spend(self, seconds: float) -> None:
        """Time passes for the acting copy; signs, notices and its end come when they are due; others get their turn."""
        copy, until = self.acting, self.acting.now + seconds
        while copy.now < until:
            due = [until, *(t for t in (copy.told_at, copy.killed_at) if t is not None and copy.now < t < until)]
            if copy.sign is not None:
                due.append(max(copy.now, copy.signed + SIGN_S))
            copy.now = min(due)
            if copy.killed_at is not None and copy.now >= copy.killed_at:
                raise Killed
            if copy.told_at is not None and copy.now >= copy.told_at:
                at = self.wall()
                copy.mailbox.post(Notice("aws", "stop", "taken back", "one", at, at + 120))
            if copy.sign is not None and copy.now >= copy.signed + SIGN_S:
                copy.signed = copy.now
                copy.sign()
            self._yield(copy)

    def _yield(self, copy: Copy) -> None:
        with self._turns:
            self._next()
            self._turns.wait_for(lambda: self.acting is copy)

    def _next(self) -> None:
        left = [c for c in self.copies if not c.over]
        if left:
            self.acting = min(left, key=lambda c: c.now)
        self._turns.notify_all()

    def live(self, work: Any) -> None:
        """`work(copy)` in each copy's thread, until all are over. Raises what one of them raised."""
        wrong: list[BaseException] = []

        def body(copy: Copy) -> None:
            with self._turns:
                self._turns.wait_for(lambda: self.acting is copy)
            try:
                copy.exit = work(copy)
            except Killed:
                pass
            except BaseException as e:
                wrong.append(e)
            copy.ended = copy.now
            with self._turns:
                copy.over = True
                self._next()

        threads = [threading.Thread(target=body, args=(copy,), daemon=True) for copy in self.copies]
        with self._turns:
            self._next()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        if wrong:
            raise wrong[0]


class TrueTimeStore:
    """A folder as a store whose clock is right."""

    def __init__(self, folder: Path, world: World) -> None:
        self._store: Any = open_store(f"file://{folder}")
        self._world = world
        self._times: dict[str, float] = {}
        self.is_over = False  # all of it was long ago

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def put(self, key: str, *args: Any, **options: Any) -> ObjectInfo:
        info = self._store.put(key, *args, **options)
        self._times[key] = EPOCH + self._world.acting.now
        return replace(info, modified=self._times[key])

    def stat(self, key: str) -> ObjectInfo:
        return replace(self._store.stat(key), modified=self._times[key])

    def get(self, key: str, *args: Any, **options: Any) -> ObjectInfo:
        now = EPOCH + (LATER_S if self.is_over else self._world.acting.now)
        return replace(self._store.get(key, *args, **options), modified=self._times[key], answered=now)


class Clerk(Task):
    """A network of one weight, and work that takes as long as its copy's machine needs for it."""

    train_size, eval_size, eval_batch, unit = 80, 30, 10, "images"

    def __init__(self, world: World, copy: Copy) -> None:
        self.model = nn.Linear(1, 1, bias=False)
        self.optimizers = {"sgd": torch.optim.SGD(self.model.parameters(), 0.01)}
        self._world, self._copy = world, copy
        self._evaluation_began = 0.0

    def _position(self) -> int:
        return int(self._copy.step)  # type: ignore[attr-defined]

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        begin = self._copy.now
        self._world.spend(self._copy.step_s)
        self._copy.step += 1  # type: ignore[attr-defined]
        self._copy.pieces.append(Piece(self._position(), begin, self._copy.now))
        output = self.model(torch.ones(1, 1)).square().mean()
        return output, {}

    def evaluate(self, rows: slice) -> dict[str, Tensor]:
        if rows.start == 0:
            self._evaluation_began = self._copy.now
        self._world.spend(2.0)
        if rows.stop == self.eval_size:
            self._copy.pieces.append(Piece(self._position(), self._evaluation_began, self._copy.now, evaluation=True))
        return {"accuracy": torch.tensor(float(self._position()) / 100), "loss": torch.tensor(1.0)}

    def schedule(self, step: int, steps: int) -> None:
        pass


class _Inline(threading.Thread):
    """A thread that is over when it was started."""

    def start(self) -> None:
        self.run()

    def is_alive(self) -> bool:
        return False

    def join(self, timeout: float | None = None) -> None:
        pass


class _Once(threading.Event):
    """In place of the event that ends the thread of signs: each call of it leaves one sign."""

    def wait(self, timeout: float | None = None) -> bool:
        return True


@contextmanager
def made_up_time(world: World) -> Iterator[None]:
    clock = types.SimpleNamespace(
        time=world.wall, monotonic=world.monotonic, sleep=world.spend, thread_time=lambda: 0.0
    )
    threads = types.SimpleNamespace(Thread=_Inline, Event=_Once, Lock=threading.Lock)
    with pytest.MonkeyPatch.context() as patch:
        for module in (attempt, commit, ending, history, result, run, saver, signs):
            patch.setattr(module, "time", clock)
        for module in (attempt, progress, saver, signs, tally):
            patch.setattr(module, "CLOCK", world.monotonic)
        for module in (attempt, saver, signs):
            patch.setattr(module, "threading", threads)
        patch.setattr(tally, "since_process_began", lambda: world.acting.now - world.acting.begins)
        yield


def live(folder: Path, copies: list[Copy], steps: int, every: str) -> History:
    """Let them all live; the run's history then. A last copy that nothing befalls ends the run."""
    world = World(copies)
    store = TrueTimeStore(folder, world)
    history = History(store, "run")  # type: ignore[arg-type]

    def work(copy: Copy) -> int:
        mine = History(store, "run")  # type: ignore[arg-type]
        request = types.SimpleNamespace(
            job="cifar10",
            given={},
            allow_change=(),
            rank=Rank(),
            history=mine,
            mailbox=copy.mailbox,
            stop_grace_s=10.0,
            halt=types.SimpleNamespace(check=lambda: None),
            watch=types.SimpleNamespace(first_looks=lambda seconds: None),
            show=lambda progress: None,
            show_every_s=5.0,
            curves=None,
        )
        try:
            return run.train(request)  # type: ignore[arg-type]
        except Stopped:
            return 75

    def prepare(request: Any, begun: Any, together: Any) -> tuple[Any, Any]:
        copy = world.acting
        world.spend(copy.start_up_s)
        request.mailbox.check()
        settings = Settings.of({"checkpoint_every": every, "halt": "/nowhere"})
        task = Clerk(world, copy)
        plan = Plan(
            seed=0,
            batch_size=4,
            micro_batch_size=4,
            steps=steps,
            steps_per_epoch=20,
            bf16=False,
            device=torch.device("cpu"),
        )
        number = world.copies.index(copy)
        machine: Mapping[str, Any] = {
            "host": f"h{number}",
            "cloud": ("aws", "gcp", "azure")[number % 3],
            "threads": 1,
            "device": "cpu",
        }
        data = types.SimpleNamespace(name="made up", synthetic=True, classes=["a", "b"])
        ready = run.Prepared(settings, {"lr": 0.1, "momentum": 0.9}, data, task, plan, dict(machine))  # type: ignore[arg-type]
        newest = request.history.newest_good()
        return ready, run.Restored(newest, restore(task, newest)) if newest else None  # type: ignore[arg-type]

    begin = run._begin

    def begin_and_note(request: Any, ready: Any, prefetched: Any, together: Any) -> Any:
        copy = world.acting
        made = begin(request, ready, prefetched, together)
        copy.number, copy.step = made.facts.attempt, made.position.step  # type: ignore[attr-defined]
        copy.sign, copy.signed = made.signs.leave, copy.now
        return made

    with made_up_time(world), pytest.MonkeyPatch.context() as patch:
        patch.setattr(run.prepare, "start", lambda wanted: None)
        patch.setattr(run, "_prepare", prepare)
        patch.setattr(run, "_begin", begin_and_note)
        world.live(work)
    store.is_over = True
    return history


def at_random(seed: int) -> tuple[list[Copy], int, str]:
    """Copies, steps of the run, and how often it saves; the last copy has all the time it needs."""
    dice = random.Random(seed)
    copies, at = [], 0.0
    for _ in range(dice.randint(0, 5)):
        life = dice.choice([dice.uniform(0.5, 30), dice.uniform(20, 400)])
        end = at + life
        told, killed = None, None
        match dice.choice(["told", "killed", "told and killed", "overtaken"]):
            case "told":
                told = end
            case "killed":
                killed = end
            case "told and killed":
                told, killed = end, end + dice.uniform(0.0, 3.0)
        copies.append(
            Copy(
                begins=at,
                start_up_s=dice.uniform(1, 20),
                ahead_s=dice.uniform(-300, 300),
                told_at=told,
                killed_at=killed,
                step_s=dice.uniform(0.5, 6.0),
            )
        )
        # the next one begins while this one is still there, or some time after
        at = max(0.0, end + dice.choice([dice.uniform(-40, 0), dice.uniform(0, 600)]))
    copies.append(
        Copy(
            begins=at,
            start_up_s=dice.uniform(1, 20),
            ahead_s=dice.uniform(-300, 300),
            told_at=None,
            killed_at=None,
            step_s=dice.uniform(0.5, 6.0),
        )
    )
    return copies, dice.randint(30, 90), dice.choice(["3steps", "7steps", "20s", "45s", "1epoch"])
