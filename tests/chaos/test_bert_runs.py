"""The text job from end to end: interrupted within an epoch, and its result used by somebody else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bert_makers import small_model, small_texts
from tests.runs import Lab, command, environment

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
def place(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(a model's folder, texts packed by its tokenizer)"""
    folder = tmp_path_factory.mktemp("bert")
    model, source = small_model(folder), small_texts(folder)
    code, said = command(
        "data", "bert", "--source", str(source), "--model", str(model), "--out", str(folder / "packed")
    )
    assert code == 0, said
    return model, folder / "packed"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_killed_thrice_ends_with_the_same_bits_and_a_result_that_transformers_loads(
    tmp_path: Path, place: tuple[Path, Path], precision: str
) -> None:
    model, data = place
    options = ["--model", str(model), "--run", "texts", "--precision", precision, "--batch-size", "16", "--lr", "5e-3"]
    options += ["--micro-batch-size", "6", "--dropout", "0.1", "--epochs", "5", "--checkpoint-every", "5steps"]
    quiet, hunted = (Lab(tmp_path / name, data, *options) for name in ("quiet", "hunted"))
    container = quiet.start(job="bert")
    assert container.wait(600) == 0, container.text
    for number in (15, 9, 9):
        container = hunted.start(job="bert")
        container.wait_for("durable after", 300)
        container.signal(number)
        assert container.wait(600) in (75, -9), container.text
    container = hunted.start(job="bert")
    assert container.wait(600) == 0, container.text
    assert {m["attempt"] for m in hunted.manifests("texts")} == {1, 2, 3, 4}
    results = [json.loads((lab.store / "texts" / "result.json").read_bytes()) for lab in (quiet, hunted)]
    for name in ("weights_sha256", "state_sha256", "order_sha256", "metrics", "files"):
        assert results[0][name] == results[1][name], name
    metrics = results[0]["metrics"]
    assert metrics["accuracy"] > 0.4, "a third would be chance"
    assert sum(map(sum, metrics["confusion"])) == 36
    assert "taken for  bad  good  odd" in container.text
    if precision == "bf16":
        return  # transformers computes in fp32 here
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(hunted.store / "texts" / "result"), str(data / "packed.safetensors")],
        capture_output=True, text=True, check=False, env=environment(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "MISSING" not in done.stderr + done.stdout
    confusion, label, text = json.loads(done.stdout.splitlines()[-1])
    assert confusion == metrics["confusion"]
    assert text.split()[0] == label


def test_what_does_not_fit_stops_before_the_run_is_touched(tmp_path: Path, place: tuple[Path, Path]) -> None:
    model, data = place
    other = small_model(tmp_path)
    tokenizer = other / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace('"lowercase":true', '"lowercase":false'))
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in model.iterdir():
        if file.suffix == ".json":
            (bare / file.name).write_bytes(file.read_bytes())
    lab = Lab(tmp_path / "lab", data)
    for options, wanted in (
        (["--model", "bert-base-uncased"], "hf download bert-base-uncased"),
        (["--model", str(other)], "tokenized by another tokenizer"),
        (["--model", str(bare)], "weights are taken from safetensors files alone"),
        (["--model", "tiny"], "--weights none begins from chance"),
    ):
        container = lab.start(*options, job="bert")
        assert container.wait(600) == 78, container.text
        assert wanted in container.lines[-1]
        assert "Traceback" not in container.text
    assert not lab.store.exists() or not list(lab.store.iterdir())
