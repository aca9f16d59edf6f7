"""Parts: tensors as safetensors objects of 6 MB, more only for a larger tensor, named by the SHA-256 of their bytes.

Written here, because large tensors are hashed and sent straight from their memory; read by the safetensors library,
which is made to withstand hostile files. The format: https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from trainer.header import are_dense

# What every store takes in one request: large enough for its price, small enough for several on their way at once in
# little memory.
PART_BYTES = 6 << 20
_HEADER_BYTES = 256  # more than a tensor takes in a part's header, beside its name: twice
_DTYPES = {  # all that a checkpoint can hold
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
_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # numpy has no bfloat16


@dataclass(frozen=True, slots=True)
class Part:
    """One encoded part."""

    sha256: str
    size: int  # bytes
    chunks: Sequence[bytes | memoryview]
    head: int  # bytes before the tensors' own

    def data(self) -> list[memoryview]:
        """The tensors' bytes."""
        views = [memoryview(chunk) for chunk in self.chunks]
        return [views[0][self.head :], *views[1:]]


def grouped(tensors: Mapping[str, Tensor], frozen: Collection[str] = ()) -> Iterator[dict[str, Tensor]]:
    """Whole tensors in the order of their names, in groups that make parts below `PART_BYTES`, but for a larger tensor.

    Those named in `frozen` come in groups of their own, which stay the same from save to save and are sent once.
    """
    group: dict[str, Tensor] = {}
    size, stays = 0, False
    for name in sorted(tensors):
        takes = tensors[name].nbytes + 2 * len(name) + _HEADER_BYTES
        if group and (size + takes >= PART_BYTES or (name in frozen) != stays):
            yield group
            group, size = {}, 0
        group[name], stays = tensors[name], name in frozen
        size += takes
    if group:
        yield group


def _words(tensor: Tensor) -> np.ndarray[Any, Any]:
    """A CPU tensor for numpy to copy, for torch's own threads would go on waiting on processors that training needs."""
    return tensor.detach().view(_WORDS[tensor.itemsize]).numpy()


def raw_bytes(tensor: Tensor) -> memoryview:
    """A CPU tensor's bytes in logical (row-major) order; without a copy if they lie so in memory."""
    return np.ascontiguousarray(_words(tensor)).reshape(-1).view(np.uint8).data


def _joined(head: bytes, tensors: Sequence[Tensor], size: int) -> bytes:
    """The same of many tensors, after `head`, each copied once, to its place."""
    body = io.BytesIO(bytes(size))  # whose value is this very buffer
    with body.getbuffer() as room:
        room[: len(head)] = head
        at = len(head)
        for words in map(_words, tensors):
            if words.size:
                np.frombuffer(room, words.dtype, words.size, at).reshape(words.shape)[...] = words
            at += words.nbytes
    return body.getvalue()


def unsaveable(tensor: Tensor) -> str | None:
    """What a tensor is, where no checkpoint can hold it."""
    if tensor.layout != torch.strided or tensor.dtype not in _DTYPES:
        return f"a tensor of {tensor.dtype if tensor.layout == torch.strided else tensor.layout}"
    return None


def encode(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> Part:
    """The part that holds these CPU tensors, and this metadata for other readers.

    Their strides go into its metadata where memory order is another than the logical one: arithmetic on a tensor
    that comes back from a checkpoint in another memory order (channels_last) can round otherwise. A view's don't, for
    what lies between its elements is not saved.
    """
    ordered = sorted(tensors.items())
    header: dict[str, object] = {}
    # not is_contiguous(): that overlooks dimensions of size 1, by whose strides kernels choose their path too
    strides = {name: own for name, t in ordered if (own := packed_strides(t)) != _row_major(t.shape)}
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
    whole = len(head) + end
    if whole < PART_BYTES:  # in one piece it is hashed and sent at once, without a copy in a store or SDK
        chunks: list[bytes | memoryview] = [_joined(head, [tensor for _, tensor in ordered], whole)]
    else:
        chunks = [head, *(raw_bytes(tensor) for _, tensor in ordered)]
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return Part(digest.hexdigest(), whole, chunks, len(head))


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


def packed_strides(tensor: Tensor) -> tuple[int, ...]:
    """Those of a copy of its own: the tensor's, but row-major ones for a view that leaves places out or shares them."""
    own = tensor.stride()
    return own if tensor.is_contiguous() or are_dense(tensor.shape, own) else _row_major(tensor.shape)


def _row_major(shape: torch.Size) -> tuple[int, ...]:
    return torch.empty(shape, device="meta").stride()


def _strides(data: bytes) -> dict[str, list[int]]:
    length = int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8 : 8 + length]).get("__metadata__") or {}
    strides: dict[str, list[int]] = json.loads(metadata.get("strides", "{}"))
    return strides
