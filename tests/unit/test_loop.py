"""The loop's boundaries: whole states, wherever they are taken."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.checkpoint import HostBuffers, Position, Snapshot, take
from trainer.job import Batch, Task
from trainer.loop import Loop, Plan
from trainer.parts import encode
from watchers import Mailbox


class Small(Task):
    train_size, eval_size, eval_batch = 20, 10, 5

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
        self.optimizers = {"sgd": torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)}
        self.x, self.y = torch.randn(30, 3), torch.arange(30) % 2

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return F.cross_entropy(self.model(self.x[batch.index]), self.y[batch.index]), {}

    def evaluate(self, rows: slice) -> dict[str, Tensor]:
        return {"accuracy": (self.model(self.x[20:][rows]).argmax(1) == self.y[20:][rows]).sum()}

    def schedule(self, step: int, steps: int) -> None:
        pass


class SavesAtEveryBoundary:
    """Saves with the buffers of one attempt; the first time when `first` says so."""

    def __init__(self, task: Task, position: Position, first: str) -> None:
        self.task, self.position, self.waiting_for = task, position, first
        self.buffers = HostBuffers()
        self.states: dict[int, set[str]] = {}

    def boundary(self, *, evaluating: bool, evaluated: float = 0.0) -> None:
        if self.waiting_for == "evaluation" and not evaluating:
            return
        self.waiting_for = ""
        snapshot: Snapshot = take(self.task, self.position, self.buffers)
        whole = encode(snapshot.model).sha256 + snapshot.order_sha256 + str(sorted(snapshot.sums.items()))
        self.states.setdefault(snapshot.step, set()).add(whole)

    def evaluated(self, metrics: dict[str, float]) -> None:
        assert 0 <= metrics["accuracy"] <= 1


def run(first: str) -> dict[int, set[str]]:
    task, position = Small(), Position()
    events = SavesAtEveryBoundary(task, position, first)
    device = torch.device("cpu")
    plan = Plan(seed=1, batch_size=5, micro_batch_size=5, steps=12, steps_per_epoch=4, bf16=False, device=device)
    Loop(task, plan, position, Mailbox(), events).run(evaluated_at=None)
    return events.states


def test_the_state_after_a_step_is_one_and_the_same_during_and_after_its_evaluation() -> None:
    states = run("anything")
    assert all(len(different) == 1 for different in states.values())
    assert len({next(iter(s)) for s in states.values()}) == len(states) == 13


def test_a_first_save_that_falls_in_an_evaluation_is_as_good_as_any() -> None:
    """Its buffers serve the saves after it, outside the evaluation's inference mode."""
    late, all_ = run("evaluation"), run("anything")
    assert min(late) == 4
    assert all(all_[step] == state for step, state in late.items())
