"""BERT and other encoders, fine-tuned to tell classes of texts apart.

    finetune   a pretrained model with a new classifier on it; --model NAME or FOLDER. The default
    scratch    a small BERT (4 layers, 256 wide) from chance, for where no pretrained one is at hand

Texts come tokenized (`entrypoint.py data bert`). A batch holds texts of about one length, so that little is padding;
AdamW, linear warm-up and decay. BERT's own architecture is computed by trainer/encoder.py, any other one by
transformers.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer import encoder_weights, order, pretrained
from trainer import weights as those
from trainer.data.dataset import shown
from trainer.data.packed import Packed
from trainer.encoder import BertClassifier, Shape
from trainer.exits import UserError
from trainer.job import Batch, Task, sent, tensor_of
from trainer.machine import keep_few_kernels
from trainer.scores import Metric, confusion, of_confusion
from trainer.settings import Json, Settings

log = logging.getLogger("baton")

DATASET = "bert"
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "finetune": {
        "model": "bert-base-uncased", "epochs": 3, "batch_size": 32, "lr": 5e-5, "weight_decay": 0.01, "dropout": 0.1,
    },
    "scratch": {
        "model": "mini", "weights": "none", "epochs": 8, "batch_size": 32, "lr": 5e-4, "weight_decay": 0.01,
        "dropout": 0.1,
    },
}  # fmt: skip
WITHOUT_EFFECT = ("optimizer", "momentum", "size", "train_size")
WARM_UP = 0.1  # of the steps: the learning rate rises from zero to its peak, then falls to zero
NO_MATTER = ("_name_or_path", "architectures", "transformers_version", "torch_dtype", "dtype", "id2label", "label2id")
POOL = 50  # batches whose texts are sorted by length together


def published_url(model: str) -> str:
    """No address of the hub's is fetched from here: raises `UserError` with the command that gets a model."""
    raise UserError(
        f"{shown(model)}'s weights are on the Hugging Face hub, and nothing is fetched from there; get them: "
        f"{pretrained.download(model)} --local-dir weights/{shown(model)}"
    )


def examine_folder(folder: Path, check: Callable[[], None]) -> None:
    """Raise `UserError` unless all that a run with this `--model` begins with is there and can be read."""
    pretrained.config_of(folder)
    try:
        pretrained.vocabulary(pretrained.tokenizer_files(folder))
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise UserError(f"{shown(folder / pretrained.TOKENIZER)}: no tokenizer that can be read: {shown(e)}") from e
    those.read(str(pretrained.weights_of(folder)), check)


def build(settings: Settings, data: Packed, device: torch.device) -> Task:
    keep_few_kernels()
    return Classify(settings, data, device)


