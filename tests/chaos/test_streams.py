"""Who reads what is printed may go, or never have been there: training goes on, and its files get none of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from console.commands import written
from storage.errors import Unavailable
from tests.runs import REPOSITORY, Lab, command, environment

OPTIONS = ["--preset", "tutorial", "--batch-size", "100", "--steps", "3"]


@pytest.mark.parametrize("streams", ["| head -1", ">/dev/full", ">&-", ">&- 2>&- <&-"])
def test_training_does_not_need_to_be_heard(streams: str, tmp_path: Path, small_cifar: Path) -> None:
    lab = Lab(tmp_path, small_cifar, *OPTIONS)
    words = " ".join(lab.command("cifar10", "--store", lab.url, "--data", str(small_cifar), *OPTIONS))
    done = subprocess.run(
        ["bash", "-c", f"{words} --halt {lab.halt} {streams}; exit ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert (lab.store / "cifar10" / "result.json").exists()
    assert command("verify", "--store", lab.url)[0] == 0


@pytest.mark.parametrize("words", ["status", "status --json", "verify", "doctor", "help", "status --help"])
def test_what_a_command_prints_is_written_or_said_not_to_be(words: str, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    line = f'"$0" entrypoint.py {words}'
    for streams, code, said in (
        (">/dev/full", 78, "error: standard output can't be written to: No space left on device\n"),
        ("| true", 141, ""),
    ):
        done = subprocess.run(
            ["bash", "-c", f"{{ sleep 0.2; {line}; }} {streams}; exit ${{PIPESTATUS[0]}}", sys.executable],
            capture_output=True,
            text=True,
            env=environment(BATON_STORE=f"file://{tmp_path}/store"),
            cwd=REPOSITORY,
            check=False,
        )
        assert (done.returncode, done.stderr) == (code, said)


def test_files_do_not_become_the_streams_that_are_missing(tmp_path: Path) -> None:
    script = (
        "import os, sys; from console import logs; logs.keep_streams();"
        "file = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY);"
        "print('heard?'); print('heard?', file=sys.stderr); sys.exit(file)"
    )
    done = subprocess.run(
        ["bash", "-c", '"$@" <&- >&- 2>&-', "bash", sys.executable, "-c", script, str(tmp_path / "file")],
        cwd=REPOSITORY,
        check=False,
    )
    assert done.returncode >= 3
    assert (tmp_path / "file").read_bytes() == b""


def test_a_character_that_the_terminal_lacks_ends_no_command(tmp_path: Path) -> None:
    (tmp_path / "ü").mkdir()
    code, text = command("status", "--store", f"file://{tmp_path}/ü", PYTHONIOENCODING="ascii")
    assert (code, text.partition(";")[0]) == (0, f"no runs in file://{tmp_path}/\\xfc")


def test_an_error_of_another_kind_puts_no_empty_line_before_it(capfd: pytest.CaptureFixture[str]) -> None:
    """Many of a store's are a system's by their type; a file's name it."""
    for error in (Unavailable("no connection"), PermissionError(13, "Permission denied", "/out")):
        with pytest.raises(type(error)), written():
            raise error
    assert capfd.readouterr().out == ""
