"""JSON of others: what could harm whoever reads it is refused, whatever writes it well is read."""

from __future__ import annotations

import json

import pytest

from console.logs import LONGEST_LINE, one_line
from trainer import strict

REFUSED = {
    "none": b"nul",
    "no UTF-8": b'"\xff"',
    "nested deeply": b"[" * 100_000,
    "an integer beyond 64 bits": b"[9223372036854775808]",
    "an enormous integer": b'{"time": 1' + b"0" * 400 + b"}",
    "one that Python won't read": b"1" * 5000,
    "a name twice": b'{"step": 1, "step": 2}',
    "a name twice, once escaped": b'{"step": 1, "\\u0073tep": 2}',
    "half a character": b'{"host": "\\ud800"}',
    "half a character as a name": b'{"\\uDFFF": 1}',
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_could_harm_is_refused(what: str) -> None:
    with pytest.raises(ValueError, match=r"not JSON|beyond 64 bits|twice in one object"):
        strict.loads(REFUSED[what])


@pytest.mark.parametrize(
    "value", [{}, [], {"a": [1, -2.5, None, True, "ü \U0001f600"]}, -(2**63), 2**63 - 1, "\\ud800"]
)
def test_what_we_write_is_read(value: object) -> None:
    assert strict.loads(json.dumps(value).encode()) == value
    assert strict.loads(json.dumps(value, ensure_ascii=False).encode()) == value


@pytest.mark.parametrize("harm", ["a\nb", "a\r\nb", "a\x1b[2Jb", "a\u2028b", "a\u202eb", "a\ud800b", "a\x9bb"])
def test_others_words_neither_break_a_line_nor_move_the_cursor(harm: str) -> None:
    said = one_line(harm)
    assert said[0] == "a"
    assert said[-1] == "b"
    assert said.encode().isascii()
    assert said.isprintable()


def test_a_line_is_bounded() -> None:
    assert len(one_line("x" * 10_000_000)) == LONGEST_LINE + 3
