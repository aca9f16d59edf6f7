"""Pretrained weights put into a network. They are read from safetensors files alone."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from trainer.data.dataset import shown
from trainer.encoder import BertClassifier, Shape
from trainer.exits import UserError

log = logging.getLogger("baton")

NEW = ("classifier.", "pooler.")  # parts that a fine-tune may add to a pretrained model


def bert(shape: Shape, weights: Path | None, labels: int, dropout: float) -> BertClassifier:
    """The network with these weights, float32; what they lack of its head, or all without any, from chance."""
    if weights is None:
        return BertClassifier(shape, labels, dropout)
    state = {_own_name(name): tensor for name, tensor in _read(weights).items()}
    with torch.device("meta"):
        model = BertClassifier(shape, labels, dropout)
    for name, parameter in model.state_dict().items():
        found = state.get(name)
        if found is None and not name.removeprefix("bert.").startswith(NEW):
            raise UserError(f"{shown(weights)}: lacks {name}: not the weights of this model")
        if found is not None and found.shape != parameter.shape:
            if name.startswith("classifier."):
                raise UserError(f"{shown(weights)}: tells {len(found)} classes apart, and the data has {labels}")
            raise UserError(f"{shown(weights)}: {name} is {list(found.shape)}, and the model's {list(parameter.shape)}")
    known = {name: state[name].float() for name in model.state_dict() if name in state}
    model.load_state_dict(known, strict=False, assign=True)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and module.weight.is_meta:
            log.info("%s is new: it begins from chance", name)
            module.to_empty(device="cpu")
            model.begin(module)
    return model


def _read(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (SafetensorError, OSError) as e:
        raise UserError(f"{shown(file)}: not a whole safetensors file: {e}") from e


def _own_name(name: str) -> str:
    """A parameter's name as this network has it: older files, and those of networks without a head, differ."""
    name = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
    return f"bert.{name}" if name.startswith(("embeddings.", "encoder.", "pooler.")) else name


def of_transformers(config: dict[str, Any], weights: Path | None, dropout: float) -> torch.nn.Module:
    """Any other encoder, computed by transformers. Raises `UserError` where the weights don't fit."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    from transformers import AutoConfig, AutoModelForSequenceClassification
    from transformers.utils import logging as their_log

    their_log.set_verbosity_error()  # type: ignore[no-untyped-call]
    their_log.disable_progress_bar()  # type: ignore[no-untyped-call]
    own = {**config, "id2label": {int(i): name for i, name in config["id2label"].items()}}
    try:
        theirs = AutoConfig.for_model(**own)
    except (ValueError, KeyError, TypeError) as e:
        raise UserError(f"model_type {config['model_type']}: transformers doesn't know it: {e!s:.200}") from e
    for name in ("hidden_dropout_prob", "dropout"):
        if hasattr(theirs, name):
            setattr(theirs, name, dropout)
    try:
        model: torch.nn.Module = AutoModelForSequenceClassification.from_config(  # type: ignore[no-untyped-call]
            theirs, attn_implementation="sdpa"
        )
    except ValueError as e:
        raise UserError(f"model_type {config['model_type']}: {str(e).splitlines()[0]:.200}") from e
    if weights is not None:
        _load_others(model, weights, len(own["id2label"]))
    return model.float()


def _load_others(model: Any, weights: Path, labels: int) -> None:
    own, prefix = model.state_dict(), f"{model.base_model_prefix}."
    state = {n if n in own else prefix + n: tensor for n, tensor in _read(weights).items()}
    state = {name: tensor for name, tensor in state.items() if name in own}
    if not any(name.startswith(prefix) for name in state) or (
        lacking := [n for n in own if n.startswith(prefix) and n not in state and ".pooler." not in n]
    ):
        raise UserError(f"{shown(weights)}: lacks {next(iter(lacking or [prefix]))}: not the weights of this model")
    for name, tensor in state.items():
        if tensor.shape != own[name].shape:
            what = f"{name} is {list(tensor.shape)}, and the model's {list(own[name].shape)}"
            raise UserError(f"{shown(weights)}: {what}; the data has {labels} classes")
    model.load_state_dict(state, strict=False)
