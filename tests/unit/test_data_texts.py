"""Texts in, one packed file out: the same for the same rows in any order; and each mistake is one line that helps."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.bert_makers import TEXTS, small_model, small_texts
from trainer.data import texts, tokens
from trainer.data.pack import locate, pack
from trainer.data.packed import FILE_NAME, Packed
from trainer.data.pulse import Pulse
from trainer.exits import UserError


class Told(Exception):
    pass


AG = "".join(f'"{1 + i % 4}","Title {i}","Words of it, with a ""quote"""\n' for i in range(60))


def packed(folder: Path, source: Path | str, said: list[str] | None = None, model: str = "") -> Packed:
    lines: list[str] = [] if said is None else said
    return pack("bert", str(source), folder, options={"model": model}, say=lines.append)


def file(folder: Path, content: str | bytes, name: str = "texts.csv") -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def text_of(data: Packed, part: str, number: int) -> str:
    files = json.loads(bytes(data.arrays["tokenizer"]))
    offsets = data.arrays[f"{part}_offsets"]
    ids = data.arrays[f"{part}_tokens"][offsets[number] : offsets[number + 1]].tolist()
    return str(tokens.loaded(files, "").decode(ids))


def test_rows_in_any_order_and_either_format_give_the_same_bytes(tmp_path: Path) -> None:
    source = small_texts(tmp_path)
    first = packed(tmp_path / "a", source)
    rows = [dict(zip(("label", "text"), (text.split()[0], text), strict=True)) for text in reversed(TEXTS)]
    lines = file(tmp_path, "\ufeff" + "".join(json.dumps(row) + "\n\n" for row in rows), "x.jsonl")
    second = packed(tmp_path / "b", lines)
    assert first.sha256 == second.sha256
    assert first.classes == ("bad", "good", "odd")
    assert (len(first.arrays["train_labels"]), len(first.arrays["test_labels"])) == (144, 36)
    for part in ("train", "test"):
        for number in range(5):
            assert text_of(first, part, number).split()[0] == first.classes[first.arrays[f"{part}_labels"][number]]


def test_ag_news_is_known_by_its_layout_with_or_without_a_byte_order_mark(tmp_path: Path) -> None:
    plain = packed(tmp_path / "a", file(tmp_path, AG))
    marked = packed(tmp_path / "b", file(tmp_path, b"\xef\xbb\xbf" + AG.encode(), "marked.csv"))
    assert plain.classes == ("World", "Sports", "Business", "Sci/Tech")
    assert plain.sha256 == marked.sha256
    assert text_of(plain, "train", 0).startswith("title")


@pytest.mark.parametrize("header", ["Class Index,Title,Description", '"class index", TITLE ,description'])
def test_ag_news_is_known_by_the_header_of_its_copies_too(header: str, tmp_path: Path) -> None:
    plain = packed(tmp_path / "a", file(tmp_path, AG))
    headed = packed(tmp_path / "b", file(tmp_path, f"{header}\n{AG}", "headed.csv"))
    assert (headed.classes, headed.sha256) == (plain.classes, plain.sha256)


