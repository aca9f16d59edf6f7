"""All state at a step boundary: taken from a task, encoded for a store, put back into a task."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.optim import Optimizer

from trainer.exits import UserError
from trainer.history import Checkpoint
from trainer.job import Task
from trainer.order import NO_SAMPLES
from trainer.parts import decode, encode, packed_strides, unsaveable
from trainer.settings import Json

_GROUP = re.compile(r"[^.]+\.group[0-9]{1,6}\..+")  # as `written` names it; a parameter's state has its number there


@dataclass
class Position:
    """The loop's own state at a boundary: how far it has come. Everything else follows from the seed."""

    step: int = 0
    order: bytes = NO_SAMPLES  # hash of all sample indices so far
    sums: dict[str, Tensor] = field(default_factory=dict)  # metric sums of the running epoch; float64, 0-d
    groups: dict[str, Json] = field(default_factory=dict)  # what optimizers themselves wrote into their `param_groups`


@dataclass(frozen=True, slots=True)
class Snapshot:
    """State at the boundary after `step` steps, in host memory that nobody changes until it is saved."""

    step: int
    order_sha256: str
    sums: dict[str, str]
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    scalars: dict[str, Json]
    frozen: frozenset[str]  # names in `model` that training is not expected to change


class HostBuffers:
    """Host copies of tensors, in memory that is allocated at the first copy and used again at each later one."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def copy(self, tensors: Mapping[str, Tensor], section: str) -> dict[str, Tensor]:
        """Copies of `tensors`, in their memory order, valid until the next call; a GPU's once it has settled."""
        copies = {}
        for name, tensor in tensors.items():
            key = f"{section}/{name}"
            buffer, strides = self._buffers.get(key), packed_strides(tensor)
            if buffer is None or buffer.shape != tensor.shape or buffer.stride() != strides:
                buffer = torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
                self._buffers[key] = buffer
            copies[name] = buffer.copy_(tensor, non_blocking=tensor.is_cuda)
        return copies


def settle(device: torch.device) -> None:
    """Wait until a GPU has done what this thread has told it to. Raises RuntimeError if it can't."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def take(task: Task, position: Position, buffers: HostBuffers | None = None) -> Snapshot:
    """The task's state now: with `buffers` a copy, while training goes on; without, the stopped task's memory."""
    model = {name: tensor.detach() for name, tensor in task.model.state_dict().items()}
    optimizer, scalars = optimizer_state(task)
    scalars |= position.groups
    gpus = {tensor.device for tensor in model.values() if tensor.is_cuda}
    if buffers is not None or gpus:
        buffers = buffers or HostBuffers()
        model, optimizer = buffers.copy(model, "model"), buffers.copy(optimizer, "optimizer")
        for gpu in gpus:
            settle(gpu)
    return Snapshot(
        position.step,
        position.order.hex(),
        {name: float(value).hex() for name, value in position.sums.items()},
        model,
        optimizer,
        scalars,
        _frozen(task),
    )


def _frozen(task: Task) -> frozenset[str]:
    """Names of the weights and buffers of all modules whose weights are not trained."""
    names: set[str] = set()
    for prefix, module in task.model.named_modules():
        own = list(module.parameters(recurse=False))
        if own and not any(parameter.requires_grad for parameter in own):
            tensors = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
            names |= {f"{prefix}.{name}" if prefix else name for name, _ in tensors}
    return frozenset(names)


def begun_optimizers(task: Task) -> bytes:
    """For other processes, the optimizers' state before the first step, which a job's `begin` may have made."""
    tensors, _ = optimizer_state(task)
    return b"".join(encode({name: tensor.cpu() for name, tensor in tensors.items()}).chunks)


def begin_optimizers(task: Task, state: bytes) -> None:
    _restore_optimizers(task, decode(state), {}, "of process 0")


def optimizer_state(task: Task) -> tuple[dict[str, Tensor], dict[str, Json]]:
    """Every optimizer's state by "optimizer.parameter.name", tensors apart from other values.

    Raises TypeError for what no checkpoint can hold.
    """
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, Json] = {}
    for optimizer_name, optimizer in task.optimizers.items():
        if "." in optimizer_name:
            raise TypeError(f"optimizer {optimizer_name!r}: a name with a dot in it, by which keys are taken apart")
        for parameter, state in optimizer.state_dict()["state"].items():
            if not isinstance(parameter, int):  # else it would be found out by whoever resumes
                raise TypeError(f"optimizer {optimizer_name} has state of no parameter's, which no checkpoint can hold")
            for name, value in state.items():
                key = f"{optimizer_name}.{parameter}.{name}"
                if isinstance(value, Tensor):
                    if (kind := unsaveable(value)) is not None:
                        raise TypeError(f"optimizer state {key} is {kind}, which no checkpoint can hold")
                    tensors[key] = value.detach()
                else:
                    scalars[key] = _scalar(key, value)
    return tensors, scalars


def _scalar(key: str, value: object) -> Json:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(
        f"optimizer state {key} is a {type(value).__name__}, which no checkpoint can hold: keep it as a number, or "
        "as a tensor in the state of a parameter"
    )


_PLAIN = frozenset({bool, int, float, str, type(None)})  # kinds of nearly all values in a group
Groups = dict[str, list[dict[str, object]]]  # an optimizer's name -> its `param_groups`


def groups_of(task: Task) -> Groups:
    """Every optimizer's groups as they are now, whatever is changed in place later; but for the parameters."""
    return {
        name: [
            {key: value if type(value) in _PLAIN else _kept(value) for key, value in group.items() if key != "params"}
            for group in optimizer.param_groups
        ]
        for name, optimizer in task.optimizers.items()
    }


