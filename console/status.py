"""The `status` command: how the runs in a store stand, or one run and its attempts; once, or followed."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence

from console import next_steps, sheets
from console.endings import CLOUDS
from console.logs import one_line
from console.progress import duration, roughly
from console.sheets import Part, Sheet, Words, sheet
from console.standing import at_once, count, glance, number, whole
from storage import Store
from storage.errors import PermissionDenied
from trainer.exits import ExitCode, UserError
from trainer.history import History
from trainer.place import missing_folder, none_of, runs
from trainer.settings import Json, Settings

Told = dict[str, Json]
Seen = tuple[list[Told], list[PermissionDenied]]  # and why the others could not be read
WATCH_S = 5.0  # between two looks

log = logging.getLogger("baton")


def show(store: Store, run: str | None, *, as_json: bool, follow: bool = False) -> int:
    """Print the runs, or the one asked for with its attempts. Raises `UserError` if there is no such run, `StoreError`.

    Of all runs one small object each is read, and the store is listed once. One that may not be read hides no other.
    """
    if as_json and follow:
        raise UserError("--watch is for people: give it without --json", ExitCode.USAGE)

    def look() -> Seen:
        return _look(store, run)

    if follow:
        from console.watching import watch

        return watch(look, lambda seen: _page(*seen, run, store), WATCH_S)
    found, refused = look()
    if as_json:
        print(json.dumps(found, indent=2))
    elif not found:
        print(none_of(store) + "; --store or BATON_STORE names another store")
        if missing_folder(store) is None or store.url == Settings().store:  # else nobody means it, most likely
            print("\n".join(next_steps.told([("to start one", ["cifar10"])], store.url)))
    else:
        sheets.show(_page(found, [], run, store))
        steps = next_steps.of_one(found[0]) if run else next_steps.of_all(found)
        print("\n" + "\n".join(next_steps.told(steps, store.url)))
    for error in refused:
        log.error("%s", error)
    return ExitCode.SETUP if refused else ExitCode.DONE


def _look(store: Store, run: str | None) -> Seen:
    if run is not None:
        told = whole(History(store, run))
        if told is None:
            raise UserError(none_of(store, run))
        return [told], []

    def seen(name: str) -> Told | PermissionDenied | None:
        try:
            return glance(History(store, name))
        except PermissionDenied as e:
            return e

    all_seen = at_once(seen, runs(store))
    refused = [one for one in all_seen if isinstance(one, PermissionDenied)]
    found = [one for one in all_seen if isinstance(one, dict)]
    if refused and not found:
        raise refused[0]
    return found, refused


# -- for people -----------------------------------------------------------------------------------------------


def _page(found: Sequence[Told], refused: Sequence[Exception], run: str | None, store: Store) -> list[Part]:
    if not found:
        return [Words(none_of(store))]
    parts: list[Part] = [_table_of_runs(found)]
    if run:
        parts += [Words(""), _table_of_attempts(found[0])]
        if (every := _every(found[0])) is not None:
            parts.append(Words(one_line(every)))
    for told in found:
        if told["save_error"] and told["state"] == "running":
            parts.append(Words(one_line(f"{told['run']}: the last save failed: {told['save_error']}"), "bold red"))
        health = told["checkpoint_health"]
        if health not in (None, "ok"):
            way = "a start takes the newest good one, and trains nothing where there is none"
            words = f"{told['run']}: checkpoint {told['checkpoint']} is BAD: {health}; {way}"
            parts.append(Words(one_line(words), "bold red"))
    return parts + [Words(one_line(f"{error}"), "bold red") for error in refused]


_LOOKS = {"running": "green", "finished": "bold", "dead": "bold red", "superseded": "dim"}


def _table_of_runs(found: Sequence[Told]) -> Sheet:
    rows = []
    for told in found:
        left = number(told["seconds_left"])
        cells = (
            f"{told['run']}" + (" SYNTHETIC" if told["synthetic"] else ""),
            _state(told),
            f"{told['step']}/{told['steps'] or '?'}",
            _checkpoint(told),
            _machine(told),
            f"{told['attempt']}",
            _metrics(told["metrics"]),
            "-" if left is None else duration(left),
        )
        rows.append((cells, _LOOKS.get(str(told["attempt_state"]), "")))
    return sheet(("run", "state", "step", "durable", "machine", "attempt", "metrics", "left"), rows)


def _table_of_attempts(told: Told) -> Sheet:
    rows = []
    attempts = told["attempts"]
    for one in attempts if isinstance(attempts, list) else []:
        assert isinstance(one, dict)
        started, seconds = number(one["started"]), number(one["seconds"])
        cells = (
            f"{one['attempt']}",
            f"{one['state']}",
            "-" if one["exit"] is None else f"{one['exit']}",
            "-" if one["first_step"] is None else f"{one['first_step']} to {one['last_step']}",
            "-" if seconds is None else f"{seconds:.0f}",
            "-" if started is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(started)),
            _machine(one),
            f"{one['how'] or '-'}",
        )
        rows.append((cells, _LOOKS.get(str(one["state"]), "")))
    titles = ("attempt", "state", "exit", "steps", "seconds", "started", "machine", "how it ended")
    return sheet(titles, rows)


def _state(told: Told) -> str:
    state, seen = f"{told['attempt_state'] or told['state']}", number(told["last_seen_s"])
    if told["state"] == "finished":
        return "finished"
    if state == "running":
        return "running" if seen is None or seen < 45 else f"silent for {roughly(seen)}"
    if state == "dead":
        return "dead" if seen is None else f"dead for {roughly(seen)}"
    return state if told["exit"] is None else f"{state}, exit {told['exit']}"


def _machine(told: Told) -> str:
    cloud = CLOUDS.get(str(told["cloud"]), told["cloud"])
    words = [f"{word}" for word in (cloud, told["instance_type"]) if word]
    more = count(told.get("machines")) - 1
    hosts = [f"{told['host']}" + (f" and {more} more" if more > 0 else "")] * bool(told["host"])
    return ", ".join([" ".join(words)] * bool(words) + hosts) or "-"


def _metrics(metrics: Json) -> str:
    """The first two, accuracy as the percentage that people compare."""
    values = metrics if isinstance(metrics, dict) else {}
    told = []
    for name, value in values.items():
        if value is None:
            told.append(f"{name.replace('_', ' ')} not a number")
        elif isinstance(value, float):
            accuracy = name in ("accuracy", "macro_f1")
            told.append(f"{name.replace('_', ' ')} " + (f"{100 * value:.2f} %" if accuracy else f"{value:.4f}"))
    return ", ".join(told[:2]) or "-"


def _every(told: Told) -> str | None:
    """How often it saves, and why."""
    every_s, why = number(told["checkpoint_every_s"]), told["checkpoint_every_why"]
    every = told["checkpoint_every_fixed"] if every_s is None else f"{every_s:.3g} s"
    if told["state"] != "running" or not every:
        return None
    return f"{told['run']}: saves every {every}" + (f": {why}" if why else "")


def _checkpoint(told: Told) -> str:
    if told["checkpoint"] is None:
        return "none yet"
    age = number(told["checkpoint_age_s"])
    return f"step {told['checkpoint_step']}" + ("" if age is None else f", {roughly(age)} ago")