OTHERS = {
    "two columns": "".join(f"{1 + i % 4},Stars given for {i}\n" for i in range(60)),
    "another header": "label,text\n" + "".join(f"{1 + i % 4},Stars given for {i}\n" for i in range(60)),
    "JSON lines": "".join(json.dumps({"label": 1 + i % 4, "text": f"Stars given for {i}"}) + "\n" for i in range(60)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_labels_from_1_to_4_of_another_layout_are_no_news(name: str, tmp_path: Path) -> None:
    assert packed(tmp_path / "a", file(tmp_path, OTHERS[name])).classes == ("1", "2", "3", "4")


def test_labels_that_are_numbers_lie_by_their_value_and_one_of_any_length_is_taken(tmp_path: Path) -> None:
    labels = ["10", "9", "-1", "1" * 5000]
    rows = "".join(f"{labels[i % 4]},text {i}\n" for i in range(40))
    assert set(packed(tmp_path / "a", file(tmp_path, rows)).classes) == set(labels)
    rows = "".join(f"{labels[i % 3]},text {i}\n" for i in range(40))
    assert packed(tmp_path / "a", file(tmp_path, rows)).classes == ("-1", "9", "10")


def test_a_header_of_other_names_is_no_class_though_both_parts_have_it(tmp_path: Path) -> None:
    source = tmp_path / "two"
    rows = "a,one\nb,two\na,three\nb,four\n"
    file(source, "topic,body\n" + rows, "train.csv")
    file(source, "topic,body\n" + rows, "test.csv")
    with pytest.raises(UserError, match=r"^train.csv: its first line names no `label` and `text`, and .* topic: if"):
        packed(tmp_path / "out", source)
    file(source, "topic,of its own\n" + rows, "train.csv")
    assert packed(tmp_path / "out", source).classes == ("a", "b", "topic"), "a class of one text is one, if they differ"
    file(source, "a,in both\n" + rows, "train.csv")
    file(source, "a,in both\n" + rows, "test.csv")
    assert packed(tmp_path / "out", source).classes == ("a", "b"), "and a text in both is no header, if it isn't alone"


def test_a_folder_has_its_own_parts(tmp_path: Path) -> None:
    source = tmp_path / "two"
    file(source, "a,one\nb,two\na,three\n", "train.csv")
    file(source, "a,four\nb,five\n", "val.csv")
    data = packed(tmp_path / "out", source)
    assert [len(data.arrays[f"{part}_labels"]) for part in ("train", "test")] == [3, 2]


def test_it_is_packed_once_and_found_again_by_a_training_run(tmp_path: Path) -> None:
    source, said = small_texts(tmp_path), list[str]()
    first = packed(tmp_path / "a", source, said)
    before = first.path.stat().st_mtime_ns
    packed(tmp_path / "a", source, said)
    assert "already packed" in said[-1]
    assert first.path.stat().st_mtime_ns == before
    packed(tmp_path / "a", source, said, model=str(small_model(tmp_path)))
    assert "by the tokenizer of model" in said[-1]
    for _ in range(2):
        found = locate("bert", str(source), tmp_path, cache=tmp_path / "cache", say=said.append)
    assert found.sha256 == first.sha256
    assert "already packed" in said[-1]


def test_the_same_rows_parted_elsewhere_are_packed_anew(tmp_path: Path) -> None:
    source, said = tmp_path / "two", list[str]()
    for first, second in (
        ("a,one\nb,two\na,three\n", "b,four\na,five\n"),
        ("a,one\nb,two\n", "a,three\nb,four\na,five\n"),
    ):
        file(source, first, "train.csv")
        file(source, second, "test.csv")
        data = packed(tmp_path / "out", source, said)
    assert [len(data.arrays[f"{part}_labels"]) for part in ("train", "test")] == [2, 3]
    assert not any("already packed" in line for line in said)


def test_a_stop_in_the_midst_leaves_what_was_there(tmp_path: Path) -> None:
    source, left = small_texts(tmp_path), 0
    held = packed(tmp_path / "a", file(tmp_path, AG, "other.csv")).path.read_bytes()

    def check() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise Told

    for looks in range(6):
        left = looks
        with pytest.raises(Told):
            pack("bert", str(source), tmp_path / "a", check=check, say=lambda line: None)
        assert (tmp_path / "a" / FILE_NAME).read_bytes() == held
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [FILE_NAME]


def test_a_text_of_fifty_thousand_words_is_cut_and_an_empty_one_left_out_and_both_are_said(tmp_path: Path) -> None:
    rows = "".join(f"{'ab'[i % 2]},text {i}\n" for i in range(40))
    said: list[str] = []
    data = packed(tmp_path / "a", file(tmp_path, rows + "a,\nb,  \na," + "word " * 50_000 + "\n"), said)
    assert any("2 rows without a text left out, the first in line 41" in line for line in said)
    assert any("longer than 512 tokens: cut to their beginning" in line for line in said)
    assert max(int(np.diff(data.arrays[f"{part}_offsets"]).max()) for part in ("train", "test")) == 512
    assert sum(len(data.arrays[f"{part}_labels"]) for part in ("train", "test")) == 41


LONG = " ".join(f"word{i % 977}" for i in range(150_000))  # which takes native code a second, and a busy machine more


def test_a_stop_is_heard_while_native_code_learns_a_vocabulary_from_a_long_text() -> None:
    looks = 0

    def check() -> None:
        nonlocal looks
        looks += 1
        if looks > 1:  # the text's own beat is one, before it goes in
            raise Told

    with pytest.raises(Told):
        tokens.learn([LONG], Pulse(check))


def test_a_stop_is_heard_while_native_code_tokenizes_a_long_text() -> None:
    within = False
    tokenizer = tokens.loaded(tokens.learn(["some words", "and others"], Pulse()), "")

    class Watched:
        """The tokenizer itself, and whether it is at work."""

        enable_truncation = tokenizer.enable_truncation

        def encode_batch(self, texts: list[str]) -> list[Any]:
            nonlocal within
            within = True
            found = tokenizer.encode_batch(texts)
            within = False
            return found

    def check() -> None:
        if within:
            raise Told

    with pytest.raises(Told):
        tokens.encoded(Watched(), [LONG], 512, Pulse(check), "train")


def test_texts_are_cut_to_what_the_model_takes(tmp_path: Path) -> None:
    rows, said = "".join(f"{'ab'[i % 2]},good apple {i}\n" for i in range(40)), list[str]()
    source = file(tmp_path, rows + "a," + "good apple " * 60 + "\n")
    data = packed(tmp_path / "a", source, said, model=str(small_model(tmp_path)))
    assert any("longer than 64 tokens: cut" in line for line in said)
    assert max(int(np.diff(data.arrays[f"{part}_offsets"]).max()) for part in ("train", "test")) == 64


@pytest.mark.parametrize("stand_in", [False, True])
@pytest.mark.parametrize(("first", "then"), [(64, 16), (16, 64)])
def test_texts_packed_for_a_model_are_packed_anew_for_one_that_takes_others_by_the_same_tokenizer(
    first: int, then: int, stand_in: bool, tmp_path: Path
) -> None:
    model, said = small_model(tmp_path), list[str]()
    source = (
        "synthetic" if stand_in else file(tmp_path, "".join(f"{'ab'[i % 2]},{'good ' * 80}{i}\n" for i in range(40)))
    )
    for most in (first, then):
        config = model / "config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), "max_position_embeddings": most}))
        data = packed(tmp_path / "a", source, said, model=str(model))
        assert int(np.diff(data.arrays["train_offsets"]).max()) == most
    packed(tmp_path / "a", source, said, model=str(model))
    assert "already packed" in said[-1]


@pytest.mark.parametrize("where", ["vocabulary", "template"])
def test_ids_that_two_bytes_cant_hold_are_kept_though_they_be_few(where: str, tmp_path: Path) -> None:
    """A vocabulary may have gaps, and what a template puts around a text may be none of it."""
    model = small_model(tmp_path)
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    if where == "vocabulary":
        tokenizer["model"]["vocab"]["apple"] = 70_000
    else:
        tokenizer["post_processor"]["special_tokens"]["[SEP]"]["ids"] = [70_000]
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    data = packed(tmp_path / "a", small_texts(tmp_path), model=str(model))
    assert data.arrays["train_tokens"].max() == data.arrays["test_tokens"].max() == 70_000


def test_every_class_has_a_text_in_both_parts_and_the_others_lie_by_their_hashes(tmp_path: Path) -> None:
    rare = "".join(f"rare {i % 20},text {i}\n" for i in range(40))
    rows = "".join(f"{'ab'[i % 2]},another {i}\n" for i in range(60)) + rare
    data = packed(tmp_path / "a", file(tmp_path, rows))
    train, test = (np.bincount(data.arrays[f"{part}_labels"], minlength=22) for part in ("train", "test"))
    assert train.sum() + test.sum() == 100
    assert (train[2:] == 1).all()
    assert (test[2:] == 1).all()
    digests = [hashlib.sha256(f"another {i}".encode()).digest() for i in range(60)]
    held = [i % 2 for i in sorted(range(60), key=lambda i: digests[i])][: test[:2].sum()]
    assert test[:2].tolist() == [held.count(0), held.count(1)]


def parts_of(rows: str, folder: Path) -> list[list[tuple[str, str]]]:
    """(label, text) of those for training, and of those for evaluation."""
    found = texts.read([file(folder, rows)], Pulse())
    return [[(row.label, row.text) for row in part] for part in (found.train, found.test)]


@pytest.mark.parametrize("copies", [2, 3, 7])
def test_rows_of_one_text_lie_in_one_part_and_each_class_in_both(copies: int, tmp_path: Path) -> None:
    """Of the same text under two labels too, and where a rare class has nothing else."""
    rows = [f"{'ab'[i % 2]},text {i // copies}" for i in range(210)] + ["rare,x"] * copies + ["rare,y"] * 2
    both = parts_of("\n".join(rows), tmp_path)
    train, test = ({text for _, text in part} for part in both)
    assert not train & test
    assert train | test == {f"text {i // copies}" for i in range(210)} | {"x", "y"}
    assert sorted(both[0] + both[1]) == sorted(tuple(row.split(",")) for row in rows)
    assert all({label for label, _ in part} == {"a", "b", "rare"} for part in both)
    assert 30 <= len(both[1]) <= len(rows) // 5 + copies


def test_a_text_of_two_classes_takes_no_class_its_only_other_one(tmp_path: Path) -> None:
    """Whichever of these classes come first, each has a text in both parts, for that can be."""
    for number in range(200):
        rows = [f"z,text {number} {i}" for i in range(30)]
        rows += [f"a,own {number}", f"a,shared {number}", f"b,shared {number}", *[f"b,other {number}"] * 2]
        for part in parts_of("\n".join(rows), tmp_path):
            assert {label for label, _ in part} == {"a", "b", "z"}


def test_a_class_of_copies_of_one_text_is_refused(tmp_path: Path) -> None:
    rows = "".join(f"{'ab'[i % 2]},text {i}\n" for i in range(40)) + "c,x\n" * 3
    with pytest.raises(UserError, match=r"no text of class c is left for t\w+ \(.*\): a class needs more texts, which"):
        parts_of(rows, tmp_path)


def bare(model: Path) -> str:
    """The model, with a tokenizer that puts nothing around a text and drops characters of no width."""
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    (model / "tokenizer.json").write_text(json.dumps({**tokenizer, "post_processor": None}))
    return str(model)


def test_a_text_of_no_tokens_is_left_out_as_an_empty_one(tmp_path: Path) -> None:
    rows, said = "".join(f"{'ab'[i % 2]},good apple {i}\n" for i in range(40)), list[str]()
    none = "".join(f"a,{chr(0x200B) * n}\n" for n in range(1, 31))
    model = bare(small_model(tmp_path))
    data = packed(tmp_path / "a", file(tmp_path, rows + none), said, model)
    counts = [len(data.arrays[f"{part}_labels"]) for part in ("train", "test")]
    assert sum(counts) == 40
    for part, count in zip(("train", "test"), counts, strict=True):
        assert np.diff(data.arrays[f"{part}_offsets"]).min() > 0
        assert len(data.arrays[f"{part}_offsets"]) == count + 1
        assert data.arrays[f"{part}_offsets"][-1] == len(data.arrays[f"{part}_tokens"])
        assert all(text_of(data, part, number).startswith("good apple") for number in range(count))
    left_out = [
        re.fullmatch(r"texts for \w+: (\d+) rows without a text left out, the first in line \d+", s) for s in said
    ]
    assert sum(int(match[1]) for match in left_out if match) == 30
    with pytest.raises(
        UserError, match=r"no text of class c is left for t\w+: the tokenizer of model makes no tokens of any"
    ):
        packed(tmp_path / "b", file(tmp_path, rows + "c,\u200b\nc,\u200b\u200b\n"), model=model)


MISTAKES: dict[str, tuple[str | bytes, str]] = {
    "no rows": ("", "no rows in it"),
    "all empty": ("a,\nb,\n", "all 2 rows are without a text"),
    "no text column": ("label,words\na,b\n", "lacks a column for the text: its first line is label, words"),
    "no label column": ("text,stars\na,1\n", "lacks a column for the label"),
    "one column": ("hello\nworld\n", "lacks a column for the label"),
    "no label": ("label,text\na,x\n,y\n", "line 3: has no label"),
    "one class": ("a,x\na,y\n", "every label is a"),
    "stray comma": ("a,x\nb,y,z\n", "line 2: 3 columns, the lines before have 2"),
    "open quote": ('a,x\nb,"y\n', "not CSV"),
    "latin-1": ("a,x\nb,caf\u00e9\n".encode("latin-1"), "line 2: not UTF-8 (byte 0xe9)"),
    "utf-16": ("a,x\n".encode("utf-16"), "is UTF-16; convert it"),
    "binary": (b"a\0b,c\n", "not a text file"),
    "bad json": ('{"label": 1, "text": "x"}\n{"label"\n', "line 2: not JSON"),
    "json without a text": ('{"label": 1, "txt": "x"}\n', "line 1: lacks text"),
    "a label of another kind": ('{"label": 1.5, "text": "x"}\n', "the label must be a whole number or a text"),
    "half a character": (
        '{"label": 1, "text": "x"}\n{"label": 2, "text": "x \\ud83d"}\n',
        r"line 2: '\ud83d' is half a character",
    ),
    "a JSON array": ('[\n {"label": 1, "text": "x"}\n]\n', "is one JSON array; one object a line is wanted: jq -c"),
    "tabs": ("label\ttext\na\tx\n", r"'label\ttext', with tabs where commas are wanted"),
    "too many labels": ("".join(f"label {i},x\n" for i in range(300)), "300 different labels"),
    "a header of other names": (
        "topic,body\n" + "".join(f"{'ab'[i % 2]},x {i}\n" for i in range(20)),
        "its first line names no `label` and `text`, and no other has its label, topic",
    ),
    "a class of one text": (
        "".join(f"{'ab'[i % 2]},x {i}\n" for i in range(20)) + "c,x\n",
        "no text of class c is left",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_changes_nothing(tmp_path: Path, name: str) -> None:
    content, wanted = MISTAKES[name]
    source = file(tmp_path, content)
    with pytest.raises(UserError) as told:
        packed(tmp_path / "out", source)
    assert wanted in str(told.value)
    assert "\n" not in str(told.value)
    assert not (tmp_path / "out" / FILE_NAME).exists()


def test_labels_too_long_for_a_header_are_told_and_leave_what_was_packed(tmp_path: Path) -> None:
    before = packed(tmp_path / "out", small_texts(tmp_path)).path.read_bytes()
    rows = "".join(f"{i % 200:03}{'x' * 6000},text {i}\n" for i in range(1200))
    with pytest.raises(UserError, match=r"^the names of 200 classes are too long together; shorten the labels$"):
        packed(tmp_path / "out", file(tmp_path, rows, "long.csv"))
    assert (tmp_path / "out" / FILE_NAME).read_bytes() == before


def test_an_unknown_label_names_its_line_and_the_nearest(tmp_path: Path) -> None:
    source = tmp_path / "two"
    file(source, "sports,one\nworld,two\n", "train.csv")
    file(source, "sports,four\nsprots,five\nworld,six\n", "test.csv")
    with pytest.raises(UserError, match=r"test.csv, line 2: unknown label sprots; did you mean sports\?"):
        packed(tmp_path / "out", source)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (lambda folder: folder / "none.csv", "no such file or folder; accepted are a CSV"),
        (lambda folder: folder, "no train.csv in it"),
        (lambda folder: "gs://bucket/x.csv", "no source that can be read here"),
    ],
)
def test_a_source_that_is_none_says_what_is(tmp_path: Path, source: Callable[[Path], object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        packed(tmp_path / "out", str(source(tmp_path)))


def test_a_model_that_is_not_here_stops_packing_with_the_command_that_gets_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="hf download no-such-model"):
        packed(tmp_path / "out", small_texts(tmp_path), model="no-such-model")


def test_the_stand_in_says_that_it_is_one(tmp_path: Path) -> None:
    assert packed(tmp_path, "synthetic").synthetic


def test_who_has_nothing_packed_is_told_how_with_a_model_and_without(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"--model MODEL \(no --model for --preset scratch\), or start with --data FILE"
    ):
        locate("bert", None, tmp_path, say=lambda line: None)
