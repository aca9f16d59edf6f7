"""The packed file: the same pictures, the same bytes; and nothing but a whole one is ever taken for one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.jobs import photos
from tests.unit.data_makers import SMALL, small_splits
from trainer.data.dataset import Samples, Splits
from trainer.data.pack import pack
from trainer.data.packed import ALIGNMENT, ARRAYS, FILE_NAME, Origin, Packed, open_packed, write_packed
from trainer.exits import UserError

ORIGIN = Origin("image folder", "pictures", "files:80")


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    return write_packed(tmp_path_factory.mktemp("packed"), SMALL, small_splits(), ORIGIN)


def test_what_was_packed_is_what_is_read(packed: Packed) -> None:
    given = small_splits()
    for split, samples in (("train", given.train), ("test", given.test)):
        want = sorted((int(n), i.tobytes()) for n, i in zip(samples.labels, samples.images, strict=True))
        images, labels = packed.arrays[f"{split}_images"], packed.arrays[f"{split}_labels"]
        assert sorted((int(n), i.tobytes()) for n, i in zip(labels, images, strict=True)) == want
    assert (packed.name, packed.classes, packed.synthetic) == ("cifar10", SMALL.classes, False)
    assert packed.origin == ORIGIN
    packed.verify()


@pytest.mark.parametrize("kind", ["small pictures", "photographs"])
def test_what_is_packed_outlasts_a_power_cut(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its bytes are on the disk before it has its name, and the name before packing ends."""
    source, out, calls = photos(tmp_path), tmp_path / "out", list[tuple[str, str]]()
    fdatasync, fsync, replace_ = os.fdatasync, os.fsync, os.replace

    def on_sync(handle: int) -> None:
        calls.append(("sync", os.readlink(f"/proc/self/fd/{handle}")))
        (fsync if Path(calls[-1][1]).is_dir() else fdatasync)(handle)

    def on_replace(path: Path, target: Path) -> None:
        calls.append((str(path), str(target)))
        replace_(path, target)

    monkeypatch.setattr(os, "fdatasync", on_sync)
    monkeypatch.setattr(os, "fsync", on_sync)
    monkeypatch.setattr(os, "replace", on_replace)
    if kind == "photographs":
        pack("imagenet", source, out, options={"size": 32}, say=lambda line: None)
    else:
        write_packed(out, SMALL, small_splits(), ORIGIN)
    (named,) = (i for i, (_, target) in enumerate(calls) if target == str(out / FILE_NAME))
    assert calls[named - 1 : named + 2] == [("sync", calls[named][0]), calls[named], ("sync", str(out))]


def test_the_order_of_the_source_does_not_matter(packed: Packed, tmp_path: Path) -> None:
    given = small_splits()
    turned = Splits(*(Samples(s.images[::-1], s.labels[::-1]) for s in (given.train, given.test)))
    again = write_packed(tmp_path, SMALL, turned, ORIGIN)
    assert again.path.read_bytes() == packed.path.read_bytes()


def test_a_slice_is_a_mixture_of_the_classes(tmp_path: Path) -> None:
    dataset = replace(SMALL, train_count=1000)
    labels = write_packed(tmp_path, dataset, small_splits(0, dataset), ORIGIN).arrays["train_labels"]
    assert np.bincount(labels[:300], minlength=10).min() > 10


def test_the_source_changes_the_header_alone(packed: Packed, tmp_path: Path) -> None:
    other = write_packed(tmp_path, SMALL, small_splits(), Origin("python archive", "x.tar.gz", "md5:0"))
    assert other.sha256 == packed.sha256
    assert other.path.read_bytes()[ALIGNMENT:] == packed.path.read_bytes()[ALIGNMENT:]


def test_arrays_are_mapped_read_only_and_begin_on_a_page(packed: Packed) -> None:
    assert all(not array.flags.writeable for array in packed.arrays.values())
    length = int.from_bytes(packed.path.read_bytes()[:8], "little")
    assert (8 + length) % ALIGNMENT == 0


