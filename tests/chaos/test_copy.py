"""A run copied to another store goes on there as if it had always been there, whatever interrupts the copy."""

from __future__ import annotations

import hashlib
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from console.standing import glance
from storage import ObjectInfo, open_store
from storage.errors import Unavailable
from storage.protocol import Source, views
from storage.retry import Retrying
from tests.chaos.test_hostile import PEAK
from tests.checkpoints import HOUR, DyingStore, age, chain, history, keys, save, snapshot
from tests.runs import REPOSITORY, Lab, command, environment
from trainer import transfer
from trainer.exits import UserError
from trainer.history import History
from trainer.manifest import checkpoint_name
from trainer.records import read
from trainer.retention import Retention, _last, store_time
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
    run.store.put(run.key("metrics", "000001-00000005.jsonl"), b'{"step": 1}\n')  # of a checkpoint that was cleaned up
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


def test_a_copy_is_silent_for_as_long_as_the_run_that_it_was_made_from(tmp_path: Path) -> None:
    source = made_run(tmp_path)
    source.write_record({"attempt": 2, "state": "running", "step": 43, "time": time.time()}, "status.json")
    copy(source, history(tmp_path / "at once"))
    told = glance(history(tmp_path / "at once"))
    assert told is not None
    assert told["attempt_state"] == "dead", "it lives where it was copied from"
    age(source, 1)
    made_from, sign = source, source.read_sign("status.json")
    for place in ("there", "from there on"):
        target = history(tmp_path / place)
        copy(made_from, target)
        told = glance(target)
        assert told is not None
        assert (told["attempt_state"], told["step"]) == ("dead", 43)
        assert told["last_seen_s"] >= HOUR  # type: ignore[operator]
        records = read(target)
        assert records is not None
        assert records.silent_s is not None
        assert records.silent_s >= HOUR
        made_from = target
    found = target.read_sign("status.json")
    assert sign is not None
    assert found is not None
    assert found.record == sign.record, "whoever goes on from here gives its next sign without that age"
    target.write_record(found.record, "status.json")
    told = glance(target)
    assert told is not None
    assert told["attempt_state"] == "running"


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


def test_the_curves_of_bad_checkpoints_and_of_those_cleaned_up_meanwhile_are_copied(tmp_path: Path) -> None:
    """A chunk lies there before the manifest of its checkpoint, and before those of all later ones."""
    source, target = made_run(tmp_path), history(tmp_path / "there")
    names = [checkpoint_name(*pair) for pair in reversed(source.checkpoints())]
    for name in names:
        source.store.put(source.key("metrics", f"{name}.jsonl"), f'{{"of": "{name}"}}\n'.encode())
    (tmp_path / "here" / "run" / "parts" / source.manifest(names[1]).parts[0].sha256).unlink()
    written: list[str] = []

    class CleanedUp:
        """The source's third checkpoint goes as soon as the first is here."""

        def __getattr__(self, name: str) -> Any:
            return getattr(target.store, name)

        def put(self, key: str, *args: Any, **options: Any) -> Any:
            if key.endswith(f"{names[0]}.json"):
                source.store.delete(source.key("checkpoints", f"{names[2]}.json"))
            written.append(key.removeprefix("run/"))
            return target.store.put(key, *args, **options)

    copied = copy(source, History(CleanedUp(), "run"))  # type: ignore[arg-type]
    assert copied.checkpoints == [names[0], names[3]]
    assert list(copied.bad) == [names[1]], "what was cleaned up is nothing bad"
    assert keys(target, "metrics") == keys(source, "metrics")
    for key in keys(source, "metrics"):
        assert target.read(target.key("metrics", key), 100) == source.read(source.key("metrics", key), 100)
    manifests = [f"checkpoints/{names[0]}.json", f"checkpoints/{names[3]}.json"]
    lines = [f"metrics/{name}.jsonl" for name in names]
    in_turn = [key for key in written if key in (*manifests, *lines)]
    assert in_turn == [lines[0], manifests[0], *lines[1:], manifests[1]]


LARGE_TO_COPY = """
import sys
import entrypoint
before = peak()
code = entrypoint.main(["copy", *sys.argv[1:], "--run", "run"])
print(code, peak() - before)
"""