def _kept(value: object) -> object:
    """What can't change under it: the value itself, or a copy."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, list) or (isinstance(value, tuple) and not all(type(one) in _PLAIN for one in value)):
        return [_kept(one) for one in value]
    if isinstance(value, dict):
        return {key: _kept(one) for key, one in value.items()}
    return value


def _is_still(kept: object, value: object) -> bool:
    """Whether a value of a group is the one that was kept of it."""
    match kept, value:
        case Tensor(), Tensor():
            return (kept.dtype, kept.device) == (value.dtype, value.device) and torch.equal(kept, value)
        case list(), list() | tuple():
            return len(kept) == len(value) and all(map(_is_still, kept, value))
        case dict(), dict():
            return kept.keys() == value.keys() and all(_is_still(kept[key], value[key]) for key in kept)
    return kept is value or (type(kept) is type(value) and bool(kept == value))


def written(before: Groups, task: Task) -> dict[str, Json]:
    """What a step itself has written into the groups since `before`, by "optimizer.group0.name".

    Optimizers that find their own learning rate do so: it is state like any other. The rest of a group comes from the
    settings and the schedule. Raises TypeError for what no checkpoint can hold.
    """
    return {
        (place := f"{name}.group{i}.{key}"): _scalar(place, value)
        for name, optimizer in task.optimizers.items()
        for i, (old, new) in enumerate(zip(before[name], optimizer.param_groups, strict=True))
        for key, value in new.items()
        if key != "params" and not (key in old and (old[key] is value or _is_still(old[key], value)))
    }


def restore(task: Task, checkpoint: Checkpoint) -> Position:
    """Put a checkpoint's state into a freshly built task, in its own memory order and on its own device.

    Raises `UserError` if the checkpoint is one of another model.
    """
    manifest = checkpoint.manifest
    sections: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}}
    for ref in manifest.parts:
        try:
            sections[ref.section].update(decode(checkpoint.data[ref.sha256]))
        except ValueError as e:
            raise UserError(f"checkpoint {manifest.name}: part {ref.sha256[:12]} is {e}") from e
    _restore_model(task, sections["model"], manifest.name)
    groups = {key: value for key, value in manifest.scalars.items() if _GROUP.fullmatch(key)}
    scalars = {key: value for key, value in manifest.scalars.items() if key not in groups}
    _restore_optimizers(task, sections["optimizer"], scalars, manifest.name)
    _restore_groups(task, groups, manifest.name)
    device = next(task.model.parameters()).device
    sums = {
        name: torch.tensor(float.fromhex(value), dtype=torch.float64, device=device)
        for name, value in manifest.sums.items()
    }
    return Position(manifest.step, bytes.fromhex(manifest.order_sha256), sums, groups)


def _restore_model(task: Task, saved: Mapping[str, Tensor], name: str) -> None:
    own = task.model.state_dict()
    odd = sorted(own.keys() ^ saved.keys()) or [
        key for key, tensor in own.items() if (tensor.shape, tensor.dtype) != (saved[key].shape, saved[key].dtype)
    ]
    if odd:
        raise UserError(
            f"checkpoint {name} is one of another network (first difference: {odd[0]}): this image's code is not that "
            "of the run, or its data make another vocabulary; use the run's image and data, or --run NAME for a new run"
        )
    with torch.no_grad():
        for key, tensor in own.items():
            tensor.copy_(saved[key])


def _restore_optimizers(task: Task, tensors: Mapping[str, Tensor], scalars: Mapping[str, Json], name: str) -> None:
    states: dict[str, dict[int, dict[str, object]]] = {key: {} for key in task.optimizers}
    counts = {key: sum(len(group["params"]) for group in o.param_groups) for key, o in task.optimizers.items()}
    for key, value in (*tensors.items(), *scalars.items()):
        owner, _, rest = key.partition(".")
        parameter, _, field_name = rest.partition(".")
        if owner not in states or not parameter.isdecimal() or int(parameter) >= counts[owner]:
            raise UserError(f"checkpoint {name} holds optimizer state that this job has not: {key:.100}")
        states[owner].setdefault(int(parameter), {})[field_name] = value
    for key, optimizer in task.optimizers.items():
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": states[key], "param_groups": groups})
        _keep_types(optimizer, states[key])


def _keep_types(optimizer: Optimizer, saved: Mapping[int, Mapping[str, object]]) -> None:
    """`load_state_dict` gives most tensors the type of their parameter: float64 sums and counts would lose digits."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, fields in saved.items():
        mine = optimizer.state[parameters[number]]
        for name, value in fields.items():
            if isinstance(value, Tensor) and isinstance(own := mine.get(name), Tensor) and own.dtype != value.dtype:
                mine[name] = value.to(own.device)


def _restore_groups(task: Task, saved: Mapping[str, Json], name: str) -> None:
    for key, value in saved.items():
        owner, group, field_name = key.split(".", 2)
        groups = task.optimizers[owner].param_groups if owner in task.optimizers else []
        number = int(group.removeprefix("group"))
        if number >= len(groups):
            raise UserError(f"checkpoint {name} holds optimizer state that this job has not: {key:.100}")
        groups[number][field_name] = value
