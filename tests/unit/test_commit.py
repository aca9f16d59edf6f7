"""What one checkpoint sends, and how a save that is given up ends."""

from __future__ import annotations

import hashlib
import itertools
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from storage import open_store
from storage.errors import Damaged, NoSpace, StoreError, Unavailable
from storage.protocol import ObjectInfo, Source
from storage.retry import Retrying
from tests.checkpoints import commit
from trainer.checkpoint import HostBuffers, Position, restore, take
from trainer.commit import SENDERS, Abandoned, Commit, RunFacts, Save
from trainer.history import History, Superseded
from trainer.job import Task
from trainer.parts import Part, encode
from trainer.retention import Retention
from trainer.saver import STUCK_S, Durable, Saver, durable

FACTS = RunFacts(
    run="run", job="job", attempt=1, steps=100, steps_per_epoch=10, settings={}, machine={}, synthetic=False
)


class HeadOnly(Task):
    """40 MB of frozen weights, and a head of 40 kB that is trained."""

    def __init__(self) -> None:
        self.model = nn.Sequential(nn.Linear(1000, 5000), nn.Linear(5000, 1000), nn.Linear(1000, 10))
        for parameter in self.model[:2].parameters():
            parameter.requires_grad_(False)
        self.optimizers = {"adam": torch.optim.Adam(self.model[2].parameters())}

    def step(self) -> None:
        self.model(torch.randn(4, 1000)).square().mean().backward()
        self.update()


class Counting:
    """A store that counts the bytes put, and may fail."""

    def __init__(self, folder: Path) -> None:
        self.store = open_store(f"file://{folder}")
        self.url = self.store.url
        self.sent = 0
        self.before_put: Callable[[str], None] = lambda key: None

    def put(self, key: str, source: Any, **kwargs: Any) -> Any:
        self.before_put(key)
        info = self.store.put(key, source, **kwargs)
        self.sent += info.size
        return info

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)


def save_of(task: Task, step: int, lines: list[str] | None = None) -> Save:
    return Save(take(task, Position(step=step), HostBuffers()), {}, [], lambda: lines or [])


def unhurried(*, committing: bool = False) -> None:
    pass


@pytest.fixture
def store(tmp_path: Path) -> Counting:
    return Counting(tmp_path)


def committed(store: Counting, task: Task, step: int, before: Commit | None = None) -> Commit:
    fresh = frozenset(ref.sha256 for ref in before.manifest.parts) if before else frozenset()
    parent = before.manifest.name if before else None
    return commit(History(store, "run"), FACTS, save_of(task, step), parent, fresh, unhurried)


def test_a_frozen_backbone_is_sent_once(store: Counting) -> None:
    task = HeadOnly()
    task.step()
    first = committed(store, task, 1)
    assert 40e6 < first.sent < 42e6
    task.step()
    store.sent = 0
    second = committed(store, task, 2, first)
    assert second.sent < 200_000, "the head and its two moments"
    assert store.sent < 220_000, "and a manifest"
    restored = HeadOnly()
    restore(restored, History(store, "run").load(second.manifest))
    assert all(map(torch.equal, restored.model.state_dict().values(), task.model.state_dict().values()))


def test_what_did_not_change_at_all_is_not_sent_again(store: Counting) -> None:
    task = HeadOnly()
    task.step()
    first = committed(store, task, 1)
    assert committed(store, task, 2, first).sent == 0


def test_its_processor_time_is_counted_in_all_its_threads(store: Counting) -> None:
    before = time.process_time(), time.thread_time()
    done = committed(store, HeadOnly(), 1)
    beside = (time.process_time() - before[0]) - (time.thread_time() - before[1])
    assert 0.005 < done.busy_s < 1.1 * beside + 0.01, "40 MB are hashed and written"


