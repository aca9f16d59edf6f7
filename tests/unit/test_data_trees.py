"""Image folders and tars of them: every picture counts, and a wrong one is named."""

from __future__ import annotations

import io
import os
import random
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.unit.data_makers import SMALL, laid_out, png, small_splits, tar, tree
from trainer.data import tarstream
from trainer.data.pack import pack
from trainer.data.packed import FILE_NAME, Packed, open_packed
from trainer.exits import UserError

TEST_DATA = Path(os.environ.get("BATON_TEST_DATA", Path(__file__).resolve().parents[2].parent / "shared" / "data"))
REAL = TEST_DATA / "cifar10-jpeg.tar.xz"


@pytest.fixture
def files() -> dict[str, bytes]:
    return tree(small_splits())


def packed(source: Path, folder: Path, said: list[str] | None = None) -> Packed:
    return pack(SMALL, str(source), folder, say=(said if said is not None else []).append)


def refused(source: Path, folder: Path, why: str) -> None:
    with pytest.raises(UserError, match=why) as caught:
        packed(source, folder)
    assert "\n" not in str(caught.value)
    assert not (folder / FILE_NAME).exists()


def grey() -> bytes:
    out = io.BytesIO()
    Image.new("L", (32, 32), 7).save(out, "PNG")
    return out.getvalue()


@pytest.mark.skipif(not REAL.exists(), reason="the real CIFAR-10 tar is not at hand (BATON_TEST_DATA)")
def test_the_real_tar_packs_whole(cifar: Path) -> None:
    result = open_packed(cifar)
    result.verify()
    assert result.arrays["train_images"].shape == (50_000, 32, 32, 3)
    assert result.arrays["test_images"].shape == (10_000, 32, 32, 3)
    for split, each in (("train", 5000), ("test", 1000)):
        assert np.bincount(result.arrays[f"{split}_labels"]).tolist() == [each] * 10
    with tarfile.open(REAL) as real:  # one picture by another way: decoded here, it is there under its label
        member = next(m for m in real if m.isfile())
        pixels = np.asarray(Image.open(io.BytesIO(real.extractfile(member).read())).convert("RGB"))  # type: ignore[union-attr]
    split, name, _ = member.name.split("/")
    rows = (result.arrays[f"{split}_images"] == pixels).all(axis=(1, 2, 3))
    assert result.classes.index(name) in result.arrays[f"{split}_labels"][rows]


