"""What every store promises. A store's own tests supply only how to open it; see test_stores.py.

Where a promise is about a process (its death, its memory, its races with others), a real second process opens
the same place by the store's URL.
"""

from __future__ import annotations

import hashlib
import io
import os
import random
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage import Store
from storage.errors import AlreadyExists, InvalidKey, NotFound, Unavailable
from storage.protocol import MAX_KEY_BYTES, SCRATCH

REPOSITORY = Path(__file__).resolve().parents[2]
MIB = 1 << 20
DAY_S = 24 * 3600.0
SOAK = "BATON_SOAK_SEED" in os.environ


@dataclass(frozen=True)
class Place:
    """Where the store under test keeps its objects: empty at first, this test's alone.

    `open` gives a new `Store` there each time, as another machine would. The other fields may be lowered where
    they cost too much. `make soak` runs the whole counts, other runs the lower ones.
    """

    open: Callable[[], Store]
    big_mib: int = 300
    many_keys: int = 2500
    claim_rounds: int = 100 if SOAK else 15
    kills: int = 30 if SOAK else 6
    race_s: float = 1.0 if SOAK else 0.5
    open_uploads: Callable[[], list[str]] = list  # begun and neither completed nor aborted, where a store can tell


def read(store: Store, key: str, byte_range: tuple[int, int] | None = None) -> bytes:
    sink = io.BytesIO()
    store.get(key, sink, byte_range=byte_range)
    return sink.getvalue()


def names(store: Store, prefix: str = "", delimiter: str | None = None) -> list[str]:
    return [info.key for info in store.list(prefix, delimiter=delimiter)]


def fill(store: Store, keys: list[str]) -> None:
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda key: store.put(key, key.encode()), keys))


def spawn(code: str, *args: object, **variables: str) -> subprocess.Popen[str]:
    """A second process running `code`, in which `args` are sys.argv[1:]."""
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, env={**os.environ, **variables})


def finish(process: subprocess.Popen[str], timeout: float = 60) -> str:
    """Its output, once it has ended well."""
    try:
        out, _ = process.communicate(timeout=timeout)
    finally:
        process.kill()
    assert process.returncode == 0, out
    return out


def in_utf8_order(keys: list[str]) -> list[str]:
    return sorted(keys, key=lambda key: key.encode())


# Keys that differ in what sorts just before and after "/", in case, length and script. Each ends in a file's
# name that no folder bears, for in a folder a key can't also be the folder of another.
_FOLDER = st.sampled_from(
    ["a", "a.b", "a-b", "a b", "a0", "A", "ab", "é", "e\u0301", "日本", "\U0001f3c3", "\uffee", "%2F"]
)
_LEAF = st.sampled_from(["x", "x.json", " x", "x!", "X", "x0", "ö", "\U0001f600", "#", "?&=+"]).map(lambda n: f"{n}~")
KEYS = st.builds(lambda folders, leaf: "/".join([*folders, leaf]), st.lists(_FOLDER, max_size=3), _LEAF)

MALFORMED = [
    "",
    "/",
    "/absolute",
    "folder/",
    "a//b",
    ".",
    "..",
    "../out",
    "a/../../out",
    "a/./b",
    "a/..",
    "back\\slash",
    "new\nline",
    "nul\0",
    "del\x7f",
    "c1\x85",
    f"{SCRATCH}mine",
    f"a/{SCRATCH}mine/b",
    "ends-in-dot./b",
    "ends-in-dot.",
    "\ud800",
    "\udcff",
    "x" * 256,
    "é" * 128,
    "/".join(["x" * 99] * 10),
]


