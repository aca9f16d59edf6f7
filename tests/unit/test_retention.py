"""What the rules of retention keep and let go, on real stores aged by the hour."""

from __future__ import annotations

import logging
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage import ObjectInfo
from storage.errors import PermissionDenied, Unavailable
from tests.checkpoints import age, chain, history, keys, save, snapshot
from tests.runs import command
from trainer.history import END_BYTES, History
from trainer.manifest import Manifest, checkpoint_name
from trainer.retention import Retention, store_time


def clean(run: History, keep: int = 3, **options: float) -> str | None:
    """As `clean --yes` does it; what kept it from it."""
    retention = Retention(run, keep, **options)
    excess = retention.excess(store_time(run))
    retention.remove(excess)
    return excess.why_not


def names(run: History) -> list[str]:
    return sorted(name.removesuffix(".json") for name in keys(run, "checkpoints"))


def named_parts(run: History) -> set[str]:
    return {ref.sha256 for name in names(run) for ref in run.manifest(name).parts}


def put_part(run: History, body: bytes) -> None:
    run.put_part("f" * 64, len(body), [memoryview(body)])


@pytest.fixture
def run(tmp_path: Path) -> History:
    return history(tmp_path)


@pytest.mark.parametrize("keep", [2, 3, 5])
def test_the_newest_good_ones_stay_with_their_parts_and_all_else_goes(run: History, keep: int) -> None:
    chain(run, 1, list(range(10, 90, 10)))
    age(run, 25)
    assert len(keys(run, "parts")) == 16
    assert clean(run, keep) is None
    assert names(run) == [checkpoint_name(1, step) for step in range(90 - 10 * keep, 90, 10)]
    assert set(keys(run, "parts")) == named_parts(run)
    assert keys(run, "clock") == []
    newest = run.newest_good()
    assert newest is not None
    assert newest.manifest.step == 80


def test_a_part_that_a_kept_checkpoint_shares_with_one_that_goes_stays(run: History) -> None:
    frozen = snapshot(10, value=7.0)
    parent = None
    for step in range(10, 60, 10):
        parent = save(run, 1, step, parent, replace(frozen, step=step)).name
    age(run, 25)
    before = keys(run, "parts")
    clean(run, 2)
    assert len(names(run)) == 2
    assert keys(run, "parts") == before


def test_what_is_younger_than_24_hours_by_the_stores_clock_stays(run: History) -> None:
    chain(run, 1, [10, 20])
    age(run, 3)
    chain(run, 1, [30, 40, 50, 60], checkpoint_name(1, 20))
    put_part(run, b"of a save that is under way")
    age(run, 22.5)
    chain(run, 2, [65], checkpoint_name(1, 60))
    clean(run, 2)
    assert names(run) == [*(checkpoint_name(1, step) for step in (30, 40, 50, 60)), checkpoint_name(2, 65)]
    assert "f" * 64 in keys(run, "parts")
    age(run, 2)
    clean(run, 2)
    assert names(run) == [checkpoint_name(1, 60), checkpoint_name(2, 65)]
    assert "f" * 64 not in keys(run, "parts")


def test_what_the_newest_attempt_made_obsolete_itself_goes_after_an_hour_with_its_parts(run: History) -> None:
    chain(run, 1, [10, 20])
    chain(run, 2, [30, 40, 50, 60, 70], checkpoint_name(1, 20))
    age(run, 0.9)
    clean(run, 2)
    assert len(names(run)) == 7
    age(run, 0.2)
    clean(run, 2)
    assert names(run) == [checkpoint_name(*n) for n in ((1, 10), (1, 20), (2, 60), (2, 70))]
    assert set(keys(run, "parts")) == named_parts(run)


def test_a_part_put_again_after_the_checkpoint_that_goes_with_it_stays(run: History) -> None:
    """Somebody may be about to name it: who put it has 24 hours for that."""
    made = chain(run, 1, [10, 20, 30, 40])
    again = made[0].parts[0]
    age(run, 3)
    run.put_part(again.sha256, again.size, [memoryview(run.part(again))])
    age(run, 3)
    clean(run, 2)
    assert made[0].name not in names(run)
    assert again.sha256 in keys(run, "parts")
    assert made[0].parts[1].sha256 not in keys(run, "parts")


