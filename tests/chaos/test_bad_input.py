"""A user's mistake gets one line that says what is wrong and what to do, and the right exit code; never a traceback."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.disks import fill_up
from tests.jobs import keep
from tests.runs import REPOSITORY, Lab, environment
from trainer.data.dataset import named
from trainer.data.packed import Origin, write_packed
from trainer.data.pulse import Pulse
from trainer.data.synthetic import generate

LONG = "/" + "x" * 300

MISTAKES = [
    (["cifr10"], 64, "no job or command 'cifr10'; did you mean cifar10?"),
    (["cifar10", "--lrr", "1"], 64, "--lrr"),
    (["cifar10", "--check-point-every", "1s"], 64, "--checkpoint-every"),
    (["cifar10", "--lr", "abc"], 64, "'abc' is not a valid float"),
    (["cifar10", "--lr", "-1"], 64, "--lr -1.0: must be more than 0"),
    (["cifar10", "--lr", "inf"], 64, "finite"),
    (["cifar10", "--epochs", "0.5"], 64, "--epochs"),
    (["cifar10", "--batch-size", "-4"], 64, "--batch-size -4"),
    (["cifar10", "--dropout", "1"], 64, "--dropout"),
    (
        ["cifar10", "--checkpoint-every", "often"],
        64,
        "write auto, or a length above 0, for example 30s, 5m, 1h, 200steps or 1epoch",
    ),
    (["cifar10", "--checkpoint-every", "0s"], 64, "write auto, or a length above 0"),
    (["cifar10", "--run", "../x"], 64, "a run's name"),
    (["cifar10", "--precision", "fp8"], 64, "--precision"),
    (["cifar10", "--epochs", "0"], 64, "--epochs 0: must be 1 or more"),
    (["cifar10", "--batch-size", "0"], 64, "--batch-size 0"),
    (["cifar10", "--lr", "nan"], 64, "finite"),
    (["cifar10", "--model", "resnet"], 64, "--model resnet: there are"),
    (["cifar10", "--preset", "quik"], 64, "did you mean quick?"),
    (["cifar10", "--device", "tpu"], 64, "--device"),
    (["cifar10", "--freeze"], 64, "--freeze: cifar10 makes no use of it; leave it out"),
    (["mnist", "--size", "64"], 64, "--size: mnist makes no use of it"),
    (["bert", "--optimizer", "sgd"], 64, "--optimizer: bert makes no use of it"),
    (["cifar10", "extra"], 64, "extra"),
    (["cifar10", "--store", "ftp://x/y"], 78, "unknown scheme 'ftp'"),
    (["cifar10", "--store", "fil://x/y"], 78, "did you mean file://?"),
    (["cifar10", "--store", "/some/folder"], 78, "is no store: write its URL, for example file:///some/folder"),
    (["cifar10", "--store", "/runs"], 78, "for example file:///runs (or is a variable in it unset?)"),
    (["cifar10", "--store", "file:/store"], 78, "is no store: write its URL, for example file:///store"),
    (["cifar10", "--store", "file:store"], 78, "is no store: write its URL, for example file://./store"),
    (["cifar10", "--store", "s3:bucket/x"], 78, "is no store: write its URL, for example s3://bucket/x"),
    (["cifar10", "--store", "gs:/bucket"], 78, "is no store: write its URL, for example gs://bucket"),
    (["cifar10", "--store", "az:account/c"], 78, "is no store: write its URL, for example az://account/c"),
    (["cifar10", "--store", "store"], 78, "is no store: write its URL, for example file://./store"),
    (["cifar10", "--store", "../runs"], 78, "is no store: write its URL, for example file://../runs"),
    (["cifar10", "--store", "file://folder"], 78, "file:///absolute/folder or file://./folder"),
    (["cifar10", "--data", "/nowhere/at/all"], 78, "/nowhere/at/all"),
    (["cifar10", "--data", LONG], 78, "File name too long"),
    (["cifar10", "--batch-size", "1000000"], 78, "has only 2000 training samples"),
    (["status", "--run", "nothing"], 78, "no run 'nothing' in file://{tmp}/store: the folder {tmp}/store is not there"),
    (["status", "--store", "file:///etc/passwd"], 78, "/etc/passwd: is a file, and a store is a folder"),
    (["status", "--store", "s3://My_Bucket/runs"], 78, "with 3 to 63 small letters, digits, dots and hyphens"),
    (["status", "--store", "gs://My_Bucket/runs"], 78, "with 3 to 222 small letters"),
    (["status", "--store", "az://account/My_Container"], 78, "the container with 3 to 63"),
    (["report"], 64, "--out"),
    (["report", "--out", "/proc/nothing/here"], 78, "--out /proc/nothing/here: can't be written to"),
    (["report", "--out", "/dev/null"], 78, "--out /dev/null: can't be written to"),
    (["status"], 0, "no runs in file://{tmp}/store: the folder {tmp}/store is not there (mistyped?)"),
    (["verify"], 0, "no runs in file://{tmp}/store: the folder {tmp}/store is not there (mistyped?)"),
    (["clean"], 0, "no runs in file://{tmp}/store: the folder {tmp}/store is not there (mistyped?)"),
    (
        ["report", "--out", "{tmp}/out"],
        78,
        "no runs in file://{tmp}/store: the folder {tmp}/store is not there (mistyped?)",
    ),
    (["report", "--out", "{tmp}/out", "--run", "nothing"], 78, "no run 'nothing'"),
    (["report", "--out", "{tmp}/out", "--run", "../x"], 64, "a run's name"),
    (["report", "--out", "{tmp}/out", "--prices", "/nowhere.csv"], 78, "prices /nowhere.csv"),
    (["report", "--out", "{tmp}/out", "--store", "fil://x/y"], 78, "did you mean file://?"),
    (["cifar10", "--tensorboard", "/proc/nothing/here"], 78, "--tensorboard /proc/nothing/here"),
    (["data", "cifar11"], 64, "no job 'cifar11'; there are: bert, cifar10"),
    (["cifar10", "--store", "gs:/bucket/runs"], 78, "for example gs://bucket/runs"),
    (["data", "cifar10", "--source", "/nowhere.tar"], 78, "/nowhere.tar"),
    (["data", "mnist", "--out", "{tmp}/out", "--source", "/nowhere"], 78, "/nowhere: no such folder"),
    (["data", "mnist", "--out", "{tmp}/out", "--source", "/dev/null"], 78, "/dev/null: is no folder"),
    (["data", "mnist", "--out", "{tmp}/out", "--source", LONG], 78, "File name too long"),
    (["data", "bert", "--out", "{tmp}/out", "--source", LONG], 78, "File name too long"),
    (["data", "bert", "--out", "{tmp}/out", "--source", "synthetic", "--model", LONG], 78, "File name too long"),
    (["data", "bert", "--out", "{tmp}/out", "--source", "synthetic", "--model", "~none/m"], 78, "no such home folder"),
    (["data", "bert", "--out", LONG, "--source", "synthetic"], 78, "File name too long"),
    (["data", "cifar10", "--out", LONG, "--source", "synthetic"], 78, "File name too long"),
    (["data", "imagenet", "--out", LONG], 78, "File name too long"),
]

# what may not be entered, by whoever isn't root
FORBIDDEN = [
    ["data", "bert", "--source", "{forbidden}/news.csv"],
    ["data", "bert", "--source", "synthetic", "--model", "{forbidden}/model"],
    ["data", "bert", "--source", "synthetic", "--out", "{forbidden}/out"],
    ["data", "mnist", "--source", "{forbidden}/files"],
    ["data", "mnist", "--source", "synthetic", "--out", "{forbidden}/out"],
    ["data", "cifar10", "--source", "{forbidden}/pictures"],
    ["data", "cifar10", "--source", "synthetic", "--out", "{forbidden}/out"],
    ["data", "imagenet", "--out", "{forbidden}/out"],
]
# imported before: where the code is root's own, nobody else may read it
AS_ANOTHER_USER = (
    "import os, sys, entrypoint, console.whole, trainer.data.idx, trainer.data.photographs, trainer.data.texts\n"
    "os.getuid() or os.setuid(65534)\n"
    "sys.exit(entrypoint.main(sys.argv[1:]))"
)


def run(*arguments: str, start: tuple[str, ...] = ("entrypoint.py",), **extra: str) -> tuple[int, list[str]]:
    done = subprocess.run(
        [sys.executable, *start, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(**extra),
        cwd=REPOSITORY,
        check=False,
    )
    return done.returncode, done.stdout.splitlines()


@pytest.mark.parametrize(("arguments", "code", "words"), MISTAKES, ids=lambda v: " ".join(v) if type(v) is list else "")
def test_one_line_and_the_right_code(
    arguments: list[str], code: int, words: str, tmp_path: Path, small_cifar: Path
) -> None:
    extra = {"BATON_STORE": f"file://{tmp_path}/store", "BATON_DATA": str(small_cifar), "BATON_HALT": str(tmp_path)}
    got, lines = run(*[argument.format(tmp=tmp_path) for argument in arguments], **extra)
    assert got == code, lines
    assert len(lines) == 1, lines
    assert words.replace("{tmp}", str(tmp_path)) in lines[0]
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("arguments", FORBIDDEN, ids=" ".join)
def test_a_path_that_may_not_be_looked_at_is_told_in_one_line(arguments: list[str], tmp_path: Path) -> None:
    forbidden = tmp_path / "forbidden"
    forbidden.mkdir(mode=0)
    given = [argument.format(forbidden=forbidden) for argument in arguments]
    if "--out" not in given:
        given += ["--out", "/proc/nothing/here"]
    got, lines = run(*given, start=("-c", AS_ANOTHER_USER), BATON_HALT="/proc")
    assert (got, len(lines)) == (78, 1), lines
    assert f"can't read {forbidden}/" in lines[0]
    assert lines[0].endswith(": Permission denied")


def test_a_wrong_value_in_the_environment_names_the_variable() -> None:
    got, lines = run("cifar10", BATON_LR="fast")
    assert (got, len(lines)) == (64, 1)
    assert "BATON_LR" in lines[0]


def test_a_mistyped_variable_is_pointed_out() -> None:
    _, lines = run("cifar10", "--lr", "abc", BATON_CHECKPOINT_EVRY="3s")
    assert "did you mean BATON_CHECKPOINT_EVERY?" in lines[0]


def test_errors_are_json_lines_where_json_is_asked_for() -> None:
    import json

    _, lines = run("cifar10", "--lr", "abc", "--log", "json")
    assert [json.loads(line)["severity"] for line in lines] == ["ERROR"]


def test_a_halt_folder_that_isnt_there_is_warned_of(tmp_path: Path) -> None:
    halt = tmp_path / "gone"
    got, lines = run("cifar10", "--store", f"file://{tmp_path}/store", "--halt", str(halt), "--data", "/nowhere/at/all")
    assert (got, len(lines)) == (78, 2), lines
    assert f"warning: --halt {halt} isn't there: to stop this run, make that folder and a file named halt" in lines[0]


@pytest.mark.parametrize("name", ["halt", "file"])
def test_a_file_for_a_halt_folder_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    got, lines = run("cifar10", "--store", f"file://{tmp_path}/store", "--halt", str(tmp_path / name))
    assert (got, len(lines)) == (78, 1), lines
    assert f"--halt {tmp_path / name}: is a file; give the folder" in lines[0]
    assert lines[0].endswith(f"--halt {tmp_path}" if name == "halt" else "--halt DIR")


def test_data_whose_address_is_away_for_now_is_a_start_to_try_again(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]  # nobody's, once it is closed
    got, lines = run("cifar10", "--data", f"http://127.0.0.1:{port}/x.tar", XDG_CACHE_HOME=str(tmp_path))
    assert (got, [line for line in lines if "Connection refused" in line]) == (74, lines[-1:]), lines


def test_other_settings_than_the_runs_are_refused_with_the_difference_and_both_ways_on(
    tmp_path: Path, small_cifar: Path
) -> None:
    lab = Lab(tmp_path, small_cifar, "--preset", "tutorial", "--batch-size", "100")
    lab.finish("--epochs", "1")
    longer = lab.start("--epochs", "2")
    assert longer.wait() == 78
    assert "epochs 1 -> 2" in longer.lines[-1]
    assert "--run NAME" in longer.lines[-1]
    assert "--allow-change epochs" in longer.lines[-1]
    allowed = lab.finish("--epochs", "2", "--allow-change", "epochs")
    assert "changed, as --allow-change says: epochs 1 -> 2" in allowed.text
    assert lab.status()["step"] == 40
    other = lab.start("--epochs", "2", "--batch-size", "50", "--allow-change", "batch_size")
    assert other.wait() == 78, "the place in the data is counted in batches"
    assert "(batch_size 100 -> 50)" in other.lines[-1], "micro-batches follow"
    keep(small_cifar, tmp_path / "fewer", (1000, 600))
    lab.data = tmp_path / "fewer"
    fewer = lab.start("--epochs", "2")
    assert fewer.wait() == 78
    assert "(data_sha256 " in fewer.lines[-1]
    assert "--allow-change" not in fewer.lines[-1], "its epochs have other lengths"


def test_a_run_that_has_saved_nothing_may_have_other_settings_and_says_so(tmp_path: Path, small_cifar: Path) -> None:
    lab = Lab(tmp_path, small_cifar, "--preset", "tutorial", "--batch-size", "100", "--checkpoint-every", "5m")
    first = lab.start("--epochs", "500")
    assert first.wait_for("to stop: ") is not None
    first.process.kill()
    first.wait()
    again = lab.finish("--epochs", "1", "--dropout", "0.1")
    words = "attempt 1 saved nothing; the run has other settings from now on: dropout 0.0 -> 0.1, epochs 500 -> 1"
    assert words in again.text, again.text


def test_a_refusal_speaks_of_the_runs_data_and_not_of_those_here(tmp_path: Path) -> None:
    for kind, count in (("real", 200), ("synthetic", 300)):
        splits, synthetic = generate(named("cifar10"), Pulse(), count, 100), kind == "synthetic"
        write_packed(tmp_path / kind, named("cifar10"), splits, Origin(kind, "", ""), synthetic=synthetic)
    lab = Lab(tmp_path, tmp_path / "real", "--preset", "tutorial", "--steps", "1")
    lab.finish()
    longer = Lab(tmp_path, tmp_path / "real", "--preset", "tutorial").start()
    assert longer.wait() == 78
    assert "steps 1 -> those of its epochs" in longer.text
    lab.data = tmp_path / "synthetic"
    other = lab.start()
    assert other.wait() == 78, other.text
    assert "error: run 'cifar10' in" in other.lines[-1], "it isn't SYNTHETIC"
    assert "real data there and SYNTHETIC data here" in other.lines[-1]
    assert "`data cifar10 --source`" in other.lines[-1]


def test_an_unwritable_store_is_found_before_the_first_step(tmp_path: Path, small_cifar: Path) -> None:
    if os.getuid() == 0:
        store = Path("/proc/nothing-can-be-written-here")  # root may write everywhere else
    else:
        store = tmp_path / "store"
        store.mkdir(mode=0o500)
    got, lines = run("cifar10", "--store", f"file://{store}", "--data", str(small_cifar), "--halt", str(tmp_path))
    assert got == 78, lines
    assert len(lines) == 1


def test_a_full_disk_stops_no_training_shows_and_heals(tmp_path: Path, small_cifar: Path, small_disk: Path) -> None:
    lab = Lab(tmp_path, small_cifar, "--preset", "tutorial", "--batch-size", "10", "--epochs", "2000")
    lab.store = small_disk / "store"
    container = lab.start("--checkpoint-every", "0.5s")
    container.wait_for("durable after")
    ballast = fill_up(small_disk)
    container.wait_for("could not be saved, trying again.*no space left")
    container.wait_for("SAVING FAILS", 30)
    ballast.unlink()
    container.wait_for("saving works again")
    container.signal(15)
    assert container.wait() == 75, container.text
    assert lab.status()["save_error"] is None


def test_a_stop_on_a_full_disk_says_what_is_lost_and_what_to_do(
    tmp_path: Path, small_cifar: Path, small_disk: Path
) -> None:
    lab = Lab(tmp_path, small_cifar, "--preset", "tutorial", "--batch-size", "10", "--epochs", "2000")
    lab.store = small_disk / "store"
    container = lab.start("--checkpoint-every", "0.5s", debug=False, BATON_STOP_GRACE="3")
    container.wait_for("to stop: ")
    while not (lab.manifests() or container.ended):
        time.sleep(0.1)
    fill_up(small_disk)
    container.wait_for("could not be saved")
    container.signal(15)
    assert container.wait() == 74, container.text
    assert "could not be saved" in container.text
    assert "since step" in container.text
    assert container.lines[-1].endswith("to go on: make room in the store, then start it again, here (exit code 74)")
    got, lines = run("clean", "--yes", "--store", lab.url)  # it asks the store's time, with no room to write
    assert got == 0, lines


def test_a_store_without_room_for_a_checkpoint_is_found_before_the_first_step(
    tmp_path: Path, small_cifar: Path, small_disk: Path
) -> None:
    lab = Lab(tmp_path, small_cifar, "--preset", "tutorial")
    lab.store = small_disk / "store"
    (small_disk / "ballast").write_bytes(b"x" * (47 << 19))
    container = lab.start()
    assert container.wait() == 78, container.text
    assert "make room" in container.lines[-1]
    assert not lab.store.exists()
