"""One run in its store: its attempts, which fence each other off, and its checkpoints, newest and good.

Keys:   <run>/attempts/000003.json  .../000003.end.json  <run>/checkpoints/000003-00001234.json  <run>/parts/<sha256>
        <run>/metrics/000003-00001234.jsonl  <run>/halts/000003.json  <run>/status.json  <run>/result.json
"""

from __future__ import annotations

import io
import json
import logging
import re
import time
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import TypeVar

from storage import Store
from storage.errors import AlreadyExists, Damaged, NotFound, StoreError
from storage.protocol import Source
from trainer.exits import UserError
from trainer.header import Begun, Kept, NoPart, Sink, tensor_names
from trainer.manifest import (
    MAX_BYTES,
    Manifest,
    PartRef,
    checkpoint_name,
    from_json,
    parse_name,
    parts_at_end,
)
from trainer.place import Place
from trainer.settings import Json

S = TypeVar("S", bound=Sink)
log = logging.getLogger("baton.history")

READERS = 4  # parts that are read at once: one alone waits for its answer most of the time
SIGN_S = 30.0  # between two signs of life of a copy
SILENT_S = 3 * SIGN_S  # without any: the machine is gone
END_BYTES = 64 << 10  # of a manifest, in which up to 400 parts are named
_CLAIM = re.compile(r"([0-9]{6}|[1-9][0-9]{6,11})\.json")  # one name a number: the key is made from it again


class Bad(Exception):
    """A checkpoint that is proven not to be whole; says how."""


class Absent(Bad):
    """It has no manifest: it never was, or was cleaned up."""


