"""A damaged checkpoint is never used and never deleted: the one before it is, and that is said."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.runs import Lab

OPTIONS = ["--preset", "tutorial", "--batch-size", "20", "--dropout", "0.2", "--checkpoint-every", "25steps"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, small_cifar: Path) -> Lab:
    """A run of 100 steps with a checkpoint at every 25th."""
    lab = Lab(tmp_path_factory.mktemp("finished"), small_cifar, *OPTIONS, "--epochs", "1")
    lab.finish()
    assert [m["step"] for m in lab.manifests()] == [25, 50, 75, 100]
    return lab


def newest_manifest(lab: Lab) -> Path:
    return max((lab.store / "cifar10" / "checkpoints").glob("*.json"))


def newest_part(lab: Lab) -> Path:
    parts = json.loads(newest_manifest(lab).read_bytes())["parts"]
    return lab.store / "cifar10" / "parts" / parts[0]["sha256"]


def cut_in_half(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip_a_bit(file: Path) -> None:
    """One that may leave a file well-formed: in JSON a letter becomes another."""
    data = bytearray(file.read_bytes())
    data[len(data) * 2 // 3] ^= 4
    file.write_bytes(data)


def empty(file: Path) -> None:
    file.write_bytes(b"")


def grow(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"\0" * 100)


@pytest.mark.parametrize("damage", [cut_in_half, flip_a_bit, empty, grow, Path.unlink])
@pytest.mark.parametrize("which", [newest_manifest, newest_part])
def test_falls_back_to_the_one_before_and_says_so(
    which: Callable[[Lab], Path], damage: Callable[[Path], None], tmp_path: Path, small_cifar: Path, finished: Lab
) -> None:
    expected = finished.hashes()
    lab = Lab(tmp_path, small_cifar, *OPTIONS, "--epochs", "1").copy_of(finished)
    name = newest_manifest(lab).stem
    damage(which(lab))
    container = lab.finish()
    gone = which is newest_manifest and damage is Path.unlink
    if not gone:  # a manifest that isn't there is no checkpoint at all
        assert f"checkpoint {name} is bad" in container.text
    assert "checkpoint 000001-00000075 is the newest good one" in container.text
    assert lab.hashes() == expected
    assert lab.chain()[1] == "000001-00000075", "history goes on from the good one"
    if not gone:
        assert (lab.store / "cifar10" / "checkpoints" / f"{name}.json").exists(), "never deleted"


def test_two_damaged_ones_in_a_row_fall_back_twice(tmp_path: Path, small_cifar: Path, finished: Lab) -> None:
    lab = Lab(tmp_path, small_cifar, *OPTIONS, "--epochs", "1").copy_of(finished)
    for file in sorted((lab.store / "cifar10" / "checkpoints").glob("*.json"))[-2:]:
        flip_a_bit(lab.store / "cifar10" / "parts" / json.loads(file.read_bytes())["parts"][0]["sha256"])
    container = lab.finish()
    assert "checkpoint 000001-00000050 is the newest good one" in container.text
    assert lab.hashes() == finished.hashes()


def test_checkpoints_but_none_good_never_starts_again_from_zero(
    tmp_path: Path, small_cifar: Path, finished: Lab
) -> None:
    lab = Lab(tmp_path, small_cifar, *OPTIONS, "--epochs", "1").copy_of(finished)
    for file in (lab.store / "cifar10" / "parts").iterdir():
        flip_a_bit(file)
    container = lab.start()
    assert container.wait() == 78
    assert "none of the 4 checkpoints" in container.lines[-1]
    assert len(list((lab.store / "cifar10" / "attempts").glob("*.json"))) == 2, "the run was not claimed"


def test_a_rotten_part_heals_when_the_same_state_is_saved_again(
    tmp_path: Path, small_cifar: Path, finished: Lab
) -> None:
    lab = Lab(tmp_path, small_cifar, *OPTIONS, "--epochs", "1").copy_of(finished)
    rotten = newest_part(lab)
    before = rotten.read_bytes()
    flip_a_bit(rotten)
    lab.finish()
    assert rotten.read_bytes() == before


HOSTILE = {
    "climbs out": lambda m: m["parts"][0].update(sha256="../../../../etc/passwd"),
    "claims 8 EB": lambda m: m["parts"][0].update(size=8 << 60),
    "is of another type": lambda m: m.update(step="100"),
    "has a negative step": lambda m: m.update(step=-1),
    "has a nested bomb": lambda m: m.update(metrics=[[[]]]),
    "names a parent outside": lambda m: m.update(parent="../x"),
    "is of another run": lambda m: m.update(run="other"),
    "lacks a field": lambda m: m.pop("order_sha256"),
    "was edited": lambda m: m.update(step=99, attempt=1),
}


def checksum_of(manifest: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_manifest_is_refused_and_its_forerunner_taken(
    what: str, tmp_path: Path, small_cifar: Path, finished: Lab
) -> None:
    from storage import open_store
    from trainer.history import History

    lab = Lab(tmp_path, small_cifar, *OPTIONS).copy_of(finished)
    file = newest_manifest(lab)
    manifest = json.loads(file.read_bytes())
    HOSTILE[what](manifest)
    if what != "was edited":  # who means harm can compute a checksum too
        manifest.pop("checksum")
        manifest["checksum"] = checksum_of(manifest)
    file.write_text(json.dumps(manifest))
    good = History(open_store(f"file://{lab.store}"), "cifar10").newest_good()
    assert good is not None
    assert good.manifest.step == 75


@pytest.mark.parametrize("text", [b"[" * 100_000, b'{"a":' * 50_000, b"\xff\xfe", b"nul", b"{}", b"[]", b"1e999"])
def test_what_is_no_manifest_is_refused(text: bytes, tmp_path: Path, small_cifar: Path, finished: Lab) -> None:
    from storage import open_store
    from trainer.history import History

    lab = Lab(tmp_path, small_cifar, *OPTIONS).copy_of(finished)
    newest_manifest(lab).write_bytes(text)
    good = History(open_store(f"file://{lab.store}"), "cifar10").newest_good()
    assert good is not None
    assert good.manifest.step == 75