@pytest.mark.parametrize("kind", ["folder", "tar"])
class TestBoth:
    """What holds for a folder and for a tar of it."""

    def source(self, kind: str, folder: Path, files: dict[str, bytes]) -> Path:
        if kind == "tar":
            return tar(folder / "pictures.tar", files, "w")
        return laid_out(folder / "pictures", files)

    @pytest.mark.parametrize("split", ["train", "test"])
    def test_a_missing_class_is_named(self, kind: str, split: str, files: dict[str, bytes], tmp_path: Path) -> None:
        files = {n: c for n, c in files.items() if not n.startswith(f"{split}/frog")}
        refused(self.source(kind, tmp_path, files), tmp_path / "out", f"{split} has no pictures of frog")

    def test_an_unknown_class_is_named(self, kind: str, files: dict[str, bytes], tmp_path: Path) -> None:
        files["train/kat/1.png"] = grey()
        refused(
            self.source(kind, tmp_path, files), tmp_path / "out", "train/kat is no class of cifar10; did you mean cat"
        )

    def test_a_missing_split_is_told(self, kind: str, files: dict[str, bytes], tmp_path: Path) -> None:
        files = {n: c for n, c in files.items() if n.startswith("train/")}
        refused(self.source(kind, tmp_path, files), tmp_path / "out", "no pictures for test")

    def test_a_picture_of_another_size_is_named(self, kind: str, files: dict[str, bytes], tmp_path: Path) -> None:
        files["train/cat/big.png"] = png(np.zeros((32, 33, 3), np.uint8))
        refused(
            self.source(kind, tmp_path, files),
            tmp_path / "out",
            r"train/cat/big\.png: is 33x32 pixels; cifar10 has 32x32",
        )

    def test_a_bomb_is_told_by_its_size_and_never_decoded(
        self, kind: str, files: dict[str, bytes], tmp_path: Path
    ) -> None:
        out = io.BytesIO()
        Image.new("1", (20_000, 20_000)).save(out, "PNG")  # 50 kB of file; over Pillow's own limit
        files["train/cat/bomb.png"] = out.getvalue()
        refused(self.source(kind, tmp_path, files), tmp_path / "out", r"train/cat/bomb\.png: ")

    @pytest.mark.parametrize(
        "content",
        [b"", b"<html>not found</html>", grey()[:60], png(np.full((32, 32, 3), 9, np.uint8), "JPEG")[:-200]],
        ids=["empty", "a web page", "half a PNG", "half a JPEG"],
    )
    def test_a_broken_picture_is_named(
        self, kind: str, content: bytes, files: dict[str, bytes], tmp_path: Path
    ) -> None:
        files["test/dog/broken.jpg"] = content
        refused(self.source(kind, tmp_path, files), tmp_path / "out", r"test/dog/broken\.jpg: broken picture")

    def test_sixteen_bits_a_channel_are_refused(self, kind: str, files: dict[str, bytes], tmp_path: Path) -> None:
        files["test/dog/deep.png"] = png(np.zeros((32, 32), np.uint16))
        refused(self.source(kind, tmp_path, files), tmp_path / "out", r"deep\.png: has other than 8 bits")

    def test_grey_and_palette_become_rgb(self, kind: str, files: dict[str, bytes], tmp_path: Path) -> None:
        out = io.BytesIO()
        palette = Image.new("P", (32, 32), 1)
        palette.putpalette([0, 0, 0, 200, 100, 50])
        palette.save(out, "PNG")
        files |= {"train/cat/grey.png": grey(), "train/cat/palette.png": out.getvalue()}
        images = packed(self.source(kind, tmp_path, files), tmp_path / "out").arrays["train_images"]
        assert len(images) == SMALL.train_count + 2
        flat = {tuple(i[0, 0].tolist()) for i in images if (i == i[0, 0]).all()}
        assert flat == {(7, 7, 7), (200, 100, 50)}

    def test_what_is_no_picture_is_ignored_and_said(self, kind: str, files: dict[str, bytes], tmp_path: Path) -> None:
        files |= {"train/cat/Thumbs.db": b"x", "train/._cat.png": b"x", "train/cat/.DS_Store": b"x"}
        said: list[str] = []
        result = packed(self.source(kind, tmp_path, files), tmp_path / "out", said)
        assert len(result.arrays["train_labels"]) == SMALL.train_count
        assert any("ignored" in line and "Thumbs.db" in line for line in said)

    def test_test_and_val_together_are_refused(self, kind: str, files: dict[str, bytes], tmp_path: Path) -> None:
        files["val/cat/1.png"] = grey()
        refused(self.source(kind, tmp_path, files), tmp_path / "out", "both test and val")

    def test_a_picture_outside_the_classes_is_named(self, kind: str, files: dict[str, bytes], tmp_path: Path) -> None:
        files["train/stray.png"] = grey()
        refused(self.source(kind, tmp_path, files), tmp_path / "out", r"train/stray\.png is in no class's folder")


def test_a_folder_of_something_else_is_told_what_is_accepted(tmp_path: Path) -> None:
    laid_out(tmp_path / "x", {"a/b/c.png": grey(), "d/e.txt": b""})
    refused(tmp_path / "x", tmp_path / "out", r"without train and test in it; accepted are cifar-10-python\.tar\.gz")


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_members_come_in_any_order_and_any_compression(files: dict[str, bytes], tmp_path: Path, mode: str) -> None:
    straight = packed(laid_out(tmp_path / "pictures", files), tmp_path / "a")
    names = list(files)
    random.Random(1).shuffle(names)
    mixed = packed(tar(tmp_path / "x.bin", {n: files[n] for n in names}, mode), tmp_path / "b")
    assert straight.sha256 == mixed.sha256


