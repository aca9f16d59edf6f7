"""The packed file: a data set as one safetensors file that every start maps into memory.

    8 bytes      length of the header, little-endian
    JSON         the arrays' types, shapes and places, and `__metadata__`; padded with spaces to a multiple of 4096
    bytes        the arrays, little-endian and row-major, nothing between them, in one of these layouts:
                 pictures   train_images, test_images: uint8; train_labels, test_labels: uint8, or uint16 where there
                            are more than 256 classes
                 texts      train_offsets, test_offsets: int64 [texts + 1]; train_tokens, test_tokens: uint16 or int32,
                            one text's after the other's; train_labels, test_labels: uint8; tokenizer: its files, JSON

Small pictures and texts lie in the order of the SHA-256 of (label, pixels) or of the text. So the same ones give the
same bytes whichever archive or folder they came from and however its files were named, and any slice is a fair mixture
of the classes. Photographs, of which there may be too many to sort, lie as in their source: photographs.py.
The format: https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray

from trainer.data.dataset import DATASETS, PACKERS, Bytes, PictureSet, Samples, Splits, shown
from trainer.data.paths import reading
from trainer.data.pulse import Pulse, told
from trainer.data.scratch import replacing
from trainer.exits import UserError

Array: TypeAlias = NDArray[Any]
FILE_NAME = "packed.safetensors"
FORMAT = "baton-packed-1"
ARRAYS = ("train_images", "test_images", "train_labels", "test_labels")  # images first: they stay aligned
# Of each layout, in file order: an array's dimensions and the types it may have. Those of more bytes come first, so
# that all are aligned.
PICTURES: Mapping[str, tuple[int, tuple[str, ...]]] = {
    name: (4, ("U8",)) if "images" in name else (1, ("U8", "U16")) for name in ARRAYS
}
TEXTS: Mapping[str, tuple[int, tuple[str, ...]]] = {
    "train_offsets": (1, ("I64",)), "test_offsets": (1, ("I64",)),
    "train_tokens": (1, ("I32", "U16")), "test_tokens": (1, ("I32", "U16")),
    "train_labels": (1, ("U8",)), "test_labels": (1, ("U8",)),
    "tokenizer": (1, ("U8",)),
}  # fmt: skip
_DTYPES: Mapping[str, np.dtype[Any]] = {
    "U8": np.dtype("<u1"),
    "U16": np.dtype("<u2"),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
ALIGNMENT = 4096  # a memory page: the first array begins on one
HEADER_LIMIT = 1 << 20  # bytes; a real header has one page, and `RESERVED` bytes at most
RESERVED = 512 << 10  # bytes for the header of a file that grows before its classes are known
MOST_CLASSES = 1 << 14
CHUNK = 8 << 20  # bytes hashed or written between two looks at `check`


@dataclass(frozen=True, slots=True)
class Origin:
    """Where packed data came from; enough to know the same source again, and nothing about the machine.

    Two are equal that are of the same content, wherever it was fetched from.
    """

    kind: str  # for people: "image tar", "python archive", ...
    name: str  # file or folder name, without the folders above
    mark: str  # checksum, of a folder that of its files' names, sizes and times; of a large tar here the last two
    tag: str = field(default="", compare=False)  # what a server said of this version (its ETag), if anything
    address: str = field(default="", compare=False)  # of a download: a hash, for the address itself may hold a secret


@dataclass(frozen=True)
class Packed:
    """A packed file, mapped into memory."""

    path: Path
    name: str  # of the data set
    classes: tuple[str, ...]
    sha256: str  # of the arrays' bytes in file order, as the header claims; `verify` holds it to that
    synthetic: bool
    origin: Origin
    arrays: dict[str, Array]  # read-only; for pictures *_images uint8 [n, height, width, channels], *_labels uint8 [n]
    body: Bytes  # all arrays' bytes, as they lie in the file
    skipped: int = 0  # pictures of the source that were broken and so aren't here

    def verify(self, check: Callable[[], None] = lambda: None) -> None:
        """Hash the arrays' bytes (0.2 s for CIFAR-10). Raises `UserError` if they aren't what was packed."""
        digest = hashlib.sha256()
        for start in range(0, len(self.body), CHUNK):
            check()
            digest.update(self.body[start : start + CHUNK].data)
        if digest.hexdigest() != self.sha256:
            raise _unusable(self.path, f"its bytes have changed since: SHA-256 {digest.hexdigest()}", self.name)


def no_data() -> Packed:
    """What a job gets that makes its own data, or wants none."""
    nothing = hashlib.sha256().hexdigest()
    return Packed(Path(), "none", (), nothing, False, Origin("none", "", ""), {}, np.empty(0, np.uint8))


class _Bad(Exception):
    """Why a file is no packed one."""


def open_packed(folder: Path, name: str = "") -> Packed:
    """Map `folder`/packed.safetensors (or the file itself). Raises `UserError` unless it is whole and well-formed.

    `name`: of the data set that it should hold, for messages; if not given, what the folder is called may be it.
    Costs no reading but of the header and the labels; the bytes themselves are checked by `Packed.verify`.
    """
    with reading(folder):
        path = folder if folder.is_file() else folder / FILE_NAME
    name = name or path.parent.name
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            start, header = _read_header(file, size)
        return _map(path, start, header, size)
    except FileNotFoundError as e:
        raise UserError(f"{shown(path)}: no packed data here; {remedy(name)}") from e
    except OSError as e:
        raise told(e, f"can't read {shown(path)}") from e
    except _Bad as e:
        raise _unusable(path, str(e), name) from e


def remedy(name: str) -> str:
    """What gets the data set `name` packed; the end of a message."""
    if name == "bert":
        return (
            "pack it: python entrypoint.py data bert --source FILE.csv --model MODEL "
            "(no --model for --preset scratch), or start with --data FILE.csv"
        )
    if name == "imagenet":
        return (
            "pack it: python entrypoint.py data imagenet --source FOLDER-OR-TAR-OR-STORE, or start with --data FOLDER"
        )
    name = name if name in DATASETS or name in PACKERS else "NAME"
    short = ", or make cifar10" if name == "cifar10" else ""
    return f"pack it: python entrypoint.py data {name} --source ARCHIVE-OR-FOLDER{short}"


def _unusable(path: Path, why: str, name: str) -> UserError:
    return UserError(f"{shown(path)}: not a whole packed file ({why}); {remedy(name)}")


def _require(good: bool, why: str) -> None:
    if not good:
        raise _Bad(why)


def _read_header(file: BinaryIO, size: int) -> tuple[int, dict[str, Any]]:
    """(where the arrays begin, the header), of a file of `size` bytes."""
    _require(size >= 8, f"{size} bytes long")
    length = int.from_bytes(file.read(8), "little")
    _require(0 < length <= min(HEADER_LIMIT, size - 8), f"header of {length} bytes in {size}")
    try:
        header = json.loads(file.read(length))
    except (ValueError, RecursionError) as e:
        raise _Bad("header is not JSON") from e
    _require(type(header) is dict and "__metadata__" in header, "header lists other arrays")
    return 8 + length, header


def _map(path: Path, start: int, header: dict[str, Any], size: int) -> Packed:
    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    layout = next((known for known in (PICTURES, TEXTS) if known.keys() == entries.keys()), None)
    if layout is None:
        raise _Bad("header lists other arrays")
    places: dict[str, tuple[int, int, np.dtype[Any], list[int]]] = {}  # from, to, type, shape
    end = 0
    for name, (dimensions, types) in layout.items():
        begin, (dtype, shape) = end, _form(entries[name], name, dimensions, types)
        end += int(np.prod(shape, dtype=object)) * dtype.itemsize
        _require(entries[name]["data_offsets"] == [begin, end], f"{name}: type, shape and place don't fit")
        places[name] = (begin, end, dtype, shape)
    _require(size == start + end, f"{size} bytes long, its header says {start + end}")
    meta = _metadata(header["__metadata__"])
    body = np.memmap(path, np.uint8, "r", start, (end,)).view(np.ndarray)
    arrays = {name: body[a:b].view(dtype).reshape(shape) for name, (a, b, dtype, shape) in places.items()}
    classes = tuple(meta["classes"])
    for split in ("train", "test"):
        labels = arrays[f"{split}_labels"]
        _require(len(labels) == meta[split] > 0, f"counts of {split} differ")
        _require(int(labels.max()) < len(classes), f"a label of {split} is {labels.max()} of {len(classes)} classes")
        if layout is PICTURES:
            _require(len(arrays[f"{split}_images"]) == len(labels), f"counts of {split} differ")
        else:
            offsets, tokens = arrays[f"{split}_offsets"], arrays[f"{split}_tokens"]
            _require(len(offsets) == len(labels) + 1 and offsets[0] == 0, f"counts of {split} differ")
            _require(offsets[-1] == len(tokens) and bool((np.diff(offsets) > 0).all()), f"{split}: a text has no place")
    if layout is PICTURES:
        _require(arrays["train_images"].shape[1:] == arrays["test_images"].shape[1:], "train and test differ in shape")
    origin = Origin(**meta["source"])
    return Packed(path, meta["name"], classes, meta["sha256"], meta["synthetic"], origin, arrays, body, meta["skipped"])


def _form(entry: Any, name: str, dimensions: int, types: tuple[str, ...]) -> tuple[np.dtype[Any], list[int]]:
    """The array's type and shape, if its entry is as `_header` writes one."""
    _require(type(entry) is dict and entry.keys() == {"dtype", "shape", "data_offsets"}, f"{name}: odd entry")
    shape: list[int] = entry["shape"]
    _require(type(shape) is list and len(shape) == dimensions, f"{name}: odd shape")
    _require(all(type(n) is int and 0 < n < 2**40 for n in shape), f"{name}: odd shape")
    _require(type(entry["dtype"]) is str and entry["dtype"] in types, f"{name}: odd type")
    return _DTYPES[entry["dtype"]], shape


