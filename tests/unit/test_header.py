"""A part whose name is right and whose content is hostile is refused before anything is made of it."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import struct
import tracemalloc

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.header import MAX_HEADER_BYTES, NoPart, PartReader
from trainer.parts import encode


def problem(data: bytes, piece: int = 1 << 20) -> str | None:
    return fed(PartReader(io.BytesIO(), len(data), "part x"), data, piece)


def fed(reader: PartReader, data: bytes, piece: int = 1 << 20) -> str | None:
    try:
        for start in range(0, len(data), piece):
            reader.write(memoryview(data)[start : start + piece])
    except NoPart as e:
        return e.why
    return reader.problem(hashlib.sha256(data).hexdigest())


def whole(header: object, data: bytes = b"\0" * 8) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor(**changes: object) -> dict[str, object]:
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}


@pytest.mark.parametrize("piece", [1, 7, 1 << 20])
def test_real_parts_are_good_however_they_arrive(piece: int) -> None:
    tensors = {
        "channels_last": torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last),
        "count": torch.tensor(3),
        "empty": torch.zeros(0, 4),
        "one_channel": torch.randn(8, 1, 3, 3).to(memory_format=torch.channels_last),
        "transposed": torch.randn(3, 7).t(),
        "bf16": torch.randn(5).bfloat16(),
        "flags": torch.tensor([True, False]),
    }
    assert problem(b"".join(encode(tensors).chunks), piece) is None


class Harmful:
    def __reduce__(self) -> tuple[object, ...]:
        return (print, ("unpickled",))


NESTED = b"[" * 300 + b"]" * 300
HOSTILE = {
    "a pickle": pickle.dumps(Harmful()),
    "a pickle in a zip's clothes": b"PK\x03\x04" + pickle.dumps(Harmful()),
    "nothing": b"",
    "a header longer than the file": struct.pack("<Q", 1 << 63) + b"{}",
    "a header of 100 MB": whole(b'{"a":' + b"[" * (100 << 20) + b"}"),
    "a header of a million tensors": whole(
        {f"{i:07d}": tensor(shape=[0], data_offsets=[0, 0]) for i in range(100_000)}
    ),
    "a nested header": whole(b"[" * 1_000_000),
    "no JSON": whole(b"\xff\xfe\0"),
    "a list": whole([1]),
    "an unknown type": whole({"a": tensor(dtype="PY")}),
    "a type that is none": whole({"a": tensor(dtype=["F32"])}),
    "an enormous shape": whole({"a": tensor(shape=[1 << 62, 1 << 62])}),
    "an enormous shape of nothing": whole({"a": tensor(shape=[1 << 47, 1 << 47, 0], data_offsets=[0, 0])}, b""),
    "a negative shape": whole({"a": tensor(shape=[-2])}),
    "a boolean shape": whole({"a": tensor(shape=[True, 2])}),
    "tensors that overlap": whole({"a": tensor(), "b": tensor()}),
    "tensors out of order": whole({"b": tensor(), "a": tensor(data_offsets=[8, 16])}, b"\0" * 16),
    "bytes after the last tensor": whole({"a": tensor()}, b"\0" * 9),
    "too few bytes": whole({"a": tensor()}, b"\0" * 7),
    "places that are text": whole({"a": tensor(data_offsets=["0", "8"])}),
    "places that are no integers": whole({"a": tensor(data_offsets=[0.0, 8.0])}),
    "places that are true or not": whole({"a": tensor(shape=[1], dtype="U8", data_offsets=[False, True])}, b"\0"),
    "a nought below nought": whole(json.dumps({"a": tensor()}).replace("[0,", "[-0,").encode()),
    "more of a tensor, deeply nested": whole(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"x":%s}}' % NESTED),
    "a header in UTF-16": whole(json.dumps({"a": tensor()}).encode("utf-16-le")),
    "a header after blanks": whole(b" " + json.dumps({"a": tensor()}).encode()),
    "metadata of another kind": whole({"__metadata__": {"x": "y"}, "a": tensor()}),
    "strides that are a list": whole({"__metadata__": {"strides": "[1]"}, "a": tensor()}),
    "strides that are no JSON": whole({"__metadata__": {"strides": "{" * 10_000}, "a": tensor()}),
    "strides of a tensor that isn't there": whole({"__metadata__": {"strides": '{"b":[1]}'}, "a": tensor()}),
    "strides that overlap": whole(
        {"__metadata__": {"strides": '{"a":[2,2]}'}, "a": tensor(shape=[3, 3], data_offsets=[0, 36])}, b"\0" * 36
    ),
    "strides of nought": whole({"__metadata__": {"strides": '{"a":[0]}'}, "a": tensor()}),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_what_is_no_part_of_a_checkpoint_is_refused_in_little_memory(what: str) -> None:
    data = HOSTILE[what]
    reader = PartReader(kept := io.BytesIO(), len(data), "part x")
    tracemalloc.start()
    told = fed(reader, data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert told is not None
    assert "no part of a checkpoint" in told
    assert "\n" not in told
    assert peak < 15 * MAX_HEADER_BYTES
    assert len(kept.getvalue()) <= MAX_HEADER_BYTES


@given(st.binary(max_size=300))
def test_no_bytes_whatever_raise_anything(data: bytes) -> None:
    assert problem(data) is not None


GOOD = b"".join(encode({"a": torch.randn(3, 7).t(), "b": torch.zeros(3)}).chunks)


@given(st.lists(st.sampled_from([0, 1, 2, 1 << 24, (1 << 24) - 1, 1 << 47, (1 << 48) - 1]), max_size=64))
def test_what_passes_of_an_empty_tensor_can_be_decoded(shape: list[int]) -> None:
    from trainer.parts import decode

    data = whole({"a": tensor(shape=[*shape, 0], data_offsets=[0, 0])}, b"")
    if problem(data) is None:
        decode(data)


@given(st.integers(0, len(GOOD) - 1), st.integers(0, 255))
def test_what_passes_can_be_decoded(place: int, byte: int) -> None:
    from trainer.parts import decode

    data = GOOD[:place] + bytes([byte]) + GOOD[place + 1 :]
    if problem(data) is None:
        decode(data)
