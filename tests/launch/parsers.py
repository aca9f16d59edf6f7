"""The engines' own parsers, and what to do where one isn't there."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
LAUNCH = REPOSITORY / "launch"


def program(*names: str) -> str:
    """The first of these that is installed. In CI one is; elsewhere the test is skipped without it."""
    for name in names:
        if (found := shutil.which(name)) is not None:
            return found
    if os.environ.get("CI") == "true":
        raise AssertionError(f"{names[0]} isn't installed: .ci/run installs it")
    pytest.skip(f"{names[0]} isn't installed (Debian has it)")


def several_machines(text: str) -> str:
    """The variant for several machines, made as the file's own comment says: sed 's/#multi-node: //'."""
    assert "#multi-node: " in text
    return text.replace("#multi-node: ", "")