@pytest.mark.parametrize("name", ["../train/cat/1.png", "/train/cat/1.png", "train/cat/../../../1.png"])
def test_a_tar_that_climbs_out_is_refused(files: dict[str, bytes], tmp_path: Path, name: str) -> None:
    refused(tar(tmp_path / "x.tar", {**files, name: grey()}, "w"), tmp_path / "out", "points outside the archive")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_a_tar_are_refused(files: dict[str, bytes], tmp_path: Path, kind: bytes) -> None:
    path = tar(tmp_path / "x.tar", files, "w")
    with tarfile.open(path, "a") as out:
        info = tarfile.TarInfo("train/cat/link.png")
        info.type, info.linkname = kind, "/etc/passwd"
        out.addfile(info)
    refused(path, tmp_path / "out", r"train/cat/link\.png is a link or device")


def test_terminal_codes_in_names_reach_no_terminal(files: dict[str, bytes], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="broken") as caught:
        packed(tar(tmp_path / "x.tar", {**files, "train/cat/\x1b[2J\n.png": b"?"}, "w"), tmp_path / "out")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
@pytest.mark.parametrize("part", [0.02, 0.3, 0.5, 0.9, 0.999])
def test_a_tar_cut_short_is_told_wherever_it_was_cut(
    files: dict[str, bytes], tmp_path: Path, mode: str, part: float
) -> None:
    path = tar(tmp_path / "x.tar", files, mode)
    size = path.stat().st_size
    if mode == "w":
        size -= len(path.read_bytes()) - len(path.read_bytes().rstrip(b"\0")) + 1024  # of the end's zeros, some may go
    os.truncate(path, int(size * part))
    refused(path, tmp_path / "out", "ends early: truncated download|damaged|not a kind of file")


def test_a_tar_cut_between_two_members_is_told(files: dict[str, bytes], tmp_path: Path) -> None:
    path = tar(tmp_path / "x.tar", files, "w")
    with tarfile.open(path) as whole:
        place = whole.getmembers()[-1].offset
    os.truncate(path, place)
    refused(path, tmp_path / "out", re.escape(f"{path}: ends early: truncated download?"))


def test_a_damaged_header_in_the_middle_is_told(files: dict[str, bytes], tmp_path: Path) -> None:
    path = tar(tmp_path / "x.tar", files, "w")
    raw = bytearray(path.read_bytes())
    with tarfile.open(path) as whole:
        raw[whole.getmembers()[40].offset] ^= 1
    path.write_bytes(raw)
    refused(path, tmp_path / "out", "damaged .*checksum")


def test_a_huge_member_is_refused_unread(files: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    info = tarfile.TarInfo("train/cat/1.png")
    info.size = 20 << 30
    path.write_bytes(info.tobuf() + bytes(4096))
    refused(path, tmp_path / "out", "is 20480 MB long")


def test_what_is_no_picture_may_be_of_any_length_in_a_tar(
    files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tarstream, "MEMBER_LIMIT", 1 << 20)
    plain = packed(tar(tmp_path / "x.tar", files, "w"), tmp_path / "a")
    more = {"train/annotations.zip": bytes(2_000_000), "train/cat/": b"", **files}
    assert packed(tar(tmp_path / "y.tar", more, "w"), tmp_path / "b").sha256 == plain.sha256
    more["train/cat/large.png"] = bytes(2_000_000)
    refused(tar(tmp_path / "z.tar", more, "w"), tmp_path / "c", r"train/cat/large\.png is 1 MB long; that is no pic")


def test_a_picture_that_a_tar_holds_twice_is_told(files: dict[str, bytes], tmp_path: Path) -> None:
    path, name = tar(tmp_path / "x.tar", files, "w"), next(iter(files))
    with tarfile.open(path, "a") as out:
        info = tarfile.TarInfo(name)
        info.size = len(grey())
        out.addfile(info, io.BytesIO(grey()))
    refused(path, tmp_path / "out", f"{name} is in it twice")
