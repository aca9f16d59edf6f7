"""Asked-for weights are used or refused in a line, never replaced; and no unchecked pickle is opened."""

from __future__ import annotations

import hashlib
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.bert_makers import small_model
from trainer import weights
from trainer.exits import UserError

STATE = {"fc.weight": torch.arange(6.0).view(2, 3), "fc.bias": torch.ones(2)}


def nothing() -> None:
    pass


def pth(folder: Path, content: object = STATE) -> Path:
    """As torchvision publishes it: with the beginning of its SHA-256 in its name."""
    torch.save(content, folder / "raw")
    data = (folder / "raw").read_bytes()
    path = folder / f"net-{hashlib.sha256(data).hexdigest()[:8]}.pth"
    path.write_bytes(data)
    return path


def published(path: Path) -> weights.Published:
    return weights.Published("imagenet", "net", f"https://example.invalid/{path.name}")


def test_published_weights_are_kept_as_safetensors_and_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = pth(tmp_path)
    monkeypatch.setattr(weights, "BAKED", tmp_path / "kept")
    weights.get(published(path), str(path), weights.BAKED, nothing, lambda line: None)
    found = weights.find(published(path), nothing)
    assert all(found[name].equal(STATE[name]) for name in STATE)
    kept = tmp_path / "kept" / "net.safetensors"
    kept.write_bytes(kept.read_bytes()[:-1] + b"!")
    with pytest.raises(UserError, match="changed since"):
        weights.find(published(path), nothing)


def test_what_an_image_brings_along_is_whole_and_what_it_says_it_is(tmp_path: Path) -> None:
    model = small_model(tmp_path)
    weights.examine("bert", "model", tmp_path, nothing)
    tokenizer = (model / "tokenizer.json").read_bytes()
    (model / "tokenizer.json").write_text('{"model": []}')
    with pytest.raises(UserError, match=r"tokenizer\.json: no tokenizer that can be read"):
        weights.examine("bert", "model", tmp_path, nothing)
    (model / "tokenizer.json").write_bytes(tokenizer)
    whole = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(whole[:-1])
    with pytest.raises(UserError, match="no whole safetensors file"):
        weights.examine("bert", "model", tmp_path, nothing)
    save_file(STATE, tmp_path / "resnet18.safetensors", {"published": "resnet50-0676ba61.pth", "sha256": "0"})
    for model_, why in (
        ("resnet18", "changed since"),
        ("resnet34", "isn't there; get it: python entrypoint.py weights imagenet"),
    ):
        with pytest.raises(UserError, match=why):
            weights.examine("imagenet", model_, tmp_path, nothing)
    for said in (
        {},
        {"published": "resnet50-0676ba61.pth"},
        {"published": weights.published("imagenet", "resnet18").file},
    ):
        save_file(STATE, tmp_path / "resnet18.safetensors", said)
        with pytest.raises(UserError, match=r"resnet18\.safetensors: isn't resnet18-"):
            weights.examine("imagenet", "resnet18", tmp_path, nothing)
    with pytest.raises(UserError, match="nobody publishes weights"):
        weights.examine("mnist", "quick", tmp_path, nothing)
    with pytest.raises(UserError, match=r"hf download bert-base-uncased .* --local-dir weights/bert-base-uncased"):
        weights.published("bert", "")


@pytest.mark.parametrize(
    ("config", "warned"),
    [
        ('{"classes": ["owl", "newt"]}', False),
        ('{"classes": ["newt", "owl"]}', True),
        ('{"id2label": {"0": "cat", "1": "dog"}}', True),
        ('{"id2label": {"1": "newt", "0": "owl"}}', False),
        ('{"id2label": {"a": "newt", "b": "toad"}}', False),
        ('{"classes": 2}', False),
        ('{"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}', False),
        ('{"classes": ["owl", "newt", "toad"]}', False),  # its last layer is not taken
        ("[]", False),
        ("{", False),
        ("", False),
    ],
)
def test_weights_whose_classes_have_other_names_are_told_of(
    config: str, warned: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "config.json").write_text(config)
    weights.warn_of_other_classes(str(tmp_path), ("owl", "newt"), nothing)
    assert ("tell other classes apart than the data" in caplog.text) == warned


def test_missing_ones_name_the_command_that_gets_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "BAKED", tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"entrypoint\.py weights imagenet --model net") as caught:
        weights.find(weights.Published("imagenet", "net", "https://example.invalid/net-00000000.pth"), nothing)
    assert caught.value.code == 78


@pytest.mark.parametrize(
    ("path", "words"),
    [("/" + "x" * 300 + ".safetensors", "File name too long"), ("~none/net.safetensors", "no such home folder")],
)
def test_a_path_that_is_none_is_told(path: str, words: str, tmp_path: Path) -> None:
    some = published(tmp_path / "net-00000000.pth")
    for look in (
        lambda: weights.read(path, nothing),
        lambda: weights.beside(path, "config.json", nothing),
        lambda: weights.get(some, path, tmp_path, nothing, print),
    ):
        with pytest.raises(UserError, match=words):
            look()


def test_a_cache_that_may_not_be_looked_at_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "BAKED", tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ("x" * 300)))  # root may look everywhere
    with pytest.raises(UserError, match=r"can't read .*net\.safetensors: File name too long"):
        weights.find(published(tmp_path / "net-00000000.pth"), nothing)


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch /tmp/baton-evil",)


def test_a_pickle_is_opened_only_with_its_hash_and_makes_nothing_but_tensors(tmp_path: Path) -> None:
    unnamed = tmp_path / "net.pth"
    torch.save(STATE, unnamed)
    with pytest.raises(UserError, match="not opened"):
        weights.read(str(unnamed), nothing)
    cut = pth(tmp_path)
    cut.write_bytes(cut.read_bytes()[:-10])
    with pytest.raises(UserError, match="cut short"):
        weights.read(str(cut), nothing)
    with pytest.raises(UserError, match="no weights"):
        weights.read(str(pth(tmp_path, {"a": Evil()})), nothing)
    assert not Path("/tmp/baton-evil").exists()
    raw = pickle.dumps(Evil())
    bare = tmp_path / f"net-{hashlib.sha256(raw).hexdigest()[:8]}.pth"
    bare.write_bytes(raw)
    with pytest.raises(UserError, match="no weights"):
        weights.read(str(bare), nothing)
    assert not Path("/tmp/baton-evil").exists()


def test_a_file_or_a_folder_with_one_is_read_and_what_is_neither_is_told(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "model.safetensors")
    for path in (tmp_path, tmp_path / "model.safetensors"):
        assert weights.read(str(path), nothing).keys() == STATE.keys()
    (tmp_path / "bad.safetensors").write_bytes(b"x" * 50)
    for path, why in ((tmp_path / "bad.safetensors", "no whole safetensors"), (tmp_path / "gone", "isn't there")):
        with pytest.raises(UserError, match=why):
            weights.read(str(path), nothing)
    with pytest.raises(UserError, match="no finished run is there"):
        weights.read(f"file://{tmp_path}/run", nothing)
