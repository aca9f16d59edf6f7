"""BERT with a classifier on its first token: Devlin et al., "BERT", 2018, arXiv:1810.04805.

The parameters have the names and shapes of transformers' `BertForSequenceClassification`, so that weights go in and
out as they are. Written here for two reasons: importing transformers' own takes seconds at each start, and of the last
layer only what the classifier reads, the first token, need be computed: a twelfth of bert-base's work less.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.exits import UserError
from trainer.pretrained import count_in

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu}
MOST_UNFUSED = {torch.float32: 128, torch.bfloat16: 256}  # tokens; see `attended`
# what this network computes; a configuration with other values is another network
ARCHITECTURE = {"model_type": "bert", "position_embedding_type": "absolute", "is_decoder": False}


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What shapes the network, under transformers' names."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int = 512  # tokens, the special ones included
    type_vocab_size: int = 2
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02

    @classmethod
    def of(cls, config: dict[str, Any]) -> Shape | None:
        """Of a config.json; None where it is one of another network. Raises `UserError` where it lacks something."""
        other = any(config.get(name, value) != value for name, value in ARCHITECTURE.items())
        if other or config.get("hidden_act", "gelu") not in tuple(ACTIVATIONS):
            return None
        lacking = [f.name for f in fields(cls) if f.default is MISSING and config.get(f.name) is None]
        if lacking:
            raise UserError(f"the model's config.json lacks {', '.join(lacking)}")
        for f in fields(cls):
            if f.type == "int":
                count_in(config, f.name)
            elif f.type == "float" and not isinstance(config.get(f.name) or 0.0, int | float):
                raise UserError(f"the model's config.json: {f.name} must be a number")
        shape = cls(**{name: config[name] for name in cls.__dataclass_fields__ if config.get(name) is not None})
        if shape.hidden_size % shape.num_attention_heads:
            heads = f"its {shape.num_attention_heads} num_attention_heads can't share"
            raise UserError(f"the model's config.json: {heads} a hidden_size of {shape.hidden_size} evenly")
        return shape


class BertClassifier(nn.Module):
    def __init__(self, shape: Shape, labels: int, dropout: float) -> None:
        """`dropout`: share of the hidden values dropped, as `hidden_dropout_prob`; of attention's none."""
        super().__init__()
        self.shape = shape
        self.dropout = dropout
        wide, eps = shape.hidden_size, shape.layer_norm_eps
        embeddings = nn.ModuleDict(
            {
                "word_embeddings": nn.Embedding(shape.vocab_size, wide),
                "position_embeddings": nn.Embedding(shape.max_position_embeddings, wide),
                "token_type_embeddings": nn.Embedding(shape.type_vocab_size, wide),
                "LayerNorm": nn.LayerNorm(wide, eps),
            }
        )
        layers = nn.ModuleList(_layer(shape) for _ in range(shape.num_hidden_layers))
        self.bert = nn.ModuleDict(
            {
                "embeddings": embeddings,
                "encoder": nn.ModuleDict({"layer": layers}),
                "pooler": nn.ModuleDict({"dense": nn.Linear(wide, wide)}),
            }
        )
        self.classifier = nn.Linear(wide, labels)
        self.apply(self.begin)

    def begin(self, module: nn.Module) -> None:
        """Give a linear layer or an embedding its weights by chance, as BERT begins."""
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=self.shape.initializer_range)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """int64 [n, length], bool [n, length] (None: no padding) -> logits [n, labels]"""
        x = self._embedded(input_ids)
        mask = None if attention_mask is None else attention_mask[:, None, None, :]
        layers: Any = self.bert["encoder"]["layer"]  # type: ignore[index]
        for number, layer in enumerate(layers, 1):
            # whom the tokens attend to is all of them; who asks, in the last layer, is the first alone
            x = self._transformed(layer, x, x if number < len(layers) else x[:, :1], mask)
        dense: Any = self.bert["pooler"]["dense"]  # type: ignore[index]
        logits: Tensor = self.classifier(self._dropped(torch.tanh(dense(x[:, 0]))))
        return logits

    def _embedded(self, input_ids: Tensor) -> Tensor:
        parts: Any = self.bert["embeddings"]
        places = parts["position_embeddings"].weight[: input_ids.shape[1]] + parts["token_type_embeddings"].weight[0]
        return self._dropped(parts["LayerNorm"](parts["word_embeddings"](input_ids) + places))

    def _transformed(self, layer: Any, x: Tensor, asking: Tensor, mask: Tensor | None) -> Tensor:
        """One layer: [n, length, wide], [n, asking, wide] -> [n, asking, wide]"""
        own, heads = layer["attention"]["self"], self.shape.num_attention_heads
        query, key, value = (
            own[name](tokens).unflatten(2, (heads, -1)).transpose(1, 2)
            for name, tokens in (("query", asking), ("key", x), ("value", x))
        )
        seen = attended(query, key, value, mask).transpose(1, 2).flatten(2)
        x = self._added(layer["attention"]["output"], seen, asking)
        act = ACTIVATIONS[self.shape.hidden_act]
        return self._added(layer["output"], act(layer["intermediate"]["dense"](x)), x)

    def _added(self, output: Any, x: Tensor, to: Tensor) -> Tensor:
        normed: Tensor = output["LayerNorm"](self._dropped(output["dense"](x)) + to)
        return normed

    def _dropped(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout) if self.dropout and self.training else x


def attended(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Attention without dropout: [n, heads, asking, d], twice [n, heads, length, d], bool [n, 1, 1, length]

    On a processor torch's fused attention takes longer than its products do by themselves: at 64 tokens 1.3 times in
    fp32, which turns round at some 150 of them, and 5 times in bf16 (32 texts, 12 heads of 32, with gradients; Zen 5).
    For longer texts the products take much memory.
    """
    if query.device.type != "cpu" or key.shape[2] > MOST_UNFUSED.get(query.dtype, 0):
        return F.scaled_dot_product_attention(query, key, value, mask)
    scores = (query * query.shape[3] ** -0.5) @ key.transpose(2, 3)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    seen: Tensor = scores.softmax(3) @ value
    return seen


def _layer(shape: Shape) -> nn.ModuleDict:
    wide, inner, eps = shape.hidden_size, shape.intermediate_size, shape.layer_norm_eps

    def output(width: int) -> nn.ModuleDict:
        return nn.ModuleDict({"dense": nn.Linear(width, wide), "LayerNorm": nn.LayerNorm(wide, eps)})

    own = nn.ModuleDict({name: nn.Linear(wide, wide) for name in ("query", "key", "value")})
    return nn.ModuleDict(
        {
            "attention": nn.ModuleDict({"self": own, "output": output(wide)}),
            "intermediate": nn.ModuleDict({"dense": nn.Linear(wide, inner)}),
            "output": output(inner),
        }
    )
