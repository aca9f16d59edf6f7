"""Which checkpoints and parts a run keeps, and the removal of the others, also while it is being written to.

Kept are the newest good checkpoints, and besides, by the store's own clock:
- for 24 h every part and every manifest, of any attempt: a branch of a copy which doesn't know yet that it is
  superseded, the parts of a save that is still under way, a checkpoint that somebody reads;
- but only for 1 h a manifest of the newest attempt that has newer ones enough, and with it those of its parts that
  nobody has put again since the last but one. Else a large state saved every minute would fill the store for a day.

What makes it safe beside a running writer, a zombie and another cleaner:
- Parts are listed before manifests: a part that a manifest comes to name meanwhile is no candidate, or is kept.
- A part's date is asked again right before it goes, and it stays unless that is the one listed: a writer may have put
  the same bytes again since. The new date may be hours old itself: S3's is when an upload in parts began.
- So is the mark of a copy to here, which counts parts as there that it finds: from its mark to the first part that it
  looks at are more requests than from that question to the deletion. What begins and ends between two such questions
  is not seen; a copy that is repeated for nothing new reads all parts again, and takes its time.
- A writer leaves out only parts that its own newest manifest names, and while it may still commit, that one is kept:
  as the newest of the newest attempt, or for 24 h.
- Why 1 h is enough there. Let D be such a manifest, X one of its parts, L the attempt's last but one, and C a manifest
  that is written later and names X. If C is of D's attempt, its save began after all that are listed: it put X again,
  and X is not older than L, or left it out because the newest manifest names it, which is kept. If C is of a later
  attempt, it put X after its claim; after a claim the attempt before commits one more at the most, so L is older than
  that put. If C is of an earlier attempt, it looked for a successor before D's attempt was claimed, and is written
  after D was removed: one request, between that look and the manifest, has taken over an hour. Then C is a branch that
  nobody goes on from while a checkpoint of the later attempt is good.
- A reader that is overtaken looks for the newest one again (`History.newest_good`); it has had the better part of an
  hour, for what was the newest when it began.
- A save that has taken 12 h is given up before its manifest: its parts may have grown old unnamed.

Gaps stay, each between two requests; a process stopped right there can stretch it. Neither takes more than one
checkpoint: it is found bad, its parent is taken, and the writer's next save looks whether what it leaves out is there.
- In `remove`, between the last question for a part's date and its deletion: a writer puts the very bytes of a part that
  nothing names any more, as who repeats the steps of a copy that died in its save does. S3 can delete on no condition
  that would help: its ETag follows from the bytes, which are the same.
- In `trainer.commit`, between the last look and the manifest: a copy is stopped there for as long as its parts stay.
- In `_clean_up`, between the fence and the deletion of a manifest: the run is deleted and begun anew, and its heir has
  written one of the same name. Without a fence, `clean --yes` has this gap for as long as somebody stops it there.
`tests/chaos/test_protocol_model.py`, in which no run is deleted, goes through all orders of calls and finds the first
two alone.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from storage import ObjectInfo
from storage.errors import NotFound, StoreError
from trainer.exits import UserError
from trainer.history import Absent, Bad, History, Superseded, fallback_order
from trainer.manifest import checkpoint_name, is_sha256, parse_name
from trainer.side_by_side import side_by_side

log = logging.getLogger("baton.retention")

YOUNG_S = 24 * 3600.0
SETTLED_S = 3600.0  # of the newest attempt's own; a reader's time to read what was the newest when it began
EVERY_S = 600.0  # between two clean-ups by a writer
REMOVERS = 4  # parts that are removed at once


@dataclass(frozen=True, slots=True)
class Excess:
    """What may go. Manifests are in the order of their age: a death in between leaves the newer ones whole."""

    manifests: list[ObjectInfo]
    parts: list[ObjectInfo]
    kept: int  # checkpoints that stay
    why_not: str | None = None  # what keeps some or all of it from being removed

    @property
    def bytes(self) -> int:
        return sum(info.size for info in (*self.manifests, *self.parts))


@dataclass(frozen=True, slots=True)
class _Known:
    """What matters here of a manifest; they never change, so each is read once."""

    parent: str | None
    parts: dict[str, int]  # SHA-256 -> bytes


class _Later(Exception):
    """Something that may not wait came up."""


class Retention:
    """Keeps the newest `keep` good checkpoints of a run, in the order in which a start would fall back to them.

    Good means here: the manifest is whole, and its parts are there in their sizes. `young_s`: seconds by the store's
    clock for which everything is kept, but for what the newest attempt itself made obsolete: that for `settled_s`.
    """

    def __init__(
        self,
        history: History,
        keep: int,
        *,
        young_s: float = YOUNG_S,
        settled_s: float = SETTLED_S,
        every_s: float = EVERY_S,
    ) -> None:
        self._history = history
        self._keep = keep
        self._young_s = young_s
        self._settled_s = min(settled_s, young_s)
        self._every_s = every_s
        self._next_at = time.monotonic()
        self._newest: tuple[str, float] | None = None  # the newest checkpoint, and since when, by the monotonic clock
        self._at_work = threading.Lock()
        self._known: dict[str, _Known] = {}
        self._named: dict[str, frozenset[str]] = {}  # parts, of manifests that nothing else matters of
        self._said: str | None = None

    def between_saves(self, attempt: int, newest: str, busy: Callable[[], bool], stopping: Callable[[], bool]) -> None:
        """Clean up after this attempt's checkpoint `newest`, if it is time to; end as soon as `busy()` or `stopping()`.

        It may be called with the same one again: where a store is full, what has become old makes room.
        Where saves follow each other so closely that it never comes to its end, it goes on beside them, once it is as
        late as the time between two. Raises nothing: a failed clean-up is a warning, and training goes on.
        """
        if self._newest is None or self._newest[0] != newest:
            self._newest = newest, time.monotonic()
        late_s = time.monotonic() - self._next_at

        def check() -> None:
            if stopping() or (busy() and late_s < self._every_s):
                raise _Later

        if late_s < 0 or not self._at_work.acquire(blocking=False):
            return
        try:
            self._clean_up(attempt, *self._newest, check)
        finally:
            self._at_work.release()

    def _clean_up(self, attempt: int, newest: str, since: float, check: Callable[[], None]) -> None:
        try:
            check()
            self._history.check_fence(attempt)
            # the store's time, by what was written last: this machine's clock may be anything
            written = self._history.store.stat(self._history.key("checkpoints", f"{newest}.json")).modified
            now = written + time.monotonic() - since
            excess = self.excess(now, check)
            self.remove(excess, check)
            if excess.manifests or excess.parts:
                log.debug("cleaned up: %s", told(excess))
        except (_Later, Superseded):
            return  # tried again after the next save, or never
        except Exception as e:
            text = f"old checkpoints could not be cleaned up: {e}; training goes on"
            log.log(logging.DEBUG if text == self._said else logging.WARNING, "%s", text)
            self._said = text
        self._next_at = time.monotonic() + self._every_s

    def excess(self, now: float, check: Callable[[], None] = lambda: None) -> Excess:
        """What the rules do not keep; `now` is the store's time. `check` may raise, to give up. Raises `StoreError`."""
        history = self._history
        parts = {_last(info): info for info in history.store.list(history.key("parts", ""))}
        check()
        listed = list(history.store.list(history.key("checkpoints", "")))
        manifests = {name: info for info in listed if parse_name(name := _last(info).removesuffix(".json"))}
        self._known = {name: known for name, known in self._known.items() if name in manifests}
        self._named = {name: named for name, named in self._named.items() if name in manifests}
        if history.MARK in map(_last, listed):  # its copy goes on with old parts that nothing names yet
            return Excess([], [], len(manifests), "it is marked as not whole, so all stays")
        old = now - self._young_s
        if not any(i.modified < old for i in parts.values()) and not self._obsolete(manifests, now):
            return Excess([], [], len(manifests))
        kept = self._kept(manifests, parts, check)
        if kept is None and listed:  # with nothing listed the run never committed: its old parts may go
            return Excess([], [], len(manifests), "none of the checkpoints is good, so all stay")
        kept = kept or set()
        try:
            result = history.sign("result.json").record
        except NotFound:
            result = {}
        except ValueError:
            return Excess([], [], len(manifests), "what result.json keeps can't be read, so all stays")
        kept |= (manifests.keys() - self._obsolete(manifests, now)) | (
            {str(result.get("checkpoint"))} & manifests.keys()
        )
        named = {key.rpartition("/")[2] for key in _strings(result.get("weights"))}
        unreadable = []
        for name in kept:
            check()
            try:
                named |= self._parts(manifests[name])
            except Absent:
                continue  # another cleaner was faster
            except Bad:
                unreadable.append(name)  # perhaps of a later version, with parts that are in use
        gone = [info for name, info in sorted(manifests.items()) if name not in kept]
        if unreadable:
            return Excess(gone, [], len(kept), f"all parts stay, for checkpoint {min(unreadable)} can't be read")
        left, before = self._left_behind(gone, manifests, now, check)
        unnamed = [
            info
            for sha256, info in parts.items()
            if is_sha256(sha256) and sha256 not in named and info.modified < (before if sha256 in left else old)
        ]
        return Excess(gone, unnamed, len(kept))

    def _obsolete(self, manifests: dict[str, ObjectInfo], now: float) -> set[str]:
        """Checkpoints whose age does not keep them."""
        newest = max((_attempt(name) for name in manifests), default=0)
        return {
            name
            for name, info in manifests.items()
            if info.modified < now - (self._settled_s if _attempt(name) == newest else self._young_s)
        }

    def _left_behind(
        self, gone: list[ObjectInfo], manifests: dict[str, ObjectInfo], now: float, check: Callable[[], None]
    ) -> tuple[set[str], float]:
        """Parts of what goes of the newest attempt, and until when they must have been put to go with it."""
        own = sorted((pair for name in manifests if (pair := parse_name(name))), reverse=True)
        own = [pair for pair in own if pair[0] == own[0][0]]
        if len(own) < 2:
            return set(), 0.0
        left: set[str] = set()
        for info in gone:
            name = _last(info).removesuffix(".json")
            check()
            if parse_name(name) in own:
                with suppress(Bad):
                    left |= self._parts(info)
        last_but_one = manifests[checkpoint_name(*own[1])].modified
        return left, max(now - self._young_s, min(last_but_one, now - self._settled_s))

    def remove(self, excess: Excess, check: Callable[[], None] = lambda: None) -> None:
        """Delete it: manifests first, so that none is left whose parts are going.

        Raises `StoreError`, and `UserError` if a copy to here has begun meanwhile: it may count on what is left.
        """
        store = self._history.store
        if excess.manifests:
            self._check_whole()
        for info in excess.manifests:
            check()
            store.delete(info.key)

        def remove(part: ObjectInfo) -> None:
            check()
            self._check_whole()
            with suppress(NotFound):
                # not put again since it was listed; to a second, for not all of a store's answers tell more
                put_again_s = store.stat(part.key).modified - part.modified
                if abs(put_again_s) <= 1.0:
                    store.delete(part.key)
                else:
                    log.debug("%s stays: its date is %.0f s later than when it was listed", part.key, put_again_s)

        for _ in side_by_side(remove, excess.parts, REMOVERS):
            pass

    def _check_whole(self) -> None:
        if self._history.is_marked():
            where = f"run {self._history.run!r} in {self._history.store.url}"
            raise UserError(f"{where} has been marked as not whole meanwhile, so what is left stays")

    def _kept(
        self, manifests: dict[str, ObjectInfo], parts: dict[str, ObjectInfo], check: Callable[[], None]
    ) -> set[str] | None:
        """The newest good ones, and the bad ones before and between them; None if none is good."""
        looked_at: set[str] = set()
        parents: dict[str, str | None] = {}
        good = 0
        for name in fallback_order(manifests, parents):
            if good == self._keep:
                break
            check()
            looked_at.add(name)
            try:
                known = self._manifest(name)
            except Bad:
                continue
            parents[name] = known.parent
            good += all(sha256 in parts and parts[sha256].size == size for sha256, size in known.parts.items())
        return looked_at if good else None

    def _manifest(self, name: str) -> _Known:
        if name not in self._known:
            manifest = self._history.manifest(name)
            self._known[name] = _Known(manifest.parent, {ref.sha256: ref.size for ref in manifest.parts})
        return self._known[name]

    def _parts(self, info: ObjectInfo) -> frozenset[str]:
        """The parts that a manifest names. Of most no more is known: a run of many attempts has a long ledger in each,
        and there may be thousands."""
        name = _last(info).removesuffix(".json")
        if name in self._known:
            return frozenset(self._known[name].parts)
        if name not in self._named:
            self._named[name] = frozenset(ref.sha256 for ref in self._history.parts_named(name, info.size))
        return self._named[name]


def store_time(history: History) -> float:
    """Seconds since 1970 by the store's own clock, from an object written and deleted again. Raises `StoreError`."""
    key = history.key("clock", uuid.uuid4().hex)
    try:
        return history.store.put(key, b"").modified  # a full disk has room for nothing
    finally:
        try:
            history.store.delete(key)
        except StoreError as e:
            log.debug("%s stays behind: %s", key, e)


def told(excess: Excess) -> str:
    """In words: how many, how large."""
    size = f"{excess.bytes / 1e9:.2f} GB" if excess.bytes >= 1e9 else f"{excess.bytes / 1e6:.1f} MB"
    return f"{counted(len(excess.manifests), 'checkpoint')} and {counted(len(excess.parts), 'part')}, {size}"


def counted(number: int, what: str) -> str:
    """As in "1 part" and "2 parts"."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def _attempt(name: str) -> int:
    attempt, _ = parse_name(name) or (0, 0)
    return attempt


def _last(info: ObjectInfo) -> str:
    return info.key.rpartition("/")[2]


def _strings(value: object) -> list[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []
