"""What several processes of a run say to each other."""

from __future__ import annotations

import threading
import time

import pytest
from torch.distributed import HashStore

from trainer.exits import ExitCode, UserError
from trainer.ranks import Rank
from trainer.settings import Json
from trainer.together import Together
from watchers import Mailbox, Notice, Stopped


def test_one_that_is_slow_to_tell_its_notices_is_not_taken_for_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.together.PARTING_S", 0.1)
    keys, mailbox, late = HashStore(), Mailbox(), Mailbox()
    late.post(Notice("aws", "stop", "interruption", "aws", 1.0, time.time() + 60))
    first, second = Together(Rank(0, 2), keys, mailbox), Together(Rank(1, 2), keys, late)
    threading.Timer(1.0, second._tell_notices).start()
    first._tell_notices()
    assert not first.has_lost
    assert [notice.source for notice in mailbox.notices] == ["aws"]


def test_who_is_told_to_go_while_it_waits_for_the_names_of_sums_waits_on_for_process_0() -> None:
    """Going alone would leave process 0 in the exchange that comes next."""
    keys, mailbox = HashStore(), Mailbox()
    mailbox.post(Notice("SIGTERM", "stop", "told to go", "SIGTERM", 1.0, time.time() + 60))
    first, second = Together(Rank(0, 2), keys, Mailbox()), Together(Rank(1, 2), keys, mailbox)
    threading.Timer(0.3, first.say, ("layout/evaluation", [["accuracy", []]])).start()
    assert second._layout("evaluation", {}) == [("accuracy", [])]


@pytest.mark.parametrize(
    ("theirs", "odd"), [({"lr": 0.2, "seed": 0}, "lr 0.2, not 0.1"), ({"lr": 0.1}, "seed None, n")]
)
def test_who_computes_otherwise_than_process_0_is_told_of_before_the_first_step(
    theirs: dict[str, Json], odd: str
) -> None:
    keys, own = HashStore(), {"lr": 0.1, "seed": 0}
    first, second = Together(Rank(0, 2), keys, Mailbox()), Together(Rank(1, 2), keys, Mailbox())
    second.say_ready(theirs, None)
    with pytest.raises(UserError, match=f"process 1 of 2 computes otherwise than process 0.*{odd}") as e:
        first.wait_for_others(own)
    assert e.value.code == ExitCode.SETUP
    second.say_ready(own, {"host": "a"})
    assert first.wait_for_others(own) == [{"host": "a"}]


def test_who_waits_for_anothers_notices_leaves_half_of_the_time_for_the_save() -> None:
    mailbox, deadline = Mailbox(), time.time() + 6
    mailbox.post(Notice("SIGTERM", "stop", "told to go", "SIGTERM", 1.0, deadline))
    first = Together(Rank(0, 2), HashStore(), mailbox)
    with pytest.raises(Stopped, match="another process of this run is gone"):
        first._tell_notices()
    assert first.has_lost
    assert time.time() < deadline
