"""The training loop. It knows steps, boundaries and notices; not jobs, stores or clouds.

The state at the boundary after step N is a function of the seed and N alone (on one machine type): the order of
samples is arithmetic, torch's generators are seeded anew for each micro-batch, an evaluation changes nothing. So
whoever restores that state goes on exactly as if nothing had happened.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import torch

from trainer import answers, order
from trainer.checkpoint import Position, groups_of, written
from trainer.group import Alone, Group
from trainer.job import Batch, Task
from trainer.scores import Metric
from watchers import Mailbox


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

    def boundary(self, *, evaluating: bool, evaluated: float = 0.0) -> None:
        """`evaluated`: the share of the running evaluation that is done."""

    def evaluated(self, metrics: dict[str, Metric]) -> None: ...


class Loop:
    def __init__(
        self,
        task: Task,
        plan: Plan,
        position: Position,
        mailbox: Mailbox,
        events: Events,
        group: Group | None = None,
    ) -> None:
        """`group`: the processes that share the work; this one alone if not given."""
        self._task = task
        self._plan = plan
        self._position = position
        self._group = group or Alone(mailbox)
        self._events = events
        self._order: tuple[int, order.Int64s] | None = None  # epoch, and its order of samples
        self.at_boundary = True  # the task's state is that of `position`

    def run(self, *, evaluated_at: int | None) -> None:
        """Train to the end of the run. `evaluated_at`: the step of the last evaluation on record.

        Raises `Stopped`, with the state at a boundary, when the mailbox has a stop notice. Of other errors, such as
        `UserError` for an answer of the job's that is none, `at_boundary` tells whether the state can be saved.
        """
        try:
            self._train(evaluated_at)
        except torch.AcceleratorError:
            self.at_boundary = False  # what a failed GPU holds is trusted no more, even if it can be read
            raise

    def _train(self, evaluated_at: int | None) -> None:
        position, plan = self._position, self._plan
        self._task.model.train()
        while True:
            at_end_of_epoch = position.step % plan.steps_per_epoch == 0 or position.step == plan.steps
            if position.step and at_end_of_epoch and evaluated_at != position.step:
                self._evaluate()
                evaluated_at = position.step
            self._events.boundary(evaluating=False)
            self._group.check()
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

        # a forward pass changes buffers (BatchNorm's): kept, so that a step given up half-way leaves no trace
        buffers = [buffer.clone() for buffer in task.model.buffers()]
        self.at_boundary = False
        try:
            sums = self._gradients(samples, epoch)
        except Exception:  # a stop, or a mistake of the job's, which should cost no more than this step
            with suppress(RuntimeError):  # a GPU that can't be used any more
                self._give_up_step(buffers)
            raise
        groups = groups_of(task)
        task.update()
        position.groups |= written(groups, task)

        if index == 0:
            position.sums = {}
        for name, value in sums.items():
            position.sums[name] = position.sums[name] + value if name in position.sums else value
        position.order = order.extend_hash(position.order, samples)
        position.step += 1
        self._group.share_buffers(task.model)
        self.at_boundary = True

    def _gradients(self, samples: order.Int64s, epoch: int) -> dict[str, torch.Tensor]:
        """Leave the gradients of the batch's mean loss in the parameters; returns the batch's sums, float64."""
        plan, task, group = self._plan, self._task, self._group
        size = plan.micro_batch_size
        whole = size >= plan.batch_size
        sums: dict[str, torch.Tensor] = {}
        for first in range(0, -(-len(samples) // size), group.count):
            if first:
                group.check()
            number = first + group.number
            batch = Batch(samples[number * size : (number + 1) * size], plan.seed, epoch, plan.device)
            if not len(batch.samples):
                continue  # fewer are left than there are processes
            _seed_chance(order.stream(plan.seed, "step", self._position.step, number), plan.device)
            with torch.autocast(plan.device.type, torch.bfloat16, enabled=plan.bf16):
                loss, batch_sums = answers.loss_of(task, task.loss(batch))
            (loss if whole else loss * (len(batch.samples) / len(samples))).backward()  # type: ignore[no-untyped-call]
            batch_sums["loss"] = loss.detach() * len(batch.samples)
            for name, value in batch_sums.items():
                sums[name] = sums[name] + value if name in sums else value.double()
        return group.add_up(task.model, sums)

    def _give_up_step(self, buffers: list[torch.Tensor]) -> None:
        """Return to the boundary before this step."""
        with torch.no_grad():
            for buffer, before in zip(self._task.model.buffers(), buffers, strict=True):
                buffer.copy_(before)
        for parameter in self._task.model.parameters():
            parameter.grad = None
        self.at_boundary = True

    def _evaluate(self) -> None:
        task, plan, group = self._task, self._plan, self._group
        sums: dict[str, torch.Tensor] = {}
        pieces = [
            slice(start, min(start + task.eval_batch, task.eval_size))
            for start in range(0, task.eval_size, task.eval_batch)
        ]
        task.model.eval()
        try:
            for first in range(0, len(pieces), group.count):
                # may save, so not in inference mode
                self._events.boundary(evaluating=True, evaluated=first / len(pieces))
                group.check()
                side_by_side = pieces[first : first + group.count]
                mine: Mapping[str, torch.Tensor] = {}
                if group.number < len(side_by_side):
                    with torch.inference_mode(), torch.autocast(plan.device.type, torch.bfloat16, enabled=plan.bf16):
                        mine = answers.evaluation_of(task, task.evaluate(side_by_side[group.number]))
                for part in group.collect("evaluation", mine, len(side_by_side)):
                    for name, value in part.items():
                        sums[name] = sums[name] + value if name in sums else value.double()
        finally:
            task.model.train()
        self._events.evaluated(answers.metrics_of(task, task.metrics(sums)))


def seen_this_epoch(plan: Plan, step: int) -> int:
    """Samples that `Position.sums` speak of at the boundary after `step` steps."""
    return ((step - 1) % plan.steps_per_epoch + 1) * plan.batch_size if step else 0


def _seed_chance(seed: int, device: torch.device) -> None:
    """Seed torch's default generators of the devices that a loss may draw from."""
    seed &= (1 << 63) - 1
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)