class Classify(Task):
    eval_batch = 64
    unit = "texts"

    def __init__(self, settings: Settings, data: Packed, device: torch.device) -> None:
        self.settings, self.device = settings, device
        self.classes = data.classes
        self.tokens = {part: data.arrays[f"{part}_tokens"] for part in ("train", "test")}
        self.offsets = {part: data.arrays[f"{part}_offsets"] for part in ("train", "test")}
        self.labels = {part: tensor_of(data.arrays[f"{part}_labels"], device).long() for part in ("train", "test")}
        self.train_size, self.eval_size = len(self.labels["train"]), len(self.labels["test"])
        self.by_length = np.argsort(np.diff(self.offsets["test"]), kind="stable")
        self.tokenizer: dict[str, str] = json.loads(bytes(data.arrays["tokenizer"]))

        self.config, self.folder = pretrained.described(settings.model)
        self._check_data()
        self.config["id2label"] = {str(i): name for i, name in enumerate(self.classes)}
        self.config["label2id"] = {name: i for i, name in enumerate(self.classes)}
        shape = Shape.of(self.config)
        network: nn.Module
        if shape is None:
            network, self.pad = encoder_weights.of_transformers(self.config, settings.dropout)
        else:
            self.pad = int(self.config.get("pad_token_id") or 0)
            self.config["architectures"] = ["BertForSequenceClassification"]
            network = BertClassifier(shape, len(self.classes), settings.dropout)
        # a model's name or folder may mean another network on another day, and not all of it shows in weights' shapes
        computed = asdict(shape) if shape else {n: v for n, v in self.config.items() if n not in NO_MATTER}
        self.shapes_run = {"network_sha256": hashlib.sha256(json.dumps(computed, sort_keys=True).encode()).hexdigest()}
        self.model = network.to(device)
        self.prefix = f"{getattr(network, 'base_model_prefix', 'bert')}."  # of all names but the classifier's
        if settings.freeze:
            for name, parameter in self.model.named_parameters():
                parameter.requires_grad_(not name.startswith(self.prefix))
        trained = [p for p in self.model.parameters() if p.requires_grad]
        groups = [  # biases and LayerNorm's scales don't decay
            {"params": [p for p in trained if p.ndim >= 2], "weight_decay": settings.weight_decay},
            {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
        ]
        self.optimizers = {"adamw": torch.optim.AdamW(groups, lr=settings.lr, fused=True)}

    def _check_data(self) -> None:
        """Raise `UserError` where texts and model don't fit."""
        known = pretrained.vocabulary(self.tokenizer)
        if self.settings.weights == "none" or self.folder is None:
            self.config["vocab_size"] = known
        elif known > self.config.get("vocab_size", known):
            raise UserError(f"the texts' tokenizer knows {known} tokens, too many for this model; {self._again}")
        longest = max(int(np.diff(offsets).max()) for offsets in self.offsets.values())
        if longest > self.config.get("max_position_embeddings", longest):
            raise UserError(f"the longest text has {longest} tokens, too many for this model; {self._again}")

    @property
    def _again(self) -> str:
        return f"pack the data again: entrypoint.py data bert --source FILE --model {self.settings.model}"

    def begin(self, weights: str, check: Callable[[], None]) -> None:
        if weights == "none":
            return
        if not weights and self.folder is None:
            model = self.settings.model
            raise UserError(f"--model {model}: is a size, which has no weights; --weights none begins from chance")
        if not weights and self.folder is not None:
            if pretrained.tokenizer_files(self.folder) != self.tokenizer:
                raise UserError(f"the texts were tokenized by another tokenizer than the model's; {self._again}")
            weights = str(pretrained.weights_of(self.folder))
        else:
            self._check_tokenizer(weights, check)
        encoder_weights.fill(self.model, self.prefix, those.read(weights, check), weights, len(self.classes))

    def _check_tokenizer(self, weights: str, check: Callable[[], None]) -> None:
        """Raise `UserError` for weights whose embeddings are of other tokens than the texts'."""
        file = pretrained.TOKENIZER
        theirs = those.beside(weights, file, check)
        if theirs is None:
            what = "no %s beside them, so whether they know the texts' tokens by the same numbers can't be told"
            log.warning(f"weights: %s: {what}", shown(weights), file)
        elif pretrained.tokens(theirs.decode(errors="replace")) != pretrained.tokens(self.tokenizer[file]):
            raise UserError(
                f"--weights {shown(weights)}: theirs is another tokenizer than the texts'; pack the texts by that one: "
                f"entrypoint.py data bert --source FILE --model FOLDER, where its {file} and config.json are"
            )

    def epoch_order(self, seed: int, epoch: int) -> order.Int64s:
        lengths = np.diff(self.offsets["train"])
        return order.by_length(seed, epoch, lengths, self.settings.batch_size, POOL)

    def schedule(self, step: int, steps: int) -> None:
        rising = max(1, round(WARM_UP * steps))
        share = min((step + 1) / rising, (steps - step) / max(1, steps - rising))
        for group in self.optimizers["adamw"].param_groups:
            group["lr"] = self.settings.lr * share

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        labels = self.labels["train"][batch.index]
        logits = self.logits("train", batch.samples)
        return F.cross_entropy(logits, labels), {"accuracy": (logits.argmax(1) == labels).sum()}

    def evaluate(self, rows: slice) -> dict[str, Tensor]:
        samples = self.by_length[rows]
        labels = self.labels["test"][sent(samples, self.device)]
        logits = self.logits("test", samples)
        loss = F.cross_entropy(logits, labels, reduction="sum")
        return {"loss": loss, "confusion": confusion(logits, labels, len(self.classes))}

    def metrics(self, sums: Mapping[str, Tensor]) -> dict[str, Metric]:
        return {**of_confusion(sums["confusion"]), "loss": float(sums["loss"]) / self.eval_size}

    def logits(self, part: str, samples: order.Int64s) -> Tensor:
        """float32 [n, classes]"""
        multiple = 8 if self.device.type == "cuda" else 1  # what a GPU's matrix units take
        ids, real = padded(self.tokens[part], self.offsets[part], samples, self.pad, multiple)
        mask = None if real.all() else sent(real, self.device)
        out = self.model(input_ids=sent(ids, self.device), attention_mask=mask)
        logits: Tensor = out if isinstance(out, Tensor) else out.logits
        return logits.float()

    def result_config(self) -> dict[str, Json]:
        return self.config

    def result_files(self) -> dict[str, bytes]:
        return {name: text.encode() for name, text in self.tokenizer.items()}


def padded(
    tokens: np.ndarray[Any, Any], offsets: order.Int64s, samples: order.Int64s, pad: int, multiple: int
) -> tuple[order.Int64s, np.ndarray[Any, np.dtype[np.bool_]]]:
    """The samples' tokens, padded to the longest's length or a multiple's; int64 [n, length], and which are real."""
    starts = offsets[samples]
    lengths = offsets[samples + 1] - starts
    columns = np.arange(-(-int(lengths.max()) // multiple) * multiple)
    real = columns < lengths[:, None]
    ids = np.full(real.shape, pad, np.int64)
    ids[real] = tokens[(starts[:, None] + columns)[real]]
    return ids, real
