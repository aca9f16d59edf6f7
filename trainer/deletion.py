"""Deleting a run whole, so that a death in the midst leaves nothing that a start would go on from.

First the next attempt is claimed, which fences off a copy that still saves. Then a mark is put among the checkpoints: a
start that sees it refuses, however much is left. Last go the claims, the newest at their end, and the mark after them.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from dataclasses import dataclass

from storage import ObjectInfo
from storage.errors import NoSpace, NotFound
from trainer.exits import UserError
from trainer.history import History
from trainer.place import none_of
from trainer.retention import store_time
from trainer.side_by_side import side_by_side

ALIVE_S = 90.0  # three signs of life
REQUESTS = 8  # at once
_ORDER = ("checkpoints", "parts", "metrics", "halts", "clock")  # then what lies beside them, and the attempts


@dataclass(frozen=True, slots=True)
class Contents:
    """All objects of a run."""

    objects: list[ObjectInfo]
    checkpoints: int

    @property
    def bytes(self) -> int:
        return sum(info.size for info in self.objects)


def contents(history: History) -> Contents:
    """Raises `UserError` if there is no such run, `StoreError`."""
    objects = list(history.store.list(history.run + "/"))
    if not objects:
        raise UserError(none_of(history.store, history.run))
    return Contents(objects, len(history.checkpoints()))


def check_silent(history: History) -> None:
    """Raise `UserError` if the newest attempt has not ended and gave a sign of life less than 90 s ago.

    By the store's clock alone. A claim is a sign of life too, and so is a record that can't be read: whoever wrote that
    lives. But the claim of a deletion is none: it is to be finished, and was made where nobody lived.
    """
    attempts = history.attempts()
    if not attempts:
        return
    number = f"{attempts[-1]:06d}"
    if "deleted_by" in (history.read_record("attempts", f"{number}.json") or {}):
        return
    if history.read_record("attempts", f"{number}.end.json") is not None:
        return
    last = history.store.stat(history.key("attempts", f"{number}.json")).modified
    sign = history.read_record("status.json")
    if sign is None or sign.get("attempt") == attempts[-1]:
        with suppress(NotFound):
            last = max(last, history.store.stat(history.key("status.json")).modified)
    seen_s = store_time(history) - last
    if seen_s < ALIVE_S:
        raise UserError(
            f"run {history.run!r} is running: attempt {attempts[-1]} gave a sign of life {max(0.0, seen_s):.0f} s ago; "
            f"stop it with `halt --run {history.run}`, or wait until it has been silent for {ALIVE_S:.0f} s"
        )


def delete(history: History) -> None:
    """Delete every object of the run. May be called again after a death in the midst. Raises `StoreError`."""
    try:
        _mark(history)
    except NoSpace:  # which deleting would mend: so give up first what no start goes on from
        _delete(history, "metrics/")
        _mark(history)
    for prefix, but in (*((f"{folder}/", None) for folder in _ORDER), ("", "attempts/"), ("attempts/", None)):
        if not history.is_marked():  # another has finished it, and somebody may have begun the run anew
            return
        _delete(history, prefix, but)
    history.unmark()


def _mark(history: History) -> None:
    if not history.is_marked():
        history.claim({"run": history.run, "deleted_by": socket.gethostname()})
        history.mark(f"was being deleted: finish with `delete --run {history.run} --yes`")


def _delete(history: History, prefix: str, but: str | None = None) -> None:
    """Everything below but for the mark, and the newest at the end: of the claims that is what fences others off."""
    mark = history.key("checkpoints", history.MARK)
    keys = [info.key for info in history.store.list(history.key(prefix)) if info.key != mark]
    keys = sorted(key for key in keys if not (but and key.startswith(history.key(but))))
    for some in (keys[:-1], keys[-1:]):
        for _ in side_by_side(history.store.delete, some, REQUESTS):
            pass
