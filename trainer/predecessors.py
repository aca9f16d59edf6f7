"""What a run's earlier attempts left on record for the next one."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from itertools import islice

from storage.errors import StoreError
from trainer.exits import ExitCode
from trainer.history import History
from trainer.manifest import Manifest
from trainer.place import Sign
from trainer.settings import Json
from trainer.side_by_side import side_by_side

AT_ONCE = 8  # requests
MOST = 100  # attempts that are looked at, the newest: a start waits for it

# Of an attempt before in the ledger; its machine, and when it began, stand in its claim.
CARRIED = ("attempt", "first_step", "last_step", "seconds", "exit", "tally")


def ledger_so_far(history: History, manifest: Manifest) -> list[dict[str, Json]]:
    """The ledger so far, its newest entry completed by how that attempt ended; None: nobody heard of its end.

    Of each attempt what its own records don't tell: every checkpoint to come carries all of it.
    """
    end = history.read_record("attempts", f"{manifest.attempt:06d}.end.json") or {}
    entries = [*manifest.ledger[:-1], *({**entry, "exit": _exit(end)} for entry in manifest.ledger[-1:])]
    return [{name: entry[name] for name in CARRIED if name in entry} for entry in entries]


def last_sign(sign: Sign | None) -> dict[str, Json] | None:
    """Of the run's last sign of life, what the ledger needs: the next sign, of another attempt, overwrites it."""
    return {name: sign.record.get(name) for name in ("attempt", "time", "tally")} if sign else None


def unsaved(history: History, saved: Collection[Json], number: int, before: Sign | None) -> list[dict[str, Json]]:
    """For `lifetime_s`, of the attempts before `number` that are not among `saved`: how long each lasted, how it ended.

    `before`: the run's last sign of life as attempt `number` began. One or two small objects are read for each; of an
    attempt whose records can't be read nothing is known.
    """
    lost = list(islice((n for n in range(number - 1, 0, -1) if n not in saved), MOST))[::-1]
    newest: Mapping[str, Json] = before.record if before else {}

    def entry(n: int) -> dict[str, Json] | None:
        end = history.read_record("attempts", f"{n:06d}.end.json")
        if end is None:  # it vanished: what its successor found of it is kept in that one's claim
            heir = history.read_record("attempts", f"{n + 1:06d}.json") if n + 1 < number else {"before": newest}
            found = (heir or {}).get("before")
            sign: Mapping[str, Json] = found if isinstance(found, dict) and found.get("attempt") == n else {}
            return {"attempt": n, "seconds": _seconds(sign.get("tally")), "exit": None}
        if end.get("outcome") == "did not begin":
            return None
        return {"attempt": n, "seconds": _seconds(end.get("tally")), "exit": _exit(end)}

    def known(n: int) -> dict[str, Json] | None:
        try:
            return entry(n)
        except StoreError:
            return None

    return [found for found in side_by_side(known, lost, AT_ONCE) if found is not None]


def _exit(end: Mapping[str, Json]) -> Json:
    """An attempt's exit code, whatever a superseded one's was made to be."""
    return int(ExitCode.DONE) if end.get("outcome") == "superseded" else end.get("exit")


def _seconds(tally: Json) -> Json:
    return tally.get("seconds") if isinstance(tally, dict) else None
