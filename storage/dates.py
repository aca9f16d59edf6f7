"""Dates as HTTP writes them."""

from __future__ import annotations

from email.utils import parsedate_to_datetime


def moment_of(date: str | None) -> float | None:
    """An answer's `Date` (RFC 9110, 6.6.1) in seconds since 1970; None where there is none that can be read."""
    try:
        return parsedate_to_datetime(date).timestamp() if date else None
    except (ValueError, OverflowError):
        return None
