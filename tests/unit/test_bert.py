"""The text job's parts: its order, its padding, its network beside transformers' own, and its schedule."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tests.bert_makers import CONFIG, small_folder, small_model, small_texts
from tests.checkpoints import committed, history
from tests.runs import REPOSITORY, environment
from trainer import encoder_weights, order, pretrained
from trainer import job as jobs
from trainer.checkpoint import Position, restore, take
from trainer.data.pack import pack
from trainer.encoder import BertClassifier, Shape, attended
from trainer.exits import UserError
from trainer.job import Batch, Task
from trainer.jobs.bert import padded
from trainer.settings import Settings


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 1 << 62), st.integers(0, 50), st.integers(1, 400), st.integers(1, 40), st.integers(1, 9))
def test_an_order_by_length_holds_every_sample_once(seed: int, epoch: int, n: int, batch: int, pool: int) -> None:
    lengths = order.below(7, np.arange(n), 60) + 1
    found = order.by_length(seed, epoch, lengths, batch, pool)
    assert np.array_equal(np.sort(found), np.arange(n))
    assert np.array_equal(found, order.by_length(seed, epoch, lengths, batch, pool))
    left = n % batch
    assert np.array_equal(found[n - left :], order.permutation(seed, epoch, n)[n - left :])


def test_an_order_by_length_is_fixed_for_ever_pads_little_and_differs_by_epoch() -> None:
    lengths = order.below(7, np.arange(3200), 60) + 1
    found = order.by_length(0, 0, lengths, 32, 50)
    assert found[:6].tolist() == FIXED
    by_batch = lengths[found].reshape(-1, 32)
    assert by_batch.max(1).sum() * 32 < 1.06 * lengths.sum()
    assert not (np.diff(by_batch.mean(1)) > 0).all()
    assert not np.array_equal(found, order.by_length(0, 1, lengths, 32, 50))


FIXED = [2471, 1323, 724, 1297, 629, 543]


def test_padding_is_to_the_longest_and_every_token_is_in_its_place() -> None:
    tokens, offsets = np.arange(10, 20, dtype=np.uint16), np.array([0, 3, 4, 10])
    ids, real = padded(tokens, offsets, np.array([2, 0]), 0, 1)
    assert ids.tolist() == [[14, 15, 16, 17, 18, 19], [10, 11, 12, 0, 0, 0]]
    assert real.tolist() == [[True] * 6, [True] * 3 + [False] * 3]
    assert padded(tokens, offsets, np.array([1]), 9, 8)[0].tolist() == [[13] + 7 * [9]]
    assert padded(tokens, offsets, np.array([1]), 9, 8, most=5)[0].tolist() == [[13] + 4 * [9]]
    ids, real = padded(tokens, offsets, np.array([2, 0]), 0, 1, left=True)
    assert ids.tolist() == [[14, 15, 16, 17, 18, 19], [0, 0, 0, 10, 11, 12]]
    assert real.tolist() == [[True] * 6, [False] * 3 + [True] * 3]


def test_the_rate_goes_up_and_down_in_straight_lines_and_matrices_alone_decay(tmp_path: Path) -> None:
    model = str(small_model(tmp_path))
    data = pack("bert", str(small_texts(tmp_path)), tmp_path / "out", options={"model": model}, say=lambda line: None)
    settings = Settings.of({"model": model, "lr": 0.2, "weight_decay": 0.3, "batch_size": 8, "dropout": 0.1})
    task = jobs.load("bert").build(settings, data, torch.device("cpu"))
    rates = []
    for step in range(20):
        task.schedule(step, 20)
        rates += {group["lr"] for group in task.optimizers["adamw"].param_groups}
    assert rates == pytest.approx([0.1, 0.2, *np.linspace(0.2, 0, 19)[:-1]])
    decay = {id(p): g["weight_decay"] for g in task.optimizers["adamw"].param_groups for p in g["params"]}
    for name, parameter in task.model.named_parameters():
        assert decay[id(parameter)] == (0.0 if name.endswith("bias") or "LayerNorm" in name else 0.3), name


@pytest.mark.parametrize(
    ("key", "most", "said"),
    [
        (
            "max_position_embeddings",
            8,
            r"the longest text has \d+ tokens, too many for this model; pack the data again",
        ),
        ("vocab_size", 20, r"the texts' tokenizer knows \d+ tokens, too many for this model; pack the data"),
    ],
)
def test_texts_that_a_model_cannot_take_are_refused_with_the_command_that_packs_them(
    key: str, most: int, said: str, tmp_path: Path
) -> None:
    model = small_model(tmp_path)
    texts = str(small_texts(tmp_path))
    data = pack("bert", texts, tmp_path / "out", options={"model": str(model)}, say=lambda line: None)
    file = model / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), key: most}))
    with pytest.raises(UserError, match=said):
        jobs.load("bert").build(Settings.of({"model": str(model)}), data, torch.device("cpu"))


def built(folder: Path, config: dict[str, Any], **given: Any) -> Task:
    """The task on a network of this config.json from chance, and the small texts packed for it."""
    model = str(small_folder(folder, config))
    data = pack("bert", str(small_texts(folder)), folder / "out", options={"model": model}, say=lambda line: None)
    chosen = {"model": model, "weights": "none", "lr": 1e-3, "weight_decay": 0.01, "dropout": 0.1, "batch_size": 8}
    return jobs.load("bert").build(Settings.of({**chosen, **given}), data, torch.device("cpu"))


def bits(tensors: Iterable[torch.Tensor | None]) -> list[bytes]:
    return [b"" if t is None else t.detach().numpy().tobytes() for t in tensors]


SHAPED = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
XLM = {"emb_dim": 32, "n_layers": 2, "n_heads": 2, "pad_token_id": 0}
FAMILIES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("albert", "deberta", "deberta-v2", "electra", "mpnet", "rembert", "roberta", "big_bird"), SHAPED),
    "bert": {**SHAPED, "pad_token_id": 0},
    "longformer": {**SHAPED, "attention_window": 8},
    "xlnet": {"d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 64},
    "xlm": XLM,
}
POSITIONS = 18  # fewer than the longest text has tokens


TWO = {"id2label": {"0": "a", "1": "b"}}


def config_of(family: str) -> dict[str, Any]:
    limit = {} if family == "xlnet" else {"max_position_embeddings": POSITIONS}
    return {"model_type": family, **FAMILIES[family], **limit}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_of_encoders_is_trained_and_gives_the_same_gradients_twice(family: str, tmp_path: Path) -> None:
    """The longest texts too, and as many tokens of them as there are positions for."""
    task = built(tmp_path, config_of(family))
    lengths = np.diff(task.offsets["train"])  # type: ignore[attr-defined]
    after_padding = family in pretrained.AFTER_PADDING
    assert lengths.max() == (24 if family == "xlnet" else POSITIONS - 2 * after_padding)
    samples = np.array([lengths.argmax(), lengths.argmin(), 3, 4])
    begun = bits(task.model.parameters())
    for step in range(2):
        task.schedule(step, 2)
        found = []
        for _ in range(2):
            torch.manual_seed(step)
            task.model.zero_grad()
            task.loss(Batch(samples, 0, 0))[0].backward()
            found.append(bits(p.grad for p in task.model.parameters()))
        assert found[0] == found[1]
        task.update()
    assert bits(task.model.parameters()) != begun


def test_a_network_that_would_change_over_at_its_first_short_text_has_done_so_before() -> None:
    network, _ = encoder_weights.of_transformers({**config_of("big_bird"), "vocab_size": 90, **TWO}, 0.3)
    ids, found = torch.arange(5, 15)[None], []
    for _ in range(2):
        torch.manual_seed(0)
        network.zero_grad()
        network(input_ids=ids).logits.square().sum().backward()
        found.append(bits(p.grad for p in network.parameters()))
    assert found[0] == found[1]


@pytest.mark.parametrize("family", ["bert", "roberta", "deberta-v2", "xlnet"])
def test_a_text_beside_longer_ones_is_told_as_it_is_alone(family: str, tmp_path: Path) -> None:
    task: Any = built(tmp_path, config_of(family))
    task.model.eval()
    lengths = np.diff(task.offsets["test"])
    some = np.array([lengths.argmax(), lengths.argmin(), 1, 2])
    with torch.inference_mode():
        for parameter in task.model.parameters():
            parameter.mul_(10)  # of as small ones as chance gives all logits are nearly alike
        together = task.logits("test", some)
        alone = torch.cat([task.logits("test", some[i : i + 1]) for i in range(len(some))])
    assert (together - alone).abs().max() < 1e-3 * (alone[0] - alone[1]).abs().max()


def test_no_chance_and_no_training_mode_is_changed_by_the_look_at_the_longest_text(tmp_path: Path) -> None:
    class ByChance(torch.nn.Module):
        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            seen.append((list(input_ids.shape), self.training, torch.rand(1)))
            return input_ids

    seen: list[Any] = []
    task: Any = built(tmp_path, config_of("roberta"))
    before, task.model = torch.get_rng_state(), ByChance()
    task.begin("none", lambda: None)
    assert seen[0][:2] == ([1, POSITIONS - 2], False)
    assert torch.get_rng_state().equal(before)
    assert task.model.training


@pytest.mark.parametrize("share", [0.0, 0.3])
@pytest.mark.parametrize("family", ["roberta", "albert", "xlm"])
def test_dropout_is_what_is_asked_for_and_none_in_attention(family: str, share: float, tmp_path: Path) -> None:
    task = built(tmp_path, config_of(family), dropout=share)
    config: Any = task.model.config
    own = {name: value for name, value in config.to_dict().items() if "dropout" in name and value is not None}
    attention = {name for name in own if "attention" in name}
    assert attention
    assert {own[name] for name in attention} == {0.0}
    assert {value for name, value in own.items() if name not in attention} == {share}
    torch.manual_seed(0)
    twice = [task.loss(Batch(np.arange(8), 0, 0))[0].item() for _ in range(2)]
    assert (twice[0] == twice[1]) == (share == 0)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "3 heads of 32": ({"num_attention_heads": 3}, "its 3 num_attention_heads can't share a hidden_size of 32 evenly"),
    "no heads": ({"num_attention_heads": 0}, "num_attention_heads must be a whole number above 0, not 0"),
    "layers as text": ({"num_hidden_layers": "2"}, "num_hidden_layers must be a whole number above 0, not '2'"),
    "no width": ({"hidden_size": 0}, "hidden_size must be a whole number above 0, not 0"),
    "half a width": ({"hidden_size": 32.0}, "hidden_size must be a whole number above 0, not 32.0"),
    "no width at all": ({"hidden_size": None}, "lacks hidden_size"),
    "positions as text": ({"max_position_embeddings": "64"}, "max_position_embeddings must be a whole number above 0"),
    "epsilon as text": ({"layer_norm_eps": "1e-12"}, "layer_norm_eps must be a number"),
    "a pad out of reach": ({"pad_token_id": 99999}, "pad_token_id must be a token's number, from 0 to"),
    "a pad as text": ({"pad_token_id": "x"}, "pad_token_id must be a token's number, from 0 to"),
    "an activation of another kind": ({"hidden_act": ["gelu"]}, "model_type bert: "),
    "roberta of 3 heads": (
        {"model_type": "roberta", "num_attention_heads": 3},
        "model_type roberta: can't be built as",
    ),
    "roberta's layers as text": ({"model_type": "roberta", "num_hidden_layers": "2"}, "model_type roberta: "),
    "roberta's pad out of reach": ({"model_type": "roberta", "pad_token_id": 99999}, "model_type roberta: can't be bu"),
    "an encoder of pictures' places": ({"model_type": "lilt"}, "can't compute the texts, the longest of 24 tokens (R"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_configuration_that_does_not_fit_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    change, said = WRONG[name]
    model = small_folder(tmp_path, CONFIG)
    data = pack("bert", str(small_texts(tmp_path)), tmp_path / "out", options={"model": str(model)}, say=print)
    (model / "config.json").write_text(json.dumps({**CONFIG, **change}))
    settings = Settings.of({"model": str(model), "weights": "none", "dropout": 0.1, "lr": 1e-3, "weight_decay": 0.0})
    with pytest.raises(UserError, match=re.escape(said)) as told:
        jobs.load("bert").build(settings, data, torch.device("cpu")).begin("none", lambda: None)
    assert told.value.code == 78
    assert str(told.value).isprintable()


def test_a_classifier_alone_on_a_network_of_chance_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--freeze: a classifier on a network of chance learns little") as told:
        built(tmp_path, CONFIG, freeze=True)
    assert told.value.code == 64


@pytest.mark.parametrize("has_pooler", [True, False])
def test_of_a_frozen_network_only_a_pooler_that_began_by_chance_is_trained_after_a_stop_too(
    has_pooler: bool, tmp_path: Path
) -> None:
    model = small_model(tmp_path)
    file = model / "model.safetensors"
    save_file({n: t for n, t in load_file(file).items() if has_pooler or "pooler" not in n}, file)
    data = pack("bert", str(small_texts(tmp_path)), tmp_path / "out", options={"model": str(model)}, say=print)
    settings = Settings.of({"model": str(model), "freeze": True, "lr": 0.1, "batch_size": 8})
    run = history(tmp_path)

    def made() -> Task:
        torch.manual_seed(0)
        return jobs.load("bert").build(settings, data, torch.device("cpu"))

    def step(task: Task, number: int) -> None:
        task.schedule(number, 3)
        torch.manual_seed(number)
        task.loss(Batch(np.arange(8), 0, 0))[0].backward()
        task.update()

    whole = made()
    whole.begin("", lambda: None)
    begun = {name: tensor.clone() for name, tensor in whole.model.state_dict().items()}
    stopped = whole
    for number in range(3):
        save = committed(run, number + 1, number, None, take(stopped, Position(step=number)))
        stopped = made()
        restore(stopped, run.load(save.manifest))
        step(stopped, number)
        if number:
            step(whole, number)
        else:
            whole = made()
            whole.begin("", lambda: None)
            step(whole, number)
    after = stopped.model.state_dict()
    changed = {name for name in begun if not begun[name].equal(after[name])}
    layers = ["classifier"] if has_pooler else ["classifier", "bert.pooler.dense"]
    assert changed == {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}
    assert bits(after.values()) == bits(whole.model.state_dict().values())


@pytest.mark.parametrize("classes", [20, 21])
def test_of_more_than_20_classes_the_scores_are_told_without_their_table(classes: int, tmp_path: Path) -> None:
    texts = tmp_path / "texts.csv"
    texts.write_text("".join(f"{n % classes},good apple {n}\n" for n in range(5 * classes)))
    data = pack("bert", str(texts), tmp_path / "out", options={"model": ""}, say=lambda line: None)
    settings = Settings.of({"model": "tiny", "weights": "none", "lr": 1e-3, "batch_size": 8})
    task = jobs.load("bert").build(settings, data, torch.device("cpu"))
    with torch.inference_mode():
        sums = task.evaluate(slice(0, task.eval_size))
    told = task.metrics({name: value.double() for name, value in sums.items()})
    assert {"accuracy", "macro_f1", "loss"} <= told.keys()
    assert ("confusion" in told) == (classes == 20)


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_a_result_is_of_the_type_that_its_weights_are_saved_in(key: str, family: str, tmp_path: Path) -> None:
    task = built(tmp_path, {**config_of(family), key: "bfloat16"})
    config = task.result_config()
    assert {name: config[name] for name in ("dtype", "torch_dtype") if name in config} == {"dtype": "float32"}
    assert {tensor.dtype for tensor in task.model.parameters()} == {torch.float32}
    from transformers import AutoModelForSequenceClassification

    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(task.model.state_dict(), tmp_path / "model.safetensors", {"format": "pt"})
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert {tensor.dtype for tensor in theirs.parameters()} == {torch.float32}


def filled(folder: Path, labels: int) -> BertClassifier:
    shape = Shape.of(pretrained.config_of(folder))
    assert shape is not None
    model = BertClassifier(shape, labels, 0.0)
    encoder_weights.fill(model, "bert.", load_file(folder / "model.safetensors"), "it", labels)
    return model


def test_the_network_computes_what_transformers_computes(tmp_path: Path) -> None:
    """Logits and gradients, with padding; though of the last layer it computes the first token alone."""
    folder = small_model(tmp_path)
    mine, config = filled(folder, 3), pretrained.config_of(folder)
    theirs, _ = encoder_weights.of_transformers({**config, "id2label": {"0": "a", "1": "b", "2": "c"}}, 0.0)
    theirs.load_state_dict(mine.state_dict())
    theirs.eval()
    ids = torch.randint(0, 90, (4, 12), generator=torch.Generator().manual_seed(1))
    mask = torch.arange(12) < torch.tensor([[12], [3], [7], [1]])
    ours, other = mine(ids, mask), theirs(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(ours, other)
    for logits in (ours, other):
        logits.square().sum().backward()
    for (name, a), b in zip(mine.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name, rtol=1e-4, atol=1e-6)


def test_pretrained_weights_are_all_taken_and_only_the_classifier_begins_by_chance(tmp_path: Path) -> None:
    folder = small_model(tmp_path)
    saved, mine = load_file(folder / "model.safetensors"), filled(folder, 4).state_dict()
    assert {f"bert.{name}" for name in saved} == {name for name in mine if not name.startswith("classifier.")}
    assert all(torch.equal(tensor, mine[f"bert.{name}"]) for name, tensor in saved.items())
    assert mine["classifier.weight"].std() > 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"classifier.weight": torch.zeros(3, 32)}, "tells 3 classes apart, and the data has 4"),
        ({"embeddings.LayerNorm.bias": None}, "lacks bert.embeddings.LayerNorm.bias: another network's"),
        ({"pooler.dense.weight": torch.zeros(32, 16)}, "pooler.dense.weight is \\[32, 16\\], and the model's"),
    ],
)
def test_weights_that_do_not_fit_are_refused_in_one_line(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    folder = small_model(tmp_path)
    file = folder / "model.safetensors"
    save_file({n: t for n, t in {**load_file(file), **change}.items() if t is not None}, file)
    with pytest.raises(UserError, match=said) as told:
        filled(folder, 4)
    assert "\n" not in str(told.value)


def test_a_model_that_is_not_here_is_said_with_what_gets_it(tmp_path: Path) -> None:
    for model, said in (
        ("bert-base-uncased-of-mine", "hf download bert-base-uncased-of-mine config.json model.safetensors"),
        ("bert-base-uncased-of-mine", "then make image WEIGHTS=bert:bert-base-uncased-of-mine"),
        ("./no-such-folder", "no folder with a config.json"),
    ):
        with pytest.raises(UserError, match=said):
            pretrained.described(model)
    with pytest.raises(UserError, match="safetensors files alone"):
        pretrained.weights_of(tmp_path)


def test_a_model_in_the_hub_cache_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    cached = tmp_path / "models--org--name"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("abc\n")
    small_model(cached / "snapshots", "abc")
    assert pretrained.find("org/name") == cached / "snapshots" / "abc"
    assert pretrained.find("org/other") is None


def test_another_architecture_is_computed_by_transformers_and_fits_its_weights(tmp_path: Path) -> None:
    config = {"model_type": "distilbert", "dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64, "vocab_size": 90}
    config["id2label"] = {"0": "a", "1": "b"}
    assert Shape.of(config) is None
    torch.manual_seed(0)
    one, two = (encoder_weights.of_transformers(config, 0.1)[0] for _ in range(2))
    body = {n.removeprefix("distilbert."): t for n, t in one.state_dict().items() if n.startswith("distilbert.")}
    encoder_weights.fill(two, "distilbert.", body, "it", 2)
    assert all(torch.equal(two.state_dict()[f"distilbert.{name}"], tensor) for name, tensor in body.items())
    with pytest.raises(UserError, match="another network's weights"):
        encoder_weights.fill(two, "distilbert.", {"x": torch.zeros(1)}, "it", 2)
    with pytest.raises(UserError, match="model_type no-such-type"):
        encoder_weights.of_transformers({**config, "model_type": "no-such-type"}, 0.1)


ENCODER_DECODERS: dict[str, dict[str, Any]] = {
    "t5": {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "vocab_size": 90},
    "bart": {
        **dict.fromkeys(("encoder_layers", "decoder_layers"), 1), "d_model": 16, "vocab_size": 90,
        **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 2),
        **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim", "max_position_embeddings"), 32),
    },
}  # fmt: skip


@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_a_file_that_holds_a_tensor_of_several_names_once_is_whole(family: str, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModel

    config = {"model_type": family, **ENCODER_DECODERS[family], **TWO}
    AutoModel.from_config(AutoConfig.for_model(**ENCODER_DECODERS[family], model_type=family)).save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    network = encoder_weights.of_transformers(config, 0.0)[0]
    prefix = f"{network.base_model_prefix}."
    lacking = encoder_weights.fill(network, prefix, saved, "it", 2)
    assert lacking == {name for name in network.state_dict() if not name.startswith(prefix)}
    shared = network.state_dict()[f"{prefix}encoder.embed_tokens.weight"]
    assert "encoder.embed_tokens.weight" not in saved
    assert shared.equal(saved["shared.weight"])
    name = min(name for name in saved if name != "shared.weight")
    for gone in (name, "shared.weight"):
        with pytest.raises(UserError, match="another network's weights"):
            encoder_weights.fill(network, prefix, {n: t for n, t in saved.items() if n != gone}, "it", 2)


TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 16, "vocab_size": 90}


def test_padding_is_the_model_types_own_where_its_file_names_none_and_a_decoder_is_refused() -> None:
    assert encoder_weights.of_transformers({"model_type": "roberta", **TINY, **TWO}, 0.0)[1] == 1
    with pytest.raises(UserError, match=r"gpt2: its config.json has no pad_token_id"):
        encoder_weights.of_transformers({"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 1, **TWO}, 0.0)


def test_weights_of_another_tokenizer_are_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = small_model(tmp_path)
    texts = str(small_texts(tmp_path))
    data = pack("bert", texts, tmp_path / "out", options={"model": str(model)}, say=lambda line: None)
    settings = Settings.of({"model": str(model), "lr": 0.2, "weight_decay": 0.3, "batch_size": 8})
    task = jobs.load("bert").build(settings, data, torch.device("cpu"))
    other = small_model(tmp_path, "other")
    task.begin(str(other), lambda: None)
    file = other / "tokenizer.json"
    described = json.loads(file.read_text())
    file.write_text(json.dumps({**described, "truncation": None, "padding": None}, indent=1))
    task.begin(str(other / "model.safetensors"), lambda: None)
    first, second, *_ = words = sorted(described["model"]["vocab"], key=described["model"]["vocab"].get)
    described["model"]["vocab"] = {word: number for number, word in enumerate([second, first, *words[2:]])}
    file.write_text(json.dumps(described))
    for weights in (other, other / "model.safetensors"):
        with pytest.raises(UserError, match=r"theirs is another tokenizer than the texts'; pack the texts by that one"):
            task.begin(str(weights), lambda: None)
    assert all(record.levelno < logging.WARNING for record in caplog.records)
    file.unlink()
    task.begin(str(other), lambda: None)
    assert "no tokenizer.json beside them" in caplog.text


def test_neither_bert_nor_cifar10_imports_transformers_or_torchvision() -> None:
    code = (
        "import sys\nfrom trainer import run\nfrom trainer.startup import put_off_compiler\nput_off_compiler()\n"
        "import trainer.jobs.bert, trainer.jobs.cifar10, trainer.data.texts, trainer.data.tokens\n"
        "print([m for m in ('transformers', 'torchvision', 'torch._dynamo.utils') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, env=environment(), check=True
    )
    assert done.stdout == "[]\n", done.stdout


def test_the_tokenizer_that_goes_into_the_result_is_one_for_transformers(tmp_path: Path) -> None:
    from trainer.data import tokens
    from trainer.data.pulse import Pulse

    texts = ["The quick brown fox", "jumps over the lazy dog", "quick, quick!"] * 20
    files = tokens.learn(texts, Pulse())
    assert files == tokens.learn(texts, Pulse())
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(tmp_path)
    mine = tokens.loaded(files, "x").encode("The lazy QUICK dog?").ids
    assert theirs("The lazy QUICK dog?")["input_ids"] == mine
    assert theirs.model_max_length == 512
    assert pretrained.vocabulary(files) == len(theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", [64, 200, 300])
@pytest.mark.parametrize("asking", [1, None])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_the_same_fused_or_not(dtype: torch.dtype, length: int, asking: int | None, masked: bool) -> None:
    torch.manual_seed(0)
    shape = (2, 3, length, 24)
    query, key, value = (torch.randn(shape).to(dtype) for _ in range(3))
    query = query[:, :, :asking]
    mask = (torch.arange(length) < torch.tensor([[length], [length // 2]]))[:, None, None] if masked else None
    weights = torch.randn(query.shape)

    def computed(how: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> list[torch.Tensor]:
        leaves = [x.clone().requires_grad_() for x in inputs]
        out = how(*leaves, mask)
        (out.float() * weights).sum().backward()
        return [out.detach().float(), *(leaf.grad.float() for leaf in leaves if leaf.grad is not None)]

    exact = computed(F.scaled_dot_product_attention, query.double(), key.double(), value.double())
    tolerance = 1e-5 if dtype == torch.float32 else 0.03
    for mine, theirs in zip(computed(attended, query, key, value), exact, strict=True):
        assert (mine - theirs).abs().max() < tolerance * theirs.abs().max()
