"""The ledger adds up: useful + lost + overhead is each attempt's wall time, and each step of the run counts once."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from console.standing import glance, whole
from tests.histories import EPOCH, LATER_S, SIGN_S, Copy, at_random, live
from trainer import run
from trainer.curve import is_due
from trainer.history import History
from trainer.ledger import Entry, Ledger, account
from trainer.predecessors import CARRIED
from trainer.records import read
from watchers import Notice, Stopped

HISTORIES = 100


def kept(folder: Path) -> dict[int, tuple[int, int, bool]]:
    """attempt -> (the first step that the run doesn't have of it, the last one it has, whether evaluated there).

    By the newest checkpoint's parents, read without the code under test.
    """
    manifests = {f.stem: json.loads(f.read_bytes()) for f in (folder / "run" / "checkpoints").glob("*.json")}
    name = max(manifests, default=None)
    found: dict[int, tuple[int, int, bool]] = {}
    while name is not None:
        manifest = manifests[name]
        number, step = manifest["attempt"], manifest["step"]
        evaluated = manifest["metrics"].get("step") == step
        parent = manifest["parent"]
        first = manifests[parent]["step"] if parent else 0
        found[number] = (first, *found[number][1:]) if number in found else (first, step, evaluated)
        name = parent
    return found


def check(ledger: Ledger, copies: list[Copy], folder: Path) -> None:
    chain = kept(folder)
    by_number = {copy.number: copy for copy in copies if copy.number is not None}
    assert [entry.attempt for entry in ledger.entries] == sorted(by_number), "those that claimed"
    for entry in ledger.entries:
        check_entry(entry, by_number[entry.attempt], chain.get(entry.attempt))
    assert not ledger.problems
    steps = [
        step for entry in ledger.entries for step in range(entry.first_step, entry.first_step + entry.useful_steps)
    ]
    assert steps == list(range(ledger.step)), "each step once, none left out"
    assert ledger.useful_steps == ledger.step


def check_carried(folder: Path) -> None:
    """A checkpoint carries the ledger of all attempts before, so of each no more than its own records don't tell."""
    for file in (folder / "run" / "checkpoints").glob("*.json"):
        *before, own = json.loads(file.read_bytes())["ledger"]
        assert "host" in own
        assert all(entry.keys() == set(CARRIED) for entry in before)


def check_entry(entry: Entry, copy: Copy, link: tuple[int, int, bool] | None) -> None:
    assert entry.wall_s is not None
    assert entry.useful_s + entry.lost_s + entry.overhead_s == pytest.approx(entry.wall_s, abs=1e-6)
    assert min(entry.useful_s, entry.lost_s, entry.overhead_s) >= 0
    true_wall = copy.ended - copy.begins
    unseen = true_wall - entry.wall_s
    assert -1e-3 < unseen < (SIGN_S + 7 if copy.exit is None else 1), (
        "a machine that vanished was there a little longer"
    )
    first, last, evaluated = link or (entry.first_step, entry.first_step, False)
    assert (entry.first_step, entry.useful_steps) == (first, last - first)
    useful = sum(
        piece.end - piece.begin
        for piece in copy.pieces
        if (piece.step < last or (piece.step == last and evaluated) if piece.evaluation else piece.step <= last)
        and link is not None
    )
    assert entry.useful_s == pytest.approx(useful, abs=1)
    work = sum(piece.end - piece.begin for piece in copy.pieces)
    if (
        copy.exit is not None
    ):  # what it had in hand when it was told to go is lost too: a step, or a part of an evaluation
        assert -1 < entry.lost_s - (work - useful) < 7
        assert entry.lost_steps == max([p.step for p in copy.pieces if not p.evaluation], default=first) - last
    assert entry.began is not None
    if entry.clock_known:
        assert entry.began == pytest.approx(EPOCH + copy.begins, abs=1), "by the store's clock, whatever the machine's"


def ledger_of(history: History) -> Ledger:
    records = read(history)
    assert records is not None
    return account(records)


@pytest.mark.parametrize("tens", range(0, HISTORIES, 10))
def test_all_seconds_and_steps_of_random_histories_are_accounted_for(tens: int, tmp_path: Path) -> None:
    finished = 0
    for seed in range(tens, tens + 10):
        folder = tmp_path / str(seed)
        copies, steps, every = at_random(seed)
        history = live(folder, copies, steps, every)
        ledger = ledger_of(history)
        try:
            check(ledger, copies, folder)
            check_carried(folder)
            check_curve(ledger, steps)
            check_status(ledger, history)
            finished += ledger.state == "finished"
        except AssertionError as e:
            raise AssertionError(f"seed {seed}: {e}") from e
    assert finished >= 5, "most come to their end; of some, a copy that came late takes the run and vanishes"


def test_who_claims_a_run_and_does_not_begin_has_no_step_of_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = run._load

    def stopped(request: run.Request, *others: Any) -> Any:
        if request.history.attempts()[-1] == 2:
            raise Stopped(Notice("SIGTERM", "stop", "told to go", "SIGTERM", 0.0))
        return load(request, *others)

    monkeypatch.setattr(run, "_load", stopped)
    vanished = Copy(begins=0.0, start_up_s=1.0, ahead_s=0.0, told_at=None, killed_at=100.0, step_s=2.0)
    ledger = ledger_of(live(tmp_path, [vanished, replace(vanished, begins=200.0, killed_at=None)], 90, "89steps"))
    first, second = ledger.entries
    assert first.lost_steps == ledger.lost_steps > 0
    assert (second.outcome, second.last_step, second.training_s) == ("did not begin", 0, 0.0)


def check_status(ledger: Ledger, history: History) -> None:
    """`status` tells the same of each attempt, and of the newest checkpoint its true age, whoever's clock is wrong."""
    told, brief = whole(history), glance(history)
    assert told is not None
    assert brief is not None
    assert isinstance(told["attempts"], list)
    for entry, one in zip(ledger.entries, told["attempts"], strict=True):
        assert isinstance(one, dict)
        assert one["seconds"] == pytest.approx(entry.wall_s, abs=0.06)
        assert one["started"] == pytest.approx(entry.began, abs=1e-3)
        assert one["last_step"] in (entry.last_step, None)
    assert told["state"] == ledger.state
    for look in (brief, told):
        if look["checkpoint"] is not None:
            written = history.store.stat(history.key("checkpoints", f"{look['checkpoint']}.json")).modified
            assert look["checkpoint_age_s"] == pytest.approx(EPOCH + LATER_S - written, abs=3)


def check_curve(ledger: Ledger, steps: int) -> None:
    """One point for each place that has one, one evaluation for each epoch, whoever made them and how often."""
    assert [step for step, _, _ in ledger.losses] == [s for s in range(1, ledger.step + 1) if is_due(s, steps)]
    ends = [step for step in range(1, ledger.step + 1) if step % 20 == 0 or step == steps]
    assert [e.step for e in ledger.evaluations] in (ends, [step for step in ends if step < ledger.step])
    assert ledger.state != "finished" or (ledger.step, ledger.evaluations[-1].step) == (steps, steps)