class Superseded(Exception):
    """A newer attempt has taken the run over: this one may commit nothing more."""

    def __init__(self, attempt: int, why: str = "") -> None:
        super().__init__(why or f"attempt {attempt} has taken this run over")
        self.attempt = attempt


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint whose every byte has been read and found to be what its manifest says."""

    manifest: Manifest
    data: Mapping[str, bytes]  # SHA-256 -> the part's bytes


class History(Place):
    """A run's attempts and checkpoints in a store. All methods may raise `StoreError`."""

    MARK = "unfinished.json"  # among the checkpoints, where every start looks: this run is not whole; see `mark`

    def __init__(self, store: Store, run: str) -> None:
        super().__init__(store, run)
        self._claims: dict[int, bytes] = {}  # those made here: attempt -> its record, with its UUID

    def through(self, store: Store) -> History:
        """The same run, with the same claims, through another wrapper of its store."""
        other = History(store, self.run)
        other._claims = self._claims
        return other

    # -- attempts ---------------------------------------------------------------------------------------------

    def attempts(self) -> list[int]:
        """The numbers claimed so far, ascending."""
        folder = self.key("attempts", "")
        claims = (_CLAIM.fullmatch(info.key.removeprefix(folder)) for info in self.store.list(folder))
        return sorted(int(claim[1]) for claim in claims if claim)

    def claim(self, record: Mapping[str, Json]) -> int:
        """Take the run over: create the record of the next attempt. Its number fences every lower one off.

        Its `time` is this machine's right before it is created, which `clock_ahead_s` goes by. Raises `UserError` if
        the run is marked as not whole.
        """
        mine = dict(record, uuid=uuid.uuid4().hex)
        number = 0
        while True:
            # checkpoints count too: should claims have been lost, an old number must not be given again; nor is one
            # tried twice, which a list that tells of it late would have this do without an end
            used = self.attempts()[-1:] + [attempt for attempt, _ in self._usable()[:1]]
            number = max([number, *used]) + 1
            key = self.key("attempts", f"{number:06d}.json")
            body = json.dumps(dict(mine, attempt=number, time=time.time()), indent=1, sort_keys=True).encode()
            try:
                self.create(key, body)
            except AlreadyExists:
                log.info("attempt %d was claimed by another container at the same moment", number)
                continue
            self._claims[number] = body
            self._try_twice(key, body)
            return number

    def _try_twice(self, key: str, body: bytes) -> None:
        """Say so where the store lets a claim be made that is there: servers that don't know conditions ignore them."""
        try:
            self.store.put(key, body, if_absent=True)
        except StoreError:  # as it should be, or nobody knows
            return
        log.warning(
            "store %s lets two containers create one name, so that a second copy of run %r would not be told from this "
            "one: never start two, or take another store; `doctor` says more",
            self.store.url,
            self.run,
        )

    def clock_ahead_s(self, attempt: int) -> float | None:
        """How far this machine's clock is ahead of the store's, by the claim of `attempt` made here just now.

        In seconds, with an error of a request's time, all its tries, and of the second to which some stores cut their
        times. None where the store can't be asked.
        """
        try:
            at, claim = self.store.stat(self.key("attempts", f"{attempt:06d}.json")).modified, self._claims[attempt]
            return round(float(json.loads(claim)["time"]) - at, 3)
        except (StoreError, KeyError, TypeError, ValueError):
            return None

    def check_fence(self, attempt: int) -> None:
        """Raise `Superseded` if there is a higher attempt, or if a claim made here is not there any more.

        That a run was deleted, and perhaps begun anew, shows in the latter alone: numbers begin at 1 again.
        """
        newest = self.attempts()[-1:]
        if newest and newest[0] > attempt:
            raise Superseded(newest[0])
        if not self.holds_claim(attempt):
            raise Superseded(attempt, f"the claim of attempt {attempt} is gone: the run was deleted meanwhile")

    def holds_claim(self, attempt: int) -> bool:
        """Whether the claim of `attempt` that was made here is still there; one made elsewhere is taken to be."""
        mine = self._claims.get(attempt)
        if mine is None:
            return True
        try:
            return self.read(self.key("attempts", f"{attempt:06d}.json"), len(mine) + 1) == mine
        except NotFound:
            return False

    # -- checkpoints ------------------------------------------------------------------------------------------

    def checkpoints(self) -> list[tuple[int, int]]:
        """(attempt, step) of every checkpoint, the newest first."""
        return _newest_first(self._manifest_names())

    def _manifest_names(self) -> list[str]:
        folder = self.key("checkpoints", "")
        # a folder in a manifest's place is a checkpoint too, a bad one: who has that may not begin again at step 0
        return sorted({info.key.removeprefix(folder).partition("/")[0] for info in self.store.list(folder)})

    def mark(self, why: str) -> None:
        """Say that the run is not whole: until `unmark`, whoever starts it is refused with this reason."""
        self.write_record({"why": why}, "checkpoints", self.MARK)

    def unmark(self) -> None:
        self.store.delete(self.key("checkpoints", self.MARK))

    def is_marked(self) -> bool:
        try:
            self.read(self.key("checkpoints", self.MARK), 1)  # of what is absent S3 asks twice for a `stat`
        except NotFound:
            return False
        return True

    def why_marked(self) -> str | None:
        """Why the run is not whole, in words that follow its name; None where it isn't marked so."""
        return self._why() if self.is_marked() else None

    def _why(self) -> str:
        record = self.read_record("checkpoints", self.MARK) or {}
        why = record.get("why", "is marked as not whole: finish the `copy` or the `delete` that was under way")
        return f"{why!s:.300}"

    def _usable(self) -> list[tuple[int, int]]:
        """As `checkpoints`. Raises `UserError` if the run is marked as not whole."""
        names = self._manifest_names()
        if self.MARK in names:
            raise UserError(f"run {self.run!r} in {self.store.url} {self._why()}")
        return _newest_first(names)

    def manifest(self, name: str) -> Manifest:
        """Raises `Absent`, or `Bad` if it is no manifest when read a second time too."""
        for last_try in (False, True):
            try:
                manifest = from_json(self.read(self.key("checkpoints", f"{name}.json"), MAX_BYTES + 1), name)
                if manifest.run != self.run:
                    raise ValueError(f"is one of run {manifest.run}")
                return manifest
            except NotFound as e:
                raise Absent("its manifest is not there") from e
            except (ValueError, Damaged) as e:
                if last_try:
                    raise Bad(f"its manifest {e}") from e
        raise AssertionError

    def parts_named(self, name: str, size: int) -> list[PartRef]:
        """The parts that a manifest of so many bytes names, for which mostly its end is enough.

        Raises `Absent`, or `Bad` if it is no manifest when read a second time too.
        """
        sink = io.BytesIO()
        with suppress(Damaged):
            try:
                key = self.key("checkpoints", f"{name}.json")
                self.store.get(key, sink, byte_range=(max(0, size - END_BYTES), size))
            except NotFound as e:
                raise Absent("its manifest is not there") from e
        parts = parts_at_end(sink.getvalue())
        return self.manifest(name).parts if parts is None else parts

    def has_manifest(self, name: str) -> bool:
        """Whether the checkpoint has one, good or bad; one that was cleaned up has none."""
        try:
            self.store.stat(self.key("checkpoints", f"{name}.json"))
        except NotFound:
            return False
        return True

    def part(self, ref: PartRef) -> bytes:
        """A part's bytes, verified. Raises `Bad`."""
        return self.read_part(ref, Kept).whole()

    def read_part(self, ref: PartRef, begin: Callable[[], S]) -> S:
        """Read a part into a sink that `begin` gives, verify it, and return the sink.

        Raises `Bad` if it isn't there, or is another when read a second time too, into a sink begun anew.
        """
        for last_try in (False, True):
            sink = Begun(begin, ref.size, f"part {ref.sha256[:12]} in {self.store.url}")
            try:
                self.store.get(self.key("parts", ref.sha256), sink, byte_range=(0, ref.size + 1))  # type: ignore[arg-type]
                problem = sink.reader.problem(ref.sha256)
            except NotFound as e:
                raise Bad(f"part {ref.sha256[:12]} is not there") from e
            except NoPart as e:
                problem = e.why
            except Damaged as e:
                problem = f"is damaged: {e}"
            if problem is None:
                return sink.inner
            if last_try:
                raise Bad(f"part {ref.sha256[:12]} {problem}")
        raise AssertionError

    def load(
        self, manifest: Manifest, known: Mapping[str, bytes] | None = None, check: Callable[[], None] = lambda: None
    ) -> Checkpoint:
        """Read and verify a checkpoint; parts in `known` (verified earlier) are not read again. Raises `Bad`."""
        data: dict[str, bytes] = {}
        found: set[tuple[str, str]] = set()
        with closing(self._parts_ahead(manifest.parts, known or {})) as parts:
            for ref, part in parts:
                check()
                data[ref.sha256] = part
                add_tensors(found, ref.section, tensor_names(part))
        return Checkpoint(manifest, data)

    def _parts_ahead(self, refs: Sequence[PartRef], known: Mapping[str, bytes]) -> Generator[tuple[PartRef, bytes]]:
        """Each part's bytes in their order, `READERS` being read at once."""
        coming: dict[str, Future[bytes]] = {}
        with ThreadPoolExecutor(READERS, "read") as pool:
            try:
                for i, ref in enumerate(refs):
                    for ahead in refs[i : i + READERS]:
                        if ahead.sha256 not in known and ahead.sha256 not in coming:
                            coming[ahead.sha256] = pool.submit(self.part, ahead)
                    yield ref, known[ref.sha256] if ref.sha256 in known else coming[ref.sha256].result()
            finally:
                pool.shutdown(cancel_futures=True)

    def newest_good(
        self, known: Checkpoint | None = None, check: Callable[[], None] = lambda: None
    ) -> Checkpoint | None:
        """The newest checkpoint that is whole; None if the run has none at all.

        `known`: the one that it was a moment ago, which is given back if it still is; its parts are not read again.
        Goes back along the parents of one that is bad, then to other chains, and says why. One that is cleaned up
        while it is read has newer ones: then it looks again. Raises `UserError` if there are checkpoints but none is
        good, or if the run is marked as not whole: training must not quietly start again from step 0.
        """
        names = self._usable_names()
        parents: dict[str, str | None] = {}
        order = fallback_order(names, parents)
        while (name := next(order, None)) is not None:
            try:
                manifest = self.manifest(name)
                parents[name] = manifest.parent
                if known is not None and manifest == known.manifest:
                    return known
                return self.load(manifest, known.data if known else None, check)
            except Bad as e:
                # asked for by its name: a list for each bad one would be their number squared
                if not self.has_manifest(name) and name not in (left := self._usable_names()):
                    log.info("checkpoint %s was cleaned up while it was read; looking for the newest again", name)
                    names, parents = left, {}
                    order = fallback_order(names, parents)
                    continue
                log.error("checkpoint %s is bad: %s; going back to the one before it", name, e)
        if names:
            raise UserError(
                f"none of the {len(names)} checkpoints of run {self.run!r} in {self.store.url} is good; "
                "look at them, or start anew under another name with --run NAME"
            )
        return None

    def _usable_names(self) -> list[str]:
        return [checkpoint_name(*name) for name in self._usable()]

    def put_part(self, sha256: str, size: int, chunks: Source) -> int:
        """Put a part of so many bytes, whatever lies there; bytes sent."""
        self.store.put(self.key("parts", sha256), chunks)
        return size

    def keep_part(self, sha256: str, size: int, chunks: Source) -> int:
        """Put a part that should be there already, if it isn't; bytes sent.

        Somebody's rule for old objects may have deleted it, and every later checkpoint would name it in vain.
        """
        with suppress(NotFound):
            if self.store.stat(self.key("parts", sha256)).size == size:
                return 0
        return self.put_part(sha256, size, chunks)

    def commit(self, manifest: Manifest, check: Callable[[], None]) -> None:
        """Make a checkpoint exist. Its parts must be in the store. Raises `Superseded`, and what `check` raises.

        `check` is called right before the manifest is written: after it there is no way back.
        """
        body = manifest.to_json()
        from_json(body, manifest.name)  # raises ValueError for one that no start could read, of however many attempts
        self.check_fence(manifest.attempt)
        check()
        try:
            self.create(self.key("checkpoints", f"{manifest.name}.json"), body)
        except AlreadyExists as e:
            # this attempt wrote it before, in a try whose end it didn't hear of: the same state is a success
            try:
                written = self.manifest(manifest.name)
            except Absent:
                raise Superseded(manifest.attempt) from e
            except Bad as bad:  # no other attempt writes this name: the run is still this one's, which has later states
                raise Damaged(f"{self.store.url}: checkpoint {manifest.name} came damaged: {bad}") from e
            if written.state_sha256 != manifest.state_sha256:
                raise Superseded(manifest.attempt) from e


def add_tensors(found: set[tuple[str, str]], section: str, names: Iterable[str]) -> None:
    """Add a part's tensors to those of a checkpoint. Raises `Bad` if one is there already."""
    for name in names:
        if (section, name) in found:
            raise Bad(f"tensor {name!a:.60} is in two of its parts")
        found.add((section, name))


def _newest_first(names: Iterable[str]) -> list[tuple[int, int]]:
    return sorted((parsed for name in names if (parsed := parse_name(name.removesuffix(".json")))), reverse=True)


def fallback_order(names: Iterable[str], parents: Mapping[str, str | None]) -> Iterator[str]:
    """Checkpoints in the order in which they are tried: the newest, and each one's parent after it.

    Where the parent is not known or not among `names`, the newest that has not been tried. `parents` is filled in by
    the caller as it reads them.
    """
    left = {parsed: name for name in names if (parsed := parse_name(name))}
    name = left[max(left)] if left else None
    while name is not None:
        yield name
        del left[parse_name(name)]  # type: ignore[arg-type]
        parent = left.get(parse_name(parents.get(name) or "") or (0, 0))
        name = parent or (left[max(left)] if left else None)
