"""The processes that share a run's batches, as the loop sees them: all of them do each of these together.

Between boundaries each process has its own part; at every boundary all hold the same state, that of process 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor, nn

from watchers import Mailbox


class Group(Protocol):
    number: int  # of this process; 0 leads: it alone claims, saves and speaks
    count: int

    def check(self) -> None:
        """Raise `Stopped` in all processes if any has a stop notice."""

    def add_up(self, model: nn.Module, sums: dict[str, Tensor]) -> dict[str, Tensor]:
        """Give every process the gradients of the whole batch, and return its sums."""

    def share_buffers(self, model: nn.Module) -> None:
        """Give every process the buffers of process 0."""

    def collect(self, kind: str, sums: Mapping[str, Tensor], parts: int) -> Sequence[Mapping[str, Tensor]]:
        """The sums of the first `parts` processes, in order. Those of one kind have the same names and shapes."""


class Alone:
    """One process that shares with nobody, and pays nothing for it."""

    number, count = 0, 1

    def __init__(self, mailbox: Mailbox) -> None:
        self.check = mailbox.check

    def add_up(self, model: nn.Module, sums: dict[str, Tensor]) -> dict[str, Tensor]:
        return sums

    def share_buffers(self, model: nn.Module) -> None:
        pass

    def collect(self, kind: str, sums: Mapping[str, Tensor], parts: int) -> Sequence[Mapping[str, Tensor]]:
        return [sums]