def test_the_safetensors_library_reads_it_too(packed: Packed) -> None:
    library = pytest.importorskip("safetensors.numpy", reason="safetensors is not installed")
    theirs = library.load_file(packed.path)
    assert sorted(theirs) == sorted(ARRAYS)
    assert all(np.array_equal(theirs[name], packed.arrays[name]) for name in ARRAYS)


def test_nothing_there_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"python entrypoint.py data cifar10 --source .* make cifar10"):
        open_packed(tmp_path / "cifar10")


def test_a_flipped_bit_in_the_arrays_is_found_by_verify(packed: Packed, tmp_path: Path) -> None:
    raw = bytearray(packed.path.read_bytes())
    raw[ALIGNMENT + 12345] ^= 4
    (tmp_path / FILE_NAME).write_bytes(raw)
    with pytest.raises(UserError, match="bytes have changed"):
        open_packed(tmp_path).verify()


def test_verify_can_be_stopped(packed: Packed) -> None:
    def stop() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        packed.verify(stop)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_never_gives_anything_but_one_clear_line(packed: Packed, tmp_path: Path, data: st.DataObject) -> None:
    raw = packed.path.read_bytes()
    if data.draw(st.booleans(), "truncated"):
        raw = raw[: data.draw(st.integers(0, len(raw) - 1), "length")]
    else:
        place = data.draw(st.one_of(st.integers(0, 900), st.integers(0, len(raw) - 1)), "place")
        patch = data.draw(st.binary(min_size=1, max_size=12), "patch")
        raw = raw[:place] + patch + raw[place + len(patch) :]
    (tmp_path / FILE_NAME).write_bytes(raw)
    try:
        opened = open_packed(tmp_path)
        opened.verify()
    except UserError as e:
        said = str(e)
    else:  # the damage was in a description, or no damage
        said = "pack it: "
        assert all(np.array_equal(opened.arrays[n], packed.arrays[n]) for n in ARRAYS)
    assert "pack it: " in said
    assert "\n" not in said


def with_header(packed: Packed, folder: Path, change: dict[str, object]) -> Path:
    raw = packed.path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    for key, value in change.items():
        place = header
        *path, last = key.split("/")
        for part in path:
            place = place[part]
        if value is None:
            del place[last]
        else:
            place[last] = value
    text = json.dumps(header).encode().ljust(length)
    (folder / FILE_NAME).write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])
    return folder


@pytest.mark.parametrize(
    "change",
    [
        {"train_images/dtype": "F32"},
        {"train_images/shape": [60, 32, 32]},
        {"train_images/shape": [60, 32, 32, -3]},
        {"train_images/shape": [60.0, 32, 32, 3]},
        {"train_images/shape": [2**70, 32, 32, 3]},
        {"train_images/shape": [30, 64, 32, 3]},
        {"train_images/data_offsets": [8, 184328]},
        {"test_labels": None},
        {"more": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}},
        {"__metadata__/format": "baton-packed-2"},
        {"__metadata__/sha256": "abc"},
        {"__metadata__/train": "61"},
        {"__metadata__/train": 60},
        {"__metadata__/synthetic": "yes"},
        {"__metadata__/classes": '["cat"]'},
        {"__metadata__/classes": "[" * 100_000},
        {"__metadata__/source": "{}"},
    ],
)
def test_a_header_that_does_not_fit_is_refused(packed: Packed, tmp_path: Path, change: dict[str, object]) -> None:
    with pytest.raises(UserError, match="not a whole packed file"):
        open_packed(with_header(packed, tmp_path, change))


def test_a_huge_header_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / FILE_NAME).open("wb") as file:
        file.write((3 << 30).to_bytes(8, "little"))
        file.truncate(4 << 30)
    with pytest.raises(UserError, match="header of"):
        open_packed(tmp_path)


def test_packing_needs_no_torch() -> None:
    code = "import sys, trainer.data.pack; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
