"""MNIST as it is published: four gzipped IDX files. The format: http://yann.lecun.com/exdb/mnist/, at its end."""

from __future__ import annotations

import gzip
import hashlib
import io
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from trainer.data import synthetic
from trainer.data.dataset import Bytes, PictureSet, Samples, Splits, shown
from trainer.data.download import DownloadError, fetch
from trainer.data.held import already, held, keep_real
from trainer.data.packed import Origin, Packed, write_packed
from trainer.data.paths import reading
from trainer.data.pulse import Pulse, told
from trainer.data.scratch import check_writable, scratch
from trainer.data.sources import SYNTHETIC, is_address, local_path
from trainer.exits import UserError

MNIST = PictureSet(name="mnist", classes=tuple("0123456789"), size=28, channels=1)
ADDRESS = "https://ossci-datasets.s3.amazonaws.com/mnist"
# name and published MD5, as torchvision.datasets.MNIST lists them
FILES: Mapping[str, str] = {
    "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
}
ACCEPTED = (
    "accepted are a folder with MNIST's four files as published, not unzipped (train-images-idx3-ubyte.gz and so on), "
    f"an http:// or https:// address under which they lie, and the word {SYNTHETIC}"
)
OPTIONS: tuple[str, ...] = ()
LIMIT = 64 << 20  # bytes, decompressed: the largest has 47 MB


def pack(
    source: str | None, folder: Path, options: Mapping[str, Any], pulse: Pulse, files: Mapping[str, str] = FILES
) -> Packed:
    """As trainer/data/pack.py's. `files`: other names and MD5s, for tests."""
    found = held(folder, MNIST.name, pulse, lambda packed: packed.name == MNIST.name)
    mark = "md5:" + hashlib.md5("".join(files.values()).encode(), usedforsecurity=False).hexdigest()
    if source is None:
        if found is not None:
            return already(found, pulse)
        try:
            return _from_address(ADDRESS, mark, folder, pulse, files)
        except DownloadError as e:
            pulse.say(f"the official mnist can't be had: {e}")
            keep_real(folder, MNIST.name)
            pulse.say("using a generated SYNTHETIC stand-in instead: results with it say nothing about the real data")
            source = SYNTHETIC
    if source == SYNTHETIC:
        if found is not None and found.synthetic:
            return already(found, pulse)
        check_writable(folder)
        splits = synthetic.generate(MNIST, pulse)
        return write_packed(folder, MNIST, splits, Origin(SYNTHETIC, SYNTHETIC, "1"), synthetic=True, pulse=pulse)
    if found is not None and found.origin.mark == mark:
        return already(found, pulse)
    if is_address(source):
        return _from_address(source.rstrip("/"), mark, folder, pulse, files)
    path = local_path(source, ACCEPTED)
    with reading(path):
        if not path.is_dir():
            what = "is no folder" if path.exists() else "no such folder"
            raise UserError(f"{shown(source)}: {what}; {ACCEPTED}")
    check_writable(folder)
    return _from_files({name: path / name for name in files}, path.resolve().name, mark, folder, pulse, files)


def _from_address(address: str, mark: str, folder: Path, pulse: Pulse, files: Mapping[str, str]) -> Packed:
    read: dict[str, bytes] = {}
    for name in files:
        pulse.say(f"fetching {name}")
        with scratch(folder) as file:
            fetch(f"{address}/{name}", file, pulse)
            read[name] = file.path.read_bytes()
    return _from_files(read, "mnist", mark, folder, pulse, files)


def _from_files(
    given: Mapping[str, Path | bytes], name: str, mark: str, folder: Path, pulse: Pulse, files: Mapping[str, str]
) -> Packed:
    arrays = []
    for file, md5 in files.items():
        pulse.beat(f"reading {file}")
        content = given[file]
        try:
            data = content if isinstance(content, bytes) else content.read_bytes()
        except FileNotFoundError as e:
            raise UserError(f"{shown(name)}: has no {file}; {ACCEPTED}") from e
        except OSError as e:
            raise told(e, f"can't read {shown(content)}") from e
        if hashlib.md5(data, usedforsecurity=False).hexdigest() != md5:
            raise UserError(f"{shown(name)}: {file} isn't MNIST's by its MD5, {md5}; fetch it again")
        arrays.append(_array(data, file))
    train, test = (
        Samples(images.reshape(*images.shape, 1), labels)
        for images, labels in zip(arrays[::2], arrays[1::2], strict=True)
    )
    splits = Splits(train, test)
    splits.check(MNIST, shown(name))
    return write_packed(folder, MNIST, splits, Origin("IDX files", name, mark), pulse=pulse)


def _array(data: bytes, file: str) -> Bytes:
    """Four bytes (0, 0, 8 for uint8, dimensions), each dimension as a big-endian uint32, the values."""
    try:
        raw = gzip.GzipFile(fileobj=io.BytesIO(data)).read(LIMIT)
        if raw[:3] != bytes((0, 0, 8)):
            raise ValueError("its first bytes")
        shape = np.frombuffer(raw, ">u4", raw[3], 4).tolist()
        return np.frombuffer(raw, np.uint8, -1, 4 + 4 * raw[3]).reshape(shape)
    except (OSError, EOFError, ValueError, IndexError, zlib.error) as e:
        raise UserError(f"{file}: no IDX file of bytes ({shown(e)}); fetch it again") from e
