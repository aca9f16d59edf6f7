"""Signs of life: <run>/status.json, by which others know how a run stands, and the look for what others want of it."""

from __future__ import annotations

import logging
import math
import threading
import time
from typing import TYPE_CHECKING

from trainer.history import SIGN_S, History, Superseded
from trainer.saver import CLOCK, Durable
from trainer.settings import Json
from watchers import Mailbox, Notice

if TYPE_CHECKING:
    from trainer.attempt import Attempt

log = logging.getLogger("baton")

NEWS_S = 1.0  # between two signs of life, however often saves become durable


class Signs:
    """Those of one attempt, in a thread of their own."""

    def __init__(self, attempt: Attempt, history: History, mailbox: Mailbox) -> None:
        """`history`: through a store that tries nothing again, for each sign is followed by the next soon."""
        self._attempt = attempt
        self._history = history
        self._mailbox = mailbox
        self._closed = threading.Event()
        self._news = threading.Event()
        self._thread = threading.Thread(target=self.leave, name="sign", daemon=True)

    def begin(self) -> None:
        self._thread.start()

    def news(self) -> None:
        """There is something that whoever looks from afar wants to see."""
        self._news.set()

    def end(self) -> None:
        self._closed.set()
        self._news.set()

    def last(self, state: str, exit_code: int, outcome: str) -> None:
        """The last word; after it none of the thread's comes, of a store that answers within a second.

        May raise `StoreError`.
        """
        self._thread.join(1.0)
        self._write(state, exit_code, outcome)

    def leave(self) -> None:
        """Leave a sign every 30 s and once a save is durable, so that `status` knows of the newest checkpoint.

        Every 30 s look too whether a newer copy has taken over or this one is halted; a save has just looked.
        """
        looked = -math.inf
        while self._attempt.superseded is None:
            self._news.clear()
            try:
                if CLOCK() - looked >= SIGN_S:
                    looked = CLOCK()
                    self._history.check_fence(self._attempt.facts.attempt)
                    self._look_for_halt()
                self._write("running", None, None)
            except Superseded as e:
                self._attempt.on_superseded(e)
                return
            except Exception as e:  # this thread fences: it may not end before the attempt
                log.debug("no sign of life could be left: %s", e)
            if self._closed.wait(min(NEWS_S, SIGN_S)):
                return
            self._news.wait(max(0.0, looked + SIGN_S - CLOCK()))
            if self._closed.is_set():
                return

    def _look_for_halt(self) -> None:
        """Whether `halt --run` asked this attempt to stop."""
        name = f"{self._attempt.facts.attempt:06d}.json"
        asked = self._history.read_record("halts", name)
        if asked is not None:
            detail = f"halted through the store, from {asked.get('by')!s:.100}"
            self._mailbox.post(Notice("halt", "stop", detail, f"store:{name}", time.time()))

    def _write(self, state: str, exit_code: int | None, outcome: str | None) -> None:
        """All that `status` shows of a run; never used to resume."""
        attempt = self._attempt
        facts, last, position, progress = attempt.facts, attempt.saver.durable, attempt.position, attempt.pace.last
        self._history.write_record(
            {
                "run": facts.run,
                "job": facts.job,
                "state": state,
                "exit": exit_code,
                "outcome": outcome,
                "attempt": facts.attempt,
                "first_step": attempt.first_step,
                "started": attempt.started,
                "step": position.step,
                "steps": attempt.plan.steps,
                "epoch": position.step // attempt.plan.steps_per_epoch,
                "epochs": -(-attempt.plan.steps // attempt.plan.steps_per_epoch),
                "metrics": attempt.metrics,
                "samples_per_s": progress.samples_per_s if progress else None,
                "unit": attempt.task.unit,
                "seconds_left": progress.seconds_left if progress else None,
                "durable": told_of(last) if last else None,
                "save_error": attempt.saver.error,
                "save_seconds": attempt.saver.expected_s,
                "checkpoint_every_s": attempt.cadence.seconds or None,
                "checkpoint_every_fixed": attempt.cadence.fixed,
                "checkpoint_every_why": attempt.interval_why,
                "tally": attempt.tally.with_saves(position.step),
                **{name: facts.machine.get(name) for name in ("host", "cloud", "instance_type", "device")},
                "machines": 1 + len(others) if isinstance(others := facts.machine.get("others"), list) else 1,
                "arguments": list(facts.arguments),
                "synthetic": facts.synthetic,
                "time": time.time(),
            },
            "status.json",
        )


def told_of(last: Durable) -> dict[str, Json]:
    """A durable checkpoint as status.json tells of it; `time` in seconds since 1970."""
    return {
        "name": last.name,
        "step": last.step,
        "time": last.at,
        "weights_sha256": last.weights_sha256,
        "state_sha256": last.state_sha256,
        "order_sha256": last.order_sha256,
    }
