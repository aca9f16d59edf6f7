"""A run's place in a store: its keys, and small JSON records with their age."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass

from storage import Store
from storage.errors import AlreadyExists, NotFound
from trainer import strict
from trainer.curve import is_number
from trainer.settings import Json, is_run_name

MAX_RECORD_BYTES = 4 << 20  # of which tables of metrics take most: up to 36 bytes a cell
COPIED = "age_when_copied_s"  # in a record that another store had for so long before


@dataclass(frozen=True, slots=True)
class Sign:
    """A record, and how long ago it was written."""

    record: dict[str, Json]
    age_s: float  # by the clocks of the stores that had it: that of whoever looks may be minutes off
    copied: bool = False  # from another store: what it tells of checkpoints may not be so here


def runs(store: Store) -> list[str]:
    """The names under which the store may have runs. Raises `StoreError`."""
    names = (info.key[:-1] for info in store.list("", delimiter="/") if info.is_prefix)
    return [name for name in names if is_run_name(name)]


def missing_folder(store: Store) -> str | None:
    """The folder that should be the store and is not there; None for every other store."""
    scheme, _, path = store.url.partition("://")
    return os.path.abspath(path) if scheme == "file" and not os.path.isdir(path) else None


def none_of(store: Store, run: str = "") -> str:
    """What is said where the store has no run, or none of this name."""
    what = f"no run {run!r} in {store.url}" if run else f"no runs in {store.url}"
    if (folder := missing_folder(store)) is not None:  # mistyped, or meant from another folder
        return f"{what}: the folder {folder} is not there (mistyped?)"
    return f"{what}; `status` lists those there are" if run else what


class Place:
    """All methods may raise `StoreError`."""

    def __init__(self, store: Store, run: str) -> None:
        self.store = store
        self.run = run

    def key(self, *names: str) -> str:
        return "/".join((self.run, *names))

    def create(self, key: str, body: bytes) -> None:
        """Create a record once. Raises `AlreadyExists` if somebody else's is there.

        A reply can be lost after the object was written: bytes that are our own are a success.
        """
        try:
            self.store.put(key, body, if_absent=True)
        except AlreadyExists:
            if self.read(key, len(body) + 1) != body:
                raise

    def read(self, key: str, limit: int) -> bytes:
        """An object's bytes, `limit` of them at most."""
        sink = io.BytesIO()
        self.store.get(key, sink, byte_range=(0, limit))
        return sink.getvalue()

    def read_record(self, *names: str) -> dict[str, Json] | None:
        """A small JSON object, or None where it isn't there or is none."""
        sign = self.read_sign(*names)
        return sign.record if sign is not None else None

    def read_sign(self, *names: str) -> Sign | None:
        """The same with its age."""
        try:
            return self.sign(*names)
        except (NotFound, ValueError):
            return None

    def sign(self, *names: str) -> Sign:
        """The same, for whom an absence is one thing and damage another: `NotFound`, and `ValueError` for no record."""
        sink = io.BytesIO()
        info = self.store.get(self.key(*names), sink, byte_range=(0, MAX_RECORD_BYTES))
        record = strict.loads(sink.getvalue())
        json.dumps(record, allow_nan=False)  # `status --json` prints what is in it
        if not isinstance(record, dict):
            raise ValueError("no JSON object")
        before = record.pop(COPIED, None)
        return Sign(record, info.age_s + (max(0.0, before) if is_number(before) else 0.0), before is not None)

    def write_copy(self, sign: Sign, *names: str) -> None:
        """Write another store's record so that it is as old here as it is there."""
        self.write_record({**sign.record, COPIED: sign.age_s}, *names)

    def write_record(self, record: Mapping[str, Json], *names: str) -> None:
        self.store.put(self.key(*names), json.dumps(record, indent=1, sort_keys=True).encode())
