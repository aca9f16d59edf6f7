"""Keeps out of start-up what nobody needs there.

Torch's compiler takes 1.5 s, in a program that compiles nothing. Every torch optimizer imports `torch._dynamo`, to tell
it that it isn't wanted here (torch/optim/optimizer.py, torch/_compile.py). A stand-in answers that. Whatever else is
asked of it, or below it, loads the real one.

Python's garbage collector looks through all that was imported again and again while it grows: a tenth of the time that
torch's import takes, to find next to nothing. So console/train.py turns it off until then.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from types import ModuleType
from typing import Any

import torch

NAME = "torch._dynamo"


class _StandIn(ModuleType):
    __path__: list[str] = []  # noqa: RUF012  (import machinery: a package)

    @staticmethod
    def graph_break(msg: str = "") -> None:
        """What it is outside a compiler: nothing."""

    @staticmethod
    def disable(fn: Callable[..., Any], recursive: bool = True, **_: Any) -> Callable[..., Any]:
        """Nothing is compiled, so there is nothing to disable."""
        return fn

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(_load_real(), name)


class _Below(MetaPathFinder, Loader):
    """Answers an import of something below the stand-in with the real thing."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if not name.startswith(NAME + ".") or not isinstance(sys.modules.get(NAME), _StandIn):
            return None
        _load_real()
        import_module(name)
        return spec_from_loader(name, self)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return sys.modules[spec.name]

    def exec_module(self, module: ModuleType) -> None:
        """It has run already."""


def collect_garbage() -> None:
    """From now on, but not among what is imported by now: that stays."""
    gc.freeze()
    gc.enable()


def put_off_compiler() -> None:
    if NAME not in sys.modules:
        sys.modules[NAME] = torch._dynamo = _StandIn(NAME)
        sys.meta_path.insert(0, _Below())


def _load_real() -> ModuleType:
    if isinstance(sys.modules.get(NAME), _StandIn):
        del sys.modules[NAME]
        del torch._dynamo
        sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _Below)]
    return import_module(NAME)
