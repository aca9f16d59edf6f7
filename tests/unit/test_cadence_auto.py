"""`--checkpoint-every auto`: the interval, from what a save costs and how long machines last."""

from __future__ import annotations

import logging
import random
from pathlib import Path
from typing import Any

import pytest

from storage.errors import Damaged
from tests.checkpoints import history, save
from tests.unit.test_gpu_trouble import attempt as training
from trainer.cadence import PRIOR_S, SHORTEST_S, Cadence, best_interval_s, lifetime_s
from trainer.predecessors import last_sign, ledger_so_far, unsaved
from trainer.settings import Json
from watchers import Mailbox


def attempt(seconds: float, exit_code: int | None) -> dict[str, object]:
    return {"seconds": seconds, "exit": exit_code}


def test_before_anything_is_known_a_machine_lasts_two_hours() -> None:
    assert lifetime_s([], 0.0) == PRIOR_S


def test_evictions_shorten_it_and_halts_do_not() -> None:
    evicted = [attempt(600, 75), attempt(600, None), attempt(600, 74)]
    assert lifetime_s(evicted, 600) == pytest.approx((2400 + PRIOR_S) / 4)
    halted = [attempt(600, 0), attempt(600, 130)]
    assert lifetime_s(halted, 600) == pytest.approx(1800 + PRIOR_S)
    mistaken = [attempt(600, 1), attempt(600, 64), attempt(600, 78)]
    assert lifetime_s(mistaken, 600) == pytest.approx(2400 + PRIOR_S), "their machines lasted at least so long"


def test_it_comes_close_to_the_truth_with_many_evictions() -> None:
    rng = random.Random(1)
    ledger = [attempt(rng.expovariate(1 / 900), 75) for _ in range(400)]
    assert lifetime_s(ledger, 0) == pytest.approx(900, rel=0.15)


def test_a_ledger_with_odd_values_is_no_reason_to_fail() -> None:
    assert lifetime_s([{"seconds": "long"}, {"seconds": -5.0, "exit": 0}, {}], 0) > 0


def test_attempts_that_ended_before_they_saved_are_known_by_their_own_records(tmp_path: Path) -> None:
    run = history(tmp_path)

    def claimed() -> int:
        return run.claim({"before": last_sign(run.read_sign("status.json"))})

    def tally(attempt: int, seconds: float) -> dict[str, Json]:
        return {"attempt": attempt, "tally": {"seconds": seconds}}

    for number, seconds, exit_code in ((1, 9000.0, None), (2, 40.0, None), (3, 50.0, 75), (4, 1.0, 78), (5, 60.0, 0)):
        assert claimed() == number
        run.write_record(tally(number, seconds), "status.json")
        if exit_code is not None:
            run.write_record({**tally(number, seconds + 1), "exit": exit_code}, "attempts", f"{number:06d}.end.json")
    assert claimed() == 6, "of which there is no sign yet"
    found = unsaved(run, [1], 7, run.read_sign("status.json"))
    assert [(entry["attempt"], entry["seconds"], entry["exit"]) for entry in found] == [
        (2, 40.0, None),
        (3, 51.0, 75),
        (4, 2.0, 78),
        (5, 61.0, 0),
        (6, None, None),
    ]
    assert lifetime_s(found, 0.0) == pytest.approx((40 + 51 + 2 + 61 + PRIOR_S) / 4)
    run.write_record(tally(6, 70.0), "status.json")
    assert unsaved(run, [1, 2, 3, 4, 5], 7, run.read_sign("status.json")) == [
        {"attempt": 6, "seconds": 70.0, "exit": None}
    ]
    assert unsaved(run, [], 1, None) == []


def test_what_says_nothing_of_machines_or_can_not_be_read_keeps_no_run_from_its_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = history(tmp_path)
    run.write_record({"exit": 1, "outcome": "did not begin"}, "attempts", "000001.end.json")
    run.write_record({"exit": 74, "outcome": "did not begin"}, "attempts", "000002.end.json")
    get = run.store.get

    def rotten(key: str, *args: Any, **where: Any) -> Any:
        if "000003" in key:
            raise Damaged(key)
        return get(key, *args, **where)

    monkeypatch.setattr(run.store, "get", rotten)
    assert unsaved(run, [], 4, None) == []
    assert len(unsaved(run, [], 10**12, None)) == 100, "in no time: anybody may have made a claim of such a number"


def test_who_was_superseded_was_not_evicted_whatever_its_exit_code_was_made_to_be(tmp_path: Path) -> None:
    run = history(tmp_path)
    newest = save(run, 1, 10)
    for name in ("000001.end.json", "000002.end.json"):
        run.write_record({"exit": 76, "outcome": "superseded"}, "attempts", name)
    found = [*ledger_so_far(run, newest), *unsaved(run, [1], 3, None)]
    assert [entry["attempt"] for entry in found] == [1, 2]
    assert lifetime_s(found, 0.0) == PRIOR_S


@pytest.mark.parametrize("cost", [0.05, 0.5, 5.0])
@pytest.mark.parametrize("lifetime", [600.0, 7200.0])
def test_no_other_interval_loses_less(cost: float, lifetime: float) -> None:
    """Against a simulation: saves cost time, an eviction without notice costs what was done since the last one."""

    def lost(interval: float) -> float:
        rng = random.Random(7)
        total = 0.0
        for _ in range(4000):
            lasts = rng.expovariate(1 / lifetime)
            total += cost * (lasts // (interval + cost)) + lasts % (interval + cost)
        return total

    best = best_interval_s(cost, 0.0, lifetime)
    if best == SHORTEST_S:
        return  # requests cost money, whatever the arithmetic says
    assert lost(best) < 1.02 * min(lost(best * factor) for factor in (0.25, 0.5, 0.8, 1.25, 2, 4))


def test_clouds_are_asked_no_oftener_than_every_15_s_nor_before_the_last_save_landed() -> None:
    assert best_interval_s(0.0, 0.0, 60.0) == 15.0
    assert best_interval_s(0.001, 100.0, 60.0) == 200.0


def test_auto_is_written_auto() -> None:
    assert Cadence.parse("auto").auto
    assert Cadence.parse("Auto").seconds == 15.0


@pytest.mark.parametrize("step", [5, 12])
def test_the_interval_is_told_only_where_there_is_a_next_save(
    step: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    mine = training(tmp_path, "cpu", Mailbox(), [], "auto")
    mine.position.step = step
    mine._saves = 1
    mine._choose_interval()
    mine.end(0, "finished")
    assert mine.interval_why, "for the status, in any case"
    assert ("saving every" in caplog.text) is (step < mine.plan.steps)


def test_the_first_stall_in_which_buffers_are_made_counts_no_longer_once_there_is_a_second(tmp_path: Path) -> None:
    mine = training(tmp_path, "cpu", Mailbox(), [], "auto")
    mine.end(0, "finished")
    intervals = []
    for mine._saves, mine._stall_s in ((1, 8.0), (2, 8.5), (5, 10.0)):
        mine._first_stall_s = 8.0
        mine._choose_interval()
        intervals.append(mine.cadence.seconds)
    assert intervals == pytest.approx([best_interval_s(cost, 0.0, PRIOR_S) for cost in (8.0, 0.5, 0.5)], rel=1e-3)
