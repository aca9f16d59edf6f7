"""One name for each setting everywhere; flag before environment before preset before default."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runs import REPOSITORY, environment
from trainer.exits import ExitCode, UserError
from trainer.names import job_names
from trainer.settings import Settings, difference, fields_of


def test_every_setting_is_an_option_with_its_variable() -> None:
    import entrypoint

    for job in job_names():
        options = {p.name: p for p in entrypoint.job_command(job).params}
        for f in fields_of():
            assert options[f.name].opts == ["--" + f.name.replace("_", "-")]
            assert options[f.name].envvar == "BATON_" + f.name.upper()


def test_flag_beats_environment_beats_preset_beats_default(monkeypatch: pytest.MonkeyPatch) -> None:
    import console.train
    import entrypoint

    seen: list[dict[str, object]] = []
    monkeypatch.setattr(console.train, "train", lambda job, given, *_: seen.append(given) or 0)
    monkeypatch.setenv("BATON_LR", "0.5")
    monkeypatch.setenv("BATON_EPOCHS", "7")
    assert entrypoint.main(["cifar10", "--lr", "0.25"]) == 0
    preset = {"lr": 1.0, "epochs": 3, "batch_size": 32}
    settings = Settings(**{**preset, **seen[0]})
    assert (settings.lr, settings.epochs, settings.batch_size, settings.seed) == (0.25, 7, 32, 0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"lr": float("inf")},
        {"lr": 0.0},
        {"lr": -1.0},
        {"epochs": -1},
        {"seed": 1 << 63},
        {"seed": -1},
        {"dropout": 1.0},
        {"run": "a/b"},
        {"run": ".hidden"},
        {"run": "x" * 101},
        {"checkpoint_every": "never"},
        {"drill": "ibm@3s"},
        {"preempted_exit_code": 256},
        {"momentum": -0.1},
        {"price_per_hour": -1.0},
        # what torch can't compute with, and what a manifest can't hold so that a start reads it back
        {"lr": 1e300},
        {"weight_decay": 1e39},
        {"steps": 10**30},
        {"train_size": 1 << 63},
        {"epochs": 10**400},
        {"weights": "\udcff.safetensors"},
        {"instance_type": "\udcff"},
    ],
)
def test_values_out_of_range_are_wrong_command_lines(wrong: dict[str, object]) -> None:
    with pytest.raises(UserError) as error:
        Settings(**wrong)  # type: ignore[arg-type]
    assert error.value.code == ExitCode.USAGE
    assert next(iter(wrong)).replace("_", "-") in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--allow-change step", "--allow-change 'step': a run has no such setting; did you mean steps?"),
        ("--allow-change lr --allow-change batch-size", "no such setting; did you mean batch_size?"),
        ("--allow-change keep", "no such setting; there are: preset, model, "),
    ],
)
def test_what_would_be_ignored_is_refused(words: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    import entrypoint

    assert entrypoint.main(["cifar10", *words.split()]) == ExitCode.USAGE
    assert told in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--weights", "--model", "--preset", "--data", "--store", "--run", "--drill"])
def test_an_empty_value_is_told_and_not_taken_for_another(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    """As "$W" is where nobody set W: a fine-tune would begin from chance."""
    import entrypoint

    assert entrypoint.main(["imagenet", option, ""]) == ExitCode.USAGE
    assert f"{option}: what is given is empty; give a value or leave it out" in capsys.readouterr().out


def test_what_shapes_a_run_is_recorded_and_where_it_lives_is_not() -> None:
    shape = Settings(lr=0.1, store="file:///x").that_shape_the_run()
    assert shape["lr"] == 0.1
    assert not {"store", "halt", "device", "cloud", "drill", "checkpoint_every", "log", "data"} & shape.keys()
    other = Settings(lr=0.2, store="file:///y").that_shape_the_run()
    assert difference(other, shape) == {"lr": (0.2, 0.1)}


def test_help_imports_no_torch_and_names_every_setting() -> None:
    script = "import sys, entrypoint; entrypoint.main(['cifar10', '--help']); assert 'torch' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=REPOSITORY, env=environment(), check=False
    )
    assert done.returncode == 0, done.stderr
    for f in dataclasses.fields(Settings):
        assert "--" + f.name.replace("_", "-") in done.stdout


def test_no_module_outside_the_jobs_imports_a_job_or_a_cloud() -> None:
    """Arrows point one way: jobs know the protocol; storage and watchers know nobody."""
    forbidden = {
        "storage": r"^\s*(from|import) (trainer|watchers|console|torch)",
        "watchers": r"^\s*(from|import) (trainer|storage|console|torch)",
        "trainer": r"^\s*(from|import) (console|entrypoint|boto3|botocore|google|azure)",
        "trainer/jobs": r"^\s*(from|import) (storage|watchers|console)",
    }
    for folder, pattern in forbidden.items():
        for file in Path(REPOSITORY, folder).rglob("*.py"):
            found = re.findall(pattern, file.read_text(), re.MULTILINE)
            assert not found, f"{file}: {found}"


def test_a_wrong_preset_is_told_before_torch_is_imported() -> None:
    code = "import sys, entrypoint; print(entrypoint.main(['cifar10', '--preset', 'quik']), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert "--preset quik: no such preset; did you mean quick?" in done.stdout
    assert done.stdout.splitlines()[-1] == "64 False"
