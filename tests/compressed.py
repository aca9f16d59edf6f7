"""The entrypoint with other constants, so that minutes take a second, for tests with real processes.

    python tests/compressed.py PACE module.NAME=VALUE ... -- arguments of entrypoint.py ...

While a file PACE is there each step takes 0.2 s longer: training lasts as long as the test has something to do to it.
"""

from __future__ import annotations

import pkgutil
import runpy
import sys
import time
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

ENTRYPOINT = Path(__file__).resolve().parent.parent / "entrypoint.py"
sys.path.insert(0, str(ENTRYPOINT.parent))


class Slowly(PathFinder):
    """Finds the module of the boundary, once the entrypoint asks for it: to import it before would change the start."""

    pace: Path

    @classmethod
    def find_spec(cls, name: str, *where: Any) -> Any:
        spec = super().find_spec(name, *where) if name == "trainer.attempt" else None
        if spec is not None:
            assert spec.loader is not None
            run = spec.loader.exec_module
            spec.loader.exec_module = lambda module: (run(module), cls.slow(module.Attempt))  # type: ignore
        return spec

    @classmethod
    def slow(cls, attempt: Any) -> None:
        boundary = attempt.boundary

        def slowly(self: Any, **options: Any) -> None:
            boundary(self, **options)
            if cls.pace.exists():
                time.sleep(0.2)

        attempt.boundary = slowly


def main(pace: Path, constants: list[str], arguments: list[str]) -> None:
    Slowly.pace = pace
    sys.meta_path.insert(0, Slowly)
    for constant in constants:
        name, _, value = constant.partition("=")
        owner, _, name = name.rpartition(".")
        assert isinstance(getattr(pkgutil.resolve_name(owner), name), float), f"there is no {constant}"
        setattr(pkgutil.resolve_name(owner), name, float(value))
    sys.argv = [str(ENTRYPOINT), *arguments]
    runpy.run_path(str(ENTRYPOINT), run_name="__main__")


if __name__ == "__main__":
    cut = sys.argv.index("--")
    main(Path(sys.argv[1]), sys.argv[2:cut], sys.argv[cut + 1 :])