class StoreContract:
    """Subclass it with a fixture `place`."""

    @pytest.fixture
    def place(self) -> Place:
        raise NotImplementedError

    @pytest.fixture
    def store(self, place: Place) -> Store:
        return place.open()

    # --- the time

    @pytest.mark.parametrize("off", [-DAY_S, DAY_S])
    def test_an_age_is_by_the_stores_clock_whatever_this_machines_says(
        self, off: float, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        place.open().put("a", b"x")
        right = time.time
        monkeypatch.setattr(time, "time", lambda: right() + off)
        info = place.open().get("a", io.BytesIO(), byte_range=(0, 100))
        assert info.answered is not None
        assert 0 <= info.age_s < 60

    # --- what is put is what one gets

    @pytest.mark.parametrize(
        "source",
        [
            b"some bytes",
            bytearray(b"some bytes"),
            memoryview(b"some bytes"),
            [b"some ", bytearray(b"by"), memoryview(b"tes")],
            (b"", b"some", b"", b" bytes", b""),
        ],
        ids=["bytes", "bytearray", "memoryview", "chunks", "empty chunks between"],
    )
    def test_what_is_put_is_what_one_gets(self, store: Store, place: Place, source: object) -> None:
        told = store.put("run/object", source)  # type: ignore[arg-type]
        assert (told.key, told.size) == ("run/object", 10)
        for opened in (store, place.open()):
            sink = io.BytesIO()
            info = opened.get("run/object", sink)
            assert sink.getvalue() == b"some bytes"
            assert (info.key, info.size) == ("run/object", 10)
            assert opened.stat("run/object") == info
            assert abs(told.modified - info.modified) < 5  # by the same clock, but S3 doesn't tell a put the very time

    @pytest.mark.parametrize("dtype", ["uint8", "bool", "float16", "float32", "float64", "int64"])
    @pytest.mark.parametrize("shape", [(), (7,), (0,), (3, 0, 2), (5, 4, 3)], ids=str)
    def test_an_arrays_memory_is_put_as_it_lies(self, store: Store, dtype: str, shape: tuple[int, ...]) -> None:
        array = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
        info = store.put("array", [b"<", memoryview(array), b">"])
        assert info.size == array.nbytes + 2
        assert read(store, "array") == b"<" + array.tobytes() + b">"

    @pytest.mark.parametrize("source", [b"", [], [b"", b""]], ids=["bytes", "no chunk", "empty chunks"])
    def test_an_empty_object_is_an_object(self, store: Store, source: object) -> None:
        store.put("empty", source)  # type: ignore[arg-type]
        assert read(store, "empty") == b""
        assert store.stat("empty").size == 0
        assert names(store) == ["empty"]
        with pytest.raises(AlreadyExists):
            store.put("empty", b"more", if_absent=True)

    def test_the_callers_memory_is_not_changed_nor_kept(self, store: Store) -> None:
        memory = bytearray(b"before")
        store.put("object", memory)
        memory[:] = b"after!"
        memory.extend(b"grows, which Python refuses while a view of it is held")
        assert read(store, "object") == b"before"

    def test_a_big_object_is_streamed_both_ways(self, place: Place) -> None:
        """Its memory never holds it whole: the peak grows by less than 64 MiB beyond what the caller gave."""
        out = finish(spawn(_BIG, place.open().url, place.big_mib), timeout=300)
        expected, got, size, put_growth, get_growth = out.split()
        assert got == expected
        assert int(size) == place.big_mib * MIB
        print(f"peak growth: put {int(put_growth) // 1024} MiB, get {int(get_growth) // 1024} MiB")
        assert int(put_growth) < 64 * 1024
        assert int(get_growth) < 64 * 1024

    def test_threads_that_have_ended_leave_no_file_open(self, store: Store) -> None:
        """Each save has new ones, and a run makes thousands of saves."""

        def work() -> None:
            store.put("object", b"some bytes")
            store.stat("object")
            assert read(store, "object") == b"some bytes"
            assert names(store) == ["object"]
            store.delete("object")

        def in_threads(count: int) -> int:
            for _ in range(count):
                with ThreadPoolExecutor(1) as pool:
                    pool.submit(work).result()
            return len(os.listdir("/proc/self/fd"))

        before = in_threads(3)
        assert in_threads(30) < before + 10

    def test_a_new_object_replaces_the_old_whole(self, store: Store) -> None:
        store.put("object", b"a much longer old one")
        assert store.put("object", b"new").size == 3
        assert read(store, "object") == b"new"
        assert names(store) == ["object"]

    def test_modified_is_the_time_of_the_last_put(self, store: Store) -> None:
        before = time.time()
        first = store.put("object", b"1").modified
        assert before - 5 < first < time.time() + 5  # a store's clock may differ a little from this one's
        time.sleep(1.1)  # the coarsest stores tell whole seconds
        second = store.put("object", b"2").modified
        assert second > first
        kept = store.stat("object").modified
        assert first < kept < second + 5
        assert [info.modified for info in store.list("")] == [kept]

    # --- a reader sees one whole object

    def test_a_reader_never_sees_a_mix_nor_an_absence_while_it_is_replaced(self, store: Store, place: Place) -> None:
        def version(n: int) -> list[bytes]:
            return [bytes([n % 251]) * 100_000] * 5 + [bytes([n % 251]) * n]

        store.put("object", version(1))
        done = threading.Event()
        seen: Counter[int] = Counter()

        def look() -> None:
            mine = place.open()
            while not done.is_set():
                body = read(mine, "object")
                assert len(set(body)) == 1, "a mix of two versions"
                assert len(body) == 500_000 + body[0], "a piece of a version"
                assert mine.stat("object").size > 500_000
                assert names(mine) == ["object"]
                seen[body[0]] += 1

        with ThreadPoolExecutor(3) as pool:
            readers = [pool.submit(look) for _ in range(3)]
            try:
                began, n = time.monotonic(), 1
                while not any(reader.done() for reader in readers):
                    raced_s = time.monotonic() - began
                    if raced_s > 30 or (raced_s > place.race_s and len(seen) > 1):
                        break  # a busy machine needs longer until there was a race at all
                    n = n % 250 + 1
                    store.put("object", version(n))
            finally:
                done.set()
            for reader in readers:
                reader.result()
        assert len(seen) > 1, "no reader saw a replacement: the test shows nothing"

    @pytest.mark.parametrize("how", ["replaced", "deleted"])
    def test_what_is_read_while_its_object_is_replaced_or_deleted_is_the_old_whole_or_an_error(
        self, store: Store, place: Place, how: str
    ) -> None:
        """It has more parts than are read ahead; from the sink, so that it comes when the first bytes are there."""
        parts = [random.Random(n).randbytes(8 * MIB) for n in range(7)]
        store.put("object", parts)
        other = place.open()

        class Meddling(io.BytesIO):
            def write(self, data: Any) -> int:
                if not self.tell():
                    other.put("object", [parts[0], *parts[:0:-1]]) if how == "replaced" else other.delete("object")
                return super().write(data)

        sink, told = Meddling(), (Unavailable, NotFound) if how == "deleted" else Unavailable
        try:
            store.get("object", sink)
        except told:
            assert len(sink.getvalue()) < 56 * MIB
        else:
            assert len(sink.getvalue()) == 56 * MIB
        assert b"".join(parts).startswith(sink.getvalue())
        assert names(store) == (["object"] if how == "replaced" else [])

    def test_of_two_puts_at_once_one_is_there_whole(self, store: Store) -> None:
        bodies = [bytes([n]) * (200_000 + n) for n in range(4)]
        for _ in range(10):
            with ThreadPoolExecutor(4) as pool:
                list(pool.map(lambda body: store.put("object", [body[:50_000], body[50_000:]]), bodies))
            assert read(store, "object") in bodies
        assert names(store) == ["object"]

    def test_a_writer_killed_at_any_moment_leaves_whole_objects_or_none(self, place: Place) -> None:
        """kill -9, many times, at random moments of a real writer, each second time of one of 30 MB, which go in parts;
        what it leaves is old, new or nothing, and at most the one upload that it was at, which nobody sees."""
        seed = random.randrange(1 << 32)
        print(f"seed {seed}")
        moments = random.Random(seed)
        store = place.open()
        cut_short = 0
        for n in range(place.kills):
            repeats = 300 if n % 2 else 30
            writer = spawn(_WRITER, store.url, n, repeats)
            assert writer.stdout is not None
            assert writer.stdout.readline() == "writing\n"
            time.sleep(moments.uniform(0, 0.4 if n % 2 else 0.08))
            writer.send_signal(signal.SIGKILL)
            last = writer.communicate()[0].split()
            cut_short += bool(last) and last[-1] == "put"
            for info in store.list(""):
                sink = io.BytesIO()
                found = store.get(info.key, sink)  # what was sent whole before the kill may replace what was listed
                body = sink.getvalue()
                assert len(body) == found.size, found
                assert len(body) in (3_000_000, 30_000_000), info
                assert body == body[:1] * len(body), f"{info.key} is a mix"
                assert SCRATCH not in info.key
                if info.key.startswith("new/"):
                    store.delete(info.key)
            assert set(names(store)) <= {"same", *(f"new/{m}-{i}" for m in range(n + 1) for i in range(1000))}
            assert len(place.open_uploads()) <= n // 2 + 1
        assert cut_short > place.kills // 3, f"only {cut_short} kills came in the midst of a put"
        print(f"left for the bucket's rule: {place.open_uploads()}")
        store.put("same", b"a later writer is not hindered")
        assert read(store, "same") == b"a later writer is not hindered"

    # --- created once

    def test_create_if_absent_refuses_what_is_there_and_leaves_it(self, store: Store) -> None:
        info = store.put("claim", b"first", if_absent=True)
        assert (info.key, info.size) == ("claim", store.stat("claim").size)
        with pytest.raises(AlreadyExists) as caught:
            store.put("claim", b"second", if_absent=True)
        assert isinstance(caught.value, FileExistsError)
        assert "claim" in str(caught.value)
        assert read(store, "claim") == b"first"
        assert names(store) == ["claim"]
        store.delete("claim")
        store.put("claim", b"third", if_absent=True)
        assert read(store, "claim") == b"third"

    def test_of_many_claims_at_once_exactly_one_wins(self, place: Place) -> None:
        claimants = 32
        stores = [place.open() for _ in range(claimants)]
        together = threading.Barrier(claimants, timeout=60)

        def claim(n: int) -> list[str]:
            outcomes = []
            for i in range(place.claim_rounds):
                together.wait()
                try:
                    stores[n].put(f"claims/{i:06}", f"{n}".encode(), if_absent=True)
                    outcomes.append("won")
                except AlreadyExists:
                    outcomes.append("lost")
                except Exception as e:  # so that the others don't wait for this one
                    outcomes.append(repr(e))
            return outcomes

        with ThreadPoolExecutor(claimants) as pool:
            outcomes = list(pool.map(claim, range(claimants)))
        assert {outcome for mine in outcomes for outcome in mine} == {"won", "lost"}
        for i in range(place.claim_rounds):
            winners = [n for n in range(claimants) if outcomes[n][i] == "won"]
            assert len(winners) == 1, f"round {i}"
            assert read(stores[0], f"claims/{i:06}") == f"{winners[0]}".encode()
        assert len(names(stores[0])) == place.claim_rounds

    def test_of_claims_from_many_processes_exactly_one_wins(self, place: Place) -> None:
        store, rounds = place.open(), 3 * place.claim_rounds
        start = time.time() + 1.5
        claimants = [spawn(_CLAIMANT, store.url, n, rounds, start) for n in range(8)]
        won = Counter(i for claimant in claimants for i in map(int, finish(claimant, 300).split()))
        assert won == Counter(range(rounds))

    # --- ranges

    @pytest.mark.parametrize(
        ("byte_range", "expected"),
        [
            ((0, 3), b"012"),
            ((3, 7), b"3456"),
            ((0, 10), b"0123456789"),
            ((7, 99), b"789"),
            ((9, 10), b"9"),
            ((4, 4), b""),
            ((0, 0), b""),
            ((10, 20), b""),
            ((50, 60), b""),
        ],
        ids=str,
    )
    def test_a_range_gives_the_bytes_that_lie_in_it(
        self, store: Store, byte_range: tuple[int, int], expected: bytes
    ) -> None:
        store.put("object", b"0123456789")
        sink = io.BytesIO()
        info = store.get("object", sink, byte_range=byte_range)
        assert sink.getvalue() == expected
        assert info.size == 10, "the object's size, not the range's"

    def test_ranges_of_an_empty_object_are_empty(self, store: Store) -> None:
        store.put("empty", b"")
        assert read(store, "empty", (0, 5)) == b""

    def test_ranges_join_to_the_whole(self, store: Store) -> None:
        body = random.Random(1).randbytes(3 * MIB + 17)
        store.put("object", body)
        step = MIB - 5
        assert b"".join(read(store, "object", (i, i + step)) for i in range(0, len(body), step)) == body

    # --- absence

    @pytest.mark.parametrize("key", ["missing", "no/such/folder", "object/below"])
    def test_a_missing_object_is_not_found(self, store: Store, key: str) -> None:
        store.put("object", b"")
        sink = io.BytesIO()
        for call in (
            lambda: store.stat(key),
            lambda: store.get(key, sink),
            lambda: store.get(key, sink, byte_range=(0, 1)),
        ):
            with pytest.raises(NotFound) as caught:
                call()
            assert isinstance(caught.value, FileNotFoundError)
            assert key in str(caught.value)
        assert sink.getvalue() == b""

    def test_a_prefix_of_keys_is_no_object(self, store: Store) -> None:
        store.put("run/parts/1", b"")
        for call in (lambda: store.stat("run/parts"), lambda: store.get("run/parts", io.BytesIO())):
            with pytest.raises(NotFound):
                call()
        store.delete("run/parts")
        assert names(store) == ["run/parts/1"]

    def test_deleting_what_is_not_there_is_fine(self, store: Store) -> None:
        store.delete("never/was")
        store.put("object", b"")
        store.delete("object/below")
        assert names(store) == ["object"]
        store.delete("object")
        store.delete("object")
        assert names(store) == []
        with pytest.raises(NotFound):
            store.stat("object")

    # --- lists

    def test_an_empty_store_lists_nothing(self, store: Store) -> None:
        for prefix in ("", "run", "run/", "run/checkpoints/0"):
            assert names(store, prefix) == []
            assert names(store, prefix, "/") == []

    def test_thousands_of_keys_come_once_each_in_the_order_of_their_utf8(self, store: Store, place: Place) -> None:
        shuffled = random.Random(2)
        words = ["a", "a b", "a.b", "a-b", "é", "日本 語", "z", "\U0001f3c3", "\uffee", "A"]
        keys = [f"{words[i % 10]}/{words[i // 10 % 10]}{i}" for i in range(place.many_keys)]
        shuffled.shuffle(keys)
        fill(store, keys)
        listed = list(store.list(""))
        assert [info.key for info in listed] == in_utf8_order(keys)
        assert all(info.size == len(info.key.encode()) for info in listed)
        assert all(abs(info.modified - time.time()) < 600 for info in listed)
        for word in words:
            mine = in_utf8_order([key for key in keys if key.startswith(f"{word}/")])
            assert names(store, f"{word}/") == mine
        assert names(store, "", "/") == in_utf8_order([f"{word}/" for word in words])

    def test_what_list_tells_is_what_stat_tells(self, store: Store) -> None:
        for n in range(5):
            store.put(f"run/{n}", bytes(n))
        assert [store.stat(info.key) for info in store.list("run/")] == list(store.list("run/"))

    @settings(
        max_examples=30,
        deadline=None,
        # differing_executors: each store's class calls it, and without a database none sees another's examples
        suppress_health_check=[
            HealthCheck.function_scoped_fixture,
            HealthCheck.too_slow,
            HealthCheck.differing_executors,
        ],
        database=None,
    )
    @given(keys=st.sets(KEYS, max_size=12), cut=st.integers(0, 12), at=st.integers(0))
    def test_a_list_holds_just_the_keys_with_the_prefix(self, place: Place, keys: set[str], cut: int, at: int) -> None:
        """Against a model: sets of strings, sorted by their UTF-8; the prefix may end in the midst of a name."""
        store, here = place.open(), f"{uuid.uuid4().hex}/"
        fill(store, [here + key for key in keys])
        prefix = here + (in_utf8_order(list(keys))[at % len(keys)][:cut] if keys else "")
        mine = [here + key for key in keys if (here + key).startswith(prefix)]
        assert names(store, prefix) == in_utf8_order(mine)
        level = set()
        for key in mine:
            rest = key.removeprefix(prefix)
            level.add(prefix + rest.partition("/")[0] + "/" if "/" in rest else key)
        listed = list(store.list(prefix, delimiter="/"))
        assert [info.key for info in listed] == in_utf8_order(list(level))
        assert all(info.size == 0 for info in listed if info.is_prefix)

    def test_a_prefix_goes_with_its_last_object(self, store: Store) -> None:
        store.put("run/parts/deep/1", b"")
        store.put("other/1", b"")
        assert names(store, "", "/") == ["other/", "run/"]
        store.delete("run/parts/deep/1")
        assert names(store, "", "/") == ["other/"]
        assert names(store, "run/", "/") == []

    def test_a_list_that_is_given_up_early_holds_nothing_open(self, store: Store) -> None:
        fill(store, [f"run/{folder}/{n}" for folder in range(5) for n in range(5)])
        for take in (0, 1, 7):
            listing = store.list("")
            for _ in range(take):
                next(listing)
            listing.close()  # type: ignore[attr-defined]
        assert len(names(store)) == 25

    def test_a_list_shows_what_stays_while_others_come_and_go(self, store: Store, place: Place) -> None:
        stay = [f"run/{folder}/stay{n:02}" for folder in "ace" for n in range(20)]
        fill(store, stay)
        done = threading.Event()

        def come_and_go(n: int) -> None:
            i = 0
            while not done.is_set():
                i += 1
                passing = [f"run/{folder}/passing{n}-{i}" for folder in "abcde"]
                for key in passing:
                    store.put(key, b"")
                store.put(stay[i % len(stay)], f"{i}".encode())  # one that is replaced is never missed
                for key in passing:
                    store.delete(key)

        with ThreadPoolExecutor(2) as pool:
            churn = [pool.submit(come_and_go, n) for n in range(2)]
            try:
                end, looks = time.monotonic() + place.race_s, 0
                while (time.monotonic() < end or looks < 3) and not any(c.done() for c in churn):
                    listed = names(store, "run/")
                    looks += 1
                    assert [key for key in listed if "stay" in key] == stay
                    assert listed == in_utf8_order(listed)
                    assert not any(SCRATCH in key for key in listed)
                    assert {"run/a/", "run/c/", "run/e/"} <= set(names(store, "run/", "/"))
            finally:
                done.set()
            for c in churn:
                c.result()

    def test_only_a_slash_delimits(self, store: Store) -> None:
        for delimiter in ("", "-", "//"):
            with pytest.raises(ValueError, match="delimiter"):
                names(store, "", delimiter)

    # --- keys

    @pytest.mark.parametrize("key", MALFORMED, ids=lambda key: ascii(key)[:30])
    def test_a_key_that_not_every_store_can_hold_is_refused_by_every_method(self, store: Store, key: str) -> None:
        sink = io.BytesIO()
        for call in (
            lambda: store.put(key, b""),
            lambda: store.put(key, b"", if_absent=True),
            lambda: store.get(key, sink),
            lambda: store.get(key, sink, byte_range=(0, 1)),
            lambda: store.stat(key),
            lambda: store.delete(key),
        ):
            with pytest.raises(InvalidKey) as caught:
                call()
            assert isinstance(caught.value, ValueError)
        assert names(store) == []

    @pytest.mark.parametrize(
        "prefix",
        ["/", "/a", "../", "../out", "a/../b", "a//", "a/./", "a\\", "a\n", "\ud800", f"a/{SCRATCH}"],
        ids=ascii,
    )
    def test_a_prefix_that_climbs_out_or_can_start_no_key_is_refused(self, store: Store, prefix: str) -> None:
        store.put("a/b", b"")
        for delimiter in (None, "/"):
            with pytest.raises(InvalidKey):
                names(store, prefix, delimiter)

    @pytest.mark.parametrize(
        "key",
        [
            *(
                "..a/...b",
                ".hidden",
                "a b/c d",
                " ",
                "~",
                "日本/語",
                "e\u0301",
                "%2e%2e/%2F",
                "a?b#c&d=e+f",
                "*",
                "CON",
            ),
            "x" * 255,
            "/".join(["é" * 50] * 8),
        ],
        ids=lambda key: ascii(key)[:30],
    )
    def test_an_odd_but_legal_key_is_held_as_it_is_written(self, store: Store, key: str) -> None:
        assert len(key.encode()) <= MAX_KEY_BYTES
        store.put(key, b"odd")
        assert read(store, key) == b"odd"
        assert store.stat(key).key == key
        assert names(store) == [key]
        store.delete(key)
        assert names(store) == []

    def test_keys_that_differ_only_in_case_or_in_unicode_form_are_two(self, store: Store) -> None:
        keys = ["RUN/a", "Run/a", "run/A", "run/a", "\u00e9", "e\u0301"]
        fill(store, keys)
        assert names(store) == in_utf8_order(keys)
        assert all(read(store, key) == key.encode() for key in keys)

    # --- whose error it is

    def test_what_the_sink_raises_is_not_taken_for_the_stores_own(self, store: Store) -> None:
        """A full disk under the sink, told as the store's NotFound, would count as proven absence."""
        store.put("small", b"some bytes")
        store.put("big", [bytes(8 * MIB)] * 4)

        class Broken(io.BytesIO):
            def write(self, data: Any) -> int:
                if self.tell() == takes:
                    raise error
                return super().write(data[:1])

        for error in (FileNotFoundError("the sink's"), PermissionError("the sink's"), OSError(28, "the sink's")):
            for takes in (0, 2):
                with pytest.raises(OSError) as caught:  # noqa: PT011
                    store.get("big" if takes else "small", Broken())
                assert caught.value is error

    @pytest.mark.parametrize("beginning", [[b"a beginning"], [bytes(8 * MIB)] * 3], ids=["small", "big"])
    def test_what_the_source_raises_passes_and_leaves_nothing(
        self, store: Store, place: Place, beginning: list[bytes]
    ) -> None:
        class Broken(list):  # type: ignore[type-arg]
            def __iter__(self) -> Iterator[bytes]:
                yield from beginning
                raise error

        for error in (FileNotFoundError("the source's"), ValueError("the source's"), KeyboardInterrupt("now")):
            with pytest.raises(type(error)) as caught:
                store.put("object", Broken([b"", b""]))
            assert caught.value is error
        assert names(place.open()) == []
        assert place.open_uploads() == []
        with pytest.raises(NotFound):
            store.stat("object")

    # --- wear

    def test_nothing_stays_open(self, store: Store, place: Place) -> None:
        def use(n: int) -> None:
            key = f"run/{n}"
            store.put(key, [b"x"] * 3)
            with suppress(AlreadyExists):
                store.put(key, b"x", if_absent=True)
            with suppress(NotFound):
                store.get("missing", io.BytesIO())
            with suppress(InvalidKey):
                store.put("../out", b"")
            with suppress(NotFound):
                store.stat("run")
            read(store, key, (0, 1))
            next(store.list("run/"))
            store.delete(key)

        for n in range(5):
            use(n)  # whatever is opened once and kept, such as connections
        before = len(os.listdir("/proc/self/fd"))
        for n in range(40):
            use(n)
        assert len(os.listdir("/proc/self/fd")) <= before

    def test_one_store_serves_many_threads(self, store: Store) -> None:
        def use(n: int) -> None:
            for i in range(10):
                key, body = f"thread{n}/{i}", random.Random(n * 100 + i).randbytes(50_000 + i)
                assert store.put(key, body).size == len(body)
                digest = hashlib.sha256(read(store, key)).digest()
                assert digest == hashlib.sha256(body).digest()
                assert names(store, f"thread{n}/") == [f"thread{n}/{j}" for j in range(i + 1)]

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(use, range(8)))

    def test_room_is_told_or_unknown(self, store: Store) -> None:
        room = store.free_bytes()
        assert room is None or room > 0


