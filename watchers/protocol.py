"""What watchers give: a notice, a reason to stop or to save now."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

SOON_S = 2.0


@dataclass(frozen=True, slots=True)
class Notice:
    """A reason to stop or to save now. `id` tells one notice from another; the same one is told once."""

    source: str  # "halt", "preempt", "SIGTERM", "aws", ...
    action: Literal["stop", "save"]
    detail: str  # one line for people
    id: str
    seen: float  # seconds since 1970
    deadline: float | None = None  # when the machine goes, in seconds since 1970; None if nobody said
    # tells whoever gave the notice that the machine may go now; for once all is saved. May raise, ends within seconds
    acknowledge: Callable[[], None] | None = field(default=None, compare=False, repr=False)


def plannable(deadline: float | None, now: float) -> float | None:
    """A deadline that work can be planned for. One that is past, or all but, tells only that every moment counts: the
    machine is still there, so what is left to do is tried, as where nobody said when it goes."""
    return deadline if deadline is not None and deadline > now + SOON_S else None


class Watcher(Protocol):
    """Looks at one source of notices. `check` looks once and gives at most one notice."""

    name: str
    interval_s: float

    def check(self) -> Notice | None: ...


@runtime_checkable
class Interruptible(Protocol):
    """A watcher whose look may last; `close`, from another thread, ends it at once and for good."""

    def close(self) -> None: ...