def _metadata(raw: Any) -> dict[str, Any]:
    _require(type(raw) is dict and all(type(v) is str for v in raw.values()), "odd metadata")
    _require(raw.get("format") == FORMAT, f"format is not {FORMAT}")
    try:
        meta = {
            "name": raw["name"],
            "classes": json.loads(raw["classes"]),
            "train": int(raw["train"]),
            "test": int(raw["test"]),
            "source": json.loads(raw["source"]),
            "synthetic": {"true": True, "false": False}[raw["synthetic"]],
            "sha256": raw["sha256"],
            "skipped": int(raw.get("skipped", "0")),
        }
    except (KeyError, ValueError, RecursionError) as e:
        raise _Bad("odd metadata") from e
    classes, source = meta["classes"], meta["source"]
    _require(type(classes) is list and all(type(c) is str for c in classes) and len(classes) > 0, "odd class names")
    _require(len(set(classes)) == len(classes) <= MOST_CLASSES, "odd class names")
    _require(type(source) is dict and source.keys() - {"address"} == {"kind", "name", "mark", "tag"}, "odd source")
    _require(all(type(v) is str for v in source.values()), "odd source")
    _require(re.fullmatch("[0-9a-f]{64}", meta["sha256"]) is not None, "odd SHA-256")
    return meta


