"""Photographs and weights that lie in a cloud's store are those of the folder that was put there."""

from __future__ import annotations

import gzip
import io
import random
import tarfile
from pathlib import Path

import pytest
import torch
from azure.storage import blob as azure
from google.cloud import storage as google

from storage import open_store
from storage.errors import Unavailable
from tests.clouds import BUCKET, Cloud, reached
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


def put_by_its_cloud(cloud: Cloud, name: str, data: bytes, encoding: str) -> None:
    """By the SDK, which stores and tells an encoding."""
    if cloud.name == "s3":
        cloud.emulator.client().put_object(Bucket=BUCKET, Key=name, Body=data, ContentEncoding=encoding)
    elif cloud.name == "gs":
        blob = google.Client(project=None).bucket(BUCKET).blob(name)
        blob.content_encoding = encoding
        blob.upload_from_string(data)
    else:
        connection = cloud.variables["AZURE_STORAGE_CONNECTION_STRING"]
        with azure.BlobServiceClient.from_connection_string(connection) as service:
            settings = azure.ContentSettings(content_encoding=encoding)
            service.get_blob_client(BUCKET, name).upload_blob(data, content_settings=settings)


@pytest.mark.parametrize("byte_range", [None, (0, 1 << 30), (0, 100), (1000, 5000)])
def test_what_was_put_with_content_encoding_gzip_comes_as_it_is_stored(
    cloud: Cloud, byte_range: tuple[int, int] | None
) -> None:
    """As gsutil's cp -Z puts it; decoded, it would be of another size, and ranges of it would be nonsense."""
    stored = gzip.compress(random.Random(0).randbytes(20_000) + bytes(100_000))
    url, sink = cloud.url(), io.BytesIO()
    with reached(cloud.variables):
        put_by_its_cloud(cloud, f"{url.partition(f'{BUCKET}/')[2]}/photos.tar", stored, "gzip")
        info = open_store(url).get("photos.tar", sink, byte_range=byte_range)
    assert info.size == len(stored)
    assert sink.getvalue() == stored[slice(*(byte_range or (None,)))]


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
        asked = request.headers.get("x-ms-range") or request.headers.get("range", "bytes=0-")
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
