from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from watchers import HaltWatcher, Mailbox, Notice, Watch

REPOSITORY = Path(__file__).resolve().parents[2]


def look(path: Path) -> Notice | None:
    return HaltWatcher(path).check()


@pytest.mark.parametrize(("name", "source"), [("halt", "halt"), ("preempt.txt", "preempt")])
@pytest.mark.parametrize("kind", ["empty", "written", "dangling link", "folder"])
def test_each_halt_file_is_a_notice_whatever_it_is_made_of(tmp_path: Path, name: str, source: str, kind: str) -> None:
    assert look(tmp_path) is None
    path = tmp_path / name
    if kind == "dangling link":
        path.symlink_to("nowhere")
    elif kind == "folder":
        path.mkdir()
    else:
        path.write_text("" if kind == "empty" else "because")
    notice = look(tmp_path)
    assert notice is not None
    assert (notice.source, notice.action, notice.deadline) == (source, "stop", None)
    assert str(path) in notice.detail


def test_halt_outranks_preempt_when_both_are_there(tmp_path: Path) -> None:
    (tmp_path / "preempt.txt").touch()
    watcher = HaltWatcher(tmp_path)
    first = watcher.check()
    (tmp_path / "halt").touch()
    second = watcher.check()
    assert first is not None
    assert second is not None
    assert (first.source, second.source) == ("preempt", "halt")
    assert first.id != second.id


def test_a_file_in_place_of_the_folder_is_halt_once_something_is_in_it(tmp_path: Path) -> None:
    path = tmp_path / "halt"
    path.touch()
    assert look(path) is None
    path.write_text("1")
    notice = look(path)
    assert notice is not None
    assert notice.source == "halt"
    link = tmp_path / "link"
    link.symlink_to(path)
    assert look(link) is not None


def test_a_file_that_comes_in_place_of_the_folder_is_halt_even_empty(tmp_path: Path) -> None:
    watcher = HaltWatcher(tmp_path / "halt")
    assert watcher.check() is None
    (tmp_path / "halt").touch()
    notice = watcher.check()
    assert notice is not None
    assert notice.source == "halt"


@pytest.mark.parametrize("name", ["halt.txt", "HALT", "halt~", ".halt", "preempt", "preempt.txt.tmp"])
def test_other_names_are_no_halt(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("x")
    assert look(tmp_path) is None


def test_a_missing_folder_is_fine_and_is_seen_when_it_comes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    watcher = HaltWatcher(tmp_path / "later")
    assert watcher.check() is None
    assert caplog.records == []
    (tmp_path / "later").mkdir()
    (tmp_path / "later/halt").touch()
    assert watcher.check() is not None
    assert look(tmp_path / "later/halt/below") is None
    (tmp_path / "dangling").symlink_to("nowhere")
    assert look(tmp_path / "dangling") is None


def test_a_folder_that_may_not_be_read_ends_nothing_and_is_said_once(tmp_path: Path) -> None:
    """Root may read all, so another user looks."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        halt = Path(folder) / "halt"
        halt.mkdir()
        (halt / "halt").touch()
        os.chmod(halt, 0)
        out = subprocess.run(
            [sys.executable, "-c", _OTHER_USER, halt],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=30,
        )
    assert out.returncode == 0, out.stderr
    assert out.stdout.split() == ["None", "None", "None"]
    assert out.stderr.count("can't look") == 1
    assert "Permission denied" in out.stderr
    assert folder in out.stderr


_OTHER_USER = """
import os, sys
from watchers import HaltWatcher
if os.geteuid() == 0:
    os.setuid(65534)
watcher = HaltWatcher(sys.argv[1])
print(watcher.check(), watcher.check(), watcher.check())
"""


def test_a_folder_that_fails_anew_is_said_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "halt"
    watcher = HaltWatcher(path)
    for _ in range(2):
        path.symlink_to(path)  # a loop of links can't be looked into
        with caplog.at_level(logging.WARNING):
            assert [watcher.check(), watcher.check()] == [None, None]
        path.unlink()
        assert watcher.check() is None
    assert len(caplog.records) == 2


def test_a_halt_file_is_seen_within_half_a_second(tmp_path: Path) -> None:
    """From the worst moment, just after a look; 0.1 s is for the machine's own delays, which may spoil single tries."""
    folders = [tmp_path / str(n) for n in range(5)]
    boxes = [Mailbox() for _ in folders]
    watches, touched = [], []
    try:
        for folder, box in zip(folders, boxes, strict=True):
            folder.mkdir()
            watches.append(Watch([HaltWatcher(folder)], box))
            touched.append(time.time())
            (folder / "halt").touch()
            time.sleep(0.1)
        late = []
        for box, since in zip(boxes, touched, strict=True):
            assert box.wait(5)
            assert box.stop is not None
            late.append(box.stop.seen - since)
        assert sorted(late)[1] < 0.6, late
    finally:
        for watch in watches:
            watch.close()