def write_packed(
    folder: Path,
    dataset: PictureSet,
    splits: Splits,
    origin: Origin,
    *,
    synthetic: bool = False,
    pulse: Pulse | None = None,
) -> Packed:
    """Put `splits` into `folder` as its packed file, in place of one that is there: wholly or not at all; and say so.

    Raises `UserError` where there is no space or no permission, and whatever `pulse.check` does.
    """
    pulse = pulse or Pulse()
    orders = {"train": _order(splits.train, pulse), "test": _order(splits.test, pulse)}
    sources: dict[str, tuple[Array, Array | None]] = {}
    for name in PICTURES:
        split, _, what = name.partition("_")
        sources[name] = (getattr(getattr(splits, split), what), orders[split])
    packed = write_arrays(folder, dataset.name, dataset.classes, sources, origin, synthetic=synthetic, pulse=pulse)
    pulse.say(
        f"packed {len(splits.train.labels):,} training and {len(splits.test.labels):,} test pictures"
        f"{' (SYNTHETIC)' if synthetic else ''}: {shown(packed.path)}, SHA-256 {packed.sha256[:12]}"
    )
    return packed


def write_arrays(
    folder: Path,
    name: str,
    classes: Sequence[str],
    sources: Mapping[str, tuple[Array, Array | None]],
    origin: Origin,
    *,
    synthetic: bool,
    pulse: Pulse,
) -> Packed:
    """As `write_packed`, for the arrays of any layout, in its order, each with the order of its rows if not its own."""
    counts = len(sources["train_labels"][0]), len(sources["test_labels"][0])
    meta = metadata(name, classes, counts, origin, synthetic=synthetic)
    total = sum(array.nbytes for array, _ in sources.values())
    blank = bytes(len(_header(sources, meta)))
    if len(blank) > HEADER_LIMIT:  # no start would read it, and what was packed before would be gone
        raise UserError(f"the names of {len(classes):,} classes are too long together; shorten the labels")
    if synthetic:
        _tell_what_goes(folder, pulse)
    with replacing(folder / FILE_NAME) as scratch:
        digest, written = hashlib.sha256(), 0
        # The header comes last, in the space left for it: without one, no unfinished file is taken for whole.
        scratch.write(blank)
        for chunk in _chunks(sources):
            pulse.beat(f"writing: {written / 1e6:.1f} of {total / 1e6:.1f} MB")
            digest.update(chunk)
            scratch.write(chunk)
            scratch.sync()  # piece by piece, because one long sync at the end couldn't be stopped
            written += len(chunk)
        meta["sha256"] = digest.hexdigest()
        scratch.seek(0)
        scratch.write(_header(sources, meta))
        pulse.check()
    return open_packed(folder, name)


