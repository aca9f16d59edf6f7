"""The official archives: opened only by their checksum, and no pickle ever runs anything."""

from __future__ import annotations

import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.unit.data_makers import (
    SMALL,
    batches,
    binary_archive,
    binary_batch,
    laid_out,
    md5,
    pickled,
    python_archive,
    python_batch,
    small_splits,
    tar,
    tree,
)
from trainer.data.dataset import Archive, Dataset
from trainer.data.pack import pack
from trainer.data.packed import ALIGNMENT, Packed
from trainer.exits import UserError


def packed(dataset: Dataset, source: Path, folder: Path) -> Packed:
    return pack(dataset, str(source), folder, say=lambda line: None)


def test_the_same_pictures_give_the_same_bytes_from_every_source(tmp_path: Path) -> None:
    splits = small_splits()
    python, dataset = python_archive(tmp_path, splits)
    binary, dataset = binary_archive(tmp_path, splits, dataset)
    sources = {
        "python": python,
        "binary": binary,
        "binary-folder": laid_out(
            tmp_path / "x", {f"batches/{n}.bin": binary_batch(s) for n, s in batches(SMALL, splits).items()}
        ),
        "folder": laid_out(tmp_path / "folder", tree(splits)),
        "other names": laid_out(tmp_path / "other", tree(splits, test="val", names="z{:x}_picture.PNG")),
        "tar": tar(tmp_path / "tree.tar.xz", tree(splits, top="./wrapped/"), "w:xz"),
    }
    results = [packed(dataset, source, tmp_path / "out" / name) for name, source in sources.items()]
    assert len({p.sha256 for p in results}) == 1
    assert len({p.path.read_bytes()[ALIGNMENT:] for p in results}) == 1
    assert [p.origin.kind for p in results] == [
        "python archive",
        "binary archive",
        "binary folder",
        "image folder",
        "image folder",
        "image tar",
    ]
    for p in results:
        p.verify()
        assert str(tmp_path).encode() not in p.path.read_bytes()[:ALIGNMENT]


def test_colours_and_rows_come_out_upright(tmp_path: Path) -> None:
    splits = small_splits()
    splits.train.images[0] = 0
    splits.train.images[0][3, 5] = (10, 20, 30)  # row 3, column 5: red, green, blue
    path, dataset = binary_archive(tmp_path, splits)
    images = packed(dataset, path, tmp_path / "out").arrays["train_images"]
    found = images[[i.sum() == 60 for i in images]]
    assert found.shape[0] == 1
    assert found[0][3, 5].tolist() == [10, 20, 30]


class Hostile:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("whole", [True, False])
def test_a_hostile_pickle_runs_nothing_even_with_the_right_checksum(tmp_path: Path, whole: bool) -> None:
    mark = tmp_path / "ran"
    content = pickle.dumps(Hostile(mark), 2) if whole else pickle.dumps({b"data": Hostile(mark), b"labels": []}, 2)
    path = tar(tmp_path / "cifar-10-python.tar.gz", {"cifar-10-batches-py/data_batch_1": content})
    dataset = replace(SMALL, python=Archive(SMALL.python.url, md5(path)))
    with pytest.raises(UserError, match="no plain data"):
        packed(dataset, path, tmp_path / "out")
    assert not mark.exists()


@pytest.mark.parametrize("name", ["builtins.eval", "numpy.load", "numpy.core.multiarray.scalar", "_codecs.encode"])
def test_a_pickle_may_name_arrays_alone(tmp_path: Path, name: str) -> None:
    module, _, function = name.rpartition(".")
    content = pickle.GLOBAL + f"{module}\n{function}\n".encode() + pickle.STOP
    path = tar(tmp_path / "cifar-10-python.tar.gz", {"data_batch_1": content})
    with pytest.raises(UserError, match=name):
        packed(replace(SMALL, python=Archive(SMALL.python.url, md5(path))), path, tmp_path / "out")


def test_an_archive_with_another_checksum_is_not_opened(tmp_path: Path) -> None:
    path, _ = python_archive(tmp_path, small_splits())
    with pytest.raises(UserError, match=f"its MD5 {md5(path)} is neither"):
        packed(SMALL, path, tmp_path / "out")


def test_an_extracted_python_archive_is_refused(tmp_path: Path) -> None:
    files = {f"x/{n}": python_batch(SMALL, s) for n, s in batches(SMALL, small_splits()).items()}
    folder = laid_out(tmp_path / "x", files)
    with pytest.raises(UserError, match="can't be checked once they are extracted"):
        packed(SMALL, folder, tmp_path / "out")


def test_an_extracted_binary_file_of_another_size_is_refused(tmp_path: Path) -> None:
    files = {f"{n}.bin": binary_batch(s) for n, s in batches(SMALL, small_splits()).items()}
    files["data_batch_2.bin"] = files["data_batch_2.bin"][:-3073]
    with pytest.raises(UserError, match=r"data_batch_2\.bin: \d+ bytes long, published are"):
        packed(SMALL, laid_out(tmp_path / "x", files), tmp_path / "out")


@pytest.mark.parametrize(
    "content",
    [
        {b"labels": [0] * 30},
        {b"labels": [0] * 30, b"data": b"x" * 3072 * 30},
        {b"labels": [0] * 29, b"data": np.zeros((30, 3072), np.uint8)},
        {b"labels": [10] * 30, b"data": np.zeros((30, 3072), np.uint8)},
        {b"labels": [0] * 30, b"data": np.zeros((30, 3072), np.int8)},
        {b"labels": [0] * 30, b"data": np.zeros((3072, 30), np.uint8).T},
        {b"labels": [0] * 30, b"data": np.zeros((30, 3071), np.uint8)},
        [1, 2],
    ],
)
def test_a_batch_of_another_layout_is_refused(tmp_path: Path, content: object) -> None:
    path = tar(tmp_path / "cifar-10-python.tar.gz", {"p/data_batch_1": pickled(content)})
    with pytest.raises(UserError, match="not as published"):
        packed(replace(SMALL, python=Archive(SMALL.python.url, md5(path))), path, tmp_path / "out")


def test_a_missing_batch_is_named(tmp_path: Path) -> None:
    samples = batches(SMALL, small_splits())
    path = tar(tmp_path / "cifar-10-binary.tar.gz", {"data_batch_1.bin": binary_batch(samples["data_batch_1"])})
    with pytest.raises(UserError, match=r"has no data_batch_2\.bin"):
        packed(replace(SMALL, binary=Archive(SMALL.binary.url, md5(path))), path, tmp_path / "out")
