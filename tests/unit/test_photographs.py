"""Photographs of every odd kind are packed upright and alike, wherever they come from and however often it stops."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from storage import ObjectInfo, open_store
from storage.local import LocalStore
from tests.jobs import photo, photos
from tests.runs import REPOSITORY
from tests.unit.data_makers import laid_out, tar
from trainer.data import photo as photo_module
from trainer.data import photo_sources, pictures, remote, tarstream
from trainer.data.pack import pack
from trainer.data.packed import FILE_NAME, Packed, open_packed
from trainer.data.photo import Broken, decode
from trainer.data.photo_sources import Photo
from trainer.data.pictures import in_parallel
from trainer.data.pulse import Pulse
from trainer.exits import UserError


def packed(source: str, out: Path, said: list[str] | None = None, **options: object) -> Packed:
    lines = said if said is not None else []
    return pack("imagenet", source, out, options={"size": 32, **options}, say=lines.append)


def quarters(mode: str = "RGB") -> Image.Image:
    """Red, green / blue, white."""
    pixels = np.zeros((40, 40, 3), np.uint8)
    pixels[:20, :20, 0] = pixels[:20, 20:, 1] = pixels[20:, :20, 2] = 255
    pixels[20:, 20:] = 255
    return Image.fromarray(pixels).convert(mode)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def test_cmyk_palettes_animations_and_transparency_come_as_rgb() -> None:
    wanted = decode(saved(quarters(), "PNG"), 40)
    for data in (
        saved(quarters("CMYK"), "JPEG", quality=100, subsampling=0),
        saved(quarters("P"), "GIF", save_all=True, append_images=[quarters("P").rotate(90)]),
        saved(quarters("RGBA"), "PNG"),
    ):
        assert np.abs(decode(data, 40).astype(int) - wanted)[5:15, 5:15].max() < 12


def test_grey_and_16_bits_keep_their_brightness() -> None:
    grey = decode(saved(Image.new("L", (50, 40), 77), "JPEG"), 40)
    assert (grey.shape, int(grey.min()), int(grey.max())) == ((40, 40, 3), 77, 77)
    deep = decode(saved(Image.fromarray(np.full((40, 50), 77 << 8, np.uint16)), "PNG"), 40)
    assert (int(deep.min()), int(deep.max())) == (77, 77)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_stands_as_its_camera_was_held(orientation: int) -> None:
    turns = {1: lambda i: i, 2: lambda i: i.transpose(0), 3: lambda i: i.transpose(3), 4: lambda i: i.transpose(1),
             5: lambda i: i.transpose(5), 6: lambda i: i.transpose(2), 7: lambda i: i.transpose(6),
             8: lambda i: i.transpose(4)}  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = turns[orientation](quarters())  # what a camera so held has stored of an upright scene
    assert np.array_equal(decode(saved(stored, "PNG", exif=exif), 40), np.asarray(quarters()))


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_a_good_picture_whose_exif_cant_be_read_is_packed_as_it_lies(kind: str) -> None:
    data = saved(quarters(), kind, exif=b"Exif\0\0no TIFF file", **({"lossless": True} if kind == "WEBP" else {}))
    assert np.array_equal(decode(data, 40), np.asarray(quarters()))


@pytest.mark.parametrize("size", range(100, 4000, 300))
def test_a_png_that_is_cut_short_is_broken_with_or_without_exif(size: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for options in ({}, {"exif": exif}):
        data = saved(Image.open(io.BytesIO(photo(1))), "PNG", **options)
        assert len(data) > 4000
        with pytest.raises(Broken):
            decode(data[:size], 32)


def test_a_picture_of_floating_point_numbers_is_told_rather_than_packed_black() -> None:
    heights = np.linspace(0, 1, 40 * 40, dtype="<f4").tobytes()
    with pytest.raises(Broken, match="floating-point"):
        decode(b"Pf\n40 40\n-1.0\n" + heights, 32)


@pytest.mark.parametrize("data", [b"", b"<html>", photo(1)[:300], saved(Image.new("1", (9000, 9000)), "PNG")])
def test_what_is_no_picture_is_told_and_a_bomb_is_not_decoded(data: bytes) -> None:
    with pytest.raises(Broken) as told:
        decode(data, 32)
    assert "object at 0x" not in str(told.value)


def tarred(source: str, target: Path) -> str:
    with tarfile.open(target, "w:gz") as out:
        for path in sorted(Path(source).rglob("*.jpg")):
            out.add(path, "top/" + str(path.relative_to(source)))
    return str(target)


def test_folder_and_tar_are_packed_alike(tmp_path: Path) -> None:
    source = photos(tmp_path)
    folder, tar = packed(source, tmp_path / "a"), packed(tarred(source, tmp_path / "x.tar.gz"), tmp_path / "b")
    assert folder.classes == ("newt", "owl")
    assert folder.arrays["train_images"].shape == (48, 38, 38, 3)
    assert folder.sha256 == tar.sha256
    assert [p.name for p in (tmp_path / "a").iterdir()] == [FILE_NAME]


def test_what_is_too_long_is_skipped_as_broken_or_ignored_in_a_tar_as_in_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, name in ((photo_module, "FILE_LIMIT"), (photo_sources, "FILE_LIMIT"), (tarstream, "MEMBER_LIMIT")):
        monkeypatch.setattr(module, name, 3 << 20)
    files = colours(1) | {"train/annotations.zip": bytes(5_000_000), "train/owl/1 long.jpg": bytes(4_000_000)}
    files = dict(sorted(files.items(), key=lambda item: item[0].split("/")))
    found = []
    for source in (laid_out(tmp_path / "in", files), tar(tmp_path / "x.tar", files, "w")):
        said: list[str] = []
        data = packed(str(source), tmp_path / f"from-{source.name}", said)
        assert data.skipped == 1
        found.append((data.sha256, [line for line in said if line.startswith(("skipped", "ignored"))]))
    assert found[0] == found[1]
    assert found[0][1] == [
        "ignored, as no picture by its name: train/annotations.zip",
        "skipped as broken: train/owl/1 long.jpg (more than 3 MB long); --strict stops at the first",
    ]


def test_a_picture_that_a_tar_holds_twice_is_told(tmp_path: Path) -> None:
    path = tar(tmp_path / "x.tar", colours(1), "w")
    with tarfile.open(path, "a") as out:  # as `tar -r` does
        content = colours(2)["train/owl/0.ppm"]
        info = tarfile.TarInfo("./train/owl/0.ppm")
        info.size = len(content)
        out.addfile(info, io.BytesIO(content))
    with pytest.raises(UserError, match=r"^x\.tar: train/owl/0\.ppm is in it twice, .*; make the tar anew"):
        packed(str(path), tmp_path / "out")


class Stop(Exception):
    pass


def test_packing_that_is_stopped_goes_on_and_skips_what_it_skipped(tmp_path: Path) -> None:
    source = photos(tmp_path, train=900)
    broken = Path(source, "train", "owl", "000.jpg")
    broken.write_bytes(broken.read_bytes()[:200])
    said: list[str] = []
    whole = packed(source, tmp_path / "whole", said)
    assert whole.skipped == 1
    assert any(re.fullmatch(r"skipped as broken: train/owl/000\.jpg \(.+\); --strict .*", line) for line in said)

    stops = 0
    for _ in range(100):
        places = tmp_path / "out" / ".unfinished.places"
        before = places.stat().st_size if places.exists() else 0

        def check(before: int = before, places: Path = places) -> None:
            if places.exists() and places.stat().st_size > before:
                raise Stop

        try:
            result = pack("imagenet", source, tmp_path / "out", options={"size": 32}, check=check, say=said.append)
            break
        except Stop:
            stops += 1
    assert stops > 0
    assert any("going on with picture" in line for line in said)
    assert (result.sha256, result.skipped) == (whole.sha256, 1)


SLOW = """
import sys, time
from pathlib import Path
from trainer.data import growing
from trainer.data import photo as photo_module
from trainer.data import photo_sources, pictures, remote, tarstream
from trainer.data.pack import pack
growing.SETTLE_S = 0.0  # so that no kill has to wait for it
pack("imagenet", sys.argv[1], Path(sys.argv[2]), options={"size": 128}, check=lambda: time.sleep(0.02), say=print)
"""


def killed_past(pictures: int, source: str, out: Path) -> int:
    """Pack in a process of its own, and `kill -9` it once more than so many pictures are durable; how many are."""
    process = subprocess.Popen([sys.executable, "-c", SLOW, source, str(out)], cwd=REPOSITORY)
    journal, seen = out / ".unfinished.json", 0
    while seen <= pictures:
        assert process.poll() is None, "it came to its end"
        time.sleep(0.005)
        seen = json.loads(journal.read_bytes())["seen"] if journal.exists() else 0
    process.kill()
    assert process.wait() == -9
    return int(json.loads(journal.read_bytes())["seen"])


def test_a_tar_whose_packing_is_killed_twice_comes_out_as_if_it_never_was(tmp_path: Path) -> None:
    source = Path(photos(tmp_path, train=400))  # seven times what is packed at once
    broken = source / "train" / "owl" / "000.jpg"
    broken.write_bytes(broken.read_bytes()[:200])
    tar, out = tarred(str(source), tmp_path / "x.tar.gz"), tmp_path / "out"
    whole = packed(tar, tmp_path / "whole", size=128)
    first = killed_past(0, tar, out)
    durable = killed_past(first, tar, out)
    assert 0 < first < durable < 412
    with pytest.raises(UserError):
        open_packed(out)
    said: list[str] = []
    result = packed(tar, out, said, size=128)
    assert f"going on with picture {durable + 1}, where packing was stopped" in said
    assert (result.sha256, result.skipped) == (whole.sha256, 1)
    assert [p.name for p in out.iterdir()] == [FILE_NAME]


def test_no_more_pictures_are_read_ahead_than_are_decoded_side_by_side(tmp_path: Path) -> None:
    read = 0

    def given() -> Iterator[Photo]:
        nonlocal read
        for read in range(1, 1001):
            yield Photo(f"{read}", False, "owl", b"x")

    made = in_parallel(len, given(), Pulse(), batch=5, workers=2)
    for number in range(1, 50):
        next(made)
        assert 5 * number <= read <= 5 * (number + 3 * 2 + 1)
    made.close()


def test_no_more_bytes_are_read_ahead_however_large_the_files_of_a_tar_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "AHEAD_BYTES", 10_000)
    read = 0

    def given() -> Iterator[Photo]:
        nonlocal read
        for read in range(1, 101):
            yield Photo(f"{read}", False, "owl", bytes(3000))

    made = in_parallel(len, given(), Pulse(), batch=1, workers=8)
    for number, (some, _) in enumerate(made, 1):
        assert some[0].name == str(number)
        assert read <= number + 3, "four have more"
    assert number == 100


PEAK = """
import resource, sys
from concurrent.futures import ThreadPoolExecutor
from trainer.data.photo import decode
data, threads = sys.stdin.buffer.read(), int(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with ThreadPoolExecutor(threads) as pool:
    list(pool.map(lambda _: decode(data, 146), range(2 * threads)))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def peak(data: bytes, threads: int) -> int:
    """Bytes that it takes to decode this picture twice in each thread."""
    command = [sys.executable, "-c", PEAK, str(threads)]
    return int(subprocess.run(command, cwd=REPOSITORY, input=data, capture_output=True, check=True).stdout) << 10


@pytest.mark.parametrize(("mode", "bytes_a_pixel"), [("I;16", 3.5), ("RGB", 4.5), ("L", 1.5)])
def test_a_large_picture_takes_little_more_memory_than_its_pixels(mode: str, bytes_a_pixel: float) -> None:
    side = 5000
    data = saved(Image.new(mode, (side, side)), "PNG", compress_level=1)
    assert peak(data, 1) < bytes_a_pixel * side * side


def test_many_threads_keep_no_memory_of_the_large_pictures_that_they_decoded() -> None:
    side = 4900
    assert peak(saved(Image.new("RGB", (side, side)), "PNG", compress_level=1), 8) < 2 * 6 * side * side


def test_large_pictures_are_decoded_few_at_a_time_and_others_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    at_once, most, lock = [0, 0], [0, 0], threading.Lock()

    def square(image: Image.Image, side: int) -> None:
        with lock:
            for i, more in enumerate((image.width * image.height, 1)):
                at_once[i] += more
                most[i] = max(most[i], at_once[i])
        time.sleep(0.02)
        with lock:
            for i, more in enumerate((image.width * image.height, 1)):
                at_once[i] -= more

    monkeypatch.setattr(photo_module, "_square", square)
    sizes = [(7000, 7000), (4000, 4000), (100, 100)] * 6
    files = [saved(Image.new("1", size), "PNG") for size in sizes]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda data: decode(data, 32), files))
    assert most[0] <= photo_module.PIXEL_LIMIT
    assert most[1] > 1
    assert at_once == [0, 0]


