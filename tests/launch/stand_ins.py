"""Executables that stand in for programs that a test may not touch. Each writes down its call."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


class StandIns:
    """A folder for PATH's front. Each stand-in notes its arguments and input, and does what `body` (shell) says."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self._log = folder / "calls"

    def add(self, name: str, body: str = "") -> None:
        script = self.folder / name
        note = (
            "import json, sys; "
            "print(json.dumps(sys.argv[1:]), file=open(sys.argv.pop(1), 'a'))"  # one write each: calls may overlap
        )
        script.write_text(f'#!/usr/bin/env bash\n/usr/bin/python3 -c "{note}" \'{self._log}\' {name} "$@"\n{body}\n')
        script.chmod(0o755)

    @property
    def environment(self) -> dict[str, str]:
        """This process's, with the stand-ins first and nobody's settings."""
        names = ("BATON_", "AWS_", "GCP_", "AZURE_", "DOCKER", "IMAGE", "REGISTRIES")
        clean = {name: value for name, value in os.environ.items() if not name.startswith(names)}
        return clean | {"PATH": f"{self.folder}:{os.environ['PATH']}", "REGISTRIES": str(self.folder / "none")}

    @property
    def calls(self) -> list[list[str]]:
        """The program and its arguments, in the order of the calls."""
        if not self._log.exists():
            return []
        found: list[Any] = [json.loads(line)[1:] for line in self._log.read_text().splitlines()]
        return found
