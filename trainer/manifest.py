"""Manifests: the small JSON objects that make checkpoints exist. Nothing in one is believed before it is checked."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from trainer import strict
from trainer.settings import Json, is_run_name

FORMAT = 1
MAX_BYTES = 8 << 20  # a manifest is a few kB; JSON made to harm takes 25 times its size in memory
MAX_PARTS = 50_000
MAX_PART_BYTES = 1 << 40
_STATE = ("step", "parts", "scalars", "sums", "order_sha256")  # what `state_sha256` is over
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"([0-9]{6}|[1-9][0-9]{6,11})-([0-9]{8}|[1-9][0-9]{8,14})")  # as `checkpoint_name` writes it


@dataclass(frozen=True, slots=True)
class PartRef:
    section: str  # "model" or "optimizer"
    sha256: str
    size: int  # bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """One checkpoint: the state at the boundary after `step` steps, and how it came to be."""

    uuid: str
    run: str
    job: str
    attempt: int
    step: int
    steps: int  # length of the run
    steps_per_epoch: int
    parent: str | None  # name of the checkpoint that this one's history goes on from
    time: float  # seconds since 1970, by the machine that saved
    parts: list[PartRef]
    scalars: dict[str, Json]  # optimizer state that is no tensor
    sums: dict[str, str]  # this epoch's metric sums, as float.hex() has them: exact, NaN too
    order_sha256: str
    weights_sha256: str
    metrics: dict[str, Json]  # of the last evaluation, with its step; follows from the weights
    settings: dict[str, Json]  # those which shape the run
    machine: dict[str, Json]
    ledger: list[dict[str, Json]]
    synthetic: bool = False
    state_sha256: str = field(default="")
    format: int = FORMAT

    @property
    def name(self) -> str:
        return checkpoint_name(self.attempt, self.step)

    def hash_of_state(self) -> str:
        """SHA-256 over all that the checkpoint holds but the ledger, clock times, and what follows from the rest."""
        return _hash({**{name: getattr(self, name) for name in _STATE}, "parts": [asdict(part) for part in self.parts]})

    def with_state_hash(self) -> Manifest:
        return replace(self, state_sha256=self.hash_of_state())

    def to_json(self) -> bytes:
        """As it is stored: with a checksum over all of it, for a flipped bit may leave it well-formed."""
        fields_ = asdict(self)
        return json.dumps({**fields_, "checksum": _hash(fields_)}, indent=1, sort_keys=True).encode()


def _hash(value: Json | dict[str, Any]) -> str:
    """SHA-256 of the value's canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def checkpoint_name(attempt: int, step: int) -> str:
    return f"{attempt:06d}-{step:08d}"


def parse_name(name: str) -> tuple[int, int] | None:
    """(attempt, step), or None if it is no checkpoint's name."""
    match = _NAME.fullmatch(name)
    return (int(match[1]), int(match[2])) if match else None


def is_sha256(text: str) -> bool:
    return _SHA256.fullmatch(text) is not None


def from_json(text: bytes, name: str) -> Manifest:
    """The manifest of checkpoint `name`. Raises ValueError, with what is wrong, for anything else."""
    if len(text) > MAX_BYTES:
        raise ValueError(f"{len(text)} bytes are too long for a manifest")
    raw = strict.loads(text)
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        raise ValueError(f"not a manifest of format {FORMAT}")
    if raw.pop("checksum", None) != _hash(raw):
        raise ValueError("is not what was written: its checksum differs")
    missing = {f.name for f in fields(Manifest)} - raw.keys()
    if missing:
        raise ValueError(f"lacks {', '.join(sorted(missing))}")
    raw = {f.name: raw[f.name] for f in fields(Manifest)}
    raw["parts"] = _parts(raw["parts"])
    _check(raw, name)
    manifest = Manifest(**raw)
    if manifest.state_sha256 != manifest.hash_of_state():
        raise ValueError("does not hash to its own state_sha256")
    return manifest


