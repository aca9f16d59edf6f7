"""Photographs and weights that lie in a cloud's store are those of the folder that was put there."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
import torch

from storage import open_store
from storage.errors import Unavailable
from tests.clouds import Cloud, reached
from tests.emulators.proxy import Fault, Request
from tests.jobs import photos
from trainer import weights
from trainer.data import remote
from trainer.data.pack import pack
from trainer.data.packed import Packed
from trainer.ending import exit_code_for
from trainer.history import History
from trainer.parts import encode
from trainer.settings import Settings


def packed(source: str, folder: Path) -> Packed:
    return pack("imagenet", source, folder, options={"size": 32}, say=lambda line: None)


def samples(data: Packed) -> list[tuple[str, int, bytes]]:
    return sorted(
        (split, int(label), image.tobytes())
        for split in ("train", "test")
        for image, label in zip(data.arrays[f"{split}_images"], data.arrays[f"{split}_labels"], strict=True)
    )


def test_photographs_below_a_prefix_and_in_a_tar(cloud: Cloud, tmp_path: Path) -> None:
    here = Path(photos(tmp_path, train=12, val=4))
    tar = tmp_path / "photos.tar"
    with tarfile.open(tar, "w") as out:
        out.add(here, "photos")
    expected = packed(str(here), tmp_path / "expected")
    url = cloud.url()
    with reached(cloud.variables):
        for file in here.rglob("*.jpg"):
            open_store(f"{url}/photos").put(str(file.relative_to(here)), file.read_bytes())
        open_store(url).put("photos.tar", [tar.read_bytes()])
        for name in ("photos", "photos.tar"):
            found = packed(f"{url}/{name}", tmp_path / f"from-{name}")
            assert found.classes == expected.classes
            assert samples(found) == samples(expected), "in whatever order: a tar has its own"


@pytest.mark.parametrize("where", ["at first", "within"])
def test_a_store_that_goes_away_is_no_damage_to_the_tar(
    where: str, cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "TRY_S", 0.0)
    monkeypatch.setattr(remote, "RANGE", 10_000)
    tar = tmp_path / "photos.tar"
    with tarfile.open(tar, "w") as out:
        out.add(photos(tmp_path, train=12, val=4), "photos")

    def strikes(request: Request) -> bool:
        asked = request.headers.get("x-ms-range") or request.headers.get("range", "")
        return "photos.tar" in request.target and asked.startswith("bytes=" if where == "at first" else "bytes=10000-")

    url = cloud.url()
    with reached(cloud.variables):
        open_store(url).put("photos.tar", [tar.read_bytes()])
        cloud.proxy.faults = [Fault("reset", when=strikes)]
        with pytest.raises(Unavailable) as told:
            packed(f"{url}/photos.tar", tmp_path / "out")
    assert exit_code_for(told.value, Settings()) == 74


def test_weights_of_a_result(cloud: Cloud, tmp_path: Path) -> None:
    state = {"layer.weight": torch.arange(6.0).reshape(2, 3), "layer.bias": torch.ones(2)}
    url = cloud.url()
    with reached(cloud.variables):
        part = encode(state, {"format": "pt"})
        open_store(url).put("run/result/model.safetensors", part.chunks)
        files = {"model.safetensors": {"sha256": part.sha256, "size": part.size}}
        History(open_store(url), "run").write_record({"files": files}, "result.json")
        found = weights.read(f"{url}/run", lambda: None)
    assert {name: tensor.tolist() for name, tensor in found.items()} == {n: t.tolist() for n, t in state.items()}
