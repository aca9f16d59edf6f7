"""The commands that one would want next, to be copied as they are: for this store, and started as this one was."""

from __future__ import annotations

import math
import os
import shlex
import sys
from collections.abc import Mapping, Sequence

from console.logs import one_line
from trainer.names import job_names
from trainer.settings import Json, fields_of

Told = Mapping[str, Json]


def program() -> list[str]:
    """How this program was started, by paths that are right from the current folder."""

    def near(path: str) -> str:
        here = f"{os.getcwd()}/"
        return path.removeprefix(here) if path.startswith(here) else path

    return [near(sys.executable), near(os.path.abspath(sys.argv[0]))]


def in_container() -> bool:
    return "BATON_REVISION" in os.environ  # which the image sets


def line(words: Sequence[str], store: str) -> str:
    """One command. In a container its words alone: what stands before them only the user's `docker run` knows."""
    default = next(f.default for f in fields_of(["store"]))
    place = [] if store == default else ["--store", store]
    return shlex.join([*([] if in_container() else program()), *words, *place])


def of_one(told: Told) -> list[tuple[str, list[str]]]:
    """What for, and the words: for a run that has been looked at by itself."""
    run = str(told["run"])
    steps = []
    if told["state"] == "running":
        steps += [("to stop it", ["halt", "--run", run]), ("to follow it", ["status", "--run", run, "--watch"])]
    elif told["state"] == "stopped" and (words := going_on(told)):
        steps.append(("to go on with it", words))
    steps.append(("to check its checkpoints", ["verify", "--run", run]))
    # in a container only what is mounted outlives the command
    mount, out = (', with -v "$PWD/out:/out"', "/out") if in_container() else ("", f"out/{run}")
    steps.append((f"to see its bill and picture{mount}", ["report", "--run", run, "--out", out]))
    return steps


def of_all(found: Sequence[Told]) -> list[tuple[str, list[str]]]:
    """The same for a list of runs: of each kind the one that was heard of last."""
    if not found:
        return []
    found = sorted(found, key=_silence)
    steps = [("to see one and its attempts", ["status", "--run", str(found[0]["run"])])]
    running = [told for told in found if told["state"] == "running"]
    stopped = [words for told in found if told["state"] == "stopped" and (words := going_on(told))]
    if running:
        steps.append(("to stop one", ["halt", "--run", str(running[0]["run"])]))
    if stopped:
        steps.append(("to go on with one", stopped[0]))
    return steps


def _silence(told: Told) -> tuple[bool, float]:
    seen = told["last_seen_s"]
    return told["state"] != "running", seen if isinstance(seen, int | float) else math.inf


def going_on(told: Told) -> list[str]:
    """The command line that its last attempt put on record; none where it is none of this program's.

    A record is others' words: what isn't a job's own option, or could move a cursor, is not offered for copying.
    """
    given = told["arguments"]
    words = [str(word) for word in given] if isinstance(given, list) else []
    options = {"--" + f.name.replace("_", "-") for f in fields_of()}
    if not words or words[0] not in job_names() or any(one_line(word) != word for word in words):
        return []
    return words if all(word in options for word in words if word.startswith("--")) else []


def told(steps: Sequence[tuple[str, list[str]]], store: str) -> list[str]:
    """Lines for people."""
    if not steps:
        return []
    width = max(len(why) for why, _ in steps)
    head = ["in the same `docker run`, in place of `status` and what follows it:"] if in_container() else []
    return [*head, *(f"{why + ':':<{width + 1}}  {line(words, store)}" for why, words in steps)]
