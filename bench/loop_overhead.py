"""Steps per second of Baton's loop against a bare loop of the same network and data.

The bare loop does what anyone would write by hand: a permutation per epoch, the job's own loss, backward, update.
Baton adds the notices, the order hash, seeding per micro-batch, metric sums, progress and (here every 30 s) saving.
Steps per processor second, over all threads of the process, say the same where others use the machine too.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from measure import machine, packed_data, ratio, scratch, spread

import torch  # isort: skip
from console.progress import Lines
from storage import open_store
from trainer import job as jobs
from trainer.attempt import Attempt
from trainer.cadence import Cadence
from trainer.checkpoint import Position, settle
from trainer.commit import RunFacts
from trainer.data.packed import open_packed
from trainer.history import History
from trainer.job import Batch, Task
from trainer.loop import Loop, Plan
from trainer.machine import compute_exactly, computes_in_bf16, thread_count
from trainer.settings import Settings
from trainer.startup import put_off_compiler
from watchers import HaltWatcher, Mailbox, Watch

CPU = torch.device("cpu")


def build(preset: str, device: torch.device = CPU) -> tuple[Task, Plan]:
    job = jobs.load("cifar10")
    settings = Settings(**job.PRESETS[preset], preset=preset)
    torch.manual_seed(0)
    task = job.build(settings, open_packed(packed_data()), device)
    steps_per_epoch = task.train_size // settings.batch_size
    bf16 = settings.precision != "fp32" and computes_in_bf16(device)
    plan = Plan(
        seed=0,
        batch_size=settings.batch_size,
        micro_batch_size=settings.batch_size,
        steps=steps_per_epoch * 1000,
        steps_per_epoch=steps_per_epoch,
        bf16=bf16,
        device=device,
    )
    return task, plan


def bare(task: Task, plan: Plan, begin: int, steps: int) -> float:
    order = torch.randperm(task.train_size).numpy()
    started = time.perf_counter()
    for step in range(begin, begin + steps):
        task.schedule(step, plan.steps)
        place = step % plan.steps_per_epoch * plan.batch_size
        samples = order[place : place + plan.batch_size]
        with torch.autocast(plan.device.type, torch.bfloat16, enabled=plan.bf16):
            loss, _ = task.loss(Batch(samples, 0, 0, plan.device))
        loss.backward()
        task.update()
    settle(plan.device)
    return steps / (time.perf_counter() - started)


class Baton:
    """Baton's own loop with everything on, held at a boundary between measurements."""

    def __init__(self, task: Task, plan: Plan, folder: Path) -> None:
        self.task, self.plan = task, plan
        history = History(open_store(f"file://{folder}/store"), "bench")
        mailbox = Mailbox()
        self.watch = Watch([HaltWatcher(folder / "halt")], mailbox)
        facts = RunFacts(
            run="bench",
            job="cifar10",
            attempt=history.claim({}),
            steps=plan.steps,
            steps_per_epoch=plan.steps_per_epoch,
            settings={},
            machine={},
            synthetic=False,
        )
        self.position = Position()
        show = Lines()
        self.attempt = Attempt(
            history,
            facts,
            plan,
            task,
            self.position,
            mailbox,
            cadence=Cadence.parse("30s"),
            keep=3,
            resumed_from=None,
            ledger=(),
            stop_grace_s=10.0,
            show=show.show,
            show_every_s=show.every_s,
        )
        self.loop = Loop(task, plan, self.position, mailbox, self.attempt)

    def run(self, steps: int) -> float:
        started = time.perf_counter()
        for _ in range(steps):
            self.attempt.boundary(evaluating=False)
            self.loop._group.check()
            self.loop._step()
        return steps / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="quick")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    put_off_compiler()
    compute_exactly(thread_count())
    with scratch() as folder:
        task, plan = build(options.preset)
        baton = Baton(*build(options.preset), folder)
        figures: dict[str, list[float]] = {"bare": [], "baton": [], "bare cpu": [], "baton cpu": []}
        done = 0
        for number in range(-1, options.rounds):
            pair = {}
            for name in ("bare", "baton") if number % 2 else ("baton", "bare"):
                begun = time.process_time()
                pair[name] = baton.run(options.steps) if name == "baton" else bare(task, plan, done, options.steps)
                pair[f"{name} cpu"] = options.steps / (time.process_time() - begun)
            done += options.steps
            if number >= 0:
                for name, value in pair.items():
                    figures[name].append(value)
        baton.watch.close()
    print(f"cifar10 {options.preset}, {machine()}")
    print(f"bare loop:  {spread(figures['bare'])} steps/s")
    print(f"Baton:      {spread(figures['baton'])} steps/s")
    print(f"Baton/bare: {ratio(figures['baton'], figures['bare'])}")
    print(f"the same in steps per processor second: {ratio(figures['baton cpu'], figures['bare cpu'])}")


if __name__ == "__main__":
    main()
