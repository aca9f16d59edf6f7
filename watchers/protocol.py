"""What watchers give: a notice, a reason to stop or to save now."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol


@dataclass(frozen=True, slots=True)
class Notice:
    """A reason to stop or to save now. `id` tells one notice from another; the same one is told once."""

    source: str  # "halt", "preempt", "SIGTERM", "aws", ...
    action: Literal["stop", "save"]
    detail: str  # one line for people
    id: str
    seen: float  # seconds since 1970
    deadline: float | None = None  # when the machine goes, in seconds since 1970; None if nobody said


class Watcher(Protocol):
    """Looks at one source of notices. `check` looks once and gives at most one notice."""

    name: str
    interval_s: float

    def check(self) -> Notice | None: ...
