"""A safetensors part on its way from a store, its header checked without torch before anything is made of it.

The format: https://huggingface.co/docs/safetensors. Stricter than that where Baton's own parts are: tensors lie in the
order of their names without gaps, and the header is small, so that a hostile one costs no memory to speak of.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar

from storage.errors import Damaged
from trainer import strict

MAX_HEADER_BYTES = 4 << 20  # some 40,000 tensors
MAX_ELEMENTS = 1 << 48  # of a tensor, and by as many dimensions as are not 0: those of an empty one are multiplied too
_SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


class Sink(Protocol):
    def write(self, data: Any, /) -> int: ...


S = TypeVar("S", bound=Sink)


class NoPart(Damaged):
    """Raised by a sink at a header that is none: no store reads on, for what follows may be enormous.

    It may have come damaged, so it is tried again as whatever did. `why`: what is wrong, without the part's name.
    """

    def __init__(self, what: str, why: str) -> None:
        super().__init__(f"{what} is none: {why}")
        self.why = f"is no part of a checkpoint: {why}"


class Head:
    """What of a part on its way is its header, as far as one may be long."""

    def __init__(self) -> None:
        self.kept = bytearray()

    @property
    def end(self) -> int:
        """Where the header ends, by its own word."""
        return data_start(self.kept) if len(self.kept) >= 8 else 8

    @property
    def is_told(self) -> bool:
        """Whether it is here, or is known to be longer than one may be."""
        return len(self.kept) >= 8 and (len(self.kept) >= self.end or self.end > 8 + MAX_HEADER_BYTES)

    def take(self, data: bytes | bytearray | memoryview) -> memoryview:
        """Keep what belongs to the header, and give the rest."""
        view = memoryview(data)
        while view and (lacking := min(self.end, 8 + MAX_HEADER_BYTES) - len(self.kept)) > 0:
            self.kept += view[:lacking]
            view = view[lacking:]
        return view


class PartReader:
    """A sink that hashes a part of `size` bytes on its way to `onward`, and keeps of it no more than the header.

    Before the header is found to be one of such a part, no more than that goes onward; else `write` raises `NoPart`,
    which says that `what` is none.
    """

    def __init__(self, onward: Sink, size: int, what: str) -> None:
        self._what = what
        self._onward = onward
        self._should_have = size
        self._sha256 = hashlib.sha256()
        self._head = Head()
        self._judged = False
        self.size = 0

    def write(self, data: bytes | bytearray | memoryview) -> int:
        self._sha256.update(data)
        self._head.take(data)
        self.size += len(data)
        if not self._judged and self._head.is_told:
            self._judge()
        self._onward.write(data)
        return len(data)

    def _judge(self) -> None:
        try:
            check_start(self._head.kept, self._should_have)
        except ValueError as e:
            raise NoPart(self._what, str(e)) from e
        self._judged = True

    def problem(self, sha256: str) -> str | None:
        """What is wrong with what was written, which should be the part of this name; None if nothing is."""
        if self.size != self._should_have:
            return f"has {self.size} bytes and should have {self._should_have}"
        if self._sha256.hexdigest() != sha256:
            return "is damaged"
        if not self._judged:
            return "is no part of a checkpoint: it ends before its header does"
        return None


class Begun(Generic[S]):
    """A sink that can be rewound to its start, for a store that tries again: by beginning another one."""

    def __init__(self, begin: Callable[[], S], size: int, what: str) -> None:
        self._begin = begin
        self._size = size
        self._what = what
        self.seek(0)

    def tell(self) -> int:
        return self.reader.size

    def seek(self, _start: int) -> None:
        self.inner = self._begin()
        self.reader = PartReader(self.inner, self._size, self._what)

    def truncate(self) -> None:
        """It is empty since the `seek`."""

    def write(self, data: bytes | bytearray | memoryview) -> int:
        return self.reader.write(data)


class Kept:
    """A sink that copies nothing that can't change under it: not what a store reads as bytes, in one piece."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def write(self, data: bytes | bytearray | memoryview) -> int:
        self._pieces.append(bytes(data))  # the same object, if it is bytes
        return len(data)

    def whole(self) -> bytes:
        return self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)