def test_a_jpeg_counts_as_what_is_decoded_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A camera's, of which an eighth of each side is enough, holds up no others; a progressive one is read whole."""
    counted: list[int] = []

    @contextmanager
    def taken(pixels: int) -> Iterator[None]:
        counted.append(pixels)
        yield

    monkeypatch.setattr(photo_module._room, "taken", taken)
    for progressive in (False, True):
        decode(saved(Image.new("RGB", (4000, 3000)), "JPEG", progressive=progressive), 146)
    assert counted == [500 * 375, 4000 * 3000]


def test_too_small_a_disk_is_told_before_a_picture_is_decoded(tmp_path: Path, small_disk: Path) -> None:
    source = photos(tmp_path)
    Path(source, "train", "owl", "000.jpg").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"60 pictures of 512 x 512 need 0\.0 GB more in .*: make room, or choose ano"):
        packed(source, small_disk / "out", size=448, strict=True)
    assert not (small_disk / "out" / FILE_NAME).exists()


def swap(one: Path, other: Path) -> None:
    """After which the source has as many files and bytes as before."""
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


def again(source: Path, out: Path, **options: object) -> tuple[Packed, bool]:
    """What is packed now, and whether it was there already."""
    said: list[str] = []
    return packed(str(source), out, said, **options), said[0].startswith("already packed")


