"""The doctor finds what would stop a run, says what mends it, leaves nothing behind, and never hangs."""

from __future__ import annotations

import json
import os
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from console.doctor import CHECKS, Found, Patient, examine
from storage import open_store
from storage.errors import NotSetUp, PermissionDenied
from tests.runs import command


class Sick:
    """A store with one thing wrong: `name` is done by `wrong`, with the real one at hand."""

    def __init__(self, url: str, name: str, wrong: Any) -> None:
        self._store, self._name, self._wrong = open_store(url), name, wrong

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._store, name)
        if name != self._name:
            return real
        return lambda *args, **options: self._wrong(real, *args, **options)


def examined(folder: Path, name: str = "", wrong: Any = None, **times: float) -> dict[str, Found]:
    patient = Patient(f"file://{folder}", lambda url: Sick(url, name, wrong))  # type: ignore[arg-type, return-value]
    return {found.check: found for found in examine(patient, **times)}


def raising(error: Exception) -> Any:
    def wrong(real: Any, *args: Any, **options: Any) -> None:
        raise error

    return wrong


def skewed(seconds: float) -> Any:
    def wrong(real: Any, *args: Any, **options: Any) -> Any:
        info = real(*args, **options)
        return replace(info, modified=info.modified + seconds)

    return wrong


def everything_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_good_store_passes_every_check_and_nothing_is_left(tmp_path: Path) -> None:
    found = examined(tmp_path / "store")
    assert {f.status for f in found.values()} <= {"ok", "warning"}, found
    assert len(found) == len(CHECKS)
    assert not everything_in(tmp_path)


def unconditional(real: Any, key: str, source: Any, *, if_absent: bool = False) -> Any:
    return real(key, source)


SICK = {
    "no right to write": ("put", raising(PermissionDenied("lacks s3:PutObject")), "write", "failed", "s3:PutObject"),
    "no right to list": ("list", raising(PermissionDenied("lacks s3:ListBucket")), "list", "failed", "s3:ListBucket"),
    "no bucket": ("stat", raising(NotSetUp("no such bucket")), "reachable", "failed", "no such bucket"),
    "no conditional writes": ("put", unconditional, "create once", "failed", "own a run"),
    "deletes that do nothing": ("delete", lambda real, key: None, "delete", "failed", "still listed"),
    "no ranges": ("get", lambda real, key, sink, **_: real(key, sink), "ranges", "failed", "range"),
    "a clock 10 minutes off": ("put", skewed(600), "clock", "failed", "600 s behind"),
    "a clock 2 minutes off": ("put", skewed(-120), "clock", "warning", "120 s ahead"),
    "little room": ("free_bytes", lambda real: 1000, "room", "warning", "0 MB free"),
    "a caveat": ("caveat", lambda real: "it is in memory", "place", "warning", "in memory"),
    "a defect": ("get", raising(KeyError("x")), "read", "failed", "KeyError"),
}


@pytest.mark.parametrize("what", SICK)
def test_each_trouble_is_found_told_and_comes_with_its_mend(what: str, tmp_path: Path) -> None:
    name, wrong, check, status, words = SICK[what]
    found = examined(tmp_path / "store", name, wrong)[check]
    assert found.status == status
    assert words in found.detail
    assert found.mend


def test_what_depends_on_a_failed_check_is_not_tried(tmp_path: Path) -> None:
    found = examined(tmp_path / "store", "stat", raising(NotSetUp("no such bucket")))
    assert found["write"].status == "not tried"
    assert "reachable" in found["write"].detail


@pytest.mark.parametrize("name", ["stat", "put", "list", "delete"])
def test_a_store_that_hangs_is_given_up_in_time(name: str, tmp_path: Path) -> None:
    never = threading.Event()
    begun = time.monotonic()
    found = examined(tmp_path / "store", name, lambda real, *args, **options: never.wait(60), check_s=0.2, all_s=0.7)
    assert time.monotonic() - begun < 2
    assert any(f.status == "failed" and "no answer" in f.detail and f.mend for f in found.values())


def test_the_command_speaks_in_whole_lines_and_exit_codes(tmp_path: Path) -> None:
    code, text = command("doctor", "--store", f"file://{tmp_path}/store")
    assert (code, text.splitlines()[-1][:14]) == (0, "ready to train")
    assert "\x1b" not in text
    code, text = command("doctor", "--store", f"file://{tmp_path}/store", "--json")
    assert [f["check"] for f in json.loads(text)] == [check.name for check in CHECKS]
    code, text = command("doctor", "--store", "ftp://x")
    assert code == 78
    assert "unknown scheme" in text
    assert "not ready to train" in text
    if os.getuid() == 0:
        code, text = command("doctor", "--store", "file:///proc/nothing-can-be-written-here")
        assert code == 78
        assert "to mend it" in text
