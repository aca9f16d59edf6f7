"""Steps per second of Baton's loop against a bare loop of the same network and data.

The bare loop does what anyone would write by hand: a permutation per epoch, the job's own loss, backward, update.
Baton adds the notices, the order hash, seeding per micro-batch, metric sums, progress and (here every 30 s) saving.
Steps per processor second, over all threads of the process, say the same where others use the machine too.

    python bench/loop_overhead.py                                                        # cifar10
    python bench/loop_overhead.py --job imagenet --data PACKED --size 64 --freeze        # resnet18's last layer
    python bench/loop_overhead.py --job bert --data PACKED --preset scratch --model tiny
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from measure import add_device, chosen, machine, packed_data, peak_memory, ratio, scratch, spread

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


def build(
    preset: str, device: torch.device = CPU, job: str = "cifar10", data: Path | None = None, **given: Any
) -> tuple[Task, Plan]:
    """The job's task as chance makes it, whatever weights the preset begins with. `given`: other settings."""
    module = jobs.load(job)
    name, values = jobs.preset(module, preset)
    settings = Settings.of({**given, "preset": name}, values)
    torch.manual_seed(0)
    task = module.build(settings, open_packed(data or packed_data()), device)
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
    order = None
    started = time.perf_counter()
    for step in range(begin, begin + steps):
        epoch, index = divmod(step, plan.steps_per_epoch)
        if order is None or index == 0:
            order = task.epoch_order(plan.seed, epoch)  # the job's own: texts of other lengths take other times
        task.schedule(step, plan.steps)
        samples = order[index * plan.batch_size : (index + 1) * plan.batch_size]
        with torch.autocast(plan.device.type, torch.bfloat16, enabled=plan.bf16):
            loss, _ = task.loss(Batch(samples, plan.seed, epoch, plan.device))
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
        settle(self.plan.device)
        return steps / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--job", default="cifar10", choices=("cifar10", "imagenet", "bert"))
    parser.add_argument("--data", type=Path, help="the folder with the job's packed data; the packed CIFAR-10's")
    parser.add_argument("--preset", default="", help="the job's default one")
    parser.add_argument("--model", default=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, default=argparse.SUPPRESS)
    parser.add_argument("--freeze", action="store_true", default=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=10)
    add_device(parser)
    options = parser.parse_args()
    given = {name: value for name, value in vars(options).items() if name not in ("steps", "rounds", "device")}
    device = torch.device(chosen(options.device))
    put_off_compiler()
    compute_exactly(thread_count())
    with scratch() as folder:
        task, plan = build(**given, device=device)
        baton = Baton(*build(**given, device=device), folder)
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
    print(f"{' '.join(str(value) for value in given.values() if value)}, {machine(device.type)}")
    print(f"bare loop:  {spread(figures['bare'])} steps/s")
    print(f"Baton:      {spread(figures['baton'])} steps/s")
    print(f"Baton/bare: {ratio(figures['baton'], figures['bare'])}")
    print(f"the same in steps per processor second: {ratio(figures['baton cpu'], figures['bare cpu'])}")
    print(f"peak memory: {peak_memory()}, both in one process")


if __name__ == "__main__":
    main()
