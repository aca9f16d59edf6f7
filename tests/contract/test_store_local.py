"""What the local store promises beyond the contract: rights, room, durability, and folders as they are."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from io import FileIO
from pathlib import Path
from typing import Any

import pytest
from store_contract import finish, names, read, spawn

from storage import Store, open_store
from storage.errors import AlreadyExists, NoSpace, NotFound, NotSetUp, Transient, Unavailable, Unsupported
from storage.local import COPY_BYTES, LocalStore
from storage.protocol import SCRATCH

DAY = 24 * 3600.0


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(root: Path) -> Store:
    return open_store(f"file://{root}")


def files(folder: Path) -> list[str]:
    """All there is on disk below a folder, scratch too."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


# --- the folder


def all_are_away(store: Store) -> None:
    """Nothing is "not there" in a folder that isn't the store, and nothing is written to it."""
    for call in (
        lambda: store.get("run/claims/a", io.BytesIO()),
        lambda: store.stat("run/claims/a"),
        lambda: list(store.list("run/claims/")),
        lambda: store.put("run/claims/b", b"b"),
        lambda: store.put("run/other/b", b"b", if_absent=True),
        lambda: store.delete("run/claims/a"),
    ):
        with pytest.raises(Unavailable):
            call()


@pytest.mark.parametrize("how", ["moved away", "another in its place", "another, then mounted anew"])
def test_a_store_that_goes_away_is_unavailable_and_not_empty(how: str, root: Path, tmp_path: Path) -> None:
    away, place = tmp_path / "away", tmp_path / "place"
    root.mkdir()
    place.symlink_to(root)
    store = open_store(f"file://{place}")
    store.put("run/claims/a", b"a")
    if how == "moved away":
        root.rename(away)
        all_are_away(store)
        assert not root.exists()
        away.rename(root)
    else:
        (tmp_path / "empty").mkdir()
        place.unlink()
        place.symlink_to(tmp_path / "empty")
        all_are_away(store)
        assert not files(tmp_path / "empty")
        place.unlink()
        if how == "another in its place":
            place.symlink_to(root)
        else:  # and mounted again, as another device
            shutil.copytree(root, away)
            place.symlink_to(away)
    assert read(store, "run/claims/a") == b"a"
    store.put("run/other/b", b"b")
    with pytest.raises(NotFound):
        store.stat("run/claims/b")


def test_links_in_a_circle_are_for_a_person_to_mend(store: Store, root: Path) -> None:
    root.symlink_to(root)
    with pytest.raises(NotSetUp, match="in a circle"):
        names(store)


def test_a_run_that_is_deleted_is_not_there(store: Store, root: Path) -> None:
    store.put("run/claims/a", b"a")
    shutil.rmtree(root / "run")
    assert names(store) == []
    with pytest.raises(NotFound):
        store.get("run/claims/a", io.BytesIO())


def test_a_relative_url_stays_where_it_was_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = open_store("file://./store")
    monkeypatch.chdir("/")
    store.put("run/a", b"1")
    assert files(tmp_path) == ["store/run/a"]


def test_only_a_put_makes_the_folder(store: Store, root: Path) -> None:
    assert names(store) == []
    store.delete("a")
    assert store.free_bytes()
    for call in (lambda: store.stat("a"), lambda: store.get("a", io.BytesIO())):
        with pytest.raises(NotFound):
            call()
    assert not root.exists()
    store.put("a", b"")
    assert files(root) == ["a"]


def test_no_put_leaves_scratch_however_it_ends(store: Store, root: Path) -> None:
    store.put("run/a", b"1")
    store.put("run/a", b"2")
    store.put("run/b", b"1", if_absent=True)
    with pytest.raises(AlreadyExists):
        store.put("run/b", b"2", if_absent=True)
    with pytest.raises(TypeError):
        store.put("run/c", [b"1", "no bytes"])  # type: ignore[list-item]
    assert files(root) == ["run/a", "run/b"]


