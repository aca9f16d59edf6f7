"""A run deleted halfway is never started again from nothing, and deleting it again finishes it."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import pytest

import trainer.deletion
from storage import open_store
from storage.errors import NoSpace
from tests.checkpoints import DyingStore, age, chain, history
from tests.disks import fill_up
from tests.runs import Lab, command
from trainer.deletion import delete
from trainer.exits import UserError
from trainer.history import History, Superseded


def made_run(folder: Path) -> History:
    run = history(folder)
    run.claim({"job": "cifar10"})
    chain(run, 1, [10, 20, 30])
    run.write_record({"attempt": 1}, "status.json")
    run.write_record({"exit": 0}, "attempts", "000001.end.json")
    run.write_record({}, "result.json")
    return run


def test_death_at_any_call_leaves_a_run_that_no_start_takes_for_another(tmp_path: Path) -> None:
    """As a start does it: list, fall back, claim. It finds the newest checkpoint as before, or is refused."""
    for number in itertools.count(1):
        folder = tmp_path / str(number)
        run = made_run(folder)
        child = os.fork()
        if child == 0:
            delete(History(DyingStore(run.store, number), "run"))  # type: ignore[arg-type]
            os._exit(0)
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        left = list(run.store.list("run/"))
        if ended == 0:
            assert not left
            break
        if run.is_marked():
            for start in (run.newest_good, lambda: run.claim({})):  # noqa: B023
                with pytest.raises(UserError, match="was being deleted: finish with `delete --run run --yes`"):
                    start()
        else:
            newest = run.newest_good()
            assert newest is not None, f"it would start again at step 0 after {number - 1} calls"
            assert newest.manifest.step == 30
        delete(run)
        assert not list(run.store.list("run/"))
    assert number > 15


@pytest.mark.parametrize("number", [2, 3, 4, 12])
def test_the_same_command_finishes_it_at_once(number: int, tmp_path: Path) -> None:
    """It dies at its call `number`, at 2 with nothing but its claim made. Its own sign of life is not waited for."""
    run = made_run(tmp_path)
    run.store.delete(run.key("attempts", "000001.end.json"))
    age(run, 1)
    child = os.fork()
    if child == 0:
        delete(History(DyingStore(run.store, number), "run"))  # type: ignore[arg-type]
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    code, text = command("delete", "--store", run.store.url, "--run", "run", "--yes")
    assert code == 0, text
    assert not list(run.store.list("run/"))


def test_of_two_deletions_at_once_the_slower_leaves_what_has_begun_since(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, step = made_run(tmp_path), trainer.deletion._delete

    def overtaken(*arguments: Any) -> None:
        step(*arguments)
        monkeypatch.setattr(trainer.deletion, "_delete", step)
        delete(history(tmp_path))  # by another, to its end
        history(tmp_path).claim({})

    monkeypatch.setattr(trainer.deletion, "_delete", overtaken)
    delete(run)
    assert history(tmp_path).attempts() == [1]


def test_says_first_and_leaves_other_runs_alone(tmp_path: Path) -> None:
    run, other = made_run(tmp_path), history(tmp_path, "run2")
    chain(other, 1, [10])
    place = ("--store", run.store.url, "--run", "run")
    code, text = command("delete", *place)
    assert code == 0
    assert "would delete run run" in text
    assert "3 checkpoints" in text
    assert len(run.checkpoints()) == 3
    code, text = command("delete", *place, "--yes")
    assert (code, "deleted run run" in text) == (0, True)
    assert not list(run.store.list("run/"))
    assert len(other.checkpoints()) == 1
    assert command("delete", *place)[0] == 78
    assert command("delete", "--store", run.store.url)[0] == 64


@pytest.mark.parametrize(
    ("sign", "damaged"), [("status.json", False), ("status.json", True), ("attempts/000001.json", False)]
)
def test_a_run_that_shows_signs_of_life_is_refused_until_it_is_silent(tmp_path: Path, sign: str, damaged: bool) -> None:
    run = made_run(tmp_path)
    run.store.delete(run.key("attempts", "000001.end.json"))
    age(run, 1)
    body = run.read(f"run/{sign}", 1 << 20)
    run.store.put(f"run/{sign}", body[: 7 if damaged else None])
    code, text = command("delete", "--store", run.store.url, "--run", "run", "--yes")
    assert code == 78, text
    assert "gave a sign of life" in text
    assert "halt --run run" in text
    assert len(run.checkpoints()) == 3
    age(run, 100 / 3600)
    assert command("delete", "--store", run.store.url, "--run", "run", "--yes")[0] == 0


def test_a_copy_of_a_deleted_run_writes_nothing_into_the_next_one_of_its_name(tmp_path: Path) -> None:
    """The new one's first attempt has the same number as the old one's."""
    zombie = history(tmp_path)
    assert zombie.claim({"job": "cifar10"}) == 1
    zombie.check_fence(1)
    delete(history(tmp_path))
    with pytest.raises(Superseded, match="the run was deleted meanwhile"):
        zombie.check_fence(1)
    heir = history(tmp_path)
    assert heir.claim({"job": "cifar10"}) == 1
    heir.check_fence(1)
    with pytest.raises(Superseded, match="the run was deleted meanwhile"):
        zombie.through(zombie.store).check_fence(1)


def test_a_copy_that_still_saves_is_fenced_off_to_the_end_of_the_deletion(tmp_path: Path) -> None:
    """Whatever goes first: a commit among what is deleted would leave a checkpoint of which the next start despairs."""
    zombie = made_run(tmp_path)
    looks = []

    class Watched:
        def __getattr__(self, name: str) -> Any:
            return getattr(zombie.store, name)

        def delete(self, key: str) -> None:
            zombie.store.delete(key)
            looks.append(key)
            with pytest.raises(Superseded):
                zombie.check_fence(1)

    delete(History(Watched(), "run"))  # type: ignore[arg-type]
    assert {"run/attempts/000001.json", "run/attempts/000002.json"} <= set(looks)


def test_a_real_run_deleted_under_a_copy_that_lives_stops_that_copy(tmp_path: Path, small_cifar: Path) -> None:
    """The copy is one that gave no sign of life for long; it wakes up, and may commit nothing more."""
    import signal

    options = ["--preset", "tutorial", "--batch-size", "10", "--epochs", "2000", "--checkpoint-every", "0.5s"]
    lab = Lab(tmp_path, small_cifar, *options)
    container = lab.start()
    container.wait_for("durable after")
    container.signal(signal.SIGSTOP)
    run = History(open_store(f"file://{lab.store}"), "cifar10")
    history_before = run.checkpoints()
    number = run.claim({"deleted_by": "here"})
    run.mark("was being deleted")
    container.signal(signal.SIGCONT)
    assert container.wait() == 0, container.text
    assert f"attempt {number} has taken this run over" in container.text
    assert run.checkpoints()[1:] in (history_before, history_before[1:]), "one was in the midst of its commit at most"
    refused = lab.start()
    assert refused.wait() == 78, refused.text
    assert "was being deleted" in refused.lines[-1]


def test_a_copy_that_wakes_up_to_an_heir_of_its_deleted_run_leaves_it_as_it_is(
    tmp_path: Path, small_cifar: Path
) -> None:
    import signal

    options = ["--preset", "tutorial", "--batch-size", "10", "--epochs", "2000", "--checkpoint-every", "0.5s"]
    lab = Lab(tmp_path, small_cifar, *options)
    container = lab.start()
    container.wait_for("durable after")
    container.signal(signal.SIGSTOP)
    run = History(open_store(f"file://{lab.store}"), "cifar10")
    delete(run)
    assert run.claim({"job": "cifar10"}) == 1
    container.signal(signal.SIGCONT)
    assert container.wait() == 0, container.text
    assert "the run was deleted meanwhile" in container.text
    left = [info.key for folder in ("attempts", "metrics") for info in run.store.list(run.key(folder, ""))]
    assert left == ["cifar10/attempts/000001.json"]


def test_a_full_disk_has_room_for_the_mark_once_the_curve_is_gone(small_disk: Path) -> None:
    run = made_run(small_disk)
    run.store.put("run/metrics/000001-00000010.jsonl", bytes(20_000))
    fill_up(small_disk)
    with pytest.raises(NoSpace):
        run.claim({})
    code, text = command("delete", "--store", run.store.url, "--run", "run", "--yes")
    assert code == 0, text
    assert not list(run.store.list("run/"))