def test_a_part_that_should_be_there_and_has_gone_is_sent_again(store: Counting) -> None:
    """A rule of the bucket's for old objects has deleted the backbone, which every later checkpoint would name."""
    task = HeadOnly()
    first = committed(store, task, 1)
    backbone = max(first.manifest.parts, key=lambda ref: ref.size)
    store.store.delete(f"run/parts/{backbone.sha256}")
    second = committed(store, task, 2, first)
    assert second.sent == backbone.size
    History(store, "run").load(second.manifest)


def test_the_weights_hash_is_over_raw_bytes_in_row_major_order_by_name_whatever_parts_they_lie_in(
    store: Counting,
) -> None:
    task = HeadOnly()
    task.model.insert(0, nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last))
    expected = hashlib.sha256()
    for _, tensor in sorted(task.model.state_dict().items()):
        expected.update(tensor.contiguous().numpy().tobytes())
    first = committed(store, task, 1)
    assert first.manifest.weights_sha256 == expected.hexdigest()
    assert len({ref.section for ref in first.manifest.parts}) == 1
    assert len(first.manifest.parts) > 2, "frozen and trained ones, in more than one part"
    assert committed(store, task, 2, first).manifest.weights_sha256 == expected.hexdigest(), (
        "also where nothing is sent"
    )


def test_a_part_that_no_start_could_read_makes_no_checkpoint(store: Counting) -> None:
    """Its name is not a tensor's in this format."""
    task = HeadOnly()
    task.model.register_buffer("__metadata__", torch.zeros(3))
    with pytest.raises(ValueError, match="its metadata are none of Baton's"):
        committed(store, task, 1)
    assert not names(store)