def _tell_what_goes(folder: Path, pulse: Pulse) -> None:
    """Say so where the stand-in takes the place of real data: runs on these go on only once they are back."""
    try:
        before = open_packed(folder)
    except UserError:
        return  # none is lost
    if not before.synthetic:
        pulse.say(
            f"the SYNTHETIC stand-in takes the place of the real {shown(before.name)} packed in {shown(before.path)} "
            f"(from {shown(before.origin.kind)} {shown(before.origin.name)}); to have it back, pack that again"
        )


def metadata(
    name: str, classes: Sequence[str], counts: tuple[int, int], origin: Origin, *, synthetic: bool = False
) -> dict[str, str]:
    """A header's `__metadata__`, still without the SHA-256. `counts`: of train and test."""
    return {
        "format": FORMAT,
        "name": name,
        "classes": json.dumps(classes),
        "train": str(counts[0]),
        "test": str(counts[1]),
        "source": json.dumps(asdict(origin)),
        "synthetic": "true" if synthetic else "false",
        "sha256": "0" * 64,
    }


def _header(sources: Mapping[str, tuple[Array, Array | None]], meta: Mapping[str, str]) -> bytes:
    return header({name: (array.dtype, array.shape) for name, (array, _) in sources.items()}, meta)


def header(
    forms: Mapping[str, tuple[np.dtype[Any], Sequence[int]]], meta: Mapping[str, str], size: int = ALIGNMENT
) -> bytes:
    """The file up to its arrays, padded to a multiple of `size` bytes. As long for any SHA-256."""
    entries: dict[str, Any] = {"__metadata__": meta}
    end = 0
    for name, (dtype, shape) in forms.items():
        start, end = end, end + int(np.prod(shape, dtype=object)) * dtype.itemsize
        entries[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % size)
    return len(text).to_bytes(8, "little") + text


def _chunks(sources: Mapping[str, tuple[Array, Array | None]]) -> Iterator[memoryview]:
    """The arrays' bytes in file order, about `CHUNK` at a time, so that no second copy of the images is made."""
    for array, order in sources.values():
        rows = max(1, CHUNK // (array.nbytes // len(array)))
        for start in range(0, len(array), rows):
            some = slice(start, start + rows)
            yield array[some if order is None else order[some]].reshape(-1).view(np.uint8).data


def _order(samples: Samples, pulse: Pulse) -> Any:
    """The order in which to write these samples; int64 [n]."""
    keys = np.empty((len(samples.labels), 32), np.uint8)
    for i, (image, label) in enumerate(zip(samples.images, samples.labels.tolist(), strict=True)):
        if i % 1000 == 0:
            pulse.beat("putting in order")
        keys[i] = np.frombuffer(hashlib.sha256(bytes([label]) + image.tobytes()).digest(), np.uint8)
    return np.lexsort(keys.T[::-1])
