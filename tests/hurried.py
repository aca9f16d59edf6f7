"""The entrypoint with its housekeeping hurried, for tests with real processes: what takes hours takes seconds.

    python tests/hurried.py SIGN_S YOUNG_S CLEAN_EVERY_S SLOW_PART_S arguments of entrypoint.py ...

SIGN_S between signs of life; YOUNG_S for which nothing is cleaned up, but for a quarter of
it what the newest attempt made obsolete; each part's upload takes SLOW_PART_S longer.
"""

from __future__ import annotations

import functools
import gc
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def main(sign_s: float, young_s: float, every_s: float, slow_part_s: float, arguments: list[str]) -> int:
    import console.clean
    import entrypoint
    import trainer.attempt
    import trainer.signs
    from trainer.history import History
    from trainer.retention import Retention

    trainer.signs.SIGN_S = sign_s
    ages = {"young_s": young_s, "settled_s": young_s / 4}
    trainer.attempt.Retention = functools.partial(Retention, **ages, every_s=every_s)  # type: ignore[misc]
    console.clean.Retention = functools.partial(Retention, **ages)  # type: ignore[misc]
    put_part = History.put_part

    def slowly(self: History, *args: Any) -> int:
        assert gc.isenabled(), "turned off while torch is imported, it is on again in training"
        sent = put_part(self, *args)
        time.sleep(slow_part_s)
        return sent

    History.put_part = slowly  # type: ignore[method-assign]
    return entrypoint.main(arguments)


if __name__ == "__main__":
    sys.exit(main(*map(float, sys.argv[1:5]), sys.argv[5:]))  # type: ignore[call-arg, arg-type]
