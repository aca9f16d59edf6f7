"""make/venv.sh sets up what is one's own, and leaves another user's alone."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.runs import REPOSITORY, environment


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
def test_an_environment_of_another_user_that_cant_be_run_is_left_as_it_is(tmp_path: Path) -> None:
    program = tmp_path / "venv" / "bin" / "python"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")  # no right to run it
    os.chown(tmp_path / "venv", 12345, 12345)
    lock = tmp_path / "empty.lock"
    lock.touch()
    done = subprocess.run(
        ["make/venv.sh", str(tmp_path / "venv"), str(lock)],
        cwd=REPOSITORY,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (78, "")
    assert "is another user's and can't be used by this one" in done.stderr
    assert program.read_text() == "#!/bin/sh\n"
