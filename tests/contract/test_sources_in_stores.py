"""Photographs and weights that lie in a cloud's store are those of the folder that was put there."""

from __future__ import annotations

import tarfile
from pathlib import Path

import torch

from storage import open_store
from tests.clouds import Cloud, reached
from tests.jobs import photos
from trainer import weights
from trainer.data.pack import pack
from trainer.data.packed import Packed
from trainer.history import History
from trainer.parts import encode


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
