"""The text job: its result used by somebody else, and what does not fit refused."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file

from tests.bert_makers import small_model
from tests.jobs import SHORT, options_for, packed
from tests.runs import Lab, environment
from trainer.pretrained import tokenizer_files, vocabulary

LOAD = """
import json, os, sys
os.environ["HF_HUB_OFFLINE"] = "1"
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer
folder, data = sys.argv[1:]
model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
packed = load_file(data)
tokens, offsets, labels = (packed[f"test_{name}"] for name in ("tokens", "offsets", "labels"))
confusion = [[0] * 3 for _ in range(3)]
with torch.no_grad():
    for begin, end, label in zip(offsets[:-1].tolist(), offsets[1:].tolist(), labels.tolist()):
        ids = torch.tensor(tokens[begin:end].tolist())
        confusion[label][int(model(input_ids=ids[None]).logits.argmax())] += 1
text = AutoTokenizer.from_pretrained(folder).decode(tokens[: offsets[1]].tolist(), skip_special_tokens=True)
print(json.dumps([confusion, model.config.id2label[int(labels[0])], text]))
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts, packed by the tokenizer of the model that lies beside."""
    return packed("bert", tmp_path_factory.mktemp("bert"))


def test_a_result_is_what_transformers_loads(tmp_path: Path, data: Path) -> None:
    lab = Lab(
        tmp_path, data, *options_for("bert", data), "--precision", "fp32", job="bert"
    )  # as transformers computes here
    container = lab.start()
    assert container.wait(600) == 0, container.text
    result = lab.store / "bert" / "result"
    metrics = json.loads(result.with_suffix(".json").read_bytes())["metrics"]
    assert metrics["accuracy"] > 0.4, "a third would be chance"
    assert sum(map(sum, metrics["confusion"])) == 36
    with safe_open(result / "model.safetensors", "pt") as file:
        assert file.metadata()["format"] == "pt", "without it older transformers take no such file"
    assert "truth | taken for  bad  good  odd" in container.text
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(result), str(data / "packed.safetensors")],
        capture_output=True, text=True, check=False, env=environment(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "MISSING" not in done.stderr + done.stdout
    confusion, label, text = json.loads(done.stdout.splitlines()[-1])
    assert confusion == metrics["confusion"]
    assert text.split()[0] == label


DISTILBERT = {
    "model_type": "distilbert", "dim": 128, "n_layers": 2, "n_heads": 2, "hidden_dim": 512,
    "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip


def test_another_encoder_begins_with_the_result_of_a_run_and_sends_once_what_is_frozen(
    tmp_path: Path, data: Path
) -> None:
    model = tmp_path / "distilbert"
    model.mkdir()
    files = tokenizer_files(data.parent / "model")
    for name, text in files.items():
        (model / name).write_text(text)
    (model / "config.json").write_text(json.dumps({**DISTILBERT, "vocab_size": vocabulary(files)}))
    options = ["--model", str(model), "--batch-size", "16", "--lr", "5e-3"]
    states, lab = [], Lab(tmp_path, data, *options, job="bert")
    for more in (
        ["--run", "first", "--weights", "none", "--steps", "2"],
        ["--run", "second", "--weights", f"{lab.url}/first", "--freeze", "--steps", "9", *SHORT],
    ):
        container = lab.start(*more)
        assert container.wait(600) == 0, container.text
        states.append(load_file(lab.store / more[1] / "result" / "model.safetensors"))
    assert f"weights: {lab.url}/first, the classifier's too" in container.text
    before, after = states
    changed = {name for name in before if not before[name].equal(after[name])}
    assert changed == {f"{layer}.{kind}" for layer in ("pre_classifier", "classifier") for kind in ("weight", "bias")}
    first, *others = map(float, re.findall(r"durable after .* s, ([\d.]+) MB sent", container.text))
    assert first > sum(before[name].nbytes for name in before.keys() - changed) / 1e6
    # the classifier, and AdamW's two means of it
    assert others
    assert max(others) < 3 * sum(before[name].nbytes for name in changed) / 1e6 + 0.1


def test_a_run_that_goes_on_has_its_checkpoint_and_wants_its_weights_no_more(tmp_path: Path, data: Path) -> None:
    model = shutil.copytree(data.parent / "model", tmp_path / "model")
    lab = Lab(tmp_path, data, "--model", str(model), "--batch-size", "16", "--epochs", "500", *SHORT, job="bert")
    for line in ("durable after", "attempt 2 goes on at step"):
        container = lab.start()
        assert container.wait_for(line) is not None, container.text
        container.signal(signal.SIGTERM)
        assert container.wait() == 75, container.text
        (model / "model.safetensors").unlink(missing_ok=True)
    # weights of the same shapes in another network
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "num_attention_heads": 1}))
    container = lab.start()
    assert container.wait() == 78, container.text
    assert re.search(r"other settings \(network_sha256 \S+ -> \S+\): .* --allow-change network_sha256 ", container.text)
    (model / "config.json").write_text(json.dumps({**config, "transformers_version": "9.9.9"}))
    container = lab.start()
    assert container.wait_for("attempt 3 goes on at step") is not None, container.text
    container.signal(signal.SIGTERM)
    assert container.wait() == 75, container.text


def test_what_does_not_fit_stops_before_the_run_is_touched(tmp_path: Path, data: Path) -> None:
    model = data.parent / "model"
    other = small_model(tmp_path)
    tokenizer = other / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace('"lowercase":true', '"lowercase":false'))
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in model.iterdir():
        if file.suffix == ".json":
            (bare / file.name).write_bytes(file.read_bytes())
    lab = Lab(tmp_path / "lab", data, job="bert")
    for options, wanted in (
        (["--model", "bert-base-uncased"], "data bert --source FILE --model bert-base-uncased;"),
        (["--model", str(other)], "tokenized by another tokenizer"),
        (["--model", str(bare)], "weights are taken from safetensors files alone"),
        (["--model", "tiny"], "--weights none begins from chance"),
    ):
        container = lab.start(*options)
        assert container.wait(600) == 78, container.text
        assert wanted in container.lines[-1]
        assert "Traceback" not in container.text
    assert not lab.store.exists() or not list(lab.store.iterdir())