def test_who_reads_a_checkpoint_while_it_is_cleaned_up_takes_the_newest_then(run: History) -> None:
    made = chain(run, 1, [10, 20])
    one_at_a_time = threading.Lock()  # parts are read side by side

    class Overtaken:
        """Whoever begins to read the newest checkpoint's part is overtaken, once, by saves and a clean-up."""

        def __getattr__(self, name: str) -> Any:
            return getattr(run.store, name)

        def get(self, key: str, *args: Any, **options: Any) -> ObjectInfo:
            with one_at_a_time:
                if "/parts/" in key and len(made) == 2:
                    made.extend(chain(run, 1, [30, 40, 50, 60], made[-1].name))
                    age(run, 2)
                    clean(run, 2)
                    assert names(run) == [checkpoint_name(1, 50), checkpoint_name(1, 60)]
            return run.store.get(key, *args, **options)  # type: ignore[no-any-return]

    found = History(Overtaken(), run.run).newest_good()  # type: ignore[arg-type]
    assert found is not None
    assert found.manifest.step == 60


def test_an_orphan_branch_stays_for_24_hours_and_then_goes(run: History) -> None:
    chain(run, 1, [10, 20])
    orphans = chain(run, 1, [30, 40], checkpoint_name(1, 20))
    age(run, 12)
    chain(run, 2, [25, 35, 45], checkpoint_name(1, 20))
    age(run, 11)
    clean(run, 2)
    assert {orphan.name for orphan in orphans} <= set(names(run))
    age(run, 2)
    clean(run, 2)
    assert not {orphan.name for orphan in orphans} & set(names(run))
    assert set(keys(run, "parts")) == named_parts(run)


def test_a_bad_checkpoint_does_not_count_as_one_of_the_good_ones(run: History, tmp_path: Path) -> None:
    made = chain(run, 1, [10, 20, 30, 40, 50])
    (tmp_path / "run" / "parts" / made[4].parts[0].sha256).unlink()
    text = (tmp_path / "run" / "checkpoints" / f"{made[3].name}.json").read_bytes()
    (tmp_path / "run" / "checkpoints" / f"{made[3].name}.json").write_bytes(text[:100])
    age(run, 25)
    why_not = clean(run, 2)
    assert names(run) == [m.name for m in made[1:]], "two good ones, and the bad ones for whoever looks into it"
    assert why_not == f"all parts stay, for checkpoint {made[3].name} can't be read"


def with_a_long_ledger(run: History, made: Manifest, folder: Path) -> Path:
    """As a run of hundreds of attempts has it in each manifest."""
    path = folder / "run" / "checkpoints" / f"{made.name}.json"
    ledger = [{"attempt": n, "tally": {"seconds": 812.331}} for n in range(4000)]
    path.write_bytes(replace(made, ledger=ledger).to_json())
    assert path.stat().st_size > 4 * END_BYTES
    return path


def test_a_long_ledger_is_not_read_to_know_which_parts_stay(run: History, tmp_path: Path) -> None:
    made = chain(run, 1, [10, 20, 30, 40, 50, 60])
    for manifest in made:
        with_a_long_ledger(run, manifest, tmp_path)
    age(run, 25)
    age(run, -24.5, *(f"{manifest.name}.json" for manifest in made))  # young: kept whatever is newer
    read: dict[str, int] = {}

    class Counting:
        def __getattr__(self, name: str) -> Any:
            return getattr(run.store, name)

        def get(self, key: str, sink: Any, **options: Any) -> ObjectInfo:
            info = run.store.get(key, sink, **options)
            read[key] = read.get(key, 0) + sink.tell()
            return info

    assert clean(History(Counting(), run.run), 2) is None  # type: ignore[arg-type]
    assert set(keys(run, "parts")) == named_parts(run)
    assert sum(size <= END_BYTES for key, size in read.items() if "/checkpoints/" in key) == 4


@pytest.mark.parametrize("where", ["a part's name", "the state's hash", "nothing else is there"])
def test_the_end_of_a_manifest_is_believed_only_as_far_as_it_proves_itself(
    where: str, run: History, tmp_path: Path
) -> None:
    made = chain(run, 1, [10, 20, 30, 40])
    path = with_a_long_ledger(run, made[0], tmp_path)
    text = path.read_text()
    sha256 = made[0].state_sha256 if where == "the state's hash" else made[0].parts[1].sha256
    other = sha256[:-1] + ("0" if sha256[-1] != "0" else "1")
    path.write_text("{" + text[-300:] if where == "nothing else is there" else text.replace(sha256, other))
    age(run, 25)
    age(run, -24.5, f"{made[0].name}.json")
    assert clean(run, 2) == f"all parts stay, for checkpoint {made[0].name} can't be read"
    assert {ref.sha256 for ref in made[0].parts} <= set(keys(run, "parts"))


