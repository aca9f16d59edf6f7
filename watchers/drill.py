"""A rehearsed eviction: what a cloud would say, at a time of one's own choice.

`aws@300s` is AWS's interruption notice 300 s after the start, with its two minutes; several are separated by commas.
"""

from __future__ import annotations

import re
import time
from dataclasses import replace

from watchers.protocol import Notice

UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}
_DRILL = re.compile(r"(aws|gcp|azure)@([0-9]+(?:\.[0-9]+)?)([smh])")


def parse(text: str) -> list[tuple[str, float]]:
    """Pairs of a cloud and seconds after the start. Raises `ValueError`."""
    drills = []
    for part in text.split(",") if text else []:
        match = _DRILL.fullmatch(part.strip())
        if match is None:
            raise ValueError(f"{part.strip()!r}: must be a cloud and a time after the start, as aws@300s or gcp@5m")
        drills.append((match[1], float(match[2]) * UNITS[match[3]]))
    return drills


class DrillWatcher:
    interval_s = 0.25

    def __init__(self, cloud: str, after_s: float) -> None:
        self.name = f"drill-{cloud}@{after_s:g}s"
        self._cloud = cloud
        self._at = time.monotonic() + after_s
        self._notice: Notice | None = None

    def check(self) -> Notice | None:
        if self._notice is None and time.monotonic() >= self._at:
            from watchers.cloud import CLOUDS  # late: HTTP, for what most starts never need

            notice = CLOUDS[self._cloud].drill(time.time())
            self._notice = replace(notice, detail=f"a drill: {notice.detail}", id=self.name)
        return self._notice
