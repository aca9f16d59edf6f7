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
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer import encoder_weights, order, pretrained
from trainer import weights as those
from trainer.data.dataset import shown
from trainer.data.packed import Packed
from trainer.data.pulse import Pulse, beside
from trainer.encoder import BertClassifier, Shape
from trainer.exits import ExitCode, UserError
from trainer.job import Batch, Task, sent, tensor_of
from trainer.machine import keep_few_kernels
from trainer.scores import MOST_CONFUSED, Metric, confusion, of_confusion
from trainer.settings import Json, Settings

log = logging.getLogger("baton")

Bools: TypeAlias = np.ndarray[Any, np.dtype[np.bool_]]

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
        # the weights', whatever the pretrained ones were in: transformers loads them in what this says
        self.config.pop("torch_dtype", None)  # its older name
        self.config["dtype"] = "float32"
        shape = Shape.of(self.config)
        network: nn.Module
        if shape is None:
            network, self.pad = encoder_weights.of_transformers(self.config, settings.dropout)
            self.pads_left = self.config["model_type"] == "xlnet"  # its classifier reads the last token
        else:
            self.pad, self.pads_left = self._own_pad(shape.vocab_size), False
            self.config["architectures"] = ["BertForSequenceClassification"]
            network = BertClassifier(shape, len(self.classes), settings.dropout)
        # a model's name or folder may mean another network on another day, and not all of it shows in weights' shapes
        computed = asdict(shape) if shape else {n: v for n, v in self.config.items() if n not in NO_MATTER}
        self.shapes_run = {"network_sha256": hashlib.sha256(json.dumps(computed, sort_keys=True).encode()).hexdigest()}
        self.model = network.to(device)
        self.prefix = f"{getattr(network, 'base_model_prefix', 'bert')}."  # of all names but the classifier's
        frozen = self._freeze() if settings.freeze else {}
        trained = [p for p in self.model.parameters() if p.requires_grad]
        # a frozen pooler's are there too, last, so that one that begins by chance can be trained; see `_thaw`
        self.poolers = {name: p for name, p in frozen.items() if ".pooler." in name}
        groups = [  # biases and LayerNorm's scales don't decay
            {"params": [p for p in some if (p.ndim >= 2) == decays], "weight_decay": decay}
            for some in (trained, self.poolers.values())
            for decays, decay in ((True, settings.weight_decay), (False, 0.0))
        ]
        self.optimizers = {"adamw": torch.optim.AdamW([g for g in groups if g["params"]], lr=settings.lr, fused=True)}

    def _freeze(self) -> dict[str, nn.Parameter]:
        """Train the classifier alone. Returns what stays as it is, by name."""
        if self.settings.weights == "none":
            raise UserError(
                "--freeze: a classifier on a network of chance learns little; leave --weights none out", ExitCode.USAGE
            )
        frozen = {name: p for name, p in self.model.named_parameters() if name.startswith(self.prefix)}
        for parameter in frozen.values():
            parameter.requires_grad_(False)
        return frozen

    def _thaw(self, names: set[str]) -> None:
        """Train what of a frozen network began by chance, its pooler at most.

        Once AdamW has a state for it every checkpoint has, which is how a run that goes on knows; see `schedule`.
        """
        for name in self.poolers.keys() & names:
            p, state = self.poolers[name], self.optimizers["adamw"].state
            means = {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
            state[p] = {"step": torch.zeros((), device=p.device), **means}  # as AdamW begins

    def _own_pad(self, vocabulary: int) -> int:
        """Padding's token of BERT's own architecture. Raises `UserError`."""
        pad = self.config.get("pad_token_id")
        if pad is not None and (type(pad) is not int or not 0 <= pad < vocabulary):
            raise UserError(
                f"the model's config.json: pad_token_id must be a token's number, from 0 to {vocabulary - 1}, not "
                f"{shown(repr(pad)):.50}"
            )
        return pad or 0

    def _try_longest(self) -> None:
        """Raise `UserError` where transformers can't compute the longest text, or two of other lengths.

        On the processor, for a GPU that is asked for a position that isn't there is of no use any more. Chance stays as
        it was.
        """
        part = max(self.offsets, key=lambda part: int(np.diff(self.offsets[part]).max()))
        by_length = np.argsort(np.diff(self.offsets[part]), kind="stable")
        network = self.model.cpu().eval()
        try:
            with torch.random.fork_rng(devices=[]), torch.inference_mode():
                for samples in (by_length[-1:], by_length[[0, len(by_length) // 2]]):
                    ids, real = self._padded(part, samples, 1)
                    network(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(real).long())
        except MemoryError:
            raise  # of which the text's length is no reason
        except Exception as e:  # of what kind depends on the model's own code
            longest = int(np.diff(self.offsets[part]).max())
            raise UserError(
                f"model_type {self.config['model_type']}: transformers can't compute the texts, the longest of "
                f"{longest} tokens ({encoder_weights.first_line(e)}); choose another encoder, or one that takes "
                "longer texts"
            ) from e
        self.model.to(self.device).train()

    def _check_data(self) -> None:
        """Raise `UserError` where texts and model don't fit."""
        known = pretrained.vocabulary(self.tokenizer)
        if self.settings.weights == "none" or self.folder is None:
            self.config["vocab_size"] = known
        elif known > (pretrained.count_in(self.config, "vocab_size") or known):
            raise UserError(f"the texts' tokenizer knows {known} tokens, too many for this model; {self._again}")
        longest = max(int(np.diff(offsets).max()) for offsets in self.offsets.values())
        self.most = pretrained.longest_text(self.config)
        if self.most is not None and longest > self.most:
            raise UserError(f"the longest text has {longest} tokens, too many for this model; {self._again}")

    @property
    def _again(self) -> str:
        return f"pack the data again: entrypoint.py data bert --source FILE --model {self.settings.model}"

    def begin(self, weights: str, check: Callable[[], None]) -> None:
        if not isinstance(self.model, BertClassifier):
            beside(self._try_longest, Pulse(check))  # takes seconds with a large network
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
        those.warn_of_other_classes(weights, self.classes, check)
        self._thaw(
            encoder_weights.fill(self.model, self.prefix, those.read(weights, check), weights, len(self.classes))
        )

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
        for parameter in self.poolers.values():
            parameter.requires_grad_(parameter in self.optimizers["adamw"].state)

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
        scores = of_confusion(sums["confusion"])
        if len(self.classes) > MOST_CONFUSED:  # every manifest and sign of life would hold it all
            del scores["confusion"]
        return {**scores, "loss": float(sums["loss"]) / self.eval_size}

    def logits(self, part: str, samples: order.Int64s) -> Tensor:
        """float32 [n, classes]"""
        multiple = 8 if self.device.type == "cuda" else 1  # what a GPU's matrix units take
        ids, real = self._padded(part, samples, multiple)
        mask = None if real.all() else sent(real, self.device)
        if mask is not None and not isinstance(self.model, BertClassifier):
            mask = mask.long()  # as transformers' own tokenizers give it; XLNet takes no other
        out = self.model(input_ids=sent(ids, self.device), attention_mask=mask)
        logits: Tensor = out if isinstance(out, Tensor) else out.logits
        return logits.float()

    def _padded(self, part: str, samples: order.Int64s, multiple: int) -> tuple[order.Int64s, Bools]:
        tokens, offsets = self.tokens[part], self.offsets[part]
        return padded(tokens, offsets, samples, self.pad, multiple, most=self.most, left=self.pads_left)

    def result_config(self) -> dict[str, Json]:
        return self.config

    def result_files(self) -> dict[str, bytes]:
        return {name: text.encode() for name, text in self.tokenizer.items()}


def padded(
    tokens: np.ndarray[Any, Any],
    offsets: order.Int64s,
    samples: order.Int64s,
    pad: int,
    multiple: int,
    *,
    most: int | None = None,
    left: bool = False,
) -> tuple[order.Int64s, Bools]:
    """The samples' tokens, padded to the longest's length or a multiple's; int64 [n, length], and which are real.

    `most`: no longer than so many, which no text exceeds; `left`: with the padding first.
    """
    starts = offsets[samples]
    lengths = offsets[samples + 1] - starts
    longest = int(lengths.max())
    width = -(-longest // multiple) * multiple
    width = width if most is None else max(longest, min(width, most))
    columns = np.arange(width) - (width - lengths[:, None] if left else 0)
    real = (columns >= 0) & (columns < lengths[:, None])
    ids = np.full(real.shape, pad, np.int64)
    ids[real] = tokens[(starts[:, None] + columns)[real]]
    return ids, real