def test_where_none_is_good_nothing_goes(run: History, tmp_path: Path) -> None:
    chain(run, 1, [10, 20, 30])
    for part in (tmp_path / "run" / "parts").iterdir():
        part.write_bytes(b"")
    age(run, 25)
    why_not = clean(run, 2)
    assert why_not is not None
    assert "none of the checkpoints is good" in why_not
    assert len(names(run)) == 3


def test_of_a_run_that_never_committed_parts_go_after_24_hours_and_not_those_of_a_first_save(run: History) -> None:
    run.claim({})
    put_part(run, b"of a save that died")
    age(run, 25)
    run.put_part("e" * 64, 3, [memoryview(b"new")])
    code, said = command("clean", "--store", run.store.url, "--run", "run", "--yes")
    assert (code, "deleted 0 checkpoints and 1 part," in said) == (0, True), said
    assert keys(run, "parts") == ["e" * 64]
    age(run, 25)
    run.store.put(run.key("checkpoints", "000001-00000010.json", "a folder"), b"in a manifest's place")
    assert clean(run) == "none of the checkpoints is good, so all stay"
    assert keys(run, "parts") == ["e" * 64]


def test_the_results_weights_attempts_and_metrics_stay(run: History, tmp_path: Path) -> None:
    for _ in range(3):
        run.claim({"job": "cifar10"})
    run.write_record({"exit": 75}, "attempts", "000001.end.json")
    made = chain(run, 1, [10, 20, 30, 40])
    run.write_record(
        {"checkpoint": made[0].name, "weights": [run.key("parts", made[1].parts[0].sha256)]}, "result.json"
    )
    age(run, 100)
    clean(run, 2)
    assert names(run) == [made[i].name for i in (0, 2, 3)]
    assert made[1].parts[0].sha256 in keys(run, "parts")
    assert len(keys(run, "attempts")) == 4
    assert len(keys(run, "metrics")) == 4


def test_where_nobody_can_tell_what_the_result_keeps_nothing_goes(run: History, tmp_path: Path) -> None:
    made = chain(run, 1, [10, 20, 30, 40])
    run.write_record({"checkpoint": made[0].name}, "result.json")
    path = tmp_path / "run" / "result.json"
    for damaged in (path.read_bytes()[:-3], b"", b"[]", path.read_bytes().replace(b"check", b"ch\xffck")):
        path.write_bytes(damaged)
        age(run, 25)
        assert clean(run, 2) == "what result.json keeps can't be read, so all stays"
        assert len(names(run)) == 4


class SlowToDelete:
    """A store where somebody puts the part again between the listing and the deletion."""

    def __init__(self, store: Any, key: str, hours: float) -> None:
        self._store, self._key, self._hours = store, key, hours

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def list(self, prefix: str, **options: Any) -> Iterator[ObjectInfo]:
        yield from self._store.list(prefix, **options)
        if prefix.endswith("checkpoints/"):
            self._store.put(self._key, b"the same bytes again")
            age(History(self._store, "run"), self._hours, self._key)


@pytest.mark.parametrize("hours", [0, 11], ids=["at once", "by an upload that began hours ago, and is dated so on S3"])
def test_a_part_put_again_since_the_listing_stays(run: History, hours: float) -> None:
    chain(run, 1, [10, 20])
    put_part(run, b"the same bytes again")
    age(run, 25)
    clean(History(SlowToDelete(run.store, run.key("parts", "f" * 64), hours), run.run), 2)  # type: ignore[arg-type]
    assert "f" * 64 in keys(run, "parts")


class Clock:
    """A store whose clock is wrong by so much."""

    def __init__(self, store: Any, seconds: float) -> None:
        self._store, self._seconds = store, seconds

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def _late(self, info: ObjectInfo) -> ObjectInfo:
        return replace(info, modified=info.modified + self._seconds)

    def put(self, *args: Any, **options: Any) -> ObjectInfo:
        return self._late(self._store.put(*args, **options))

    def stat(self, key: str) -> ObjectInfo:
        return self._late(self._store.stat(key))

    def list(self, *args: Any, **options: Any) -> Iterator[ObjectInfo]:
        return map(self._late, self._store.list(*args, **options))


