"""Whether there is room for a checkpoint is found before a run is taken, at no more than it takes to know that."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.unit.test_loop import Small
from trainer.admission import check_room
from trainer.exits import UserError
from watchers import Mailbox


def check(free: int | None, task: Any) -> None:
    store = SimpleNamespace(url="file:///store", free_bytes=lambda: free)
    request: Any = SimpleNamespace(history=SimpleNamespace(store=store), mailbox=Mailbox())
    check_room(request, SimpleNamespace(task=task))  # type: ignore[arg-type]


def test_a_store_must_have_room_for_four_times_the_models_state(monkeypatch: pytest.MonkeyPatch) -> None:
    task = Small()
    monkeypatch.setattr(torch.optim.Optimizer, "state_dict", lambda self: pytest.fail("asked for what isn't needed"))
    need = 4 * sum(tensor.nbytes for tensor in task.model.state_dict().values())
    check(need, task)
    with pytest.raises(UserError, match=r"0\.0 kB free and a checkpoint needs up to 0\.7 kB: make room"):
        check(0, task)
    with pytest.raises(UserError):
        check(need - 1, task)


def test_of_a_store_without_an_end_nothing_is_added_up() -> None:
    check(None, None)
