"""`verify` finds every damage, names it, reads each part once, and says when all is well."""

from __future__ import annotations

import collections
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from storage.errors import Damaged
from storage.retry import Retrying
from tests.checkpoints import age, chain, history, save, snapshot
from tests.runs import command
from trainer.header import data_start
from trainer.history import Bad, History
from trainer.manifest import Manifest, PartRef
from trainer.parts import encode, grouped
from trainer.verify import verify


@pytest.fixture
def run(tmp_path: Path) -> History:
    made = history(tmp_path)
    made.claim({"job": "cifar10"})
    return made


def part(run: History, manifest: Manifest, index: int = 0) -> Path:
    return Path(run.store.url.removeprefix("file://")) / run.run / "parts" / manifest.parts[index].sha256


def rewrite(run: History, manifest: Manifest) -> None:
    """As who means harm would: with its checksums right."""
    run.store.put(run.key("checkpoints", f"{manifest.name}.json"), manifest.with_state_hash().to_json())


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def test_all_good_ones_are_good_and_each_part_is_read_once(run: History) -> None:
    same = snapshot(10)
    made = chain(run, 1, [10, 20, 30])
    save(run, 1, 40, made[-1].name, replace(same, step=40))  # shares all its parts with the first
    read: collections.Counter[str] = collections.Counter()

    class Counting:
        def __getattr__(self, name: str) -> Any:
            return getattr(run.store, name)

        def get(self, key: str, *args: Any, **options: Any) -> Any:
            read[key.split("/")[1]] += 1
            return run.store.get(key, *args, **options)

    verdicts = verify(History(Counting(), run.run))  # type: ignore[arg-type]
    assert [v.problems for v in verdicts] == [[], [], [], []]
    assert read["parts"] == 6
    assert read["checkpoints"] == 4
    assert all(v.manifest and not v.manifest.ledger for v in verdicts), "which of many attempts fill the memory"


def test_models_in_several_parts_some_of_them_shared(run: History, monkeypatch: pytest.MonkeyPatch) -> None:
    import trainer.parts

    monkeypatch.setattr(trainer.parts, "PART_BYTES", 1200)
    made = chain(run, 1, [10, 20, 30])
    assert len(list(grouped(snapshot(1).model))) == 2
    assert made[0].parts[1] == made[2].parts[1], "the frozen tensor's"
    assert [v.problems for v in verify(run)] == [[], [], []]
    flip(part(run, made[0], 1))
    problem = f"part {made[0].parts[1].sha256[:12]} is damaged"
    assert [v.problems for v in verify(run)] == [[problem]] * 3
    flip(part(run, made[0], 1))
    rewrite(run, replace(made[1], parts=[made[1].parts[1], made[1].parts[0], made[1].parts[2]]))
    assert verify(run)[1].problems == ["its weights do not hash to its weights_sha256"], "parts in another order"


DAMAGE: dict[str, Callable[[History, list[Manifest]], object]] = {
    "is damaged": lambda run, made: flip(part(run, made[1])),
    "is not there": lambda run, made: part(run, made[1], 1).unlink(),
    "bytes and should have": lambda run, made: part(run, made[1]).write_bytes(b"short"),
    "its weights do not hash": lambda run, made: rewrite(run, replace(made[1], weights_sha256="a" * 64)),
    "not older than it is": lambda run, made: rewrite(run, replace(made[1], parent=made[2].name)),
    "checksum differs": lambda run, made: run.store.put(
        run.key("checkpoints", f"{made[1].name}.json"), made[1].to_json().replace(b"cifar10", b"cifar11")
    ),
    "not JSON": lambda run, made: run.store.put(run.key("checkpoints", f"{made[1].name}.json"), b"{"),
}


@pytest.mark.parametrize("words", DAMAGE)
def test_each_damage_is_found_in_its_checkpoint_and_no_other(words: str, run: History) -> None:
    made = chain(run, 1, [10, 20, 30])
    DAMAGE[words](run, made)
    problems = [v.problems for v in verify(run)]
    assert [len(p) for p in problems] == [0, 1, 0], problems
    assert words in problems[1][0]


def test_what_a_start_refuses_is_bad_though_the_weights_hash_to_what_the_manifest_says(run: History) -> None:
    """A part named twice, and a tensor in two parts of a section; in one of each it is what must be."""
    made = chain(run, 1, [10, 20, 30])
    model, optimizer = made[0].parts

    def tensors(*refs: PartRef) -> bytes:
        parts = [run.part(ref) for ref in refs]
        return b"".join(part[data_start(part) :] for part in parts)

    other = encode({"a.weight": torch.zeros(3)})
    run.put_part(other.sha256, other.size, other.chunks)
    more = PartRef("model", other.sha256, other.size)
    for manifest, parts in ((made[1], [model, model, optimizer]), (made[2], [model, more, optimizer])):
        weights = hashlib.sha256(tensors(*parts[:2])).hexdigest()
        rewrite(run, replace(manifest, parts=parts, weights_sha256=weights))
    elsewhere = [model, replace(more, section="optimizer"), optimizer]
    rewrite(run, replace(made[0], parts=elsewhere, weights_sha256=hashlib.sha256(tensors(model)).hexdigest()))
    twice, in_two = "its manifest parts: one is named twice", "tensor 'a.weight' is in two of its parts"
    assert [v.problems for v in verify(run)] == [[], [twice], [in_two]]
    newest = run.newest_good()
    assert newest is not None
    assert newest.manifest.name == made[0].name


