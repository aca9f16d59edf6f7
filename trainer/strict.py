"""JSON that others wrote, read so that what comes of it can be computed with, printed and written again."""

from __future__ import annotations

import json
from typing import Any


class _Unfit(ValueError):
    """Well-formed, and still refused."""


def loads(text: bytes) -> Any:
    """The value of a JSON text. Raises ValueError for anything that another reader could take for something else, or
    that can't be dealt with: a name twice in one object, integers beyond 64 bits, halves of characters, deep nesting.
    """
    try:
        value = json.loads(text, parse_int=_integer, object_pairs_hook=_object)
        if b"\\ud" in text.lower():  # a surrogate, alone or one of the two that make a character
            json.dumps(value, ensure_ascii=False).encode()
    except _Unfit:
        raise
    except (ValueError, RecursionError) as e:
        raise ValueError("not JSON") from e
    return value


def _integer(digits: str) -> int:
    if len(digits) > 20 or not -(1 << 63) <= int(digits) < 1 << 63:
        raise _Unfit("has an integer beyond 64 bits")
    if digits == "-0":  # a float to others
        raise _Unfit("has an integer of -0")
    return int(digits)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise _Unfit("has a name twice in one object")
    return value