def test_what_is_packed_is_taken_for_the_same_pictures_and_size_alone(tmp_path: Path) -> None:
    source, out = Path(photos(tmp_path)), tmp_path / "out"
    first, _ = again(source, out)
    assert again(source, out)[1]
    larger, was_there = again(source, out, size=64)
    assert (was_there, larger.arrays["train_images"].shape[1]) == (False, 74)
    assert not again(source, out)[1]
    changed = source / "train" / "owl" / "000.jpg"
    swap(changed, source / "train" / "newt" / "001.jpg")
    after, was_there = again(source, out)
    assert not was_there
    assert after.sha256 != first.sha256
    for split in ("train", "val"):
        (source / split / "owl").rename(source / split / "owls")
    changed = source / "train" / "owls" / "000.jpg"
    renamed, was_there = again(source, out)
    assert (was_there, renamed.classes) == (False, ("newt", "owls"))
    changed.write_bytes(changed.read_bytes()[:300])
    assert again(source, out)[0].skipped == 1
    with pytest.raises(UserError, match="broken picture"):
        again(source, out, strict=True)
    assert again(source, out)[1], "which is as it was"


@pytest.mark.parametrize("other", ["pictures", "size"])
def test_packing_that_was_stopped_goes_on_with_the_same_pictures_and_size_alone(other: str, tmp_path: Path) -> None:
    source, out = Path(photos(tmp_path)), tmp_path / "out"

    def check() -> None:
        if (out / ".unfinished.places").exists() and (out / ".unfinished.places").stat().st_size:
            raise Stop

    with pytest.raises(Stop):
        pack("imagenet", str(source), out, options={"size": 32}, check=check, say=lambda line: None)
    size = 64 if other == "size" else 32
    if other == "pictures":
        swap(source / "train" / "owl" / "000.jpg", source / "train" / "newt" / "001.jpg")
    said: list[str] = []
    result = packed(str(source), out, said, size=size)
    assert not any("going on" in line for line in said)
    assert result.sha256 == packed(str(source), tmp_path / "anew", size=size).sha256


