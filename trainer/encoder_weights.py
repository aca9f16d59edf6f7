"""Pretrained weights put into a network, and networks that transformers computes."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from trainer.exits import UserError

log = logging.getLogger("baton")


def fill(model: nn.Module, prefix: str, state: Mapping[str, Tensor], source: str, labels: int) -> None:
    """Put pretrained weights into a network. Its classifier and pooler may be lacking: they stay as they are.

    `prefix`: of all names but the classifier's, "bert." for example; files of networks without a classifier lack it.
    Raises `UserError` where they are another network's, or tell another number of classes apart.
    """
    own = model.state_dict()
    # as the oldest files have it
    named = ((name.replace("LayerNorm.gamma", "LayerNorm.weight"), tensor) for name, tensor in state.items())
    named = ((name.replace("LayerNorm.beta", "LayerNorm.bias"), tensor) for name, tensor in named)
    found = {name if name in own else prefix + name: tensor for name, tensor in named}
    for name, mine in own.items():
        if name in found and found[name].shape != mine.shape:
            if not name.startswith(prefix):
                raise UserError(f"{source}: tells {len(found[name])} classes apart, and the data has {labels}")
            what = f"{name} is {list(found[name].shape)}, and the model's {list(mine.shape)}"
            raise UserError(f"{source}: {what}: another network's weights")
        if name not in found and name.startswith(prefix) and ".pooler." not in name:
            raise UserError(f"{source}: lacks {name}: another network's weights")
    new = [name.removesuffix(".weight") for name in own if name not in found and name.endswith(".weight")]
    log.info("weights: %s%s", source, f"; {' and '.join(new)} begins by chance" if new else ", the classifier's too")
    model.load_state_dict({name: tensor for name, tensor in found.items() if name in own}, strict=False)


def of_transformers(config: dict[str, Any], dropout: float) -> tuple[nn.Module, int]:
    """Any other encoder, computed by transformers, from chance, and its padding's token.

    Raises `UserError` where it knows no such one, or one that takes no padding.
    """
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
    pad = getattr(theirs, "pad_token_id", None)
    if not isinstance(pad, int):
        raise UserError(
            f"model_type {config['model_type']}: its config.json has no pad_token_id, so no batch of texts can be "
            "made; decoders such as GPT-2 have none: choose an encoder"
        )
    for name in ("hidden_dropout_prob", "dropout", "classifier_dropout", "seq_classif_dropout"):
        if hasattr(theirs, name):
            setattr(theirs, name, dropout)
    try:
        model: nn.Module = AutoModelForSequenceClassification.from_config(  # type: ignore[no-untyped-call]
            theirs, attn_implementation="sdpa"
        )
    except ValueError as e:
        raise UserError(f"model_type {config['model_type']}: {str(e).splitlines()[0]:.200}") from e
    return model.float(), pad
