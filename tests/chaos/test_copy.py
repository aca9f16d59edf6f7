"""A run copied to another store goes on there as if it had always been there, whatever interrupts the copy."""

from __future__ import annotations

import hashlib
import itertools
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from storage import open_store
from tests.checkpoints import DyingStore, chain, history, keys, save
from tests.runs import Lab, command
from trainer.exits import UserError
from trainer.history import History
from trainer.transfer import copy
from trainer.verify import verify

# Two stores' URLs from a folder; a pair of clouds or emulators is one entry more.
PAIRS: dict[str, Callable[[Path], tuple[str, str]]] = {
    "file to file": lambda folder: (f"file://{folder}/here", f"file://{folder}/there"),
}
OPTIONS = ["--preset", "tutorial", "--batch-size", "20", "--dropout", "0.2", "--checkpoint-every", "10steps"]


@pytest.mark.parametrize("pair", PAIRS)
def test_a_run_interrupted_copied_and_resumed_there_ends_with_the_same_hashes(
    pair: str, tmp_path: Path, small_cifar: Path
) -> None:
    source, target = PAIRS[pair](tmp_path)
    lab = Lab(tmp_path, small_cifar, *OPTIONS, "--epochs", "2")
    quiet = Lab(tmp_path / "quiet", small_cifar, *OPTIONS, "--epochs", "2")
    quiet.finish()
    container = lab.start("--store", source)
    container.wait_for("durable after")
    container.signal(signal.SIGTERM)
    assert container.wait() == 75, container.text
    code, text = command("copy", source, target, "--run", "cifar10")
    assert code == 0, text
    assert "every byte checked" in text
    there = lab.start("--store", target)
    assert there.wait() == 0, there.text
    assert "attempt 2 goes on at step" in there.text
    newest = History(open_store(target), "cifar10").newest_good()
    assert newest is not None
    assert newest.manifest.attempt == 2
    expected = quiet.hashes()
    assert {name: getattr(newest.manifest, name) for name in expected} == expected
    code, text = command("copy", source, target, "--run", "cifar10")
    assert (code, "has another history: its attempt 2" in text) == (78, True), text


def made_run(folder: Path) -> History:
    run = history(folder / "here")
    run.claim({"job": "cifar10"})
    chain(run, 1, [10, 20, 30])
    run.claim({"job": "cifar10"})
    save(run, 2, 40, run.manifest("000001-00000020").name)
    run.write_record({"exit": 75}, "attempts", "000001.end.json")
    run.store.put(run.key("result", "config.json"), b"{}")
    digest = hashlib.sha256(b"{}").hexdigest()
    run.write_record({"checkpoint": "000002-00000040", "files": {"config.json": {"sha256": digest}}}, "result.json")
    run.write_record({"state": "running"}, "status.json")
    return run


def test_death_at_any_call_leaves_a_copy_that_cannot_be_started_and_can_be_finished(tmp_path: Path) -> None:
    source = made_run(tmp_path)
    for number in itertools.count(1):
        target = history(tmp_path / str(number))
        child = os.fork()
        if child == 0:
            copy(source, History(DyingStore(target.store, number), "run"))  # type: ignore[arg-type]
            os._exit(0)
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if list(target.store.list("run/")) and ended != 0:
            for start in (target.newest_good, lambda: target.claim({})):  # noqa: B023
                with pytest.raises(UserError, match="was being copied"):
                    start()
        copied = copy(source, target)
        assert copied.checkpoints == ["000001-00000010", "000001-00000020", "000001-00000030", "000002-00000040"]
        assert copied.sent_parts + copied.found_parts == 8
        for folder in ("attempts", "checkpoints", "parts", "metrics"):
            assert keys(target, folder) == keys(source, folder)
        assert [v.problems for v in verify(target)] == [[]] * 4
        newest = target.newest_good()
        assert newest is not None
        assert newest.manifest.name == "000002-00000040"
        assert target.attempts() == [1, 2]
        if ended == 0:
            assert copied.sent_parts == 0, "all was there"
            break
    assert number > 20


def test_a_rotten_part_there_is_sent_again(tmp_path: Path) -> None:
    source, target = made_run(tmp_path), history(tmp_path / "there")
    copy(source, target)
    rotten = tmp_path / "there" / "run" / "parts" / keys(target, "parts")[0]
    data = bytearray(rotten.read_bytes())
    data[-1] ^= 1
    rotten.write_bytes(data)
    assert copy(source, target).sent_parts == 1
    assert [v.problems for v in verify(target)] == [[]] * 4


