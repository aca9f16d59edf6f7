"""What the headers of an answer say (RFC 9110)."""

from __future__ import annotations

import re
from datetime import UTC
from email.utils import parsedate_to_datetime


def moment_of(date: str | None) -> float | None:
    """A `Date` or `Last-Modified` in seconds since 1970; None where there is none that can be read."""
    if not date:
        return None
    try:
        moment = parsedate_to_datetime(date)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None


def size_told(content_range: str, start: int) -> int:
    """The object's size, by the `Content-Range` of an answer that begins at byte `start`.

    Raises `ValueError`, also where the answer is another range: its bytes would be taken for those that were asked for.
    """
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", content_range)
    if match is None or int(match[1]) != start or int(match[2]) < start:
        raise ValueError(f"not the range from {start}: {content_range:.80}")
    return int(match[2])
