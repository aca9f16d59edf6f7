"""Pretrained encoders: where they lie on this machine, by path or by name, and their weights. Nothing is fetched."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from trainer.data.dataset import shown
from trainer.data.paths import cache_folder, expanded, reading
from trainer.exits import UserError

BAKED_IN = Path(__file__).resolve().parent.parent / "weights"  # one folder for each name
WEIGHTS, TOKENIZER, TOKENIZER_CONFIG = "model.safetensors", "tokenizer.json", "tokenizer_config.json"
MAX_LENGTH = 512  # tokens of a text, the special ones included; what is longer is cut
FILES = ("config.json", WEIGHTS, TOKENIZER, TOKENIZER_CONFIG)  # make/image.sh takes the same into an image
# BERT's published miniatures (Turc et al., 2019, arXiv:1908.08962) and its base size, to be trained from chance:
# layers, width; a head for each 64
SIZES = {"tiny": (2, 128), "mini": (4, 256), "small": (4, 512), "base": (12, 768)}
# model types whose texts begin at the position after padding's token: so many fewer tokens fit
AFTER_PADDING = (
    "camembert", "data2vec-text", "esm", "ibert", "layoutlmv3", "lilt", "longformer", "luke", "markuplm", "mpnet",
    "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod",
)  # fmt: skip


def find(name: str) -> Path | None:
    """The folder of the model `name` (a folder, or a name as on the Hugging Face hub); None if it isn't here.

    By name it is looked for in weights/ beside the code, where images have theirs, then in the hub's own cache.
    """
    folders = [expanded(name), BAKED_IN / name]
    hub = Path(os.environ.get("HF_HUB_CACHE") or _huggingface() / "hub")
    # the cache's layout: https://huggingface.co/docs/huggingface_hub/guides/manage-cache
    cached = hub / ("models--" + name.replace("/", "--"))
    with suppress(OSError, ValueError):
        folders.append(cached / "snapshots" / (cached / "refs" / "main").read_text().strip())
    return next((folder for folder in folders if _is_file(folder / "config.json")), None)


def _huggingface() -> Path:
    return Path(os.environ.get("HF_HOME") or cache_folder() / "huggingface")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name too long, or with a NUL
        return False


def missing(name: str) -> UserError:
    """What to say of a model that isn't here."""
    if os.sep in name:
        folder = expanded(name)
        with reading(folder):
            # one that nobody may look at isn't known to be missing
            is_meant = (folder / "config.json").exists() or folder.is_dir() or name.startswith((".", os.sep, "~"))
        if is_meant:
            return UserError(
                f"--model {shown(name)}: no folder with a config.json; it wants {WEIGHTS} and {TOKENIZER} too"
            )
    return UserError(
        f"--model {shown(name)}: not on this machine, neither in weights/ nor in the Hugging Face cache. Get it: "
        f"{download(name)} (into an image: with --local-dir weights/{shown(name)}, then make image "
        f"WEIGHTS=bert:{shown(name)}), and pack the texts with its tokenizer: data bert --source FILE --model "
        f"{shown(name)}; or give --model FOLDER; or begin from chance: --preset scratch, or --model {'|'.join(SIZES)} "
        "--weights none"
    )


def download(name: str) -> str:
    """The command that gets the model `name`: all of its files that a run reads."""
    return f"hf download {shown(name)} {' '.join(FILES)}"


def described(model: str) -> tuple[dict[str, Any], Path | None]:
    """What --model means: (its configuration, its folder or None for a size). Raises `UserError`."""
    if model in SIZES:
        return _sized(*SIZES[model]), None
    folder = find(model)
    if folder is None:
        raise missing(model)
    return config_of(folder), folder


def _sized(layers: int, width: int) -> dict[str, Any]:
    return {
        "model_type": "bert",
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": width // 64,
        "intermediate_size": 4 * width,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "pad_token_id": 0,
    }


def vocabulary(files: Mapping[str, str]) -> int:
    """How many tokens a tokenizer knows."""
    described = json.loads(files[TOKENIZER])
    known = described["model"]["vocab"]
    ids = known.values() if isinstance(known, dict) else range(len(known))
    added = (entry["id"] for entry in described.get("added_tokens", ()))
    return 1 + max(max(ids), max(added, default=0))


def longest(files: Mapping[str, str], folder: Path | None) -> int:
    """Tokens of a text that the model with this tokenizer and folder can take."""
    limits: list[Any] = [MAX_LENGTH]
    with suppress(ValueError, AttributeError):
        limits.append(json.loads(files.get(TOKENIZER_CONFIG, "{}")).get("model_max_length"))
    if folder is not None:
        limits.append(longest_text(config_of(folder)))
    return min(limit for limit in limits if type(limit) is int and limit > 2)


def tokens(file: str) -> Any:
    """What decides which tokens a tokenizer.json makes of texts, to be compared; the text itself if it is no JSON."""
    try:
        described = json.loads(file)
    except (ValueError, RecursionError):
        return file
    skipped = ("version", "truncation", "padding")  # which whoever packs sets anew
    return {n: v for n, v in described.items() if n not in skipped} if isinstance(described, dict) else file


def config_of(folder: Path) -> dict[str, Any]:
    """Its config.json. Raises `UserError`."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as e:
        raise UserError(f"{shown(path)}: can't be read as JSON: {e}") from e
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise UserError(f"{shown(path)}: not the configuration of a transformers model: no model_type in it")
    return config


def count_in(config: Mapping[str, Any], name: str) -> int | None:
    """A whole number above 0 of a config.json; None where it has none. Raises `UserError`."""
    value = config.get(name)
    if value is not None and (type(value) is not int or value < 1):
        raise UserError(f"the model's config.json: {name} must be a whole number above 0, not {shown(repr(value)):.50}")
    return value


def longest_text(config: Mapping[str, Any]) -> int | None:
    """Tokens of a text that there are positions for; None where it says nothing. Raises `UserError`."""
    most = count_in(config, "max_position_embeddings")
    if most is None or config["model_type"] not in AFTER_PADDING:
        return most
    pad = config.get("pad_token_id", 0 if config["model_type"] == "markuplm" else 1)
    return most - pad - 1 if type(pad) is int and 0 <= pad < most else most


def weights_of(folder: Path) -> Path:
    """Its weights' file. Raises `UserError`."""
    file = folder / WEIGHTS
    with reading(file):
        if not file.is_file():
            raise UserError(
                f"{shown(folder)}: no {WEIGHTS} in it; weights are taken from safetensors files alone. Get it: hf "
                f"download NAME {WEIGHTS} --local-dir {shown(folder)}; or begin from chance: --weights none"
            )
    return file


def tokenizer_files(folder: Path) -> Mapping[str, str]:
    """Its tokenizer's files by name. Raises `UserError`."""
    files: dict[str, str] = {}
    for name in (TOKENIZER, TOKENIZER_CONFIG):
        path = folder / name
        try:
            if path.is_file():
                files[name] = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as e:
            raise UserError(f"{shown(path)}: can't be read: {e}") from e
    if TOKENIZER not in files:
        raise UserError(
            f'{shown(folder)}: no {TOKENIZER} in it; make one there: python -c "from transformers import '
            "AutoTokenizer; AutoTokenizer.from_pretrained('.').save_pretrained('.')\""
        )
    return files
