"""What several processes of a run say to each other."""

from __future__ import annotations

import threading
import time

import pytest
from torch.distributed import HashStore

from trainer.ranks import Rank
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


def test_who_waits_for_anothers_notices_leaves_half_of_the_time_for_the_save() -> None:
    mailbox, deadline = Mailbox(), time.time() + 6
    mailbox.post(Notice("SIGTERM", "stop", "told to go", "SIGTERM", 1.0, deadline))
    first = Together(Rank(0, 2), HashStore(), mailbox)
    with pytest.raises(Stopped, match="another process of this run is gone"):
        first._tell_notices()
    assert first.has_lost
    assert time.time() < deadline
