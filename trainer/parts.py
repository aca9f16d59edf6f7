"""Parts: tensors as safetensors objects of about 32 MB, named by the SHA-256 of their bytes.

Written here, because the bytes are hashed and sent straight from the tensors' memory, never joined; read by the
safetensors library, which is made to withstand hostile files. The format: https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

PART_BYTES = 32 << 20
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class Chunks(Sequence[memoryview]):
    """A part's bytes: its header, then each tensor's, in row-major order.

    A tensor that lies in another order is copied when it is asked for, so that no copy outlives its sending.
    """

    def __init__(self, header: bytes, tensors: Sequence[Tensor]) -> None:
        self._header = header
        self._tensors = tensors

    def __len__(self) -> int:
        return 1 + len(self._tensors)

    @overload
    def __getitem__(self, index: int) -> memoryview: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[memoryview]: ...
    def __getitem__(self, index: int | slice) -> memoryview | Sequence[memoryview]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        return raw_bytes(self._tensors[index - 1]) if index else memoryview(self._header)


@dataclass(frozen=True, slots=True)
class Part:
    """One encoded part."""

    sha256: str
    size: int  # bytes
    chunks: Chunks


def grouped(tensors: Mapping[str, Tensor], frozen: Collection[str] = ()) -> Iterator[dict[str, Tensor]]:
    """Whole tensors in the order of their names, in groups of about `PART_BYTES`.

    Those named in `frozen` come in groups of their own, which stay the same from save to save and are sent once.
    """
    group: dict[str, Tensor] = {}
    size, stays = 0, False
    for name in sorted(tensors):
        tensor = tensors[name]
        if group and (size + tensor.nbytes > PART_BYTES or (name in frozen) != stays):
            yield group
            group, size = {}, 0
        group[name], stays = tensor, name in frozen
        size += tensor.nbytes
    if group:
        yield group


def raw_bytes(tensor: Tensor) -> memoryview:
    """A CPU tensor's bytes in logical (row-major) order; without a copy if they lie so in memory."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data


def encode(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None, also: Any = None) -> Part:
    """The part that holds these CPU tensors, and this metadata for other readers; `also` a hash of the tensors' bytes.

    Their strides go into its metadata where memory order is another than the logical one: arithmetic on a tensor
    that comes back from a checkpoint in another memory order (channels_last) can round otherwise.
    """
    ordered = sorted(tensors.items())
    header: dict[str, object] = {}
    # not is_contiguous(): that overlooks dimensions of size 1, by whose strides kernels choose their path too
    strides = {name: t.stride() for name, t in ordered if t.stride() != _row_major(t.shape)}
    said = dict(metadata or {})
    if strides:
        said["strides"] = json.dumps(strides, separators=(",", ":"))
    if said:
        header["__metadata__"] = said
    end = 0
    for name, tensor in ordered:
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    digest = hashlib.sha256(head)
    for _, tensor in ordered:
        data = raw_bytes(tensor)
        digest.update(data)
        if also is not None:
            also.update(data)
    return Part(digest.hexdigest(), len(head) + end, Chunks(head, [tensor for _, tensor in ordered]))


def decode(data: bytes) -> dict[str, Tensor]:
    """The tensors of a part, in the memory order that they were saved from. Raises ValueError if `data` is none."""
    try:
        loaded = load(data)
        strides = _strides(data)
        tensors = {name: _laid_out(tensor, strides.get(name)) for name, tensor in loaded.items()}
    except (SafetensorError, KeyError, TypeError, RuntimeError) as e:
        raise ValueError(f"not a part: {e}") from e
    return tensors


def _laid_out(tensor: Tensor, strides: list[int] | None) -> Tensor:
    """A copy with these strides, in memory aligned as torch's own: by the alignment too, kernels choose their path."""
    own = torch.empty_strided(tensor.shape, strides or tensor.stride(), dtype=tensor.dtype)
    if own.untyped_storage().nbytes() != tensor.nbytes:
        raise ValueError(f"strides {strides} don't fit the shape {tuple(tensor.shape)}")
    return own.copy_(tensor)


def _row_major(shape: torch.Size) -> tuple[int, ...]:
    return torch.empty(shape, device="meta").stride()


def _strides(data: bytes) -> dict[str, list[int]]:
    length = int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8 : 8 + length]).get("__metadata__") or {}
    strides: dict[str, list[int]] = json.loads(metadata.get("strides", "{}"))
    return strides
