"""Packing: once for each source, wholly or not at all, whatever ends it."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.unit.data_makers import SMALL, laid_out, python_archive, small_splits, tar, tree
from trainer.data import scratch
from trainer.data.download import DownloadError
from trainer.data.pack import locate, pack
from trainer.data.packed import FILE_NAME, open_packed
from trainer.exits import UserError

REPOSITORY = Path(__file__).resolve().parents[2]


def quiet(line: str) -> None:
    pass


@pytest.fixture
def source(tmp_path: Path) -> str:
    return str(tar(tmp_path / "pictures.tar.xz", tree(small_splits()), "w:xz"))


class TestOnce:
    def test_the_same_source_is_not_packed_again(self, source: str, tmp_path: Path) -> None:
        said: list[str] = []
        inode = pack(SMALL, source, tmp_path / "out", say=quiet).path.stat().st_ino
        again = pack(SMALL, source, tmp_path / "out", say=said.append)
        assert again.path.stat().st_ino == inode
        assert "already packed" in said[0]
        assert pack(SMALL, None, tmp_path / "out", say=quiet).path.stat().st_ino == inode

    def test_a_changed_folder_is_packed_again(self, tmp_path: Path) -> None:
        folder = laid_out(tmp_path / "pictures", tree(small_splits()))
        first = pack(SMALL, str(folder), tmp_path / "out", say=quiet)
        said: list[str] = []
        pack(SMALL, str(folder), tmp_path / "out", say=said.append)
        assert "already packed" in said[0]
        cats = folder / "train" / "cat"
        (cats / "0003.png").unlink()
        second = pack(SMALL, str(folder), tmp_path / "out", say=quiet)
        assert second.sha256 != first.sha256
        next(cats.iterdir()).rename(folder / "train" / "dog" / "a cat.png")  # with its size and time
        assert pack(SMALL, str(folder), tmp_path / "out", say=quiet).sha256 != second.sha256

    def test_another_source_takes_its_place(self, source: str, tmp_path: Path) -> None:
        pack(SMALL, source, tmp_path / "out", say=quiet)
        path, dataset = python_archive(tmp_path, small_splits(5))
        assert pack(dataset, str(path), tmp_path / "out", say=quiet).origin.kind == "python archive"
        assert [p.name for p in (tmp_path / "out").iterdir()] == [FILE_NAME]

    def test_the_stand_in_takes_the_place_of_real_data_with_a_word(self, source: str, tmp_path: Path) -> None:
        said: list[str] = []
        pack(SMALL, "synthetic", tmp_path / "out", say=said.append)
        pack(SMALL, source, tmp_path / "out", say=said.append)
        assert not [line for line in said if "takes the place" in line]
        assert pack(SMALL, "synthetic", tmp_path / "out", say=said.append).synthetic
        (word,) = [line for line in said if "SYNTHETIC stand-in takes the place of the real" in line]
        assert "(from image tar pictures.tar.xz)" in word

    def test_a_rotten_packed_file_is_packed_again(self, source: str, tmp_path: Path) -> None:
        first = pack(SMALL, source, tmp_path / "out", say=quiet)
        raw = bytearray(first.path.read_bytes())
        raw[-100_000] ^= 1
        first.path.write_bytes(raw)
        said: list[str] = []
        pack(SMALL, source, tmp_path / "out", say=said.append).verify()
        assert "of no use" in said[0]

    @pytest.mark.parametrize("given", ["pictures", "synthetic", None])
    def test_nothing_is_packed_over_a_file_that_cant_be_read(
        self, source: str, tmp_path: Path, given: str | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = pack(SMALL, source, tmp_path / "out", say=quiet).path
        inode, whole = before.stat().st_ino, before.read_bytes()
        really = Path.open

        def denied(path: Path, *arguments: Any, **more: Any) -> Any:
            if path == before:  # as for another user than root, who may read all
                raise PermissionError(13, "Permission denied")
            return really(path, *arguments, **more)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "open", denied)
            with pytest.raises(UserError, match=r"Permission denied.*or remove it") as caught:
                pack(SMALL, source if given == "pictures" else given, tmp_path / "out", say=quiet)
        assert caught.value.code == 78
        assert (before.stat().st_ino, before.read_bytes()) == (inode, whole)


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("gone.tar", None, "no such file or folder; accepted are"),
        ("empty.tar", b"", "is empty"),
        ("x.zip", b"PK\3\4" + bytes(600), "not a kind of file that can be read here; accepted are"),
        ("x.tar.xz", b"\xfd7zXZ\0" + bytes(600), "not a kind of file"),
        ("x.tar.gz", b"\x1f\x8b\x08", "ends early|not a kind of file"),
    ],
)
def test_a_bad_source_is_told_and_leaves_what_was_packed(
    source: str, tmp_path: Path, name: str, content: bytes | None, why: str
) -> None:
    before = pack(SMALL, source, tmp_path / "out", say=quiet).path.read_bytes()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=why) as caught:
        pack(SMALL, str(tmp_path / name), tmp_path / "out", say=quiet)
    assert str(caught.value).isprintable()
    assert (tmp_path / "out" / FILE_NAME).read_bytes() == before
    assert [p.name for p in (tmp_path / "out").iterdir()] == [FILE_NAME]


@pytest.mark.parametrize("bad", ["gs://bucket/x.tar", "ftp://x/y.tar", "", "a\0b", "/dev/null", "~nobody-here/x"])
def test_no_source_at_all_is_told(tmp_path: Path, bad: str) -> None:
    with pytest.raises(UserError) as caught:
        pack(SMALL, bad, tmp_path / "out", say=quiet)
    assert str(caught.value).isprintable()


def test_an_unknown_data_set_gets_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean cifar10"):
        pack("cifar-10", "synthetic", tmp_path, say=quiet)


class Stop(Exception):
    pass


@pytest.mark.parametrize("kind", ["tar", "folder", "archive", "synthetic"])
def test_stopping_at_any_look_leaves_what_was_there(kind: str, tmp_path: Path) -> None:
    dataset, splits = SMALL, small_splits()
    if kind == "tar":
        given = str(tar(tmp_path / "x.tar.xz", tree(splits), "w:xz"))
    elif kind == "folder":
        given = str(laid_out(tmp_path / "pictures", tree(splits)))
    elif kind == "archive":
        path, dataset = python_archive(tmp_path, splits)
        given = str(path)
    else:
        given = "synthetic"
    out = tmp_path / "out"
    before = pack(SMALL, str(tar(tmp_path / "old.tar", tree(small_splits(9)), "w")), out, say=quiet).sha256
    looks = 0

    def count() -> None:
        nonlocal looks
        looks += 1

    pack(dataset, given, tmp_path / "counted", say=quiet, check=count)
    whole = looks
    assert whole > 5
    for last in random.Random(0).sample(range(1, whole + 1), min(whole, 12)):
        looks = 0

        def check(last: int = last) -> None:
            nonlocal looks
            looks += 1
            if looks == last:
                raise Stop

        with pytest.raises(Stop):
            pack(dataset, given, out, say=quiet, check=check)
        assert [p.name for p in out.iterdir()] == [FILE_NAME]
        assert open_packed(out).sha256 == before


SLOW = """
import sys, time
from pathlib import Path
from trainer.data.pack import pack
def check():
    time.sleep(0.02)