def test_what_is_bad_here_is_not_copied_and_told(tmp_path: Path) -> None:
    source, target = made_run(tmp_path), history(tmp_path / "there")
    bad = source.manifest("000002-00000040")
    (tmp_path / "here" / "run" / "parts" / bad.parts[0].sha256).unlink()
    code, text = command("copy", source.store.url, target.store.url, "--run", "run")
    assert code == 0, text
    assert "checkpoint 000002-00000040 is bad" in text
    assert "a start there goes on from 000001-00000030" in text
    for part in (tmp_path / "here" / "run" / "parts").iterdir():
        part.write_bytes(b"")
    code, text = command("copy", source.store.url, f"file://{tmp_path}/nowhere", "--run", "run")
    assert (code, "none of the 4 checkpoints" in text) == (78, True), text


def test_another_history_there_is_never_overwritten(tmp_path: Path) -> None:
    source, target = made_run(tmp_path), history(tmp_path / "there")
    target.claim({"job": "another"})
    before = {info.key: info for info in target.store.list("")}
    with pytest.raises(UserError, match="has another history"):
        copy(source, target)
    assert {info.key: info for info in target.store.list("")} == before


def test_nor_are_checkpoints_there_whose_claims_are_lost(tmp_path: Path) -> None:
    source, target = made_run(tmp_path), history(tmp_path / "there")
    chain(target, 1, [15])
    before = {info.key: info for info in target.store.list("")}
    with pytest.raises(UserError, match="has another history: its checkpoint 000001-00000015"):
        copy(source, target)
    assert {info.key: info for info in target.store.list("")} == before


def test_a_run_that_is_being_trained_is_copied_as_far_as_it_was(tmp_path: Path, small_cifar: Path) -> None:
    lab = Lab(tmp_path, small_cifar, "--preset", "tutorial", "--batch-size", "10", "--epochs", "2000")
    container = lab.start("--checkpoint-every", "0.2s")
    container.wait_for("durable after")
    source, target = (History(open_store(f"file://{tmp_path}/{name}"), "cifar10") for name in ("store", "there"))
    told: list[str] = []

    def slowly(line: str) -> None:
        told.append(line)
        before = len(source.checkpoints())
        while len(source.checkpoints()) == before:
            pass

    copied = copy(source, target, slowly)
    container.signal(signal.SIGTERM)
    assert container.wait() == 75, container.text
    assert copied.newer > 0
    assert all(not v.problems for v in verify(target))
    again = copy(source, target)
    assert again.newer == 0
    assert len(again.checkpoints) > len(copied.checkpoints)


def test_mistakes_get_a_line(tmp_path: Path) -> None:
    here = f"file://{tmp_path}/here"
    for arguments, code, words in (
        ((here, f"file://{tmp_path}/there"), 64, "give --run NAME"),
        ((here, here + "/", "--run", "run"), 64, "give two stores"),
        ((here, f"file://{tmp_path}/there", "--run", "run"), 78, "no run 'run'"),
        ((here, "ftp://x", "--run", "run"), 78, "unknown scheme"),
    ):
        got, text = command("copy", *arguments)
        assert (got, len(text.splitlines())) == (code, 1), text
        assert words in text


def test_a_run_is_not_copied_onto_itself_by_another_name_of_its_store(tmp_path: Path) -> None:
    made_run(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "here")
    code, text = command("copy", f"file://{tmp_path}/here", f"file://{tmp_path}/link", "--run", "run")
    assert (code, "are one store: give two" in text) == (64, True), text
    assert not history(tmp_path / "here").is_marked()


def test_a_result_is_copied_whole_or_not_at_all(tmp_path: Path) -> None:
    source, said = made_run(tmp_path), list[str]()
    target = history(tmp_path / "there")
    copy(source, target)
    assert target.read(target.key("result", "config.json"), 100) == b"{}"
    assert target.read_record("result.json") == source.read_record("result.json")
    source.store.put(source.key("result", "config.json"), b"[]")
    second = history(tmp_path / "second")
    copy(source, second, said.append)
    assert "the result's config.json is not there or damaged: no result is copied" in said
    assert second.read_record("result.json") is None
