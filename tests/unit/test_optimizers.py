"""What an optimizer keeps, wherever it keeps it, is in the checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from storage import open_store
from tests.checkpoints import commit
from trainer.checkpoint import Position, Snapshot, restore, take
from trainer.commit import RunFacts, Save
from trainer.exits import UserError
from trainer.history import History
from trainer.job import Batch, Task
from trainer.loop import Loop, Plan
from watchers import Mailbox

PLAN = Plan(
    seed=1, batch_size=4, micro_batch_size=4, steps=12, steps_per_epoch=3, bf16=False, device=torch.device("cpu")
)
FACTS = RunFacts(run="run", job="job", attempt=1, steps=12, steps_per_epoch=3, settings={}, machine={}, synthetic=False)
ADDED = 12  # to float64 sums of which float32 keeps half the digits


class FindsItsRate(Optimizer):
    """Keeps state in its groups, as Prodigy and schedule-free optimizers do; and sums of more digits than weights."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(list(parameters), {"lr": 0.1, "found": 1.0, "calls": 0, "decay": 0.01})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            group["calls"] += 1
            for weight in group["params"]:
                state = self.state[weight]
                state.setdefault("sum", torch.zeros_like(weight, dtype=torch.float64)).add_(weight.grad.double() / 3)
                state.setdefault("count", torch.zeros((), dtype=torch.int64)).add_((1 << 24) + 1)
                group["found"] += float(state["sum"].abs().mean()) + int(state["count"]) % 3
                weight.add_(weight.grad, alpha=-group["lr"] * group["found"])


class Rated(Task):
    train_size, eval_size, eval_batch = 12, 4, 4

    def __init__(self, rate: float = 0.1, decay: float = 0.01) -> None:
        torch.manual_seed(0)
        self.rate = rate
        self.model = nn.Linear(3, 2)
        self.optimizers = {"odd": FindsItsRate(self.model.parameters())}
        self.optimizers["odd"].param_groups[0]["decay"] = decay
        self.x, self.y = torch.randn(16, 3), torch.arange(16) % 2

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return F.cross_entropy(self.model(self.x[batch.index]), self.y[batch.index]), {}

    def evaluate(self, rows: slice) -> dict[str, Tensor]:
        return {"accuracy": (self.model(self.x[12:][rows]).argmax(1) == self.y[12:][rows]).sum()}

    def schedule(self, step: int, steps: int) -> None:
        self.optimizers["odd"].param_groups[0]["lr"] = self.rate * (1 - step / steps)


class Saves:
    """Keeps the state after some steps, as of that moment."""

    def __init__(self, task: Task, position: Position, folder: Path) -> None:
        self.task, self.position, self.folder = task, position, folder
        self.hashes: dict[int, str] = {}

    def boundary(self, *, evaluating: bool, evaluated: float = 0.0) -> None:
        step = self.position.step
        if step and not evaluating:
            self.hashes[step] = saved(History(open_store(f"file://{self.folder}/{step}"), "run"), self.snapshot())

    def snapshot(self) -> Snapshot:
        return take(self.task, self.position)

    def evaluated(self, metrics: dict[str, Any]) -> None:
        pass


def saved(history: History, snapshot: Snapshot) -> str:
    """Its state's hash, once it is in the store."""
    save = Save(snapshot, {}, [{"attempt": 1}], list)
    return commit(history, FACTS, save, None, frozenset(), lambda **_: None).manifest.state_sha256


def trained(task: Task, position: Position, folder: Path) -> Saves:
    events = Saves(task, position, folder)
    Loop(task, PLAN, position, Mailbox(), events).run(evaluated_at=position.step)
    return events


def resumed(folder: Path, task: Task) -> Position:
    newest = History(open_store(f"file://{folder}"), "run").newest_good()
    assert newest is not None
    return restore(task, newest)


@pytest.mark.parametrize("step", [1, 3, 7])
def test_what_an_optimizer_keeps_in_its_groups_and_in_other_types_than_its_weights_comes_back(
    tmp_path: Path, step: int
) -> None:
    whole = trained(Rated(), Position(), tmp_path / "whole").hashes
    task = Rated()
    position = resumed(tmp_path / "whole" / str(step), task)
    state = next(iter(task.optimizers["odd"].state.values()))
    assert (state["sum"].dtype, state["count"].dtype) == (torch.float64, torch.int64)
    assert trained(task, position, tmp_path / "again").hashes == {s: h for s, h in whole.items() if s >= step}


def test_what_is_set_otherwise_for_a_run_that_goes_on_is_not_put_back(tmp_path: Path) -> None:
    trained(Rated(), Position(), tmp_path)
    task = Rated(rate=0.2, decay=0.5)
    position = resumed(tmp_path / "7", task)
    assert sorted(position.groups) == ["odd.group0.calls", "odd.group0.found"]
    group = task.optimizers["odd"].param_groups[0]
    assert (group["calls"], group["decay"]) == (7, 0.5)
    task.schedule(7, 12)
    assert group["lr"] == 0.2 * (1 - 7 / 12)


def test_state_that_no_start_could_put_back_is_refused_at_once(tmp_path: Path) -> None:
    task = Rated()
    task.optimizers["odd"].state["all"] = {"calls": 1}  # type: ignore[index]
    with pytest.raises(TypeError, match="no parameter"):
        take(task, Position())
    task = Rated()
    task.optimizers = {"odd.one": task.optimizers["odd"]}
    with pytest.raises(TypeError, match="dot"):
        take(task, Position())


@pytest.mark.parametrize(
    ("value", "change", "kind"),
    [
        (torch.tensor(0.5), lambda value: value.mul_(2), "Tensor"),
        ([1.0], lambda value: value.append(2.0), "list"),
        ((torch.ones(2), 3), lambda value: value[0].zero_(), "tuple"),
        ({"best": [1, 2]}, lambda value: value["best"].sort(reverse=True), "dict"),
    ],
)
def test_what_is_changed_in_place_in_a_group_is_not_taken_for_unchanged(
    value: Any, change: Callable[[Any], object], kind: str, tmp_path: Path
) -> None:
    task = Rated()
    odd = task.optimizers["odd"]
    odd.param_groups[0]["own"] = value
    position = Position()
    trained(task, position, tmp_path)
    assert sorted(position.groups) == ["odd.group0.calls", "odd.group0.found"], "as long as it stays the same"
    odd.register_step_post_hook(lambda *_: (change(value), None)[1])
    with pytest.raises(TypeError, match=rf"odd\.group0\.own is a {kind}, which no checkpoint can hold: keep it as"):
        trained(task, Position(), tmp_path / "again")


@pytest.mark.parametrize("value", [torch.ones(2, dtype=torch.complex64), torch.eye(2).to_sparse()])
def test_state_of_a_type_that_no_checkpoint_can_hold_is_named(value: Tensor) -> None:
    task = Rated()
    odd = task.optimizers["odd"]
    odd.state[odd.param_groups[0]["params"][0]]["own"] = value
    with pytest.raises(TypeError, match=r"optimizer state odd\.0\.own is a tensor of torch\.\w+, which no checkpoint"):
        take(task, Position())


@pytest.mark.parametrize("lacking", ["a parameter", "a group"])
def test_state_of_another_optimizer_is_told_as_that(tmp_path: Path, lacking: str) -> None:
    trained(Rated(), Position(), tmp_path)
    task = Rated()
    if lacking == "a parameter":
        task.optimizers = {"odd": FindsItsRate([task.model.weight])}
    else:
        task.optimizers = {"even": task.optimizers["odd"]}
    with pytest.raises(UserError, match="that this job has not"):
        resumed(tmp_path / "7", task)
