"""The loop's boundaries: whole states, wherever they are taken."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer import order
from trainer.checkpoint import HostBuffers, Position, Snapshot, take
from trainer.job import Batch, Task
from trainer.loop import Loop, Plan
from trainer.parts import encode
from watchers import Mailbox, Stopped
from watchers.protocol import Notice


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


def planned(*, micro_batch_size: int = 5, bf16: bool = False) -> Plan:
    """Three epochs of four steps."""
    return Plan(
        seed=1,
        batch_size=5,
        micro_batch_size=micro_batch_size,
        steps=12,
        steps_per_epoch=4,
        bf16=bf16,
        device=torch.device("cpu"),
    )


def run(first: str) -> dict[int, set[str]]:
    task, position = Small(), Position()
    events = SavesAtEveryBoundary(task, position, first)
    Loop(task, planned(), position, Mailbox(), events).run(evaluated_at=None)
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


class Watched(Small):
    """Tells what the loop asks of it; its mean loss is that of whatever micro-batches."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Linear(3, 2)
        self.optimizers = {"sgd": torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)}
        self.scheduled: list[tuple[int, int]] = []
        self.trained: list[list[int]] = []
        self.evaluated: list[int] = []
        self.types: set[torch.dtype] = set()
        self.model.register_forward_hook(lambda _module, _x, y: self.types.add(y.dtype))

    def schedule(self, step: int, steps: int) -> None:
        self.scheduled.append((step, steps))

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        self.trained.append(batch.samples.tolist())
        return super().loss(batch)

    def evaluate(self, rows: slice) -> dict[str, Tensor]:
        self.evaluated += range(rows.start, rows.stop)
        return super().evaluate(rows)


def watched(plan: Plan) -> tuple[Watched, Position]:
    task, position = Watched(), Position()
    Loop(task, plan, position, Mailbox(), SavesAtEveryBoundary(task, position, "")).run(evaluated_at=None)
    return task, position


def test_each_step_takes_the_next_batch_of_its_epochs_order_at_its_own_rate_and_hashes_it() -> None:
    task, position = watched(planned())
    orders = (order.permutation(1, epoch, 20) for epoch in range(3))
    batches = [batch for epoch in orders for batch in epoch.reshape(4, 5)]
    assert task.trained == [batch.tolist() for batch in batches]
    assert task.scheduled == [(step, 12) for step in range(12)]
    assert task.evaluated == 3 * list(range(10))
    hashed = order.NO_SAMPLES
    for batch in batches:
        hashed = order.extend_hash(hashed, batch)
    assert position.order == hashed


def test_micro_batches_of_any_size_make_the_step_of_the_whole_batch() -> None:
    whole, place = watched(planned())
    parts, other_place = watched(planned(micro_batch_size=2))  # 2, 2 and 1
    assert [len(samples) for samples in parts.trained[:3]] == [2, 2, 1]
    for one, other in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(place.sums, other_place.sums)


def test_bf16_is_computed_in_where_it_is_asked_for_and_the_weights_stay_in_32_bits() -> None:
    for bf16, kind in ((True, torch.bfloat16), (False, torch.float32)):
        task, _ = watched(planned(bf16=bf16))
        assert task.types == {kind}
        assert {parameter.dtype for parameter in task.model.parameters()} == {torch.float32}


class Told(Watched):
    """Hears of a notice at one moment of a run."""

    def __init__(self, at: tuple[str, int]) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
        self.optimizers = {"sgd": torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)}
        self.mailbox, self.at = Mailbox(), at

    def tell(self, moment: str, number: int) -> None:
        if (moment, number) == self.at:
            self.mailbox.post(Notice("halt", "stop", "a halt file", "halt", 0.0))

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        self.tell("micro-batch", len(self.trained))
        return super().loss(batch)


class Tells(SavesAtEveryBoundary):
    def __init__(self, task: Told, position: Position) -> None:
        super().__init__(task, position, "")
        self.told = task

    def boundary(self, *, evaluating: bool, evaluated: float = 0.0) -> None:
        super().boundary(evaluating=evaluating)
        if evaluating:
            self.told.tell("evaluation", len(self.told.evaluated))
        else:
            self.told.tell("step", self.position.step)


@pytest.mark.parametrize(
    ("at", "micro", "step", "evaluated"),
    [
        (("step", 0), 5, 0, 0),
        (("step", 6), 5, 6, 10),  # within an epoch
        (("micro-batch", 2 * 6), 3, 6, 10),  # the first of two of the seventh step
        (("evaluation", 10), 5, 8, 10),  # before the second one's first piece
        (("evaluation", 15), 5, 8, 15),  # between its two
    ],
)
def test_a_notice_is_heeded_at_the_next_boundary_micro_batch_or_piece_of_an_evaluation(
    at: tuple[str, int], micro: int, step: int, evaluated: int
) -> None:
    plan = planned(micro_batch_size=micro)
    quiet, undisturbed = Told(("never", 0)), Position()
    whole = Tells(quiet, undisturbed)
    Loop(quiet, plan, undisturbed, quiet.mailbox, whole).run(evaluated_at=None)

    task, position = Told(at), Position()
    events = Tells(task, position)
    loop = Loop(task, plan, position, task.mailbox, events)
    with pytest.raises(Stopped):
        loop.run(evaluated_at=None)
    assert (position.step, len(task.evaluated), loop.at_boundary) == (step, evaluated, True)
    events.boundary(evaluating=False)  # as the last save has it
    assert events.states[step] == whole.states[step], "a step that was given up leaves no trace"
    assert all(parameter.grad is None for parameter in task.model.parameters())


@pytest.mark.parametrize(
    ("step", "evaluated_at", "evaluations"), [(4, None, 3), (4, 4, 2), (8, 4, 2), (9, 8, 1), (12, 8, 1), (12, 12, 0)]
)
def test_an_evaluation_that_was_broken_off_is_made_where_the_run_goes_on_and_no_other_one_again(
    step: int, evaluated_at: int | None, evaluations: int
) -> None:
    task, position = Watched(), Position(step)
    events = SavesAtEveryBoundary(task, position, "")
    Loop(task, planned(), position, Mailbox(), events).run(evaluated_at=evaluated_at)
    assert task.evaluated == evaluations * list(range(10))
