"""The entrypoint with other constants, so that minutes take a second, for tests with real processes.

    python tests/compressed.py PACE module.NAME=VALUE ... -- arguments of entrypoint.py ...

While a file PACE is there each step takes 0.2 s longer: training lasts as long as the test has something to do to it.
"""

from __future__ import annotations

import pkgutil
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def main(pace: Path, constants: list[str], arguments: list[str]) -> int:
    import console.train  # noqa: F401  (the modules that constants are of)
    import entrypoint
    import trainer.attempt

    for constant in constants:
        name, _, value = constant.partition("=")
        owner, _, name = name.rpartition(".")
        assert isinstance(getattr(pkgutil.resolve_name(owner), name), float), f"there is no {constant}"
        setattr(pkgutil.resolve_name(owner), name, float(value))
    boundary = trainer.attempt.Attempt.boundary

    def slowly(self: Any, **options: Any) -> None:
        boundary(self, **options)
        if pace.exists():
            time.sleep(0.2)

    trainer.attempt.Attempt.boundary = slowly  # type: ignore[method-assign]
    return entrypoint.main(arguments)


if __name__ == "__main__":
    cut = sys.argv.index("--")
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:cut], sys.argv[cut + 1 :]))