@pytest.mark.parametrize("if_absent", [False, True])
def test_a_folder_that_goes_while_it_is_written_to_is_a_fault_that_may_pass(
    store: Store, root: Path, if_absent: bool
) -> None:
    class Moving(Sequence[bytes]):
        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: Any) -> Any:
            if index:
                raise IndexError
            (root / "run").rename(root.parent / "elsewhere")
            return b"1"

    store.put("run/a", b"1")
    with pytest.raises(Unavailable, match="vanished while run/b was being written"):
        store.put("run/b", Moving(), if_absent=if_absent)


def test_a_disk_that_fails_before_the_last_step_of_a_write_is_a_fault_that_may_pass(
    store: Store, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As NFS does: the folder can't be looked at either."""
    stat, target = os.stat, str(root / "run" / "a")

    def stale(path: Any, *args: Any, **options: Any) -> Any:
        if str(path) == target:
            raise OSError(errno.ESTALE, "Stale file handle", target)
        return stat(path, *args, **options)

    def fail(*paths: Any) -> None:
        raise OSError(errno.ESTALE, "Stale file handle", target)

    monkeypatch.setattr(os, "stat", stale)
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(Unavailable, match="Stale file handle"):
        store.put("run/a", b"1")


def test_what_killed_writers_left_is_removed_after_a_day_but_never_a_writers_that_lives(root: Path) -> None:
    open_store(f"file://{root}").put("run/a", b"1")
    old, young = root / "run" / f"{SCRATCH}old", root / "run" / f"{SCRATCH}young"
    for path, age in ((old, DAY + 60), (young, DAY - 600)):
        path.write_bytes(b"x")
        os.utime(path, (time.time() - age,) * 2)
    os.utime(root / "run/a", (0, 0))
    store = open_store(f"file://{root}")
    assert names(store) == ["run/a"]
    store.put("run/b", b"1")
    assert files(root) == [f"run/{SCRATCH}young", "run/a", "run/b"]


def test_a_file_where_a_folder_should_be_is_said_and_is_no_absence(store: Store, root: Path) -> None:
    """Object stores hold both `a` and `a/b`; a folder can't, and must neither lose one nor call one missing."""
    store.put("file", b"1")
    store.put("folder/b", b"2")
    for key in ("file/b", "file/b/c", "folder"):
        for if_absent in (False, True):
            with pytest.raises(Unsupported, match="folder"):
                store.put(key, b"3", if_absent=if_absent)
    store.delete("folder")
    store.delete("file/b")
    assert files(root) == ["file", "folder/b"]
    assert read(store, "file") == b"1"


@pytest.mark.parametrize("kind", ["file", "dangling link"])
def test_a_root_that_is_no_folder_is_said(root: Path, store: Store, kind: str) -> None:
    if kind == "file":
        root.write_bytes(b"")
    else:
        root.symlink_to("nowhere")
    with pytest.raises(Unsupported, match="store"):
        store.put("a", b"")


def test_what_is_no_file_is_no_object(store: Store, root: Path) -> None:
    store.put("run/a", b"1")
    os.mkfifo(root / "run/pipe")
    (root / "run/dangling").symlink_to("nowhere")
    (root / "run/link").symlink_to("a")
    assert names(store) == ["run/a", "run/link"]
    for key in ("run/pipe", "run/dangling"):
        with pytest.raises(NotFound):
            store.stat(key)
        with pytest.raises(NotFound):
            store.get(key, io.BytesIO())


def test_a_disks_own_lost_and_found_is_no_run(store: Store, root: Path) -> None:
    (root / "lost+found").mkdir(parents=True)
    (root / "lost+found/inode").write_bytes(b"")
    store.put("run/a", b"")
    assert names(store) == ["run/a"]
    assert names(store, "", "/") == ["run/"]


# --- rights: a missing one is never an absence. Root passes every mode, so another user is taken


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that other users can reach, which those that pytest makes are not."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


_OTHER_USER = """
import io, os, sys
from storage import open_store
from storage.errors import PermissionDenied
import storage.local

if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
store = open_store(sys.argv[1])
for key in sys.argv[2:]:
    for name, call in {
        "get": lambda: store.get(key, io.BytesIO()),
        "stat": lambda: store.stat(key),
        "list": lambda: list(store.list(key.rpartition("/")[0] + "/")),
        "level": lambda: list(store.list(key.rpartition("/")[0] + "/", delimiter="/")),
        "put": lambda: store.put(key, b"x"),
        "claim": lambda: store.put(key, b"x", if_absent=True),
        "delete": lambda: store.delete(key),
        "free": lambda: store.free_bytes(),
    }.items():
        try:
            call()
            print(name, "fine")
        except PermissionDenied as e:
            print(name, "denied", e)
        except Exception as e:
            print(name, type(e).__mro__, e)
"""


def as_other_user(folder: Path, key: str) -> dict[str, str]:
    lines = finish(spawn(_OTHER_USER, f"file://{folder}", key)).splitlines()
    outcomes = {name: rest for name, _, rest in (line.partition(" ") for line in lines)}
    for outcome in outcomes.values():
        if outcome.startswith("denied"):
            assert "permission denied for user" in outcome, "one line that says what is missing, and for whom"
            assert str(folder) in outcome
    return {name: outcome.split()[0] for name, outcome in outcomes.items()}


@pytest.mark.parametrize("key", ["run/there", "run/absent"])
def test_in_a_folder_that_may_not_be_entered_everything_is_denied(shared: Path, key: str) -> None:
    """Also what is absent: without the right to look, nobody knows."""
    open_store(f"file://{shared}/store").put("run/there", b"1")
    os.chmod(shared / "store/run", 0)
    outcomes = as_other_user(shared / "store", key)
    os.chmod(shared / "store/run", 0o755)
    assert outcomes.pop("free") == "fine"
    assert set(outcomes.values()) == {"denied"}, outcomes


def test_a_root_that_may_not_be_entered_is_denied_not_empty(shared: Path) -> None:
    open_store(f"file://{shared}/closed/store").put("run/there", b"1")
    os.chmod(shared / "closed", 0)
    outcomes = as_other_user(shared / "closed/store", "run/there")
    os.chmod(shared / "closed", 0o755)
    assert set(outcomes.values()) == {"denied"}, outcomes


def test_in_a_folder_that_may_only_be_read_every_change_is_denied(shared: Path) -> None:
    store = open_store(f"file://{shared}/store")
    store.put("run/there", b"1")
    for folder in (shared / "store", shared / "store/run"):
        os.chmod(folder, 0o555)
    outcomes = as_other_user(shared / "store", "run/there")
    new_run = as_other_user(shared / "store", "new/run/a")
    for folder in (shared / "store", shared / "store/run"):
        os.chmod(folder, 0o755)
    changes = {"put", "claim", "delete"}
    assert {name for name, outcome in outcomes.items() if outcome == "denied"} == changes
    assert {name for name, outcome in outcomes.items() if outcome == "fine"} == set(outcomes) - changes
    assert new_run["put"] == new_run["claim"] == "denied"
    assert read(store, "run/there") == b"1"


def test_an_object_that_may_not_be_read_is_denied_not_absent(shared: Path) -> None:
    open_store(f"file://{shared}/store").put("run/there", b"1")
    os.chmod(shared / "store/run/there", 0)
    assert as_other_user(shared / "store", "run/there")["get"] == "denied"


def test_a_folder_that_may_not_be_entered_is_still_shown_as_a_prefix(shared: Path) -> None:
    open_store(f"file://{shared}/store").put("run/there", b"1")
    os.chmod(shared / "store/run", 0)
    code = f"import os; os.getuid() or os.setuid(65534); from storage import open_store as o; s = o('file://{shared}/store')"
    out = finish(spawn(f"import storage.local; {code}; print([i.key for i in s.list('', delimiter='/')])"))
    os.chmod(shared / "store/run", 0o755)
    assert out.strip() == "['run/']"


# --- room


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("only root may mount a small disk; the limit on a file's size is tried in any case")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_told_as_such_leaves_nothing_and_works_again_with_room(tiny_disk: Path) -> None:
    store = open_store(f"file://{tiny_disk}")
    store.put("run/a", bytes(600_000))
    store.put("run/old", b"old")
    free = store.free_bytes()
    assert free is not None
    assert 0 < free < 1 << 20
    for key, if_absent in (("run/b", False), ("run/b", True), ("run/old", False)):
        with pytest.raises(NoSpace) as caught:
            store.put(key, [bytes(100_000)] * 6, if_absent=if_absent)
        assert isinstance(caught.value, Transient)
        assert isinstance(caught.value, OSError)
        assert "no space" in str(caught.value)
    assert files(tiny_disk) == ["run/a", "run/old"]
    assert store.free_bytes() == free, "a failed put takes no room"
    assert read(store, "run/old") == b"old"
    store.delete("run/a")
    store.put("run/b", [bytes(100_000)] * 6)
    assert store.stat("run/b").size == 600_000


def test_a_failed_put_is_told_alike_each_time(tiny_disk: Path) -> None:
    """Nothing of its scratch file's name: a log says each error once."""
    store = open_store(f"file://{tiny_disk}")
    subprocess.run(["mount", "-o", "remount,nr_inodes=2", tiny_disk], check=True)
    (tiny_disk / "last").touch()
    told = set()
    for _ in range(2):
        with pytest.raises(NoSpace) as caught:
            store.put("run", b"x")
        told.add(str(caught.value))
    assert len(told) == 1


def test_a_limit_on_a_files_size_is_told_as_no_space_and_leaves_nothing(root: Path) -> None:
    out = finish(
        spawn(
            """
import resource, sys
from storage import open_store
from storage.errors import NoSpace
store = open_store(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    store.put("run/big", [bytes(60_000)] * 3)
except NoSpace as e:
    print(e)
store.put("run/small", bytes(60_000))
""",
            f"file://{root}",
        )
    )
    assert "run/big: no space" in out
    assert files(root) == ["run/small"]


# --- durability. A power cut can't be made here, so the calls that make a put outlast one are recorded on their way
# to the real ones: the file is synced before it gets its name, then the folder, and each new folder in its own.


class Recorder:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[str, str]] = []
        fsync, rename, link, unlink = os.fsync, os.replace, os.link, os.unlink

        def on_fsync(handle: int) -> None:
            kind = "folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file"
            self.calls.append((f"sync {kind}", Path(os.readlink(f"/proc/self/fd/{handle}")).name))
            fsync(handle)

        def on_replace(source: Path, target: Path) -> None:
            self.calls.append(("name", Path(target).name))
            rename(source, target)

        def on_link(source: Path, target: Path) -> None:
            self.calls.append(("name", Path(target).name))
            link(source, target)

        def on_unlink(path: Path) -> None:
            unlink(path)
            self.calls.append(("unlink", Path(path).name))

        monkeypatch.setattr(os, "fsync", on_fsync)
        monkeypatch.setattr(os, "replace", on_replace)
        monkeypatch.setattr(os, "link", on_link)
        monkeypatch.setattr(os, "unlink", on_unlink)

    def taken(self) -> list[tuple[str, str]]:
        calls = [
            (call, "scratch" if name.startswith(SCRATCH) else name)
            for call, name in self.calls
            if not (call == "unlink" and name.startswith(SCRATCH))
        ]
        self.calls.clear()
        return calls