@pytest.mark.parametrize("seconds", [-1e9, -600, 600, 1e9])
def test_this_machines_clock_decides_nothing(run: History, seconds: float) -> None:
    chain(run, 1, [10, 20, 30, 40])
    age(run, 0.9)
    other = History(Clock(run.store, seconds), run.run)  # type: ignore[arg-type]
    clean(other, 2)
    assert len(names(run)) == 4
    age(run, 0.2)
    clean(other, 2)
    assert len(names(run)) == 2


def test_beside_training_it_ends_when_a_save_or_a_stop_comes(run: History) -> None:
    run.claim({})
    made = chain(run, 1, [10, 20, 30, 40, 50, 60])
    age(run, 25, *[f"{m.name}.json" for m in made[:-1]])
    left = 12

    def busy() -> bool:
        nonlocal left
        left -= 1
        return left <= 0

    retention = Retention(run, 2)
    retention.between_saves(1, made[-1].name, busy, lambda: False)
    assert 2 < len(names(run)) < 6, "begun, and given up in the midst"
    retention.between_saves(1, made[-1].name, lambda: False, lambda: False)
    assert len(names(run)) == 2, "done after the next save, without waiting for ten minutes"


def test_where_saves_follow_each_other_without_a_gap_it_goes_on_beside_them_once_it_is_late(run: History) -> None:
    run.claim({})
    made = chain(run, 1, [10, 20, 30, 40, 50, 60])
    age(run, 25, *[f"{m.name}.json" for m in made[:-1]])
    retention = Retention(run, 2, every_s=0.3)
    retention.between_saves(1, made[-1].name, lambda: True, lambda: False)
    assert len(names(run)) == 6
    time.sleep(0.35)
    retention.between_saves(1, made[-1].name, lambda: True, lambda: True)
    assert len(names(run)) == 6, "a machine that is to go has no time for it"
    retention.between_saves(1, made[-1].name, lambda: True, lambda: False)
    assert len(names(run)) == 2


def test_where_no_save_succeeds_any_more_time_goes_on_all_the_same(run: History) -> None:
    run.claim({})
    made = chain(run, 1, [10, 20, 30, 40, 50, 60])
    retention = Retention(run, 2, settled_s=1.5, every_s=0.0)
    retention.between_saves(1, made[-1].name, lambda: False, lambda: False)
    assert len(names(run)) == 6
    time.sleep(2.0)
    retention.between_saves(1, made[-1].name, lambda: False, lambda: False)
    assert len(names(run)) == 2


def test_a_superseded_copy_cleans_nothing_any_more(run: History) -> None:
    run.claim({})
    run.claim({})
    made = chain(run, 1, [10, 20, 30, 40])
    age(run, 25, *[f"{m.name}.json" for m in made[:-1]])
    Retention(run, 2).between_saves(1, made[-1].name, lambda: False, lambda: False)
    assert len(names(run)) == 4


class Failing:
    def __init__(self, store: Any, error: Exception) -> None:
        self._store, self._error = store, error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def delete(self, key: str) -> None:
        raise self._error