def data_start(head: bytes | bytearray) -> int:
    """Where the tensors' bytes begin, from a part's first 8."""
    return 8 + int.from_bytes(head[:8], "little")


def check_start(start: bytes | bytearray, size: int) -> None:
    """Raise ValueError if what begins so, with all of its header, is no part of `size` bytes."""
    end = data_start(start)
    if not 8 < end <= min(size, 8 + MAX_HEADER_BYTES):
        raise ValueError(f"its header of {end - 8} bytes is none")
    end += tensor_bytes(bytes(start[8:end]))
    if end != size:
        raise ValueError(f"its tensors end at byte {end}, and it should have {size}")


def tensor_bytes(text: bytes) -> int:
    """How many bytes of tensors follow this header. Raises ValueError if it is none."""
    if not text.startswith(b"{") or b"\0" in text:  # JSON in UTF-16, or after blanks, which safetensors doesn't take
        raise ValueError("its header is not JSON")
    header = _json(text, "its header")
    if not isinstance(header, dict):
        raise ValueError("its header is no object")
    strides = _strides(header.pop("__metadata__", {}))
    if list(header) != sorted(header) or not strides.keys() <= header.keys():
        raise ValueError("its tensors are not in order")
    end = 0
    for name, entry in header.items():
        match entry:
            case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [start, stop]} if (
                dtype in _SIZES and len(entry) == 3
            ):
                _check_shape(name, shape, strides.get(name))
                if not _are_counts([start, stop]) or (start, stop) != (end, end + math.prod(shape) * _SIZES[dtype]):
                    raise ValueError(f"tensor {name!a:.60} does not lie where its size says")
                end = stop
            case _:
                raise ValueError(f"tensor {name!a:.60} has no type, shape or place")
    return end


def tensor_names(part: bytes | bytearray) -> list[str]:
    """Names of the tensors in a part that has been checked, or but its beginning with all of the header."""
    return [name for name in strict.loads(bytes(part[8 : data_start(part)])) if name != "__metadata__"]


def _json(text: bytes, what: str) -> Any:
    try:
        return strict.loads(text)
    except ValueError as e:
        raise ValueError(f"{what} is not JSON") from e


def _check_shape(name: str, shape: list[Any], strides: Any) -> None:
    if not _are_counts(shape) or len(shape) > 64 or math.prod(n for n in shape if n) >= MAX_ELEMENTS:
        raise ValueError(f"tensor {name!a:.60} has no shape")
    if strides is None:
        return
    if not isinstance(strides, list) or not _are_counts(strides) or len(strides) != len(shape):
        raise ValueError(f"tensor {name!a:.60} has no strides")
    if not are_dense(shape, strides):
        raise ValueError(f"tensor {name!a:.60} has strides that don't fit its shape")


def are_dense(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether each element has a place of its own, and no place between them is left out."""
    expected = 1
    for stride, length in sorted((s, n) for s, n in zip(strides, shape, strict=True) if n > 1):
        if stride != expected and 0 not in shape:
            return False
        expected *= length
    return True


def _are_counts(values: list[Any]) -> bool:
    return all(type(value) is int and 0 <= value < 1 << 48 for value in values)


def _strides(metadata: Any) -> dict[str, Any]:
    """The strides in a part's metadata, which hold nothing else; see `trainer.parts.encode`."""
    match metadata:
        case {"strides": str(text)} if len(metadata) == 1:
            strides = _json(text.encode(), "its strides")
            if isinstance(strides, dict):
                return strides
        case {} if not metadata:
            return {}
    raise ValueError("its metadata are none of Baton's")