@pytest.mark.parametrize("if_absent", [False, True])
def test_what_is_put_outlasts_a_power_cut(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, if_absent: bool
) -> None:
    recorder = Recorder(monkeypatch)
    store.put("run/parts/1", b"1", if_absent=if_absent)
    written = [("sync file", "scratch"), ("name", "1"), ("sync folder", "parts")]
    assert recorder.taken() == [
        ("sync folder", tmp_path.name),
        ("sync folder", "store"),
        ("sync folder", "run"),
        *written,
    ]
    store.put("run/parts/2", b"1", if_absent=if_absent)
    assert recorder.taken() == [("sync file", "scratch"), ("name", "2"), ("sync folder", "parts")]


def test_what_is_deleted_stays_deleted_after_a_power_cut(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put("run/1", b"1")
    recorder = Recorder(monkeypatch)
    store.delete("run/1")
    assert recorder.taken() == [("unlink", "1"), ("sync folder", "run")]


def test_a_put_that_could_not_be_synced_is_not_told_as_done(
    store: Store, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that fails to sync can't be had here either: os.fsync is made to fail, once."""
    store.put("run/a", b"old")

    def failing(_handle: int) -> None:
        monkeypatch.undo()
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(Transient, match="Input/output error"):
        store.put("run/a", b"new")
    assert read(store, "run/a") == b"old"
    assert files(root) == ["run/a"]
    store.put("run/a", b"new")
    assert read(store, "run/a") == b"new"


def test_what_a_file_system_tells_only_when_a_file_is_closed_is_told_too(
    store: Store, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those over a network do so, and none is at hand: FileIO.close is made to fail as theirs does."""
    store.put("run/a", b"old")

    class Sick(FileIO):
        def close(self) -> None:
            was_open = not self.closed
            super().close()
            if was_open:
                raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("storage.local.FileIO", Sick)
        with pytest.raises(Transient, match="Input/output error"):
            store.put("run/a", b"new")
        patch.setattr(Sick, "write", lambda _self, _data: Sick.close(_self), raising=False)
        with pytest.raises(Transient, match="Input/output error"):
            store.put("run/a", b"new")
    assert read(store, "run/a") == b"old"
    assert files(root) == ["run/a"]


def test_a_new_folder_that_could_not_be_recorded_is_recorded_by_the_next_try(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put("run/a", b"")
    recorder, fsync = Recorder(monkeypatch), os.fsync

    def failing(_handle: int) -> None:
        monkeypatch.setattr(os, "fsync", fsync)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(Unavailable, match="Input/output error"):
        store.put("run/parts/1", b"1")
    store.put("run/parts/1", b"1")
    written = [("sync file", "scratch"), ("name", "1"), ("sync folder", "parts")]
    assert recorder.taken() == [("sync folder", "run"), *written]


def test_a_claim_is_found_there_only_once_its_folder_is_synced(
    store: Store, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be one's own, of a try whose sync failed: whoever reads it back takes it for a success."""
    store.put("run/a", b"")
    recorder, fsync = Recorder(monkeypatch), os.fsync

    def failing(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            monkeypatch.setattr(os, "fsync", fsync)
            raise OSError(5, "Input/output error")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(Unavailable, match="Input/output error"):
        store.put("run/claim", b"mine", if_absent=True)
    assert recorder.taken() == [("sync file", "scratch"), ("name", "claim")]
    with pytest.raises(AlreadyExists):
        store.put("run/claim", b"mine", if_absent=True)
    assert ("sync folder", "run") in recorder.taken()


def test_a_file_system_without_links_is_refused_in_words(
    store: Store, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None without links can be mounted here: os.link is made to answer as one."""

    def no_links(_source: Path, _target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    with pytest.raises(Unsupported, match="hard links"):
        store.put("claim", b"", if_absent=True)
    assert files(root) == []


def test_an_object_cut_short_while_it_is_read_is_an_error_not_a_short_read(root: Path) -> None:
    """Someone else's tool that writes in place; Baton's own never does."""
    store = LocalStore(f"file://{root}")
    store.put("a", bytes(3 * COPY_BYTES))

    class Cutting(io.BytesIO):
        def write(self, data: object) -> int:
            with contextlib.suppress(FileNotFoundError):
                os.truncate(root / "a", COPY_BYTES)
            return super().write(data)  # type: ignore[arg-type]

    with pytest.raises(Transient, match="early"):
        store.get("a", Cutting())


def test_a_store_that_goes_with_its_container_or_machine_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store("file:///store")
    for kind, said in (
        (("/", "overlay"), r"file:///store is inside this container .*: add -v FOLDER:/store to keep checkpoints"),
        (("/", "fuse.fuse-overlayfs"), "file:///store is inside this container"),
        (("/store", "tmpfs"), "file:///store is in memory and goes with the machine"),
    ):
        monkeypatch.setattr("storage.local._file_system", lambda path, kind=kind: kind)
        assert re.match(said, store.caveat() or "")
    monkeypatch.setattr("storage.local._file_system", lambda path: ("/store", "ext4"))
    assert store.caveat() is None


def test_a_file_system_is_known_whatever_its_folder_is_called(tmp_path: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("mounting a file system needs root")
    folder = tmp_path / "données d'un\u00a0été \u65e5"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], check=True)
    try:
        assert "is in memory" in str(open_store(f"file://{folder}/store").caveat())
    finally:
        subprocess.run(["umount", "-l", folder], check=True)
