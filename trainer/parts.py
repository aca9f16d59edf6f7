"""Parts: tensors as safetensors objects of about 32 MB, named by the SHA-256 of their bytes.

Written here, because the bytes are hashed and sent straight from the tensors' memory, never joined; read by the
safetensors library, which is made to withstand hostile files. The format: https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

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


@dataclass(frozen=True, slots=True)
class Part:
    """One encoded part: its header, and of each tensor a view of its own memory, or of a copy in logical order."""

    sha256: str
    size: int  # bytes
    chunks: list[memoryview]
    copied: int  # bytes that lie in copies, and are held in memory as long as the part is


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


def encode(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> Part:
    """The part that holds these CPU tensors, and this metadata for other readers.

    Their strides go into its metadata where memory order is another than the logical one: arithmetic on a tensor
    that comes back from a checkpoint in another memory order (channels_last) can round otherwise.
    """
    header: dict[str, object] = {}
    # not is_contiguous(): that overlooks dimensions of size 1, by whose strides kernels choose their path too
    strides = {name: t.stride() for name, t in sorted(tensors.items()) if t.stride() != _row_major(t.shape)}
    said = dict(metadata or {})
    if strides:
        said["strides"] = json.dumps(strides, separators=(",", ":"))
    if said:
        header["__metadata__"] = said
    chunks: list[memoryview] = []
    end = 0
    for name in sorted(tensors):
        tensor = tensors[name]
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
        chunks.append(raw_bytes(tensor))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    chunks.insert(0, memoryview(len(text).to_bytes(8, "little") + text))
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    copied = sum(tensor.nbytes for tensor in tensors.values() if not tensor.is_contiguous())
    return Part(digest.hexdigest(), sum(chunk.nbytes for chunk in chunks), chunks, copied)


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