def copied_in_a_process(source: History, target: str, **variables: str) -> tuple[int, int, str]:
    """Its exit code, the MB of memory that it took, and what it said."""
    arguments = [sys.executable, "-c", PEAK + LARGE_TO_COPY, source.store.url, target]
    done = subprocess.run(
        arguments, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY, env=environment(**variables), check=True
    )
    said, _, last = done.stdout.rstrip().rpartition("\n")
    code, megabytes = map(int, last.split())
    return code, megabytes, said


def large_run(folder: Path, *values: float) -> History:
    """With a part of 60 MB for each value."""
    run = history(folder)
    run.claim({"job": "cifar10"})
    tensors = {f"{value}.weight": torch.full((15_000_000,), value) for value in values}
    made = save(run, 1, 10, None, replace(snapshot(10), model=tensors))
    assert [ref.size > 60e6 for ref in made.parts] == [True] * len(values) + [False]
    return run


def test_parts_larger_than_memory_should_hold_take_little_of_it(tmp_path: Path) -> None:
    source, target = large_run(tmp_path / "here", 1.0, 2.0, 3.0), history(tmp_path / "there")
    weights = source.part(source.manifest("000001-00000010").parts[0])
    source.store.put(source.key("result", "model.safetensors"), weights)
    files = {"model.safetensors": {"sha256": hashlib.sha256(weights).hexdigest()}}
    source.write_record({"files": files}, "result.json")
    code, megabytes, said = copied_in_a_process(source, target.store.url)
    assert code == 0, said
    assert megabytes < 50
    assert [v.problems for v in verify(target)] == [[]]
    assert target.read(target.key("result", "model.safetensors"), 1 << 30) == weights


def test_no_room_for_a_large_part_on_its_way_is_told_in_a_line(tmp_path: Path, small_disk: Path) -> None:
    source = large_run(tmp_path / "here", 1.0)
    code, _, said = copied_in_a_process(source, f"file://{tmp_path}/there", TMPDIR=str(small_disk))
    assert (code, len(said.splitlines())) == (78, 1), said
    assert "TMPDIR names another folder" in said
    assert "No space left" in said


class BreakingOff:
    """A store whose every first get and put of an object breaks off in the midst."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self._begun: set[tuple[str, str]] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def _breaks_off(self, what: str, key: str) -> bool:
        known = (what, key) in self._begun
        self._begun.add((what, key))
        return not known

    def get(self, key: str, sink: Any, **options: Any) -> ObjectInfo:
        if self._breaks_off("get", key):
            sink.write(b"some bytes")
            raise Unavailable(f"{key}: broke off")
        return self._store.get(key, sink, **options)  # type: ignore[no-any-return]

    def put(self, key: str, source: Source, **options: Any) -> ObjectInfo:
        if self._breaks_off("put", key):
            next(views(source))
            raise Unavailable(f"{key}: broke off")
        return self._store.put(key, source, **options)  # type: ignore[no-any-return]


def test_a_large_part_is_sent_in_pieces_as_often_as_it_takes_but_never_a_bad_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "PIECE", 500)
    source, target = made_run(tmp_path), history(tmp_path / "there")
    bad = source.manifest("000002-00000040").parts[0].sha256
    data = source.read(source.key("parts", bad), 1 << 20)
    source.store.put(source.key("parts", bad), data[:-1] + bytes([data[-1] ^ 1]))
    through = [
        History(Retrying(BreakingOff(run.store), lambda tried: 30 - tried, lambda s: None), "run")  # type: ignore[arg-type]
        for run in (source, target)
    ]
    copied = copy(*through)
    assert list(copied.bad) == ["000002-00000040"]
    assert copied.sent_parts == 6
    assert bad not in keys(target, "parts")
    assert [v.problems for v in verify(target)] == [[]] * 3


def test_cleaning_takes_nothing_from_a_copy_that_is_not_whole(tmp_path: Path) -> None:
    """Parts that came days ago are named by nothing, until who finishes the copy finds them there, and names them."""
    source, target = made_run(tmp_path), history(tmp_path / "there")
    child = os.fork()
    if child == 0:
        copy(source, History(DyingStore(target.store, 13), "run"))  # type: ignore[arg-type]
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert keys(target, "checkpoints") == ["000001-00000010.json", target.MARK]
    assert len(keys(target, "parts")) > 2
    age(target, 25)
    code, text = command("clean", "--store", target.store.url, "--yes")
    assert (code, "run: it is marked as not whole, so all stays" in text) == (78, True), text

    class Cleaned:
        """Somebody cleans up between the look at the second one's parts and the manifest that names them."""

        def __getattr__(self, name: str) -> Any:
            return getattr(target.store, name)

        def put(self, key: str, *args: Any, **options: Any) -> Any:
            if key.endswith("000001-00000020.json"):
                retention = Retention(target, 2)
                retention.remove(retention.excess(store_time(target)))
            return target.store.put(key, *args, **options)

    assert copy(source, History(Cleaned(), "run")).found_parts > 2  # type: ignore[arg-type]
    assert [v.problems for v in verify(target)] == [[]] * 4


