"""The command line that goes on with a run is put on record without what is another machine's, or secret."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from console import next_steps
from tests.runs import REPOSITORY, environment
from trainer.resuming import arguments


def test_it_has_what_shapes_the_run_and_nothing_of_this_machine() -> None:
    given = {
        "store": "gs://b/runs",
        "run": "mine",
        "lr": 0.5,
        "steps": 40,
        "freeze": True,
        "device": "cuda",
        "halt": "/h",
        "keep": 5,
        "drill": "aws@3s",
    }
    words = arguments("cifar10", "mine", given)
    assert words[:3] == ("cifar10", "--run", "mine")
    options = " ".join(words)
    for expected in ("--lr 0.5", "--steps 40", "--freeze", "--keep 5", "--halt /h"):
        assert expected in options
    for other in ("store", "device", "drill"):
        assert f"--{other}" not in options
    assert arguments("cifar10", "cifar10", {"freeze": False}) == ("cifar10",)


def test_an_address_that_may_hold_a_secret_stays_off_the_record() -> None:
    for address in ("https://x/data.tar?sig=s3cret", "https://me:s3cret@x/data.tar"):
        assert arguments("cifar10", "cifar10", {"data": address, "weights": address}) == ("cifar10",)


def test_in_the_image_the_words_stand_alone_for_docker_run_to_be_put_before_them() -> None:
    script = "from console import next_steps; print(next_steps.line(['halt', '--run', 'a b'], 'gs://b/c'))"
    for variables, expected in (
        ({"BATON_REVISION": "1"}, "halt --run 'a b' --store gs://b/c"),
        ({}, f"{sys.executable.removeprefix(str(REPOSITORY) + os.sep)} -c halt"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, env=environment(**variables), cwd=REPOSITORY
        )
        assert done.stdout.startswith(expected), done.stdout + done.stderr


def test_a_report_offered_in_the_image_goes_where_it_outlives_the_container(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"run": "a", "state": "finished"}
    monkeypatch.delenv("BATON_REVISION", raising=False)
    assert next_steps.of_one(told)[-1] == ("to see its bill and picture", ["report", "--run", "a", "--out", "out/a"])
    monkeypatch.setenv("BATON_REVISION", "1")
    why, words = next_steps.of_one(told)[-1]
    assert why.endswith('with -v "$PWD/out:/out"')
    assert words == ["report", "--run", "a", "--out", "/out"]
