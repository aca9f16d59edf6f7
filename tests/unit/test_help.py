"""Whoever runs the image without knowing what it can do is led on."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from tests.runs import REPOSITORY, command, environment, light_command

# the program, with its jobs in another folder; and whether the names it keeps for its commands are all of them
WITH_JOBS = """
import pathlib, sys, trainer.names
trainer.names.JOBS = pathlib.Path(sys.argv[1])
import entrypoint
assert {*entrypoint.baton.commands} == {*trainer.names.COMMANDS}
sys.exit(entrypoint.main(sys.argv[2:]))
"""


@pytest.mark.parametrize("words", [(), ("help",), ("--help",)])
def test_the_image_alone_says_what_it_can_do_and_at_once(words: tuple[str, ...]):
    code, text = light_command(*words)
    assert code == 0
    assert "cifar10" in text
    assert "doctor" in text


def test_help_on_a_job_or_a_command_shows_its_options():
    code, text = light_command("cifar10", "--help")
    assert code == 0
    assert command("help", "cifar10") == (code, text)
    assert "--checkpoint-every" in text
    code, text = command("help", "doctor")
    assert code == 0
    assert "--json" in text


@pytest.mark.parametrize("words", [("cifr10",), ("help", "cifr10")])
def test_a_misspelt_job_gets_the_nearest_right_one(words: tuple[str, ...]):
    code, text = command(*words)
    assert code == 64
    assert "did you mean cifar10?" in text
    assert len(text.splitlines()) == 1


def test_the_version_is_the_images_commit_or_the_checkouts():
    assert command("--version", BATON_REVISION="abc123") == (0, "baton abc123\n")
    code, text = command("--version")
    assert code == 0
    assert re.fullmatch(r"baton \S+\n", text)


def test_a_job_that_is_no_python_is_named_with_its_line_and_hides_no_other(tmp_path: Path):
    jobs = tmp_path / "trainer" / "jobs"
    shutil.copytree(REPOSITORY / "trainer" / "jobs", jobs)
    (jobs / "broken.py").write_text('"""Mine."""\nx = 1\ndef (:\n')
    words = [sys.executable, "-c", WITH_JOBS, str(jobs)]
    helped, named = (
        subprocess.run([*words, *more], capture_output=True, text=True, cwd=REPOSITORY)
        for more in (["help"], ["broken"])
    )
    assert helped.returncode == 0, helped.stderr
    assert "cifar10" in helped.stdout
    assert "(trainer/jobs/broken.py, line 3, can't be read: " in helped.stdout
    assert named.returncode == 78
    assert len(named.stdout.splitlines()) == 1, named.stdout
    assert "trainer/jobs/broken.py, line 3, can't be read: " in named.stdout


def test_a_python_without_the_environment_says_which_one_to_use():
    bare = [sys.executable, "-E", "-S", str(REPOSITORY / "entrypoint.py"), "status"]
    done = subprocess.run(bare, capture_output=True, text=True)
    assert done.returncode == 78
    assert done.stderr.splitlines() == [
        f"{sys.executable} lacks click: `make cifar10` sets up .venv; use .venv/bin/python"
    ]


def test_a_python_with_a_part_of_the_environment_is_no_defect_of_batons(tmp_path: Path):
    shutil.copytree(Path(click.__file__).parent, tmp_path / "click")
    bare = [sys.executable, "-S", str(REPOSITORY / "entrypoint.py"), "cifar10"]
    done = subprocess.run(bare, env=environment(PYTHONPATH=str(tmp_path)), cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 78, done.stdout
    assert len(done.stdout.splitlines()) == 1
    assert f"error: {sys.executable} can't load what Baton needs: No module named" in done.stdout
    assert done.stdout.endswith("; use .venv/bin/python, which `make cifar10` sets up\n")


def test_a_limit_of_memory_too_small_for_torch_is_told_as_such():
    limit = "import os, resource, sys; resource.setrlimit(resource.RLIMIT_AS, (10**9, 10**9)); "
    limit += "os.execv(sys.argv[1], sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", limit, sys.executable, str(REPOSITORY / "entrypoint.py"), "cifar10"],
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 78, done.stdout
    assert len(done.stdout.splitlines()) == 1
    assert "failed to map segment from shared object; give it more memory (ulimit -v?)" in done.stdout


def test_a_job_with_a_commands_name_is_said_to_be_none_and_hides_nothing(tmp_path: Path):
    jobs = tmp_path / "trainer" / "jobs"
    shutil.copytree(REPOSITORY / "trainer" / "jobs", jobs)
    (jobs / "status.py").write_text('"""Mine."""\nPRESETS = {"plain": {"epochs": 1}}\n')
    for words in ([], ["status", "--store", tmp_path.as_uri()]):
        done = subprocess.run(
            [sys.executable, "-c", WITH_JOBS, str(jobs), *words], cwd=REPOSITORY, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        warning, _, rest = done.stdout.partition("\n")
        assert "warning: trainer/jobs/status.py is no job here: `status` is a command; give the file" in warning
        assert words or "status" not in rest[rest.index("Jobs:") : rest.index("Commands:")]
