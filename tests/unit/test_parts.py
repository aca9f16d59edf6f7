"""Parts hold tensors to the bit, in their memory order, in files that any safetensors reader reads."""

from __future__ import annotations

import contextlib
import hashlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load

from trainer.checkpoint import HostBuffers
from trainer.header import check_start
from trainer.parts import PART_BYTES, decode, encode, grouped

TENSORS = {
    "channels_last": torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last),
    "one_channel": torch.randn(8, 1, 3, 3).to(memory_format=torch.channels_last),
    "transposed": torch.randn(3, 7).t(),
    "bf16": torch.randn(5).bfloat16(),
    "half": torch.randn(5).half(),
    "count": torch.tensor(3),
    "empty": torch.zeros(0, 4),
    "flags": torch.tensor([True, False]),
    "not a number": torch.tensor([float("nan"), float("-inf"), -0.0]),
    "bytes": torch.arange(256, dtype=torch.uint8),
}

VIEWS = {
    "beginnings": torch.randn(4, 10)[:, :3],
    "every second": torch.randn(4, 10)[:, ::2].bfloat16(),
    "large": torch.randn(PART_BYTES // 8, 4)[:, 1:],
    "one of four": torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last)[:, :1],
    "one place for all": torch.tensor(3.5).expand(2, 3),
    "rows of one place": torch.randn(3, 1).expand(3, 5),
    "transposed": torch.randn(10, 4)[:3].t(),
    "windows": torch.arange(9).unfold(0, 4, 2),
}


def whole(tensors: dict[str, torch.Tensor]) -> bytes:
    return b"".join(encode(tensors).chunks)


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def test_tensors_come_back_to_the_bit_and_in_their_memory_order() -> None:
    back = decode(whole(TENSORS))
    assert back.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert (back[name].dtype, back[name].shape) == (tensor.dtype, tensor.shape)
        assert back[name].stride() == tensor.stride(), name
        assert bits(back[name]) == bits(tensor), name


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_that_leaves_places_out_or_shares_them_is_saved_as_what_a_start_can_read(name: str) -> None:
    copies = HostBuffers().copy({name: VIEWS[name]}, "model")
    part = encode({name: VIEWS[name]})
    assert encode(copies).sha256 == part.sha256
    data = b"".join(part.chunks)
    check_start(data[: part.head], part.size)
    back = decode(data)[name]
    assert (back.dtype, bits(back)) == (VIEWS[name].dtype, bits(VIEWS[name]))


def test_any_safetensors_reader_reads_them() -> None:
    back = load(whole(TENSORS))
    assert {name: bits(t) for name, t in back.items()} == {name: bits(t) for name, t in TENSORS.items()}


def test_a_part_is_named_by_its_bytes_and_these_by_the_tensors_alone() -> None:
    part = encode(TENSORS)
    assert hashlib.sha256(b"".join(part.chunks)).hexdigest() == part.sha256
    assert part.size == sum(len(c) for c in part.chunks)
    assert encode(dict(reversed(TENSORS.items()))).sha256 == part.sha256


def test_encoding_copies_nothing_of_a_large_tensor_that_lies_in_order() -> None:
    tensor = torch.zeros(PART_BYTES // 4)
    chunks = encode({"t": tensor}).chunks
    tensor[0] = 1
    assert bytes(chunks[1][:4]) == b"\x00\x00\x80\x3f"


def test_groups_hold_whole_tensors_and_make_parts_of_one_piece() -> None:
    tensors = {f"{i:02d}": torch.zeros(5 << 17) for i in range(6)} | {"large": torch.zeros(20 << 18)}
    groups = list(grouped(tensors))
    assert [sorted(group) for group in groups] == [["00", "01"], ["02", "03"], ["04", "05"], ["large"]]
    many = {f"{i:06d}": torch.zeros(500) for i in range(8000)}  # small ones, whose header is large
    assert [len(encode(group).chunks) for group in grouped(many)] == [1, 1, 1]
    assert [len(encode(group).chunks) for group in groups] == [1, 1, 1, 2]
    assert max(encode(group).size for group in groups[:-1]) < PART_BYTES


def test_a_parts_data_is_all_but_its_header() -> None:
    for tensors in ({"t": torch.zeros(PART_BYTES // 4)}, TENSORS):
        part = encode(tensors)
        data = b"".join(part.data())
        assert data == b"".join(bits(tensor) for _, tensor in sorted(tensors.items()))
        assert b"".join(part.chunks)[-len(data) :] == data


@given(st.binary(max_size=200))
def test_what_is_no_part_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="not a part"):
        decode(data)


@given(st.integers(0, 400), st.integers(0, 7))
def test_a_flipped_bit_is_refused_or_read_but_never_anything_else(place: int, bit: int) -> None:
    data = bytearray(whole(TENSORS))
    data[place] ^= 1 << bit
    with contextlib.suppress(ValueError):
        decode(bytes(data))


@pytest.mark.parametrize("strides", ["[9999999,1]", "[0,0]", "[1]", "[-1,1]", '"x"', "[1,1]"])
def test_strides_that_do_not_fit_are_refused(strides: str) -> None:
    data = whole({"t": torch.randn(3, 7).t()})
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length].decode().rstrip().replace("[1,7]", strides.replace('"', '\\"'))
    text = header.encode()
    with pytest.raises(ValueError):  # noqa: PT011
        decode(len(text).to_bytes(8, "little") + text + data[8 + length :])
