"""The command line that goes on with a run, for whoever finds the run in its store."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from trainer.settings import fields_of

# Beside what shapes the run; the rest is each machine's own. The halt folder too, if one was named: whoever stops a run
# by a file in it would do so again, in vain
_KEPT = ("data", "halt", "checkpoint_every", "keep")
_MAY_HOLD_A_SECRET = re.compile(r"[?@]")  # an address with a token or a password in it


def arguments(job: str, run: str, given: Mapping[str, Any]) -> tuple[str, ...]:
    """The job and its options, without the store: what was given that another machine must give too.

    They are put on record, so an address that may hold a secret is left out.
    """
    words = [job, *(("--run", run) if run != job else ())]
    for f in fields_of():
        value = given.get(f.name)
        if value is None or not (f.metadata["shapes_run"] or f.name in _KEPT):
            continue
        flag = "--" + f.name.replace("_", "-")
        if isinstance(value, bool):
            words += [flag] if value else []
        elif not (isinstance(value, str) and _MAY_HOLD_A_SECRET.search(value)):
            words += [flag, str(value)]
    return tuple(words)
