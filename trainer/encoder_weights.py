"""Pretrained weights put into a network, and networks that transformers computes."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from torch import Tensor, nn

from trainer.exits import UserError

log = logging.getLogger("baton")

# as transformers' configurations call them; with no value of its own the classifier's follows the hidden values'
DROPOUTS = (
    "hidden_dropout_prob", "dropout", "classifier_dropout", "classifier_dropout_prob", "seq_classif_dropout",
    "summary_first_dropout", "summary_last_dropout", "dropout_rate", "hidden_dropout",
)  # fmt: skip
ATTENTION_DROPOUTS = ("attention_probs_dropout_prob", "attention_dropout")


def fill(model: nn.Module, prefix: str, state: Mapping[str, Tensor], source: str, labels: int) -> set[str]:
    """Put pretrained weights into a network. Its classifier and pooler may be lacking: they stay as they are.

    Returns the names of what was lacking.

    `prefix`: of all names but the classifier's, "bert." for example; files of networks without a classifier lack it.
    Raises `UserError` where they are another network's, or tell another number of classes apart.
    """
    own = model.state_dict()
    # as the oldest files have it
    named = ((name.replace("LayerNorm.gamma", "LayerNorm.weight"), tensor) for name, tensor in state.items())
    named = ((name.replace("LayerNorm.beta", "LayerNorm.bias"), tensor) for name, tensor in named)
    found = {name if name in own else prefix + name: tensor for name, tensor in named}
    lacking = _lacking(own, found)
    for name, mine in own.items():
        if name in found and found[name].shape != mine.shape:
            if not name.startswith(prefix):
                raise UserError(f"{source}: tells {len(found[name])} classes apart, and the data has {labels}")
            what = f"{name} is {list(found[name].shape)}, and the model's {list(mine.shape)}"
            raise UserError(f"{source}: {what}: another network's weights")
        if name in lacking and name.startswith(prefix) and ".pooler." not in name:
            raise UserError(f"{source}: lacks {name}: another network's weights")
    new = [name.removesuffix(".weight") for name in own if name in lacking and name.endswith(".weight")]
    log.info("weights: %s%s", source, f"; {' and '.join(new)} begins by chance" if new else ", the classifier's too")
    model.load_state_dict({name: tensor for name, tensor in found.items() if name in own}, strict=False)
    return lacking


def _lacking(own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> set[str]:
    """The names that nothing was found for. A tensor of several names, as T5's embeddings are, lies in a file once."""
    filled = {(own[name].data_ptr(), own[name].shape) for name in own.keys() & found.keys()}
    return {name for name in own.keys() - found.keys() if (own[name].data_ptr(), own[name].shape) not in filled}


def of_transformers(config: Mapping[str, Any], dropout: float) -> tuple[nn.Module, int]:
    """Any other encoder, computed by transformers, from chance, and its padding's token.

    `dropout`: share of the hidden values dropped; of attention's none, where its configuration tells the two apart.
    Raises `UserError` where it knows no such one, one that takes no padding, or where the configuration is wrong.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"
    from transformers import AutoConfig
    from transformers.utils import logging as their_log

    their_log.set_verbosity_error()  # type: ignore[no-untyped-call]
    their_log.disable_progress_bar()  # type: ignore[no-untyped-call]
    own = {**config, "id2label": {int(i): name for i, name in config["id2label"].items()}}
    try:
        theirs = AutoConfig.for_model(**own)
    except Exception as e:  # of what kind depends on the model's own code
        raise UserError(f"model_type {config['model_type']}: transformers doesn't take it: {first_line(e)}") from e
    pad = getattr(theirs, "pad_token_id", None)
    if not isinstance(pad, int):
        raise UserError(
            f"model_type {config['model_type']}: its config.json has no pad_token_id, so no batch of texts can be "
            "made; decoders such as GPT-2 have none: choose an encoder"
        )
    for names, share in ((DROPOUTS, dropout), (ATTENTION_DROPOUTS, 0.0)):
        for name in names:
            if hasattr(theirs, name):
                setattr(theirs, name, share)
    if getattr(theirs, "attention_type", None) == "block_sparse":
        # a big_bird goes over to this at its first text of less than 704 tokens, as all are, which draws chance: the
        # step would be another than after a stop
        theirs.attention_type = "original_full"
    try:
        return _built(theirs).float(), pad
    except MemoryError:
        raise  # of which the configuration is no reason
    except Exception as e:  # likewise
        raise UserError(
            f"model_type {config['model_type']}: can't be built as its config.json says: {first_line(e)}"
        ) from e


def _built(theirs: Any) -> nn.Module:
    from transformers import AutoModelForSequenceClassification

    model: nn.Module
    try:
        model = AutoModelForSequenceClassification.from_config(  # type: ignore[no-untyped-call]
            deepcopy(theirs), attn_implementation="sdpa"
        )
    except ValueError as e:
        if "scaled_dot_product_attention" not in str(e):
            raise
        model = AutoModelForSequenceClassification.from_config(theirs)  # type: ignore[no-untyped-call]
    return model


def first_line(e: Exception) -> str:
    return f"{type(e).__name__}: {(str(e).strip() or 'no more is said').splitlines()[0]:.200}"