_BIG = """
import hashlib, sys
from storage import open_store

def peak():  # KiB; VmHWM is this program's own, unlike ru_maxrss, which a child inherits
    return int(next(x for x in open("/proc/self/status") if x.startswith("VmHWM")).split()[1])

class Sink:
    def __init__(self):
        self.digest = hashlib.sha256()
    def write(self, data):
        self.digest.update(data)
        return len(data)

# an emulator that joins 300 MiB on a busy machine takes longer than the 20 s that a store is given else
store, mib = open_store(sys.argv[1], patience=lambda: 120.0), int(sys.argv[2])
store.put("warm", b"x")
store.get("warm", Sink())
source = [bytes([n]) * (8 << 20) for n in range(4)]  # the caller's memory: 32 MiB, over and over
chunks = [source[n % 4] for n in range(mib // 8)] + [bytes(mib % 8 << 20)]
expected = Sink()
for chunk in chunks:
    expected.write(chunk)
before = peak()
info = store.put("big", chunks)
after_put = peak()
got = Sink()
store.get("big", got)
after_get = peak()
print(expected.digest.hexdigest(), got.digest.hexdigest(), info.size, after_put - before, after_get - after_put)
"""

_WRITER = """
import sys
from storage import open_store

store, n, repeats = open_store(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
print("writing", flush=True)
for i in range(1000):
    body = [bytes([(n + i) % 256]) * 100_000] * repeats
    print("put", flush=True)
    store.put("same" if i % 2 else f"new/{n}-{i}", body, if_absent=repeats == 30 and i % 4 == 0)
    print("done", flush=True)
"""

_CLAIMANT = """
import sys, time
from storage import open_store
from storage.errors import AlreadyExists

store, n, rounds, start = open_store(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
time.sleep(max(0, start - time.time()))
for i in range(rounds):  # winners and losers have the same work to do, which keeps them in step
    try:
        store.put(f"claims/{i}", f"{n}".encode(), if_absent=True)
        print(i)
    except AlreadyExists:
        pass
"""
