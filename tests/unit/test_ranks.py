"""Who shares a run: read from torchrun's variables and `--nproc`, with one line for what can't be."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from trainer import ranks
from trainer.admission import amount, check_share
from trainer.exits import ExitCode, UserError
from trainer.loop import Plan
from trainer.prepare import shape_of, share
from trainer.processes import code_of
from trainer.ranks import Rank
from trainer.settings import Settings

MASTER = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}


def test_without_torchruns_variables_there_is_one_process():
    assert Rank.of({}) == Rank.of({"RANK": "0", "WORLD_SIZE": "1"}) == Rank(0, 1, 0, 1)


def test_of_machines_with_one_process_each_none_needs_to_say_its_local_rank():
    assert Rank.of({"RANK": "1", "WORLD_SIZE": "2", **MASTER}) == Rank(1, 2, 0, 1)
    local = {"LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "4"}
    assert Rank.of({"RANK": "7", "WORLD_SIZE": "8", **local, **MASTER}) == Rank(7, 8, 3, 4)


@pytest.mark.parametrize(
    "wrong",
    [
        {"RANK": "1", "WORLD_SIZE": "2"},
        {"RANK": "2", "WORLD_SIZE": "2", **MASTER},
        {"RANK": "-1", "WORLD_SIZE": "2", **MASTER},
        {"RANK": "1", "WORLD_SIZE": "two", **MASTER},
        {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "1", **MASTER},
        {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "http"},
    ],
)
def test_variables_that_do_not_fit_are_a_users_error(wrong: dict[str, str]):
    with pytest.raises(UserError):
        Rank.of(wrong)


def test_auto_is_one_process_for_each_gpu_and_one_on_a_cpu(monkeypatch: pytest.MonkeyPatch):
    assert ranks.processes("auto", "cpu") == 1
    assert ranks.processes("3", "cpu") == 3
    monkeypatch.setattr("trainer.ranks.Path.exists", lambda self: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert ranks.processes("auto", "auto") == 2
    assert ranks.processes("2", "cuda") == 2
    with pytest.raises(UserError, match="--nproc 3: this machine has 2 GPUs") as e:
        ranks.processes("3", "auto")
    assert e.value.code == ExitCode.SETUP


@pytest.mark.parametrize("limit", ["proc/meminfo", "sys/fs/cgroup/memory.max"])
def test_more_processes_than_memory_can_hold_are_refused(tmp_path: Path, limit: str):
    for file, text in (
        ("proc/meminfo", "MemTotal:  8000000 kB\nMemFree: 1 kB\n"),
        ("sys/fs/cgroup/memory.max", "max\n"),
    ):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text)
    assert ranks.processes("16", "cpu", tmp_path) == 16
    if limit == "proc/meminfo":
        with pytest.raises(UserError, match=r"--nproc 30: .* 300 MB .* 8\.2 GB for all"):
            ranks.processes("30", "cpu", tmp_path)
    else:
        (tmp_path / limit).write_text("3000000000\n")
        with pytest.raises(UserError, match=r"--nproc 16: .* 3\.0 GB for all"):
            ranks.processes("16", "cpu", tmp_path)


def micro(given: int, recorded: int | None, count: int, *allowed: str) -> Any:
    settings = Settings(batch_size=100, micro_batch_size=given, precision="fp32")
    wanted: Any = SimpleNamespace(rank=Rank(0, count, 0, count), allow_change=allowed)
    data: Any = SimpleNamespace(sha256="0")
    so_far = None if recorded is None else {"micro_batch_size": recorded}
    return shape_of(SimpleNamespace(settings=settings), wanted, data, so_far)["micro_batch_size"]  # type: ignore[arg-type]


def test_a_run_keeps_its_micro_batch_whatever_the_number_of_processes():
    assert [micro(0, None, count) for count in (1, 2, 3)] == [100, 50, 34]
    assert micro(0, 50, 1) == micro(0, 50, 4) == 50
    assert micro(25, 50, 2) == 25, "which is refused as another setting, or allowed"
    assert micro(0, 100, 4, "micro_batch_size") == 25


@pytest.mark.parametrize("batch", [1, 2, 9, 20, 32, 33, 100])
def test_a_new_run_has_a_micro_batch_for_each_process_and_is_told_the_way_there(batch: int):
    for count in range(1, batch + 1):
        size = share(batch, count)
        checked(count, size, of=batch, nproc=str(count))
        if -(-batch // -(-batch // count)) >= count:
            assert size == -(-batch // count), "as large as that goes"
        if count > 1:
            with pytest.raises(UserError, match=f"add --allow-change micro_batch_size for {size} samples each"):
                checked(count, batch, of=batch, nproc=str(count))


def checked(count: int, micro_batch: int, of: int = 20, **given: Any) -> None:
    plan = dataclasses.replace(PLAN, batch_size=of, micro_batch_size=micro_batch)
    request: Any = SimpleNamespace(rank=Rank(0, count, 0, count), given=given, history=SimpleNamespace(run="mine"))
    check_share(request, plan)


PLAN = Plan(
    seed=0, batch_size=20, micro_batch_size=20, steps=1, steps_per_epoch=1, bf16=False, device="cpu"  # type: ignore[arg-type]
)  # fmt: skip


def test_processes_with_nothing_to_share_are_refused_with_the_way_on():
    checked(2, 10, nproc="2")
    checked(1, 20)
    with pytest.raises(
        UserError, match="in 1 micro-batch, too few to share: add --allow-change micro_batch_size for 7"
    ):
        checked(3, 20, nproc="3")
    with pytest.raises(UserError, match="in 2 micro-batches, too few to share: give a smaller --micro-batch-size"):
        checked(3, 10, nproc="3", micro_batch_size=10)
    with pytest.raises(UserError, match="a batch of 20 can't be shared by so many"):
        checked(21, 1, nproc="auto")


def test_where_the_machine_chose_their_number_some_may_idle(caplog: pytest.LogCaptureFixture):
    checked(3, 10, nproc="auto")


def test_all_end_with_what_process_0_says_but_for_a_defect_or_what_a_person_must_mend_in_any():
    assert code_of({}) == 0
    assert code_of({0: 75, 1: 75}) == code_of({1: 75}) == 75
    assert code_of({0: 78, 1: 75}) == 78
    assert code_of({0: 75, 1: 1}) == code_of({0: 78, 1: 1}) == 1
    assert code_of({0: 74, 1: 78}) == 78
    assert code_of({0: -9, 1: 75}) == 75
    assert code_of({0: -9}) == 74


@pytest.mark.parametrize(("size", "words"), [(0, "0.0 kB"), (46_912, "46.9 kB"), (2_500_000_000, "2,500.0 MB")])
def test_room_that_is_too_little_is_told_in_a_unit_that_shows_it(size: int, words: str):
    assert amount(size) == words
