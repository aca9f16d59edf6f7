"""The tar reader reads what Python's tarfile writes, in each of its formats."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.data_makers import tar
from trainer.data import tarstream
from trainer.exits import UserError

names = st.lists(st.text("abcé ", min_size=1, max_size=90).filter(str.strip), min_size=1, max_size=5).map("/".join)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(files=st.dictionaries(names, st.binary(max_size=1500), max_size=5), format_=st.sampled_from([0, 1, 2]))
def test_names_and_contents_come_back(files: dict[str, bytes], format_: int, tmp_path: Path) -> None:
    try:
        path = tar(tmp_path / "x.tar", files, "w", format_)
    except ValueError:
        return  # a name that the oldest format can't hold
    read = {"/".join(m.parts): m.data for m in tarstream.members(path, lambda: None)}
    assert read == {"/".join(p for p in n.split("/") if p): c for n, c in files.items()}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_gives_one_clear_line_or_the_same_bytes_for_a_name(tmp_path: Path, data: st.DataObject) -> None:
    whole = tar(tmp_path / "whole.tar", {f"{'long/' * 30}{i}": b"x" * 700 for i in range(3)}, "w", tarfile.PAX_FORMAT)
    raw = bytearray(whole.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, 9000))] = data.draw(st.integers(0, 255))
    path = tmp_path / "x.tar"
    path.write_bytes(raw[: data.draw(st.integers(0, len(raw)))])
    said = ""
    try:
        for member in tarstream.members(path, lambda: None):
            assert ".." not in member.parts
    except UserError as e:
        said = str(e)
    assert said.isprintable()


def test_a_stream_is_left_at_once_when_told_to_stop(tmp_path: Path) -> None:
    path = tar(tmp_path / "x.tar.gz", {f"{i}": bytes(1 << 20) for i in range(20)})
    looks = 0

    def check() -> None:
        nonlocal looks
        looks += 1
        if looks == 5:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        list(tarstream.members(path, check))
    assert looks == 5


def test_a_bomb_of_zeros_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tarstream, "TOTAL_LIMIT", 8 << 20)
    path = tar(tmp_path / "x.tar.xz", {f"{i}": bytes(1 << 20) for i in range(20)}, "w:xz")
    with pytest.raises(UserError, match="holds more than"):
        list(tarstream.members(path, lambda: None))