def test_parts_are_let_go_as_they_are_sent(store: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    class Held(bytearray):
        """Bytes whose end can be seen."""

    class Wide(HeadOnly):
        def __init__(self) -> None:
            self.model = nn.Sequential(*(nn.Linear(50, 60, bias=False) for _ in range(60)))
            self.optimizers = {}

    held: list[weakref.ref[Held]] = []
    most = [0]

    def encoding(tensors: Mapping[str, Tensor]) -> Part:
        part = encode(tensors)
        copy = Held(b"".join(part.chunks))
        held.append(weakref.ref(copy))
        most[0] = max(most[0], sum(ref() is not None for ref in held))
        return replace(part, chunks=[memoryview(copy)])

    monkeypatch.setattr("trainer.parts.PART_BYTES", 50 * 60 * 4 + 1000)
    monkeypatch.setattr("trainer.commit.encode", encoding)
    assert len(committed(store, Wide(), 1).manifest.parts) == 60
    assert 0 < most[0] <= SENDERS + 1


def test_metric_lines_go_with_the_checkpoint_that_follows_them(store: Counting) -> None:
    task = HeadOnly()
    done = commit(
        History(store, "run"), FACTS, save_of(task, 1, ['{"a": 1}', '{"b": 2}']), None, frozenset(), unhurried
    )
    assert done.lines == ['{"a": 1}', '{"b": 2}']
    chunk = History(store, "run").read(f"run/metrics/{done.manifest.name}.jsonl", 1000)
    assert chunk == b'{"a": 1}\n{"b": 2}\n'


def test_what_is_given_up_before_its_manifest_never_exists(store: Counting) -> None:
    def given_up(*, committing: bool = False) -> None:
        if committing:
            raise Abandoned

    with pytest.raises(Abandoned):
        commit(History(store, "run"), FACTS, save_of(HeadOnly(), 1), None, frozenset(), given_up)
    assert History(store, "run").checkpoints() == []


# --- the saver


class Hearing:
    def __init__(self, store: Counting) -> None:
        self.durable: list[Commit] = []
        self.superseded: list[Superseded] = []
        self.saver = Saver(
            History(store, "run"), FACTS, None, self.durable.append, self.superseded.append, lambda newest: None
        )


def never() -> float:
    return float("inf")


def save_last(saver: Saver, save: Save, left: Callable[[], float] = never, grace_s: float = 0.0) -> bool:
    return saver.save_now(save, left, grace_s, 5.0, evaluated=False)


def names(store: Counting) -> list[tuple[int, int]]:
    return History(store, "run").checkpoints()


def test_the_save_in_flight_lands_first_when_nobody_hurries(store: Counting) -> None:
    hearing, task = Hearing(store), HeadOnly()
    hearing.saver.start(save_of(task, 1))
    assert save_last(hearing.saver, save_of(task, 2))
    assert names(store) == [(1, 2), (1, 1)]
    assert History(store, "run").manifest("000001-00000002").parent == "000001-00000001"


def test_it_is_given_up_when_only_the_last_one_fits(store: Counting) -> None:
    """The link is fast for the first save and stuck in the second; a measured save takes far less than what is left."""
    hearing, task = Hearing(store), HeadOnly()
    hearing.saver.start(save_of(task, 1))
    assert hearing.saver._flight is not None
    hearing.saver._flight.landed.wait(30)
    stuck, first, on_its_way = threading.Event(), threading.Event(), list[str]()

    def before_put(key: str) -> None:
        if not on_its_way and "parts" in key:
            on_its_way.append(key)
            first.set()
            stuck.wait(30)

    store.before_put = before_put
    task.step()
    hearing.saver.start(save_of(task, 2))
    given_up = hearing.saver._flight
    assert first.wait(10)
    task.step()
    hearing.saver._recent = [3.0]
    assert save_last(hearing.saver, save_of(task, 3), lambda: 4.0)
    stuck.set()
    assert given_up.landed.wait(30)
    assert names(store) == [(1, 3), (1, 1)]
    assert History(store, "run").manifest("000001-00000003").parent == "000001-00000001"
    assert on_its_way[0] not in [info.key for info in store.list("run/parts/")], "what was on its way is called back"


def test_a_superseded_copy_ends_once_what_it_was_sending_is_taken_back(store: Counting) -> None:
    hearing, on_its_way, stuck = Hearing(store), threading.Event(), threading.Event()

    def before_put(key: str) -> None:
        on_its_way.set()
        stuck.wait(30)

    store.before_put = before_put
    hearing.saver.start(save_of(HeadOnly(), 1))
    assert on_its_way.wait(10)
    threading.Timer(0.2, stuck.set).start()
    hearing.saver.take_back(never)
    assert stuck.is_set()
    assert not hearing.saver.busy
    assert list(store.list("run/")) == []


@pytest.mark.parametrize("trouble", [StoreError("reset"), MemoryError()], ids=["store", "defect"])
def test_what_a_save_that_was_given_up_fails_with_is_nobodys_trouble_any_more(
    trouble: BaseException, store: Counting, caplog: pytest.LogCaptureFixture
) -> None:
    class OnePart(HeadOnly):
        """After which it isn't looked whether the save was given up, until the part is sent."""

        def __init__(self) -> None:
            self.model, self.optimizers = nn.Sequential(nn.Linear(3, 2)), {}

    hearing, task = Hearing(store), OnePart()
    stuck, asked = threading.Event(), threading.Event()

    def before_put(key: str) -> None:
        if not asked.is_set():
            asked.set()
            stuck.wait(30)
            raise trouble

    store.before_put = before_put
    hearing.saver.start(save_of(task, 1))
    given_up = hearing.saver._flight
    assert given_up is not None
    assert asked.wait(10)
    hearing.saver._recent = [3.0]
    assert save_last(hearing.saver, save_of(task, 2), lambda: 4.0)
    stuck.set()
    assert given_up.landed.wait(30)
    assert hearing.saver.error is None
    assert "could not be saved" not in caplog.text
    hearing.saver.start(save_of(task, 3))  # which raises a defect that is on record


def test_the_last_save_is_tried_whatever_defect_an_earlier_one_met_and_raises_its_own(
    store: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    hearing, task, fails = Hearing(store), HeadOnly(), [True]

    def encoding(tensors: Mapping[str, Tensor]) -> Part:
        if fails[0]:
            raise MemoryError
        return encode(tensors)

    monkeypatch.setattr("trainer.commit.encode", encoding)
    hearing.saver.start(save_of(task, 1))
    assert hearing.saver._flight is not None
    assert hearing.saver._flight.landed.wait(30)
    fails[0] = False
    assert save_last(hearing.saver, save_of(task, 2))
    assert names(store) == [(1, 2)]
    fails[0] = True
    with pytest.raises(MemoryError):
        save_last(hearing.saver, save_of(task, 3))


def test_with_no_time_left_it_says_no(store: Counting) -> None:
    hearing = Hearing(store)
    assert not save_last(hearing.saver, save_of(HeadOnly(), 1), lambda: 0.0)


def test_a_store_that_comes_back_gets_the_last_save(store: Counting) -> None:
    hearing = Hearing(store)
    failures = [Unavailable("away"), Unavailable("away")]

    def before_put(key: str) -> None:
        if failures:
            raise failures.pop()

    store.before_put = before_put
    assert save_last(hearing.saver, save_of(HeadOnly(), 5))
    assert hearing.saver.error is None
    assert hearing.saver.durable is not None


def test_a_failing_last_save_is_tried_again_for_as_long_as_the_machine_stays(store: Counting) -> None:
    """Not for half of it: that much of the time is left is no reason to give up."""
    hearing = Hearing(store)
    failures = [Unavailable("away") for _ in range(20)]  # several in each try

    def before_put(key: str) -> None:
        if failures:
            raise failures.pop()

    store.before_put = before_put
    assert save_last(hearing.saver, save_of(HeadOnly(), 5), lambda: 0.1)


def test_the_same_trouble_is_warned_of_once_whichever_part_it_befalls(
    store: Counting, caplog: pytest.LogCaptureFixture
) -> None:
    hearing, task = Hearing(store), HeadOnly()

    numbers = itertools.count()

    def before_put(key: str) -> None:
        raise StoreError(f"run/parts/{next(numbers):064x}: no right to write")

    store.before_put = before_put
    errors = set()
    for step in (1, 2, 3):
        task.step()
        hearing.saver.start(save_of(task, step))
        assert hearing.saver._flight is not None
        assert hearing.saver._flight.landed.wait(30)
        errors.add(hearing.saver.error)
    assert len(errors) > 1, "parts with other names"
    assert [r.levelname for r in caplog.records if "could not be saved" in r.getMessage()].count("WARNING") == 1


def test_a_store_that_stays_away_is_given_up_and_the_reason_kept(
    store: Counting, caplog: pytest.LogCaptureFixture
) -> None:
    hearing = Hearing(store)

    def before_put(key: str) -> None:
        raise StoreError("no right to write")

    store.before_put = before_put
    assert not hearing.saver.save_now(save_of(HeadOnly(), 5), never, 0.0, 1.5, evaluated=False)
    assert hearing.saver.error == "no right to write"
    waits = [r.getMessage() for r in caplog.records if "another" in r.getMessage()]
    assert waits == [f"trying for another {waits[0].split()[3]} s to save the last state: no right to write"], "once"


class Slow:
    """A store in which each put takes `takes_s` by the test's clock, one after the other, until it `hangs`."""

    def __init__(self, store: Counting, takes_s: float) -> None:
        self.store, self.takes_s = store, takes_s
        self.now, self.turn = 1e6, threading.Lock()
        self.hangs, self.healed = False, threading.Event()

    def put(self, *args: Any, **kwargs: Any) -> Any:
        with self.turn:
            self.now += self.takes_s
            end = self.now + 3 * STUCK_S
            while self.hangs and self.now < end and not self.healed.wait(0.01):
                self.now += 100
            return self.store.put(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)


def test_where_no_deadline_is_known_a_save_that_moves_is_waited_for_and_one_that_hangs_is_not_for_ever(
    store: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, task = Slow(store, STUCK_S - 100), HeadOnly()
    monkeypatch.setattr("trainer.saver.CLOCK", lambda: slow.now)
    hearing = Hearing(slow)  # type: ignore[arg-type]
    hearing.saver.start(save_of(task, 1))
    assert save_last(hearing.saver, save_of(task, 2))
    assert slow.now > 1e6 + 5 * STUCK_S, "hours by the clock"
    task.step()
    slow.hangs = True
    hearing.saver.start(save_of(task, 3))
    assert not save_last(hearing.saver, save_of(task, 4))
    assert hearing.saver.stuck
    assert hearing.saver.error == "the store has hung for 60 minutes"
    assert not hearing.saver.land(4, never)
    slow.healed.set()
    assert names(store)[-2:] == [(1, 2), (1, 1)]


class Damaging:
    """A store that writes something else in a manifest's place, once, whose reply is lost."""

    def __init__(self, store: Counting) -> None:
        self.store, self.left = store, 1

    def put(self, key: str, source: Any, **kwargs: Any) -> Any:
        if "checkpoints" in key and self.left:
            self.left -= 1
            self.store.put(key, bytes(len(source)), **kwargs)
            raise Unavailable("the reply was lost")
        return self.store.put(key, source, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)


@pytest.mark.parametrize("last", [False, True])
def test_a_manifest_that_came_damaged_costs_its_save_and_the_run_is_still_this_copys(
    store: Counting, *, last: bool
) -> None:
    patient = Retrying(Damaging(store), lambda tried: 9.0, lambda seconds: None)  # type: ignore[arg-type]
    hearing, task = Hearing(patient), HeadOnly()  # type: ignore[arg-type]
    if last:
        assert not hearing.saver.save_now(save_of(task, 1), never, 0.0, 0.0, evaluated=False)
    else:
        hearing.saver.start(save_of(task, 1))
        assert hearing.saver._flight is not None
        assert hearing.saver._flight.landed.wait(30)
    assert hearing.superseded == []
    assert hearing.saver.fault is Damaged
    assert hearing.saver.error is not None
    assert "000001-00000001 came damaged: its manifest" in hearing.saver.error
    if not last:
        assert save_last(hearing.saver, save_of(task, 2)), "the next one has a name of its own"
        newest = History(store, "run").newest_good()
        assert newest is not None
        assert newest.manifest.step == 2


def test_another_state_in_this_attempts_name_is_an_heirs(store: Counting) -> None:
    task = HeadOnly()
    committed(store, task, 1)
    task.step()
    hearing = Hearing(store)
    assert not save_last(hearing.saver, save_of(task, 1))
    assert [gone.attempt for gone in hearing.superseded] == [1]


def test_a_final_checkpoint_must_hold_its_evaluation(store: Counting) -> None:
    """One of the run's last step, saved by an attempt before without its evaluation, is not the end."""
    before = committed(store, HeadOnly(), 5)
    hearing = Hearing(store)
    hearing.saver = Saver(
        History(store, "run"),
        RunFacts(run="run", job="job", attempt=2, steps=5, steps_per_epoch=5, settings={}, machine={}, synthetic=False),
        durable(before.manifest),
        hearing.durable.append,
        hearing.superseded.append,
        lambda newest: None,
    )
    save = save_of(HeadOnly(), 5)
    assert save_last(hearing.saver, save), "without evaluation it is durable"
    assert hearing.durable == []
    evaluated = Save(save.snapshot, {"step": 5, "accuracy": 0.5}, [], list)
    assert hearing.saver.save_now(evaluated, never, 0.0, 5.0, evaluated=True)
    assert names(store) == [(2, 5), (1, 5)]


def test_a_tensor_changed_after_its_save_began_is_saved_as_it_was(store: Counting) -> None:
    """The stall is the copy alone; training goes on while the copy is sent."""
    task, hearing = HeadOnly(), Hearing(store)
    before: Tensor = task.model[2].weight.detach().clone()
    hearing.saver.start(save_of(task, 1))
    with torch.no_grad():
        task.model[2].weight.fill_(7.0)
    assert hearing.saver._flight is not None
    assert hearing.saver._flight.landed.wait(30)
    restored = HeadOnly()
    restore(restored, History(store, "run").newest_good())
    assert torch.equal(restored.model[2].weight, before)


def test_each_save_copies_into_the_memory_of_the_first() -> None:
    """Memory that is made anew for each costs more than the copy, and makes the process grow."""
    task, buffers = HeadOnly(), HostBuffers()
    task.step()
    task.model.insert(0, nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last))
    where = []
    for step in (1, 2):
        taken = take(task, Position(step=step), buffers)
        where.append({name: tensor.data_ptr() for name, tensor in {**taken.model, **taken.optimizer}.items()})
    assert where[0] == where[1]
    assert any("exp_avg" in name for name in where[0])
    assert not {tensor.data_ptr() for tensor in task.model.state_dict().values()} & {*where[0].values()}


def test_when_another_machine_saved_is_told_by_this_ones_clock(store: Counting) -> None:
    before = committed(store, HeadOnly(), 5).manifest
    theirs = replace(before, ledger=[{"attempt": 1, "tally": {"clock_ahead_s": 200.0}}])
    assert durable(theirs, -100.0).at == pytest.approx(theirs.time - 300)
    for unknown in (durable(theirs), durable(theirs, None), durable(before, -100.0)):
        assert unknown.at == theirs.time


def test_a_save_of_the_very_state_that_is_last_is_not_given_up_for_it(store: Counting) -> None:
    begun: list[str] = []

    def before_put(key: str) -> None:
        begun.append(key)
        time.sleep(0.5 if "/parts/" in key else 0)

    store.before_put = before_put
    saver = Saver(History(store, "run"), FACTS, None, lambda _: None, lambda _: None, lambda _: None)
    saver._recent = [100.0]  # by what saves took so far, only one more fits in the 105 s that are left
    task = HeadOnly()
    saver.start(save_of(task, 1))
    time.sleep(0.25)
    assert saver.save_now(save_of(task, 1), lambda: 105.0, 0.0, 60.0, evaluated=False)
    assert len(begun) == len(set(begun)), "each object once"


def test_a_save_whose_thread_the_system_refuses_is_no_save_in_flight(
    store: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container's limit on processes is reached at that moment: the start of one thread is made to fail."""
    hearing, task = Hearing(store), HeadOnly()

    def refused(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refused)
        with pytest.raises(RuntimeError, match="can't start"):
            hearing.saver.start(save_of(task, 1))
    assert not hearing.saver.busy
    assert save_last(hearing.saver, save_of(task, 1))
    assert names(store) == [(1, 1)]


def test_a_full_store_is_cleaned_up_as_its_checkpoints_become_old(tmp_path: Path) -> None:
    class Full(Counting):
        def put(self, key: str, source: Source, *, if_absent: bool = False) -> ObjectInfo:
            if "/parts/" in key and sum(info.size for info in self.list("run/parts/")) > 100_000:
                raise NoSpace("no space left for it")
            return super().put(key, source, if_absent=if_absent)

    class Small(HeadOnly):
        def __init__(self) -> None:
            self.model = nn.Sequential(nn.Linear(50, 60))
            self.optimizers = {}

    store = Full(tmp_path)
    run, task = History(store, "run"), Small()
    run.claim({})
    retention = Retention(run, 2, settled_s=1.0, every_s=0.0)

    def between(newest: Durable) -> None:
        retention.between_saves(1, newest.name, lambda: False, lambda: False)

    saver = Saver(run, FACTS, None, lambda _: None, lambda _: None, between)
    refused = 0
    for step in range(1, 100):
        with torch.no_grad():
            next(task.model.parameters()).add_(1)  # no part is like another
        saver.start(save_of(task, step))
        assert saver._flight is not None
        saver._flight.landed.wait()
        refused += saver.error is not None
        if refused and saver.error is None:
            break
        time.sleep(0.1 if refused else 0)
    assert refused, "it was never full"
    assert saver.error is None, "room came by itself"
    assert len(names(store)) < step - refused


def test_a_copy_whose_run_was_deleted_and_begun_anew_leaves_no_metric_line_in_it(store: Counting) -> None:
    old, heir = History(store, "run"), History(store, "run")
    old.claim({})
    store.store.delete("run/attempts/000001.json")
    heir.claim({})
    save = save_of(HeadOnly(), 1, ['{"step": 1}'])
    with pytest.raises(Superseded):
        commit(old, FACTS, save, None, frozenset(), unhurried)
    assert list(store.store.list("run/metrics/")) == []


def test_a_commit_whose_reply_was_lost_is_the_next_ones_parent(
    store: Counting, caplog: pytest.LogCaptureFixture
) -> None:
    """Written or not, the store said nothing: it is made sure of before the next."""
    hearing, task = Hearing(store), HeadOnly()

    def save(step: int, replies: str) -> None:
        def put(key: str, source: Any, **kwargs: Any) -> Any:
            if "checkpoints" in key and replies != "come":
                if replies == "are lost":
                    store.store.put(key, source, **kwargs)
                raise Unavailable("no answer")
            return store.store.put(key, source, **kwargs)

        store.put = put  # type: ignore[method-assign]
        task.step()
        hearing.saver.start(save_of(task, step, [str(step)]))
        assert hearing.saver._flight is not None
        assert hearing.saver._flight.landed.wait(30)

    save(1, "come")
    for step, replies in ((2, "are lost"), (3, "come"), (4, "don't"), (5, "don't"), (6, "come")):
        save(step, replies)
    made = [1, 2, 3, 4, 6]  # 5 had no turn, for nobody knew yet of 4
    assert names(store) == [(1, step) for step in reversed(made)]
    for before, step in itertools.pairwise(made):
        assert History(store, "run").manifest(f"000001-{step:08d}").parent == f"000001-{before:08d}"
    assert [done.manifest.step for done in hearing.durable] == made
    again = [record.args for record in caplog.records if "works again" in record.msg]
    assert again == [(3,), (6,)], "the state that was to be saved, and not the one before it"
    assert hearing.saver.error is None


def test_one_whose_manifest_is_refused_or_damaged_keeps_no_later_one_from_its_place(store: Counting) -> None:
    hearing, task = Hearing(store), HeadOnly()

    def save(step: int) -> None:
        task.step()
        hearing.saver.start(save_of(task, step))
        assert hearing.saver._flight is not None
        assert hearing.saver._flight.landed.wait(30)

    def lost(key: str) -> None:
        if key.endswith("2.json"):
            raise Unavailable("no answer")

    save(1)
    for unreadable in (b"{", None):
        store.before_put = lost
        save(2 if unreadable else 12)
        assert hearing.saver.error is not None
        store.before_put = lambda key: None
        if unreadable:
            store.store.put("run/checkpoints/000001-00000002.json", unreadable)
        else:
            (Path(store.url.removeprefix("file://")) / "run/checkpoints/000001-00000012.json").mkdir()
        save(3 if unreadable else 13)
        assert hearing.saver.error is None
    assert [done.manifest.step for done in hearing.durable] == [1, 3, 13]
    run = History(store, "run")
    assert [run.manifest(f"000001-{step:08d}").parent for step in (3, 13)] == ["000001-00000001", "000001-00000003"]


def test_a_state_saved_anew_with_its_evaluation_has_it(store: Counting) -> None:
    """Its save before, without one, had no answer and was not written."""
    hearing, task = Hearing(store), HeadOnly()

    def refuse(key: str) -> None:
        if "checkpoints" in key:
            raise Unavailable("no answer")

    for before_put, metrics in ((refuse, {}), (lambda key: None, {"step": 1, "accuracy": 0.5})):
        store.before_put = before_put
        hearing.saver.start(replace(save_of(task, 1), metrics=metrics))
        assert hearing.saver._flight is not None
        assert hearing.saver._flight.landed.wait(30)
    assert History(store, "run").manifest("000001-00000001").metrics == {"step": 1, "accuracy": 0.5}
    assert [done.manifest.step for done in hearing.durable] == [1]