def parts_at_end(text: bytes) -> list[PartRef] | None:
    """The parts that a manifest names, by the end of its JSON alone; None where that doesn't prove them.

    In the names' order the ledger, which is most of a long run's manifest, comes before all that `state_sha256` is
    over. The rest stays unread: who goes on from a checkpoint takes `from_json`. A later format that kept more than
    these parts would hash more, and prove nothing here.
    """
    at = text.find(b'\n "order_sha256": ')  # with one blank: a name of the outermost object
    try:
        raw = strict.loads(b"{" + text[at:]) if at >= 0 else {}
        parts = _parts(raw["parts"])
        return parts if _hash({name: raw[name] for name in _STATE}) == raw["state_sha256"] else None
    except (ValueError, KeyError):
        return None


def _parts(raw: Any) -> list[PartRef]:
    if not isinstance(raw, list) or len(raw) > MAX_PARTS:
        raise ValueError("parts: not a list of parts")
    parts = []
    for part in raw:
        match part:
            case {"section": "model" | "optimizer" as section, "sha256": str(sha256), "size": int(size)} if (
                _SHA256.fullmatch(sha256) and 0 < size <= MAX_PART_BYTES and len(part) == 3
            ):
                parts.append(PartRef(section, sha256, size))
            case _:
                raise ValueError(f"parts: not a part: {part!r:.100}")
    if len({(part.section, part.sha256) for part in parts}) < len(parts):
        raise ValueError("parts: one is named twice")
    return parts


def _check(raw: dict[str, Any], name: str) -> None:
    for key in ("attempt", "step", "steps", "steps_per_epoch"):
        if type(raw[key]) is not int or not 0 <= raw[key] < 10**15:
            raise ValueError(f"{key}: not a count: {raw[key]!r:.100}")
    for key in ("order_sha256", "weights_sha256", "state_sha256"):
        if not isinstance(raw[key], str) or not _SHA256.fullmatch(raw[key]):
            raise ValueError(f"{key}: not a SHA-256: {raw[key]!r:.100}")
    for key in ("uuid", "run", "job"):
        if not isinstance(raw[key], str) or not is_run_name(raw[key]):
            raise ValueError(f"{key}: not a name: {raw[key]!r:.100}")
    for key in ("scalars", "sums", "metrics", "settings", "machine"):
        if not isinstance(raw[key], dict):
            raise ValueError(f"{key}: not an object")
    if not isinstance(raw["ledger"], list) or not all(isinstance(entry, dict) for entry in raw["ledger"]):
        raise ValueError("ledger: not a list of objects")
    for key, value in raw["scalars"].items():
        if value is not None and not isinstance(value, bool | int | float | str):
            raise ValueError(f"scalars: {key!r:.100} is no single value")
    for key, value in raw["sums"].items():
        try:
            float.fromhex(value)
        except (TypeError, ValueError, OverflowError) as e:
            raise ValueError(f"sums: {key!r:.100} is no number") from e
    if type(raw["time"]) not in (int, float) or not 0 <= raw["time"] < 10**12 or type(raw["synthetic"]) is not bool:
        raise ValueError("time or synthetic: wrong type")
    parent = raw["parent"]
    if parent is not None and (not isinstance(parent, str) or parse_name(parent) is None):
        raise ValueError(f"parent: not a checkpoint's name: {parent!r:.100}")
    if (raw["attempt"], raw["step"]) != parse_name(name):
        raise ValueError("its attempt and step are not those of its name")
    if not raw["steps_per_epoch"] or not raw["parts"]:
        raise ValueError("has no steps or no parts")


def is_result_of(result: Mapping[str, object] | None, manifest: Manifest) -> bool:
    """Whether a result.json is of this very checkpoint: one of a run that was deleted may have its heir's names."""
    of = result and (result.get("checkpoint"), result.get("state_sha256"))
    return of == (manifest.name, manifest.state_sha256)