@pytest.mark.parametrize("error", [Unavailable("no answer"), PermissionDenied("lacks s3:DeleteObject"), KeyError("x")])
def test_a_clean_up_that_fails_is_one_warning(run: History, error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    run.claim({})
    made = chain(run, 1, [10, 20, 30, 40])
    age(run, 25, *[f"{m.name}.json" for m in made[:-1]])
    retention = Retention(History(Failing(run.store, error), run.run), 2, every_s=0)  # type: ignore[arg-type]
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            retention.between_saves(1, made[-1].name, lambda: False, lambda: False)
    assert len(caplog.records) == 1
    assert "old checkpoints could not be cleaned up" in caplog.text
    assert "training goes on" in caplog.text


def test_a_run_without_anything_old_costs_two_lists_a_look_and_the_fence(run: History) -> None:
    run.claim({})
    made = chain(run, 1, [10, 20, 30, 40])
    calls: list[str] = []

    class Counting:
        def __getattr__(self, name: str) -> Any:
            calls.append(name)
            return getattr(run.store, name)

    Retention(History(Counting(), run.run), 2).between_saves(1, made[-1].name, lambda: False, lambda: False)  # type: ignore[arg-type]
    assert sorted(calls) == ["list", "list", "list", "stat"]


BRANCHES = st.lists(
    st.tuples(st.integers(1, 4), st.integers(0, 3), st.integers(0, 48), st.sampled_from(["", "", "", "part", "text"])),
    min_size=1,
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(BRANCHES, st.integers(2, 4))
def test_whatever_the_history_a_start_finds_the_same_and_the_next_best_as_before(
    branches: list[tuple[int, int, int, str]], keep: int
) -> None:
    """Random forks, ages and damage: (attempt, which earlier one is the parent, hours old, what is damaged)."""
    with tempfile.TemporaryDirectory() as folder:
        run, root = history(Path(folder)), Path(folder) / "run"
        made: list[Any] = []
        for i, (attempt, back, _, _) in enumerate(branches):
            earlier = [m for m in made if m.attempt <= attempt]
            parent = earlier[-1 - back % len(earlier)].name if earlier else None
            made.append(save(run, attempt, 10 * i + 10, parent, snapshot(10 * i + 10, value=float(i % 3))))
        for manifest, (_, _, hours, damage) in zip(made, branches, strict=True):
            age(run, hours, manifest.name + ".json")
            if damage == "part":
                (root / "parts" / manifest.parts[0].sha256).unlink(missing_ok=True)
            elif damage == "text":
                (root / "checkpoints" / f"{manifest.name}.json").write_bytes(b"{")
        age(run, 25, *keys(run, "parts"))

        def good() -> list[str]:
            left: list[str] = []
            while True:
                try:
                    newest = run.newest_good()
                except Exception:
                    return left
                if newest is None:
                    return left
                left.append(newest.manifest.name)
                (root / "checkpoints" / f"{left[-1]}.json").rename(root / f"{left[-1]}.aside")

        def all_back() -> None:
            for file in root.glob("*.aside"):
                file.rename(root / "checkpoints" / f"{file.stem}.json")

        before = good()
        all_back()
        clean(run, keep)
        after = good()
        all_back()
        assert after[:1] == before[:1]
        assert len(after) >= min(keep, len(before))
        newest = max(m.attempt for m in made)
        young = {
            m.name
            for m, (_, _, hours, _) in zip(made, branches, strict=True)
            if hours < (1 if m.attempt == newest else 24)
        }
        assert young & set(before) <= set(after), "what was whole and young is whole"


def test_what_is_known_of_checkpoints_that_are_gone_is_forgotten(run: History) -> None:
    """A run of months has thousands of them."""
    retention = Retention(run, 2)
    parent = None
    for step in range(10, 100, 10):
        parent = save(run, 1, step, parent).name
        age(run, 2)
        now = store_time(run)
        retention.remove(retention.excess(now))
    retention.excess(now)
    assert sorted(retention._known) == names(run)


def test_names_that_no_checkpoint_has_are_none_and_stay(run: History) -> None:
    """Somebody else's files: their numbers would be those of checkpoints."""
    made = chain(run, 1, [10, 20, 30, 40])
    run.claim({})
    for name in ("checkpoints/0000001-00000050", "checkpoints/000001-000000040", "attempts/0000009"):
        run.store.put(run.key(f"{name}.json"), made[3].to_json())
    age(run, 25)
    assert clean(run, 2) is None
    assert names(run) == ["0000001-00000050", "000001-000000040", "000001-00000030", "000001-00000040"]
    assert run.checkpoints() == [(1, 40), (1, 30)]
    assert run.attempts() == [2]


def test_store_time_is_near_the_stores_own(run: History) -> None:
    assert abs(store_time(run) - time.time()) < 60


def test_one_checkpoint_is_no_checkpoints_to_clean_and_copy(run: History, tmp_path: Path) -> None:
    chain(run, 1, [10])
    _, cleaned = command("clean", "--store", run.store.url, "--run", "run")
    assert "1 checkpoint stays" in cleaned
    code, copied = command("copy", run.store.url, f"file://{tmp_path}/there", "--run", "run")
    assert (code, "/there: 1 checkpoint, " in copied) == (0, True), copied