print("begun", flush=True)
pack("cifar10", "synthetic", Path(sys.argv[1]), check=check, say=print)
"""


def started(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, str(folder)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    return process


def until_writing(folder: Path, process: subprocess.Popen[str]) -> Path:
    while not (found := [p for p in folder.glob(".partial*") if p.stat().st_size > 1_000_000]):
        assert process.poll() is None
        time.sleep(0.002)
    return found[0]


def test_kill_nine_leaves_nothing_that_opens_and_the_next_pack_cleans_up(tmp_path: Path) -> None:
    process = started(tmp_path)
    partial = until_writing(tmp_path, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert partial.exists()
    for path in (tmp_path, partial):
        with pytest.raises(UserError):
            open_packed(path)
    pack("cifar10", "synthetic", tmp_path, say=quiet).verify()
    assert [p.name for p in tmp_path.iterdir()] == [FILE_NAME]


def test_two_at_once_do_not_disturb_each_other(source: str, tmp_path: Path) -> None:
    process = started(tmp_path / "out")
    partial = until_writing(tmp_path / "out", process)
    pack(SMALL, source, tmp_path / "out", say=quiet).verify()  # while the other writes: its scratch file stays
    assert process.wait(60) == 0
    assert not partial.exists()
    result = open_packed(tmp_path / "out")
    result.verify()
    assert result.synthetic  # the last to finish


def test_many_threads_at_once_end_with_a_whole_file(source: str, tmp_path: Path) -> None:
    failed: list[Exception] = []

    def work(seed: int) -> None:
        try:
            pack(SMALL, str(tar(tmp_path / f"{seed}.tar", tree(small_splits(seed)), "w")), tmp_path / "out", say=quiet)
        except Exception as e:
            failed.append(e)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    open_packed(tmp_path / "out").verify()
    assert [p.name for p in (tmp_path / "out").iterdir()] == [FILE_NAME]


def test_only_scratch_files_without_a_maker_are_removed(tmp_path: Path) -> None:
    here, token = scratch._host(), "0" * 16
    dead = subprocess.Popen(["true"])
    dead.wait()
    gone = tmp_path / f".partial-{here}-{dead.pid}-{token}"
    earlier_me = tmp_path / f".partial-{here}-{os.getpid()}-{token}"  # a restarted container's first process
    alive = tmp_path / f".partial-{here}-{os.getppid()}-{token}"
    elsewhere = tmp_path / f".partial-other-{dead.pid}-{token}"
    old = tmp_path / f".partial-other-{dead.pid}-{'1' * 16}"
    mine = tmp_path / ".partial-notes"
    for path in (gone, earlier_me, alive, elsewhere, old, mine):
        path.touch()
    os.utime(old, (0, 0))
    scratch.remove_stale(tmp_path)
    assert set(tmp_path.iterdir()) == {alive, elsewhere, mine}


def test_a_file_size_limit_is_told_as_no_space(tmp_path: Path) -> None:
    code = """
