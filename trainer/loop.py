"""The training loop. It knows steps, boundaries and notices; not jobs, stores or clouds.

The state at the boundary after step N is a function of the seed and N alone (on one machine type): the order of
samples is arithmetic, torch's generators are seeded anew for each micro-batch, an evaluation changes nothing. So
whoever restores that state goes on exactly as if nothing had happened.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from trainer import order
from trainer.checkpoint import Position
from trainer.job import Batch, Task
from trainer.scores import Metric
from watchers import Mailbox, Stopped


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What a run computes, but for the job itself."""

    seed: int
    batch_size: int  # samples in a step
    micro_batch_size: int  # samples computed at once
    steps: int  # length of the run
    steps_per_epoch: int
    bf16: bool
    device: torch.device


class Events(Protocol):
    """Who is told at each boundary; may save the state, which is whole then."""

    def boundary(self, *, evaluating: bool) -> None: ...

    def evaluated(self, metrics: dict[str, Metric]) -> None: ...


class Loop:
    def __init__(self, task: Task, plan: Plan, position: Position, mailbox: Mailbox, events: Events) -> None:
        self._task = task
        self._plan = plan
        self._position = position
        self._mailbox = mailbox
        self._events = events
        self._order: tuple[int, order.Int64s] | None = None  # epoch, and its order of samples

    def run(self, *, evaluated_at: int | None) -> None:
        """Train to the end of the run. `evaluated_at`: the step of the last evaluation on record.

        Raises `Stopped`, with the state at a boundary, when the mailbox has a stop notice.
        """
        position, plan = self._position, self._plan
        self._task.model.train()
        while True:
            at_end_of_epoch = position.step % plan.steps_per_epoch == 0 or position.step == plan.steps
            if position.step and at_end_of_epoch and evaluated_at != position.step:
                self._evaluate()
                evaluated_at = position.step
            self._events.boundary(evaluating=False)
            self._mailbox.check()
            if position.step >= plan.steps:
                return
            self._step()

    def _step(self) -> None:
        position, plan, task = self._position, self._plan, self._task
        epoch, index = divmod(position.step, plan.steps_per_epoch)
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, task.epoch_order(plan.seed, epoch)
        samples = self._order[1][index * plan.batch_size : (index + 1) * plan.batch_size]
        task.schedule(position.step, plan.steps)

        whole = plan.micro_batch_size >= plan.batch_size
        # a forward pass changes buffers (BatchNorm's): kept, so that a step given up half-way leaves no trace
        buffers = [] if whole else [buffer.clone() for buffer in task.model.buffers()]
        sums: dict[str, torch.Tensor] = {}
        for number, start in enumerate(range(0, len(samples), plan.micro_batch_size)):
            if number and self._mailbox.stop is not None:
                self._give_up_step(buffers)
            batch = Batch(samples[start : start + plan.micro_batch_size], plan.seed, epoch, plan.device)
            _seed_chance(order.stream(plan.seed, "step", position.step, number), plan.device)
            with torch.autocast(plan.device.type, torch.bfloat16, enabled=plan.bf16):
                loss, batch_sums = task.loss(batch)
            (loss if whole else loss * (len(batch.samples) / len(samples))).backward()  # type: ignore[no-untyped-call]
            batch_sums["loss"] = loss.detach() * len(batch.samples)
            for name, value in batch_sums.items():
                sums[name] = sums[name] + value if name in sums else value.double()
        task.update()

        if index == 0:
            position.sums = {}
        for name, value in sums.items():
            position.sums[name] = position.sums[name] + value if name in position.sums else value
        position.order = order.extend_hash(position.order, samples)
        position.step += 1

    def _give_up_step(self, buffers: list[torch.Tensor]) -> None:
        """Return to the boundary before this step, and stop there."""
        with torch.no_grad():
            for buffer, before in zip(self._task.model.buffers(), buffers, strict=True):
                buffer.copy_(before)
        for parameter in self._task.model.parameters():
            parameter.grad = None
        assert self._mailbox.stop is not None
        raise Stopped(self._mailbox.stop)

    def _evaluate(self) -> None:
        task, plan = self._task, self._plan
        sums: dict[str, torch.Tensor] = {}
        task.model.eval()
        try:
            for start in range(0, task.eval_size, task.eval_batch):
                self._events.boundary(evaluating=True)  # may save, so not in inference mode
                self._mailbox.check()
                rows = slice(start, min(start + task.eval_batch, task.eval_size))
                with torch.inference_mode(), torch.autocast(plan.device.type, torch.bfloat16, enabled=plan.bf16):
                    for name, value in task.evaluate(rows).items():
                        sums[name] = sums[name] + value if name in sums else value.double()
        finally:
            task.model.train()
        self._events.evaluated(task.metrics(sums))


def seen_this_epoch(plan: Plan, step: int) -> int:
    """Samples that `Position.sums` speak of at the boundary after `step` steps."""
    return ((step - 1) % plan.steps_per_epoch + 1) * plan.batch_size if step else 0


def _seed_chance(seed: int, device: torch.device) -> None:
    """Seed torch's default generators of the devices that a loss may draw from."""
    seed &= (1 << 63) - 1
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)
