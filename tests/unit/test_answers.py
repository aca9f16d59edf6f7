"""A job that gives something of another kind than it should is told so in one line, whatever torch would say of it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from console.defects import whose
from tests.checkpoints import history
from tests.unit.test_loop import Small, planned
from trainer import names
from trainer.answers import MOST_CELLS, check_task, metrics_of, result_of
from trainer.checkpoint import Position
from trainer.exits import ExitCode, UserError
from trainer.job import Task
from trainer.loop import Loop
from trainer.manifest import MAX_BYTES
from trainer.presets import check_presets
from trainer.scores import Metric
from watchers import Mailbox


class Deaf:
    def boundary(self, *, evaluating: bool, evaluated: float = 0.0) -> None:
        pass

    def evaluated(self, metrics: dict[str, Metric]) -> None:
        pass


def changed(method: str, change: Callable[[Any], Any]) -> Task:
    """The small task, but what it gives there is something else."""
    task = Small()
    right = getattr(task, method)
    setattr(task, method, lambda asked: change(right(asked)))
    return task


@pytest.mark.parametrize(
    ("method", "change", "told"),
    [
        (
            "loss",
            lambda right: right[0],
            "loss must give the loss and a dict, as in `return loss, {}`; it gives a tensor",
        ),
        ("loss", lambda right: None, "loss must give the loss and a dict, as in `return loss, {}`; it gives nothing"),
        ("loss", lambda right: (right[0].item(), {}), "loss must give the loss as a tensor; it gives a float"),
        ("loss", lambda right: (right[0].expand(5), {}), "the mean over the samples; it gives a tensor of shape [5]"),
        ("loss", lambda right: (right[0].detach(), {}), "loss must give a tensor with a gradient"),
        ("loss", lambda right: (right[0], {"right": 3}), "a dict of tensors beside the loss; right is an int"),
        ("evaluate", lambda right: {"accuracy": 0.5}, "evaluate must give a dict of tensors; accuracy is a float"),
        ("evaluate", lambda right: right["accuracy"], "evaluate must give a dict of tensors; it gives a tensor alone"),
        ("evaluate", lambda right: {"hits": torch.ones(5)}, "sums over the samples; hits is a tensor of shape [5]"),
        (
            "metrics",
            lambda right: None,
            'metrics must give a dict of numbers, as in `return {"accuracy": 0.5}`; it gives n',
        ),
        ("metrics", lambda right: 0.5, "it gives a float"),
        ("metrics", lambda right: {"f1": torch.tensor(0.5)}, "f1 is a tensor: float(f1) is its number"),
        ("metrics", lambda right: {"f1": "low"}, "or of tables, each a list of rows of whole numbers; f1 is 'low'"),
        ("metrics", lambda right: {"f1": None}, "f1 is None"),
        ("metrics", lambda right: {"f1": True}, "f1 is True"),
        ("metrics", lambda right: {"table": [[0.5]]}, "table is [[0.5]]"),
        (
            "metrics",
            lambda right: {"small": [[1]], "table": [[0] * 1000] * 100},
            "tables may have 100,000 cells in all, for every checkpoint has them; table's 100 rows make it",
        ),
        ("metrics", lambda right: {1: 0.5}, "1 is no name"),
        ("metrics", lambda right: {"step": 3}, "a metric can't be called step: that is one of Baton's own (step,"),
    ],
)
def test_a_wrong_answer_of_a_jobs_is_told_in_a_line(method: str, change: Callable[[Any], Any], told: str) -> None:
    loop = Loop(changed(method, change), planned(), Position(), Mailbox(), Deaf())
    with pytest.raises(UserError, match=r"^tests/unit/test_loop\.py: .*" + re.escape(told)) as e:
        loop.run(evaluated_at=None)
    assert e.value.code == ExitCode.SETUP


def test_metrics_may_be_numbers_of_any_library_and_tables() -> None:
    given = {"whole": 3, "single": np.float32(0.5), "table": [[np.int64(1), 2], [3, 4]], "none": math.nan}
    found = metrics_of(Small(), given)
    assert {name: type(value) for name, value in found.items()} == {**dict.fromkeys(given, float), "table": list}
    assert json.dumps(found) == '{"whole": 3.0, "single": 0.5, "table": [[1, 2], [3, 4]], "none": NaN}'


def test_the_largest_tables_fit_a_record_and_a_manifest(tmp_path: Path) -> None:
    largest = -(1 << 63)
    metrics = metrics_of(Small(), {f"table{i}": [[largest]] * 1000 for i in range(MOST_CELLS // 1000)})
    run = history(tmp_path)
    run.write_record({"metrics": metrics}, "status.json")
    assert run.read_record("status.json") == {"metrics": metrics}
    assert 2 * run.store.stat(run.key("status.json")).size < MAX_BYTES


@pytest.mark.parametrize(
    ("presets", "told"),
    [
        (["plain"], "PRESETS must be a dict of presets by their names; right is, for example, PRESETS = {"),
        ({}, "no PRESETS in it; right is"),
        ({"plain": "quick"}, "preset plain must be a dict of settings; right is"),
        ({"plain": {3: 3}}, "preset plain has 3, which is no setting; there are: store, "),
        ({"plain": {}, "other": {"lr": "fast"}}, "preset other: lr must be a number; it is 'fast'"),
        ({"plain": {"lr": True}}, "preset plain: lr must be a number; it is True"),
        ({"plain": {"epochs": 2.5}}, "preset plain: epochs must be a whole number; it is 2.5"),
        ({"plain": {"batch_size": None}}, "preset plain: batch_size must be a whole number; it is None"),
        ({"plain": {"freeze": 1}}, "preset plain: freeze must be True or False; it is 1"),
        ({"plain": {"model": 18}}, "preset plain: model must be a text; it is 18"),
        ({"plain": {"precision": "fp8"}}, "preset plain: precision must be one of auto, fp32, bf16; it is 'fp8'"),
        ({"plain": {"lr": -1}}, "preset plain: --lr -1: must be more than 0"),
    ],
)
def test_a_preset_that_says_what_no_setting_can_be_is_told_with_its_place(presets: object, told: str) -> None:
    with pytest.raises(UserError, match=re.escape(f"trainer/jobs/mine.py: {told}")) as e:
        check_presets("mine", presets)
    assert e.value.code == ExitCode.SETUP
    check_presets("mine", {"plain": {"lr": 1, "epochs": 0, "steps": 98, "freeze": True, "device": "cpu", "model": ""}})


def with_buffer(tensor: torch.Tensor, *, persistent: bool = False) -> torch.nn.Module:
    model = torch.nn.Linear(3, 2)
    model.register_buffer("mean", tensor, persistent=persistent)
    return model


class Extra(torch.nn.Module):
    """Keeps more than tensors, as torch lets a module do."""

    def __init__(self, extra: object) -> None:
        super().__init__()
        self.extra = extra

    def get_extra_state(self) -> object:
        return self.extra


def dotted() -> dict[str, torch.optim.Optimizer]:
    return {"sgd.one": torch.optim.SGD(torch.nn.Linear(3, 2).parameters())}


def with_state_of_none() -> dict[str, torch.optim.Optimizer]:
    sgd = torch.optim.SGD(torch.nn.Linear(3, 2).parameters())
    sgd.state["all"] = {"calls": 1}  # type: ignore[index]
    return {"sgd": sgd}


@pytest.mark.parametrize(
    "tensor",
    [
        torch.ones(4, 10)[:, :3],
        torch.arange(5).expand(1, -1),
        torch.arange(9).unfold(0, 4, 2),
        torch.eye(3).to_sparse(),
        torch.ones(3, dtype=torch.complex64),
        torch.tensor(1),
    ],
)
def test_any_other_tensor_of_a_models_is_taken(tensor: torch.Tensor) -> None:
    task = Small()
    task.model = with_buffer(tensor)
    check_task("mine", task)
    tensor.copy_(tensor.clone())  # what a checkpoint is put back by


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"eval_batch": 5.0}, "its Task's eval_batch must be a whole number of samples; it is 5.0"),
        ({"optimizers": [torch.optim.SGD]}, "its Task's optimizers must be a dict of torch's"),
        (
            {"model": with_buffer(torch.ones(3, 1).expand(3, 5))},
            "its Task's model has mean as an expanded tensor, into",
        ),
        (
            {"model": with_buffer(torch.ones(3, dtype=torch.complex64), persistent=True)},
            "its Task's model has mean in its state, a tensor of torch.complex64, which no checkpoint can hold: ",
        ),
        ({"model": with_buffer(torch.ones(3).to(torch.float8_e5m2), persistent=True)}, "has mean in its state, a t"),
        ({"model": with_buffer(torch.ones(3).to(torch.uint16), persistent=True)}, "a tensor of torch.uint16, which"),
        ({"model": with_buffer(torch.eye(3).to_sparse(), persistent=True)}, "a tensor of torch.sparse_coo, which no"),
        ({"model": torch.nn.Sequential(Extra({"seen": 3}))}, "has 0._extra_state in its state, of get_extra_state's,"),
        (
            {"model": Extra(torch.ones(3))},
            "has _extra_state in its state, of get_extra_state's, which",
        ),
        ({"optimizers": dotted()}, "optimizer 'sgd.one': a name with a dot in it"),
        (
            {"optimizers": with_state_of_none()},
            "optimizer sgd has state of no parameter's, which no ch",
        ),
        ({"model": None}, "its Task's model must be a torch.nn.Module; it is nothing"),
    ],
)
def test_a_task_that_cannot_be_trained_is_found_when_it_is_built(values: dict[str, Any], told: str) -> None:
    task = Small()
    check_task("mine", task)
    for name, value in values.items():
        setattr(task, name, value)
    with pytest.raises(UserError, match=r"^trainer/jobs/mine\.py: .*" + re.escape(told)):
        check_task("mine", task)


def test_what_a_task_lacks_is_all_told_at_once() -> None:
    with pytest.raises(UserError, match=r"no optimizers, no train_size, no evaluate\(\), no schedule\(\);"):
        check_task("mine", type("Mine", (Task,), {"model": 1, "eval_size": 1, "eval_batch": 1, "loss": print})())
    with pytest.raises(UserError, match=r"mine\.py: build must give a Task; it gives nothing"):
        check_task("mine", None)


@pytest.mark.parametrize(
    ("calls", "told", "first"),
    [
        (
            ["trainer/loop.py", "trainer/jobs/mine.py", "trainer/jobs/mine.py", "torch/nn.py"],
            "mine.py, line 3",
            "call1",
        ),
        (["trainer/loop.py", "trainer/jobs/mine.py", "trainer/order.py"], "a defect in Baton or in the job", "call1"),
        (["trainer/loop.py", "torch/nn.py"], "a defect in Baton or in the job", None),
    ],
)
def test_an_error_is_the_jobs_where_its_file_came_to_it_without_baton(
    calls: list[str], told: str, first: str | None
) -> None:
    call: Callable[[], object] = lambda: 1 / 0  # noqa: E731
    for number, file in reversed(list(enumerate(calls))):
        place: dict[str, Any] = {"go_on": call}
        exec(compile(f"def call{number}():\n\n    go_on()", str(names.JOBS.parents[1] / file), "exec"), place)
        call = place[f"call{number}"]
    with pytest.raises(ZeroDivisionError) as e:
        call()
    assert told in whose(e.value)
    assert e.value.__traceback__ is not None
    assert e.value.__traceback__.tb_frame.f_code.co_name == (first or e.traceback[0].name)


@pytest.mark.parametrize(
    ("config", "files", "told"),
    [
        (None, {}, "result_config must give a dict that JSON can hold; it gives nothing"),
        ({"size": 3, "inputs": torch.ones(3)}, {}, "of 'inputs' it can't: Object of type Tensor"),
        ({}, {"vocab.txt": "a b"}, "result_files must give a dict of bytes by file name"),
    ],
)
def test_what_a_result_cannot_hold_is_told(config: Any, files: Any, told: str) -> None:
    with pytest.raises(UserError, match=re.escape(told)) as caught:
        result_of(Small(), config, files)
    assert str(caught.value).startswith("tests/unit/test_loop.py: ")