def rewritten(path: Path, content: bytes) -> None:
    """With other bytes, as many, and of the same time of modification: as `cp -p` and builds to the byte write them."""
    before = path.stat()
    assert len(content) == before.st_size
    assert content != path.read_bytes()
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("kind", ["tar", "folder"])
def test_what_is_written_anew_as_long_and_as_old_is_packed_anew(kind: str, tmp_path: Path) -> None:
    source = laid_out(tmp_path / "plain", colours(1))
    given, file = source, source / "train" / "owl" / "0.ppm"
    if kind == "tar":
        given = file = tar(tmp_path / "x.tar", colours(1), "w")
    first, _ = again(given, tmp_path / "out")
    assert again(given, tmp_path / "out")[1]
    tar(tmp_path / "y.tar", colours(2), "w")
    rewritten(file, (tmp_path / "y.tar").read_bytes() if kind == "tar" else colours(2)["train/owl/0.ppm"])
    second, was_there = again(given, tmp_path / "out")
    assert not was_there
    assert second.sha256 != first.sha256


def colours(first: int) -> dict[str, bytes]:
    """A tree of pictures that are as long whatever they show."""
    names = [f"{split}/{folder}/{n}.ppm" for split in ("train", "val") for folder in ("newt", "owl") for n in range(2)]
    return {name: saved(Image.new("RGB", (40, 40), (first + n, 0, 0)), "PPM") for n, name in enumerate(names)}


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for gs://bucket."""
    monkeypatch.setattr(
        photo_sources, "patient", lambda url, check: open_store(url.replace("gs:/", f"file://{tmp_path}"))
    )
    return tmp_path / "bucket"