def test_a_clean_up_that_has_begun_takes_nothing_from_a_copy_that_is_repeated(tmp_path: Path) -> None:
    """It finds parts there that only what goes names, and is about to name them anew."""
    source, target = made_run(tmp_path), history(tmp_path / "there")
    copy(source, target)
    age(target, 25)
    retention = Retention(target, 2)
    excess = retention.excess(store_time(target))
    save(source, 2, 50, "000002-00000040", snapshot(50, 10.0))
    assert len(
        {ref.sha256 for ref in source.manifest("000002-00000050").parts} & {_last(part) for part in excess.parts}
    )

    class Cleaned:
        def __getattr__(self, name: str) -> Any:
            return getattr(target.store, name)

        def put(self, key: str, *args: Any, **options: Any) -> Any:
            if key.endswith("000002-00000050.json"):
                for what in (excess, replace(excess, manifests=[])):
                    with pytest.raises(UserError, match="marked as not whole meanwhile, so what is left stays"):
                        retention.remove(what)
            return target.store.put(key, *args, **options)

    assert copy(source, History(Cleaned(), "run")).sent_parts == 0  # type: ignore[arg-type]
    assert [v.problems for v in verify(target)] == [[]] * 5


def test_another_history_there_is_never_overwritten(tmp_path: Path) -> None:
    source, target = made_run(tmp_path), history(tmp_path / "there")
    target.claim({"job": "another"})
    before = {info.key: info for info in target.store.list("")}
    with pytest.raises(UserError, match="has another history"):
        copy(source, target)
    assert {info.key: info for info in target.store.list("")} == before


def test_a_run_that_is_started_there_just_before_the_copy_begins_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = made_run(tmp_path), history(tmp_path / "there")
    copy(source, target)
    source.claim({"who": "goes on here"})
    mark = target.mark

    def started_meanwhile(why: str) -> None:
        history(tmp_path / "there").claim({"who": "goes on there"})
        mark(why)

    monkeypatch.setattr(target, "mark", started_meanwhile)
    with pytest.raises(UserError, match="has another history: its attempt"):
        copy(source, target)
    assert not target.is_marked()
    assert history(tmp_path / "there").claim({}) == 4, "and it can be started again"


def test_nor_are_checkpoints_there_whose_claims_are_lost(tmp_path: Path) -> None:
    source, target = made_run(tmp_path), history(tmp_path / "there")
    chain(target, 1, [15])
    before = {info.key: info for info in target.store.list("")}
    with pytest.raises(UserError, match="has another history: its checkpoint 000001-00000015"):
        copy(source, target)
    assert {info.key: info for info in target.store.list("")} == before


def test_a_run_that_is_not_whole_itself_is_not_copied(tmp_path: Path) -> None:
    source, target = made_run(tmp_path), history(tmp_path / "there")
    source.mark("was being copied")
    with pytest.raises(UserError, match="is not whole itself"):
        copy(source, target)
    assert list(target.store.list("")) == []


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
    nothing = {"sha256": hashlib.sha256().hexdigest()}
    source.write_record({"files": {"config.json": nothing, "notes.txt": nothing}}, "result.json")
    source.store.put(source.key("result", "config.json"), b"")
    copy(source, second, said.append)
    assert second.read(second.key("result", "config.json"), 100) == b""
    assert said[-1] == "the result's notes.txt is not there or damaged: no result is copied"
    assert second.read_record("result.json") is None
