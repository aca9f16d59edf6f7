"""A tiny BERT as a folder, as the hub would give one: 2 layers, 32 wide; and a few hundred texts, packed."""

from __future__ import annotations

import json
from pathlib import Path

CONFIG = {
    "architectures": ["BertModel"], "model_type": "bert", "hidden_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "intermediate_size": 64, "max_position_embeddings": 64, "type_vocab_size": 2,
    "hidden_act": "gelu", "layer_norm_eps": 1e-12, "pad_token_id": 0,
}  # fmt: skip
TEXTS = [
    f"{word} {thing} number {n} {'and so on ' * (n % 7)}"
    for n in range(30)
    for word in ("good", "bad", "odd")
    for thing in ("apple", "engine")
]


def small_model(folder: Path, name: str = "model") -> Path:
    """A folder with config.json, model.safetensors without a classifier, and a tokenizer learned from `TEXTS`."""
    import torch
    from safetensors.torch import save_file

    from trainer.data import tokens
    from trainer.data.pulse import Pulse
    from trainer.encoder import BertClassifier, Shape
    from trainer.pretrained import vocabulary

    model = folder / name
    model.mkdir(parents=True)
    files = tokens.learn(TEXTS, Pulse())
    for file, text in files.items():
        (model / file).write_text(text)
    config = {**CONFIG, "vocab_size": vocabulary(files)}
    (model / "config.json").write_text(json.dumps(config))
    shape = Shape.of(config)
    assert shape is not None
    with torch.random.fork_rng():
        torch.manual_seed(5)
        state = BertClassifier(shape, 2, 0.0).state_dict()
    body = {n.removeprefix("bert."): t.contiguous() for n, t in state.items() if not n.startswith("classifier.")}
    save_file(body, model / "model.safetensors", {"format": "pt"})
    return model


def small_folder(folder: Path, config: dict[str, object]) -> Path:
    """A folder with the tokenizer of `small_model` and this config.json, for a start from chance."""
    from trainer.data import tokens
    from trainer.data.pulse import Pulse

    model = folder / "other"
    model.mkdir(parents=True)
    for file, text in tokens.learn(TEXTS, Pulse()).items():
        (model / file).write_text(text)
    (model / "config.json").write_text(json.dumps(config))
    return model


def small_texts(folder: Path) -> Path:
    """The texts as a CSV, labelled by their first word."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "texts.csv"
    file.write_text("label,text\n" + "".join(f'{text.split()[0]},"{text}"\n' for text in TEXTS))
    return file