import resource, sys
from pathlib import Path
from trainer.data.pack import pack
from trainer.exits import UserError
resource.setrlimit(resource.RLIMIT_FSIZE, (9_000_000, 9_000_000))
try:
    pack("cifar10", "synthetic", Path(sys.argv[1]), say=lambda line: None)
except UserError as e:
    print(e)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(f"no space left in {tmp_path}")
    assert ": File too large; free some" in done.stdout
    assert done.stderr == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_is_told_and_left_clean(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=5m", "none", str(disk)], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        with pytest.raises(UserError, match=r"no space left in .*/disk; free some"):
            pack("cifar10", "synthetic", disk, say=quiet)
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_folder_that_cannot_be_written_is_told(source: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="can't write to"):
        pack(SMALL, source, tmp_path / "file" / "out", say=quiet)


def test_memory_stays_modest(tmp_path: Path) -> None:
    code = """
import resource, sys
from pathlib import Path
import numpy as np
from trainer.data.dataset import CIFAR10, Samples, Splits
from trainer.data.packed import Origin, write_packed
images = np.zeros((60_000, 32, 32, 3), np.uint8)
images += 1
labels = (np.arange(60_000) % 10).astype(np.uint8)
splits = Splits(Samples(images[:50_000], labels[:50_000]), Samples(images[50_000:], labels[50_000:]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
write_packed(Path(sys.argv[1]), CIFAR10, splits, Origin("", "", ""))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 100  # MB above the pictures themselves: no second copy


class TestLocate:
    def test_nothing_packed_names_the_command(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"python entrypoint\.py data cifar10 --source .* make cifar10"):
            locate(SMALL, None, tmp_path / "data", say=quiet)

    def test_a_packed_folder_or_file_is_taken_as_it_is(self, source: str, tmp_path: Path) -> None:
        packed = pack(SMALL, source, tmp_path / "out", say=quiet)
        for data in (str(packed.path), str(packed.path.parent), f"file://{packed.path.parent}"):
            assert locate(SMALL, data, tmp_path / "data", say=quiet).path == packed.path
        assert locate(SMALL, None, packed.path.parent, say=quiet).path == packed.path

    def test_a_source_is_packed_once_into_the_cache(self, source: str, tmp_path: Path) -> None:
        cache = tmp_path / "cache"
        first = locate(SMALL, source, tmp_path / "data", say=quiet, cache=cache)
        assert cache in first.path.parents
        said: list[str] = []
        assert locate(SMALL, source, tmp_path / "data", say=said.append, cache=cache).path == first.path
        assert "already packed" in said[0]
        assert not (tmp_path / "data").exists()

    def test_the_cache_is_where_the_environment_says(
        self, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
        assert tmp_path / "xdg" in locate(SMALL, source, tmp_path / "data", say=quiet).path.parents

    def test_a_link_that_leads_to_itself_is_no_source(self, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to("link")
        with pytest.raises(UserError, match="link: no such file or folder"):
            locate(SMALL, str(tmp_path / "link"), tmp_path / "data", say=quiet, cache=tmp_path / "cache")

    def test_another_data_set_is_refused(self, source: str, tmp_path: Path) -> None:
        packed = pack(replace(SMALL, name="cifar11"), source, tmp_path / "out", say=quiet)
        with pytest.raises(UserError, match="holds cifar11, not cifar10"):
            locate(SMALL, str(packed.path), tmp_path / "data", say=quiet)

    def test_a_source_that_is_packed_already_is_told_so(self, source: str, tmp_path: Path) -> None:
        packed = pack(SMALL, source, tmp_path / "out", say=quiet)
        for data in (packed.path, packed.path.parent):
            with pytest.raises(UserError, match="packed already; give it to --data"):
                pack(SMALL, str(data), tmp_path / "other", say=quiet)

    @pytest.mark.parametrize("name", ["bert", "cifar10", "cifar100", "imagenet", "mnist"])
    def test_what_is_damaged_names_the_command_that_packs_it_wherever_it_lies(self, name: str, tmp_path: Path) -> None:
        """Nothing of its own can be read there, and its folder is called as its owner likes."""
        folder, said = tmp_path / "photos", list[str]()
        folder.mkdir()
        (folder / FILE_NAME).write_bytes(bytes(100))
        (tmp_path / "other.safetensors").write_bytes(bytes(100))
        wanted = rf"not a whole packed file .* pack it: python entrypoint\.py data {name} --source"
        for data, default in ((None, folder), (str(folder), tmp_path), (str(tmp_path / "other.safetensors"), tmp_path)):
            with pytest.raises(UserError, match=wanted):
                locate(name, data, default, say=quiet)
        if name in ("bert", "imagenet"):  # the others would be fetched
            with pytest.raises(UserError) as told:
                pack(name, None, folder, say=said.append)
            assert re.search(wanted, said[0] if said else str(told.value))
        with pytest.raises(UserError, match="data NAME --source"):
            open_packed(folder)


@pytest.mark.parametrize("name", ["cifar10", "mnist", "bert"])
def test_a_folder_that_cant_be_written_to_is_told_before_any_work(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("trainer.data.synthetic.generate", lambda *_: pytest.fail("generated all the same"))
    with pytest.raises(UserError, match="can't write to /proc/nothing/here"):
        pack(name, "synthetic", Path("/proc/nothing/here"), say=said.append)
    assert said == []  # "packing ..." would be the work's first word


def test_mnists_stand_in_comes_unasked_over_no_damaged_file_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise DownloadError("away")

    monkeypatch.setattr("trainer.data.idx.fetch", away)
    (tmp_path / FILE_NAME).write_bytes(b"of something once")
    with pytest.raises(UserError, match=r"of no use.*again \(--source ARCHIVE-OR-FOLDER\), or remove that file"):
        pack("mnist", None, tmp_path, say=quiet)
    assert (tmp_path / FILE_NAME).read_bytes() == b"of something once"
