"""What a job gives, held to what trainer/job.py asks of it: a wrong kind is told in one line that names the job's file.

Without that it comes out later, as an error of torch's or Baton's own. A look takes a microsecond, a step thousands.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from numbers import Integral, Real

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from storage.protocol import is_key
from trainer.checkpoint import optimizer_state
from trainer.exits import UserError
from trainer.job import Task
from trainer.parts import unsaveable
from trainer.scores import Metric

_ATTRIBUTES = ("model", "optimizers", "train_size", "eval_size", "eval_batch")
_OWN = ("step", "epoch", "attempt", "time", "seconds", "samples_per_s", "train_loss")  # Baton's, beside metrics
MOST_CELLS = 100_000  # of all tables; as JSON they must fit a record (trainer/place.py) and a manifest
_METHODS = ("loss", "evaluate", "schedule")  # of which `Task` has the name alone


def check_task(job: str, task: object) -> None:
    """Raise `UserError` where what a job's `build` gave can't be trained."""
    file = f"trainer/jobs/{job}.py"
    if not isinstance(task, Task):
        raise UserError(f"{file}: build must give a Task; it gives {_kind(task)}")
    lacking = [name for name in _ATTRIBUTES if not hasattr(task, name)]
    lacking += [f"{name}()" for name in _METHODS if getattr(getattr(task, name), "__func__", None) is vars(Task)[name]]
    if lacking:
        raise UserError(f"{file}: its Task has no {', no '.join(lacking)}; docs/jobs.md has a whole one")
    if not isinstance(task.model, nn.Module):
        raise UserError(f"{file}: its Task's model must be a torch.nn.Module; it is {_kind(task.model)}")
    for name, tensor in (*task.model.named_parameters(), *task.model.named_buffers()):
        if _shares_places(tensor):
            raise UserError(
                f"{file}: its Task's model has {name} as an expanded tensor, into which no checkpoint can be put back: "
                "give it memory of its own, with .clone()"
            )
    state: Mapping[str, object] = task.model.state_dict()
    for name in state:
        if (kind := _unsaveable(name, state[name])) is not None:
            raise UserError(
                f"{file}: its Task's model has {name} in its state, {kind}, which no checkpoint can hold: keep it in a "
                "dense tensor of a common type, or out of the state (persistent=False) where it never changes"
            )
    optimizers: object = task.optimizers
    if not isinstance(optimizers, Mapping) or not all(isinstance(one, Optimizer) for one in optimizers.values()):
        raise UserError(f"{file}: its Task's optimizers must be a dict of torch's, such as {{\"sgd\": sgd}}")
    try:
        optimizer_state(task)
    except TypeError as e:
        raise UserError(f"{file}: {e}") from e
    for name, low in (("train_size", 0), ("eval_size", 0), ("eval_batch", 1)):
        value: object = getattr(task, name)
        if not isinstance(value, Integral) or int(value) < low:
            raise UserError(f"{file}: its Task's {name} must be a whole number of samples; it is {value!r:.60}")


def loss_of(task: Task, answer: object) -> tuple[Tensor, dict[str, Tensor]]:
    """What `task.loss` gave. Raises `UserError`."""
    if not isinstance(answer, tuple | list) or len(answer) != 2:
        raise _wrong(task, f"loss must give the loss and a dict, as in `return loss, {{}}`; it gives {_kind(answer)}")
    loss, sums = answer
    if not isinstance(loss, Tensor):
        raise _wrong(task, f"loss must give the loss as a tensor; it gives {_kind(loss)}")
    if loss.numel() != 1:
        raise _wrong(task, f"loss must give the mean over the samples; it gives a tensor of shape {list(loss.shape)}")
    if not loss.requires_grad:
        raise _wrong(task, "loss must give a tensor with a gradient; the one that it gives doesn't follow from weights")
    return loss, _sums(task, "loss must give a dict of tensors beside the loss", sums)


def evaluation_of(task: Task, answer: object) -> dict[str, Tensor]:
    """What `task.evaluate` gave. Raises `UserError`."""
    sums = _sums(task, "evaluate must give a dict of tensors", answer)
    for name, value in sums.items():
        if value.numel() != 1 and type(task).metrics is Task.metrics:
            shape = list(value.shape)
            raise _wrong(task, f"evaluate must give sums over the samples; {name} is a tensor of shape {shape}")
    return sums


def metrics_of(task: Task, answer: object) -> dict[str, Metric]:
    """What `task.metrics` gave. Raises `UserError`."""
    wanted = 'metrics must give a dict of numbers, as in `return {"accuracy": 0.5}`'
    if not isinstance(answer, dict):
        raise _wrong(task, f"{wanted}; it gives {_kind(answer)}")
    found: dict[str, Metric] = {}
    cells = 0
    for name, value in answer.items():
        if not isinstance(name, str):
            raise _wrong(task, f"{wanted}; {name!r:.60} is no name")
        if name in _OWN:
            raise _wrong(task, f"a metric can't be called {name}: that is one of Baton's own ({', '.join(_OWN)})")
        if isinstance(value, Tensor):
            raise _wrong(task, f"{wanted}; {name} is a tensor: float({name}) is its number")
        if isinstance(value, Real) and not isinstance(value, bool):
            found[name] = float(value)
        elif _is_table(value):
            found[name] = [[int(cell) for cell in row] for row in value]
            if (cells := cells + sum(map(len, value))) > MOST_CELLS:
                more = f"{name}'s {len(value):,} rows make it {cells:,}: leave it out, or add rows and columns up"
                raise _wrong(
                    task, f"tables may have {MOST_CELLS:,} cells in all, for every checkpoint has them; {more}"
                )
        else:
            raise _wrong(task, f"{wanted}, or of tables, each a list of rows of whole numbers; {name} is {value!r:.60}")
    return found


def effort_of(task: Task, answer: object) -> float:
    """What `task.effort` gave. Raises `UserError`."""
    if not isinstance(answer, Real) or not 0 < float(answer) < math.inf:
        raise _wrong(task, f"effort must give a number above 0; it gives {answer!r:.60}")
    return float(answer)


def result_of(task: Task, config: object, files: object) -> tuple[dict[str, object], dict[str, bytes]]:
    """What `task.result_config` and `task.result_files` gave. Raises `UserError`."""
    wanted = "result_config must give a dict that JSON can hold"
    if not isinstance(config, dict):
        raise _wrong(task, f"{wanted}; it gives {_kind(config)}")
    for name, value in config.items():
        try:
            json.dumps({name: value})
        except (TypeError, ValueError) as e:
            raise _wrong(task, f"{wanted}; of {name!r:.60} it can't: {e}") from e
    if not isinstance(files, dict) or not all(
        isinstance(name, str) and is_key(name) and isinstance(content, bytes) for name, content in files.items()
    ):
        raise _wrong(task, "result_files must give a dict of bytes by file name")
    return config, files


def _shares_places(tensor: Tensor) -> bool:
    """Whether elements of it lie in one place, as torch looks before it writes into a tensor."""
    if tensor.layout != torch.strided:
        return False
    return any(n > 1 and not stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))


def _unsaveable(name: str, value: object) -> str | None:
    """What a value of a model's state is, where no checkpoint can hold it."""
    if name.rpartition(".")[2] == "_extra_state":  # a tensor too: copied into one made for the asking, it is lost
        return "of get_extra_state's"
    return unsaveable(value) if isinstance(value, Tensor) else _kind(value)


def _is_table(value: object) -> bool:
    rows = value if isinstance(value, list) else [None]
    return all(isinstance(row, list) and all(isinstance(cell, Integral) for cell in row) for row in rows)


def _sums(task: Task, wanted: str, sums: object) -> dict[str, Tensor]:
    if not isinstance(sums, dict):
        raise _wrong(task, f"{wanted}; it gives {_kind(sums)}")
    for name, value in sums.items():
        if not isinstance(value, Tensor):
            raise _wrong(task, f"{wanted}; {name} is {_kind(value)}")
    return sums


def _wrong(task: Task, what: str) -> UserError:
    return UserError(f"{type(task).__module__.replace('.', '/')}.py: {what}")


def _kind(value: object) -> str:
    match value:
        case None:
            return "nothing"
        case Tensor():
            return "a tensor alone"
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"
