"""Every checkpoint of a run, down to its bytes: each part read once, none of them held in memory."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from trainer.header import Head, tensor_names
from trainer.history import READERS, Absent, Bad, History, add_tensors
from trainer.manifest import Manifest, PartRef, checkpoint_name, parse_name
from trainer.side_by_side import side_by_side


@dataclass(slots=True)
class Verdict:
    """What was found of one checkpoint."""

    name: str
    manifest: Manifest | None = None  # without its ledger
    problems: list[str] = field(default_factory=list)  # none: every byte is what it should be

    @property
    def bytes(self) -> int:
        parts = self.manifest.parts if self.manifest else []
        return sum(size for _, size in {(ref.sha256, ref.size) for ref in parts})


def verify(history: History, tell: Callable[[str], None] = lambda line: None) -> list[Verdict]:
    """Verdicts on all checkpoints, the oldest first; one that is cleaned up meanwhile is left out.

    Checked are each manifest's checksum and its state_sha256, the chain of parents, each part's SHA-256, size and
    header, that no tensor is in two parts, and weights_sha256 anew from the tensors. `tell` hears of each part. Raises
    `StoreError`.
    """
    verdicts = {}
    for name in [checkpoint_name(*pair) for pair in reversed(history.checkpoints())]:
        verdict = Verdict(name)
        try:
            # without the ledger: of many attempts and checkpoints all of them together fill the memory
            verdict.manifest = replace(history.manifest(name), ledger=[])
            verdict.problems += _chain_problems(verdict.manifest)
        except Absent:
            continue
        except Bad as e:
            verdict.problems.append(str(e))
        verdicts[name] = verdict
    reading = _Reading(history, tell)
    whole = [verdict for verdict in verdicts.values() if verdict.manifest is not None]
    reading.weights(whole)
    reading.the_rest(whole)
    # a bad one may be one that was being cleaned up while it was looked at
    return [v for v in verdicts.values() if not v.problems or history.has_manifest(v.name)]


def _chain_problems(manifest: Manifest) -> list[str]:
    """A parent that is not there any more was cleaned up; one that is not older would be a ring.

    Of another attempt it may be of the same step: one that had but the last evaluation left to do.
    """
    parent = parse_name(manifest.parent) if manifest.parent else None
    if parent is None or (parent < (manifest.attempt, manifest.step) and parent[1] <= manifest.step):
        return []
    return [f"its parent {manifest.parent} is not older than it is"]


class _Reading:
    """Reads each part once, for all checkpoints that name it.

    The hash of the weights runs over all parts of a model in order. So all checkpoints' first parts are read, then all
    second ones, and so on; checkpoints which had the same parts so far share the state of their hash.
    """

    def __init__(self, history: History, tell: Callable[[str], None]) -> None:
        self._history = history
        self._tell = tell
        self._health: dict[tuple[str, int], str | None] = {}  # of each part read: what is wrong with it
        self._tensors: dict[tuple[str, int], list[str]] = {}  # of each good one: their names

    def weights(self, verdicts: Iterable[Verdict]) -> None:
        left = {id(verdict): verdict for verdict in verdicts}
        parts = {key: [r for r in verdict.manifest.parts if r.section == "model"] for key, verdict in left.items()}  # type: ignore[union-attr]
        nothing = hashlib.sha256()
        states = dict.fromkeys(left, nothing)
        for column in range(max(map(len, parts.values()), default=0)):
            alike: dict[PartRef, dict[int, list[int]]] = {}  # part -> state of the hash -> who has both
            for key, refs in parts.items():
                if key in left and column < len(refs):
                    alike.setdefault(refs[column], {}).setdefault(id(states[key]), []).append(key)
            wanted = [(ref, [states[keys[0]] for keys in groups.values()]) for ref, groups in alike.items()]
            for groups, (problem, fed) in zip(alike.values(), self._feed_all(wanted), strict=True):
                for state, keys in zip(fed, groups.values(), strict=True):
                    for key in keys:
                        states[key] = state
                        if problem is not None:
                            left.pop(key).problems.append(problem)
        for key, verdict in left.items():
            assert verdict.manifest is not None
            if states[key].hexdigest() != verdict.manifest.weights_sha256:
                verdict.problems.append("its weights do not hash to its weights_sha256")

    def the_rest(self, verdicts: Iterable[Verdict]) -> None:
        parts = [(verdict, {(ref.sha256, ref.size): ref for ref in verdict.manifest.parts}) for verdict in verdicts]  # type: ignore[union-attr]
        unread = {key: ref for _, refs in parts for key, ref in refs.items() if key not in self._health}
        self._feed_all([(ref, []) for ref in unread.values()])
        for verdict, refs in parts:
            problems = [problem for key in refs if (problem := self._health[key]) is not None]
            verdict.problems += [problem for problem in problems if problem not in verdict.problems]
            if not problems:
                self._look_for_tensors_in_two_parts(verdict)

    def _look_for_tensors_in_two_parts(self, verdict: Verdict) -> None:
        found: set[tuple[str, str]] = set()
        try:
            for ref in verdict.manifest.parts if verdict.manifest else []:
                add_tensors(found, ref.section, self._tensors[ref.sha256, ref.size])
        except Bad as e:
            verdict.problems.append(str(e))

    def _feed_all(
        self, wanted: list[tuple[PartRef, list[hashlib._Hash]]]
    ) -> list[tuple[str | None, list[hashlib._Hash]]]:
        return list(side_by_side(lambda one: self._feed(*one), wanted, READERS))

    def _feed(self, ref: PartRef, states: list[hashlib._Hash]) -> tuple[str | None, list[hashlib._Hash]]:
        """Read a part; what is wrong with it, and the states of the hashes after it."""
        key = (ref.sha256, ref.size)
        if self._health.get(key) is not None:
            return self._health[key], states
        try:
            sink = self._history.read_part(ref, lambda: _Digests([state.copy() for state in states]))
        except Bad as e:
            self._health[key] = str(e)
            return str(e), states
        self._tell(f"part {ref.sha256[:12]} is good, {ref.size} bytes")
        # interned: checkpoints have the same names, over and over
        self._health[key], self._tensors[key] = None, list(map(sys.intern, tensor_names(sink.head.kept)))
        return None, sink.digests


class _Digests:
    """A sink that hashes a part's tensors, and keeps of it no more than the header."""

    def __init__(self, digests: list[hashlib._Hash]) -> None:
        self.digests = digests
        self.head = Head()

    def write(self, data: bytes | bytearray | memoryview) -> int:
        tensors = self.head.take(data)
        for digest in self.digests:
            digest.update(tensors)
        return len(data)
