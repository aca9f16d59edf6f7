"""The `doctor` command: is this machine ready to train, and if not, what mends it. Its checks: console/checks/."""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import asdict

from console.checks import cloud, compute, container, content, speed, store
from console.checks.examination import Found, Lanes, Patient, examine
from console.logs import one_line
from trainer.exits import ExitCode

# each lane for itself and all at once, so that what hangs in one takes no time from another
LANES: Lanes = (
    (*store.CHECKS, *speed.CHECKS),
    cloud.CHECKS,
    container.CHECKS,
    compute.CHECKS,
    content.CHECKS,
)


class _Logins(logging.Handler):
    """Collects what the stores say of whose credentials they use."""

    def __init__(self, logins: list[str]) -> None:
        super().__init__(logging.INFO)
        self._logins = logins

    def emit(self, record: logging.LogRecord) -> None:
        _, said, who = record.getMessage().partition("credentials: ")
        if said:
            self._logins.append(who)


START_S = 3.0  # for Python's own start and end, out of the seconds that are promised


def doctor(patient: Patient, seconds: float, *, as_json: bool) -> int:
    """Examine, print, and return the exit code within these seconds: 0, or 78 where something failed."""
    _listen(patient)
    found = examine(patient, LANES, check_s=(seconds - START_S) / 2, all_s=seconds - START_S)
    if as_json:
        print(json.dumps([asdict(f) for f in found], indent=2))
    else:
        _print(found)
    return ExitCode.SETUP if any(f.status == "failed" for f in found) else ExitCode.DONE


def _listen(patient: Patient) -> None:
    """What a store logs becomes part of what is found; the rest would only stand between it."""
    logging.getLogger("baton").setLevel(logging.ERROR)
    logger = logging.getLogger("baton.storage")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.handlers[:] = [_Logins(patient.logins)]


def _print(found: list[Found]) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)

    def say(line: Text) -> None:
        if sys.stdout.isatty():
            console.print(line)
        else:
            print(line.plain)

    looks = {"ok": "green", "warning": "yellow", "failed": "bold red", "not tried": "dim"}
    group = ""
    for f in found:
        if f.group != group:
            group = f.group
            say(Text(group, style="bold"))
        say(Text.assemble("  ", (f"{f.status:<10}", looks[f.status]), f"{f.check:<12} {one_line(f.detail)}"))
        if f.mend:
            say(Text(f"{'':<12}{'':<12} to mend it: {f.mend}"))
    failed = sum(f.status == "failed" for f in found)
    warned = sum(f.status == "warning" for f in found)
    if failed:
        say(Text(f"{failed} of {len(found)} checks failed: not ready to train", style="bold red"))
    else:
        say(
            Text(
                "ready to train" + (f", with {warned} warning{'s' * (warned > 1)}" if warned else ""),
                style="bold green",
            )
        )