def test_a_run_that_is_marked_as_not_whole_is_told_of(run: History) -> None:
    """Its checkpoints are good, and no start takes one."""
    chain(run, 1, [10])
    run.mark("was being copied from elsewhere")
    place = ("--store", run.store.url, "--run", run.run)
    code, text = command("verify", *place)
    assert (code, text.splitlines()[-1]) == (78, "run was being copied from elsewhere")
    code, text = command("verify", *place, "--json")
    assert (code, json.loads(text)[0]["unfinished"]) == (78, "was being copied from elsewhere")


def test_a_parent_that_was_cleaned_up_is_no_fault(run: History) -> None:
    made = chain(run, 1, [10, 20, 30])
    run.store.delete(run.key("checkpoints", f"{made[0].name}.json"))
    assert [(v.name, v.problems) for v in verify(run)] == [(m.name, []) for m in made[1:]]


def test_an_attempt_that_had_but_the_last_evaluation_to_do_saves_the_same_step_again(run: History) -> None:
    made = chain(run, 1, [10, 20])
    chain(run, 2, [20], parent=made[-1].name)
    assert [v.problems for v in verify(run)] == [[], [], []]


def test_what_the_store_itself_calls_damaged_is_bad_when_read_twice(run: History) -> None:
    made = chain(run, 1, [10, 20])

    class Rotten:
        left = 1

        def __getattr__(self, name: str) -> Any:
            return getattr(run.store, name)

        def get(self, key: str, *args: Any, **options: Any) -> Any:
            if key.endswith(made[1].parts[0].sha256) and self.left:
                self.left -= 1
                raise Damaged(f"{key}: its CRC32C differs")
            return run.store.get(key, *args, **options)

    rotten = Rotten()
    other = History(rotten, run.run)  # type: ignore[arg-type]
    assert other.part(made[1].parts[0])
    rotten.left = 2
    with pytest.raises(Bad, match="CRC32C differs"):
        other.part(made[1].parts[0])


def test_the_command_says_it_in_a_line_each_and_in_its_exit_code(run: History) -> None:
    made = chain(run, 1, [10, 20])
    place = ("--store", run.store.url, "--run", run.run)
    code, text = command("verify", *place)
    assert (code, text.splitlines()[0].split()[:3]) == (0, ["run", made[0].name, "good,"])
    assert "all 2 checkpoints of run are good" in text
    flip(part(run, made[1]))
    code, text = command("verify", *place)
    assert code == 78
    assert f"run {made[1].name} BAD: part {made[1].parts[0].sha256[:12]} is damaged" in text
    assert "1 of 2 checkpoints of run is bad; go on as ever: a start takes the newest good one" in text
    code, text = command("verify", *place, "--json", BATON_STOER="this warning is no JSON")
    assert code == 78
    assert [told["good"] for told in json.loads(text)] == [True, False]
    assert command("verify", "--store", run.store.url, "--run", "other")[0] == 78


def test_one_that_is_cleaned_up_meanwhile_is_left_out(run: History) -> None:
    made = chain(run, 1, [10, 20, 30])
    age(run, 25)

    class Cleaned:
        def __getattr__(self, name: str) -> Any:
            return getattr(run.store, name)

        def get(self, key: str, *args: Any, **options: Any) -> Any:
            if "/parts/" in key:
                run.store.delete(run.key("checkpoints", f"{made[0].name}.json"))
                run.store.delete(run.key("parts", made[0].parts[0].sha256))
            return run.store.get(key, *args, **options)

    verdicts = verify(History(Cleaned(), run.run))  # type: ignore[arg-type]
    assert [(v.name, v.problems) for v in verdicts] == [(m.name, []) for m in made[1:]]


def test_a_tensor_without_elements_or_in_another_memory_order_is_good(run: History) -> None:
    model = {
        "channels_last": torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last),
        "empty": torch.zeros(0, 4),
        "one": torch.randn(8, 1, 3, 3).to(memory_format=torch.channels_last),
        "scalar": torch.tensor(3),
        "transposed": torch.randn(3, 7).t(),
    }
    assert encode(model).size
    save(run, 1, 10, None, replace(snapshot(10), model=model))
    assert [v.problems for v in verify(run)] == [[]]


def test_a_run_whose_claims_are_lost_is_looked_at_too_and_no_run_is_said(run: History) -> None:
    made = chain(run, 1, [10])
    flip(part(run, made[0]))
    for claim in (Path(run.store.url.removeprefix("file://")) / run.run / "attempts").glob("*"):
        claim.unlink()
    code, out = command("verify", "--store", run.store.url)
    assert code == 78
    assert "BAD" in out
    way = "a start ends with exit code 78 and changes nothing; begin anew with --run NAME"
    assert out.endswith(f"no checkpoint of {run.run} is good: {way}\n")
    Path(f"{run.store.url}/nothing".removeprefix("file://")).mkdir()
    assert command("verify", "--store", f"{run.store.url}/nothing") == (0, f"no runs in {run.store.url}/nothing\n")


def test_a_part_that_is_none_is_the_subject_of_the_warning_and_not_its_store(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = history(tmp_path)
    chain(run, 1, [10])
    data = (3).to_bytes(8, "little") + b"{1}"
    ref = PartRef("model", hashlib.sha256(data).hexdigest(), len(data))
    run.put_part(ref.sha256, len(data), [memoryview(data)])
    tried_again = History(Retrying(run.store, lambda _: 60.0, lambda _: None), "run")
    with pytest.raises(Bad, match=f"^part {ref.sha256[:12]} is no part of a checkpoint: "):
        tried_again.part(ref)
    assert caplog.messages[0].startswith(f"part {ref.sha256[:12]} in {run.store.url} is none: ")
    assert caplog.messages[0].endswith("; trying again")
