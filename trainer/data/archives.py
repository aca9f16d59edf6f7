"""The official archives. Their pickles are read by an unpickler that imports and calls nothing they name."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from trainer.data.dataset import Bytes, Dataset, Samples, Splits, shown
from trainer.data.paths import reading
from trainer.data.pulse import Pulse
from trainer.data.tarstream import members
from trainer.exits import UserError


def read_python(dataset: Dataset, path: Path, pulse: Pulse) -> Splits:
    """The python archive. Its MD5 must have been checked. Raises `UserError`."""
    return _gathered(dataset, path, "", _members(path, pulse), _pickled)


def read_binary(dataset: Dataset, path: Path, pulse: Pulse) -> Splits:
    """The binary archive. Its MD5 must have been checked. Raises `UserError`."""
    return _gathered(dataset, path, ".bin", _members(path, pulse), _raw)


def read_binary_folder(dataset: Dataset, folder: Path, pulse: Pulse) -> Splits:
    """The binary archive, extracted. No checksum is published for its files, so only their sizes are checked."""
    return _gathered(dataset, folder, ".bin", _files(dataset, folder, pulse), _raw)


Batch: TypeAlias = tuple[Bytes, Bytes]  # labels uint8 [n]; rows uint8 [n, pixels]


def _members(path: Path, pulse: Pulse) -> Iterator[tuple[str, bytes]]:
    for member in members(path, lambda: pulse.beat(f"reading {shown(path.name)}")):
        yield member.parts[-1], member.whole(path)


def _files(dataset: Dataset, folder: Path, pulse: Pulse) -> Iterator[tuple[str, bytes]]:
    for _, names, count in dataset.splits():
        size = count // len(names) * (dataset.label_bytes + dataset.pixels)
        for name in names:
            pulse.check()
            path = folder / f"{name}.bin"
            with reading(path):
                if path.stat().st_size != size:
                    raise UserError(
                        f"{shown(path)}: {path.stat().st_size} bytes long, published are {size}; fetch it again"
                    )
                yield path.name, path.read_bytes()


def _gathered(
    dataset: Dataset,
    path: Path,
    suffix: str,
    files: Iterator[tuple[str, bytes]],
    parse: Callable[[Dataset, Path, bytes], Batch | None],
) -> Splits:
    """The splits, from an archive's files in any order."""
    wanted = {name + suffix for _, names, _ in dataset.splits() for name in names}
    found: dict[str, Batch] = {}
    for name, content in files:
        if name in wanted:
            batch = parse(dataset, path, content)
            if batch is None:
                raise UserError(f"{shown(path)}: {name} is not as published (its size or layout); fetch it again")
            found[name] = batch[0], _upright(dataset, batch[1])
    if missing := sorted(wanted - found.keys()):
        raise UserError(f"{shown(path)}: has no {missing[0]}; fetch it again")
    splits = {}
    for split, names, count in dataset.splits():
        batches = [found.pop(name + suffix) for name in names]
        splits[split] = Samples(np.concatenate([i for _, i in batches]), np.concatenate([n for n, _ in batches]))
        if len(splits[split].labels) != count:
            raise UserError(f"{shown(path)}: {len(splits[split].labels)} pictures for {split}, published are {count}")
    return Splits(splits["train"], splits["test"])


def _upright(dataset: Dataset, rows: Bytes) -> Bytes:
    """uint8 [n, channels * size * size], colour by colour as published -> [n, size, size, channels]"""
    planes = rows.reshape(-1, dataset.channels, dataset.size, dataset.size)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1))


def _raw(dataset: Dataset, path: Path, content: bytes) -> Batch | None:
    """From a binary file: for each picture its label bytes, then its pixels."""
    stride = dataset.label_bytes + dataset.pixels
    if not content or len(content) % stride:
        return None
    table = np.frombuffer(content, np.uint8).reshape(-1, stride)
    return table[:, dataset.label_bytes - 1].copy(), table[:, dataset.label_bytes :]


def _pickled(dataset: Dataset, path: Path, content: bytes) -> Batch | None:
    """From a pickle: {b"data": array, label_key: list of int}."""
    batch = _Unpickler(content).load_plain(path)
    if type(batch) is not dict:
        return None
    labels, data = batch.get(dataset.label_key), batch.get(b"data")
    rows = data.array() if type(data) is _Array else None
    if rows is None or rows.shape[1] != dataset.pixels or type(labels) is not list or len(labels) != len(rows):
        return None
    if not all(type(n) is int and 0 <= n < len(dataset.classes) for n in labels):
        return None
    return np.array(labels, np.uint8), rows


class _Dtype:
    """Stands for numpy.dtype in a pickle: keeps the code, ignores the state (uint8 has no byte order)."""

    def __init__(self, code: object = None, *rest: object) -> None:
        self.code = code

    def __setstate__(self, state: object) -> None:
        pass


class _Array:
    """Stands for a numpy array in a pickle: keeps what the pickle says of it, builds nothing."""

    def __init__(self, *ignored: object) -> None:
        self.state: Any = None

    def __setstate__(self, state: object) -> None:
        self.state = state

    def array(self) -> Bytes | None:
        """The array, if it is a whole two-dimensional uint8 one in row-major order."""
        match self.state:
            case (int(), (int(rows), int(columns)), _Dtype(code="u1" | b"u1"), False | 0, bytes(raw)):
                if rows > 0 and columns > 0 and rows * columns == len(raw):
                    return np.frombuffer(raw, np.uint8).reshape(rows, columns)
        return None


_STAND_INS: dict[tuple[str, str], type] = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
}


class _Unpickler(pickle.Unpickler):
    """dict, list, tuple, str, bytes and numbers as they are; numpy arrays as `_Array`; all else is an error."""

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data), encoding="bytes")  # Python 2 wrote them: its str are bytes

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _STAND_INS[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it names {module}.{name}") from None

    def load_plain(self, path: Path) -> Any:
        try:
            return self.load()
        except Exception as e:  # a hostile pickle can raise anything
            raise UserError(f"{shown(path)}: holds a pickle that is no plain data ({shown(e)}); not opened") from e