def test_an_object_that_is_written_anew_as_long_and_no_later_than_the_newest_is_packed_anew(bucket: Path) -> None:
    """One second sees many objects put, and stores tell no less."""
    for n, path in enumerate(sorted(laid_out(bucket, colours(1)).rglob("*.ppm"))):
        os.utime(path, (n, n))
    out = bucket.parent / "out"
    first = packed("gs://bucket", out)
    said: list[str] = []
    packed("gs://bucket", out, said)
    assert said[-1].startswith("already packed")
    first_object = bucket / "train" / "newt" / "0.ppm"
    first_object.write_bytes(colours(2)["train/newt/0.ppm"])
    os.utime(first_object, (n, n))
    assert packed("gs://bucket", out).sha256 != first.sha256


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_what_is_written_anew_in_a_store_while_it_is_read_is_told_and_no_broken_picture(
    kind: str, bucket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "RANGE", 5000)
    laid_out(bucket, colours(1))
    file, source = bucket / "val" / "owl" / "1.ppm", "gs://bucket"
    if kind == "tar":
        file, source = tar(bucket / "x.tar", colours(1), "w"), "gs://bucket/x.tar"
    before = file.read_bytes()

    def say(line: str) -> None:
        if line.startswith("packing"):
            file.write_bytes(before[: len(before) // 2])

    with pytest.raises(UserError, match=rf"/{file.name}: was written anew while it was read; start again") as told:
        pack("imagenet", source, bucket.parent / "out", options={"size": 32}, say=say)
    assert told.value.code == 74


def test_an_object_is_the_one_that_was_listed_whatever_time_comes_with_its_bytes(bucket: Path) -> None:
    class Odd(LocalStore):
        def get(self, *args: Any, **options: Any) -> ObjectInfo:
            return replace(super().get(*args, **options), modified=1.0)

    laid_out(bucket, {"x": b"four"})
    store = Odd(f"file://{bucket}")
    assert remote.read(store, store.stat("x"), 0, 4) == b"four"


def test_linked_folders_are_walked_once_and_a_link_that_leads_nowhere_is_told(tmp_path: Path) -> None:
    source, part = Path(photos(tmp_path)), tmp_path / "part"
    for split in ("train", "val"):
        (part / split).mkdir(parents=True)
        for name in ("owl", "newt"):
            (part / split / name).symlink_to(source / split / name)
    (source / "train" / "owl" / "back").symlink_to(part)
    (source / "train" / "newt" / "there").symlink_to(source / "val" / "newt")
    (source / "val" / "newt" / "and back").symlink_to(source / "train" / "newt")
    linked = packed(str(part), tmp_path / "a")
    assert linked.classes == ("newt", "owl")
    assert [len(linked.arrays[f"{split}_labels"]) for split in ("train", "test")] == [48 + 6, 12 + 24]
    (source / "train" / "owl" / "gone.jpg").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"can't read .*gone\.jpg: No such file"):
        packed(str(part), tmp_path / "a")


def test_strict_stops_at_a_broken_picture_and_leaves_what_was_packed(tmp_path: Path) -> None:
    source = photos(tmp_path)
    before = packed(source, tmp_path / "out").path.read_bytes()
    Path(source, "val", "newt", "001.jpg").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"val/newt/001\.jpg: broken picture .*mend or remove"):
        packed(source, tmp_path / "out", strict=True)
    assert (tmp_path / "out" / FILE_NAME).read_bytes() == before
    assert packed(source, tmp_path / "out").skipped == 1


def test_odd_classes_get_one_line_each(tmp_path: Path) -> None:
    source = Path(photos(tmp_path))
    extra = source / "train" / "lonely"
    extra.mkdir()
    (extra / "1.jpg").write_bytes(photo(5))
    for name in ("empty", "hollow"):
        (source / "train" / name).mkdir()
    said: list[str] = []
    packed(str(source), tmp_path / "out", said)
    assert "photos: train/empty has no file in it, so it is no class (nor are 1 more)" in said
    assert "photos: train has a single picture of lonely, from which little can be learnt" in said
    assert "photos: val has no pictures of lonely, so the accuracy says nothing of these" in said
    with pytest.raises(UserError, match="single picture of lonely"):
        packed(str(source), tmp_path / "strict", strict=True)
    stray = source / "val" / "stranger"
    stray.mkdir()
    (stray / "1.jpg").write_bytes(photo(6))
    with pytest.raises(UserError, match="train has no pictures of stranger"):
        packed(str(source), tmp_path / "other")
    assert list((tmp_path / "other").iterdir()) == []


@pytest.mark.parametrize("source", [None, "/nowhere", "synthetic"])
def test_no_source_is_told_in_a_line(source: str | None, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        pack("imagenet", source, tmp_path, options={}, say=lambda line: None)
    assert str(caught.value).isprintable()
