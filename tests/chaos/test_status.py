"""`status` tells running, stopped, dead, superseded and finished apart after real ends of real processes."""

from __future__ import annotations

import json
import os
import pty
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from console.sheets import Words, plain, sheet
from console.standing import glance, whole
from storage import open_store
from storage.errors import PermissionDenied
from tests import checkpoints
from tests.runs import FAKETIME, REPOSITORY, Lab, command, environment
from trainer.history import History

SLOW = ["--preset", "tutorial", "--batch-size", "10", "--epochs", "200", "--checkpoint-every", "0.3s"]
SILENCE_S = 200.0  # by so much the records are aged, where a test would have to wait for a minute and a half


def table(lab: Lab) -> dict[str, object]:
    """The run as the list of runs has it, by one read."""
    done = subprocess.run(
        lab.command("status", "--json", "--store", lab.url), capture_output=True, text=True, env=environment()
    )
    assert done.returncode == 0, done.stdout
    (told,) = json.loads(done.stdout)
    return dict(told)


def states(lab: Lab) -> tuple[object, object, object, list[object]]:
    """The run's state and its newest attempt's in the list, the same by --run, and all attempts' states."""
    whole, brief = lab.status(), table(lab)
    for name in ("state", "attempt_state", "attempt", "exit", "checkpoint", "checkpoint_step", "steps", "state_sha256"):
        assert brief[name] == whole[name], f"{name}: the list says {brief[name]}, --run {whole[name]}"
    attempts = whole["attempts"]
    assert isinstance(attempts, list)
    return whole["state"], whole["attempt_state"], whole["exit"], [one["state"] for one in attempts]


def grow_old(lab: Lab) -> None:
    """As if everything had been written some minutes ago."""
    for file in lab.store.rglob("*.json"):
        info = file.stat()
        os.utime(file, (info.st_atime - SILENCE_S, info.st_mtime - SILENCE_S))


def test_killed_halted_superseded_and_finished_in_one_run(tmp_path: Path, small_cifar: Path) -> None:
    lab = Lab(tmp_path, small_cifar, *SLOW)
    first = lab.start()
    first.wait_for("durable after")
    time.sleep(1.5)  # a sign follows a save within a second
    assert table(lab)["attempt_state"] == "running"
    assert lab.status()["state"] == "running"
    first.signal(signal.SIGKILL)
    first.wait()
    assert lab.status()["attempt_state"] == "running", "nobody can know yet"
    grow_old(lab)
    assert states(lab) == ("stopped", "dead", None, ["dead"])

    second = lab.start()
    second.wait_for("durable after")
    (lab.halt / "halt").touch()
    assert second.wait() == 0, second.text
    (lab.halt / "halt").unlink()
    assert states(lab) == ("stopped", "stopped", 0, ["dead", "stopped"])

    third = lab.start()
    third.wait_for("durable after")
    fourth = lab.start()
    assert third.wait() == 0, third.text
    fourth.wait_for("durable after")
    fourth.signal(signal.SIGTERM)
    assert fourth.wait() == 75, fourth.text
    assert states(lab) == ("stopped", "stopped", 75, ["dead", "stopped", "superseded", "stopped"])
    attempts = lab.status()["attempts"]
    assert isinstance(attempts, list)
    assert [one["exit"] for one in attempts] == [None, 0, 0, 75]
    assert [one["how"] for one in attempts][1:] == [
        "halted by its operator",
        "a newer attempt took over",
        "told to go (SIGTERM)",
    ]
    ends = [(one["first_step"], one["last_step"]) for one in attempts]
    assert all(first < last for first, last in ends)

    # what it says to do next does it
    code, text = command("status", "--store", lab.url, "--run", "cifar10")
    assert code == 0
    (line,) = [line.partition(":")[2] for line in text.splitlines() if line.startswith("to go on with it:")]
    going_on = subprocess.Popen(
        [*shlex.split(line), "--halt", str(lab.halt)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
        cwd=REPOSITORY,
    )
    assert going_on.stdout is not None
    try:
        said = [going_on.stdout.readline() for _ in range(4)]
        assert any("attempt 5 goes on at step" in line for line in said), said
    finally:
        going_on.kill()
        going_on.wait()


def test_a_run_killed_after_its_result_was_written_is_finished(tmp_path: Path, small_cifar: Path) -> None:
    lab = Lab(tmp_path, small_cifar, "--preset", "tutorial", "--batch-size", "50", "--steps", "10")
    lab.finish()
    assert states(lab) == ("finished", "finished", 0, ["finished"])
    # the kill came between the result and the two last words
    (lab.store / "cifar10" / "attempts" / "000001.end.json").unlink()
    record = json.loads((lab.store / "cifar10" / "status.json").read_text())
    (lab.store / "cifar10" / "status.json").write_text(json.dumps({**record, "state": "running", "exit": None}))
    grow_old(lab)
    assert states(lab)[:2] == ("finished", "dead")


def test_a_container_that_could_not_begin_is_the_newest_word(tmp_path: Path, small_cifar: Path) -> None:
    lab = Lab(tmp_path, small_cifar, "--preset", "tutorial", "--batch-size", "50", "--steps", "40")
    script = (
        "import sys, entrypoint, trainer.run\n"
        "from trainer.exits import UserError\n"
        "def fail(*_): raise UserError('no more')\n"
        "trainer.run._load = fail\n"
        "sys.exit(entrypoint.main(sys.argv[1:]))"
    )
    words = lab.command("cifar10", "--store", lab.url, "--halt", str(lab.halt), "--data", str(lab.data), *lab.options)[
        2:
    ]
    done = subprocess.run(
        [sys.executable, "-c", script, *words], cwd=REPOSITORY, env=environment(), capture_output=True
    )
    assert done.returncode == 78, done.stdout
    assert states(lab) == ("stopped", "stopped", 78, ["stopped"])


class Counting:
    """A store that notes what is asked of it."""

    def __init__(self, store: object) -> None:
        self.asked: list[tuple[str, str]] = []
        self._store = store

    def __getattr__(self, name: str) -> object:
        found = getattr(self._store, name)
        if name not in ("put", "get", "stat", "list", "delete"):
            return found

        def call(key: str, *args: object, **kwargs: object) -> object:
            self.asked.append((name, key))
            return found(key, *args, **kwargs)

        return call


def test_a_hundred_runs_take_a_listing_and_one_read_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from console.status import show

    store = Counting(open_store(f"file://{tmp_path}"))
    for i in range(100):
        state = ("running", "stopped", "finished")[i % 3]
        record = {"attempt": 1, "state": state, "step": i, "steps": 100, "time": time.time()}
        store.put(f"run{i}/status.json", json.dumps(record).encode())  # type: ignore[operator]
    store.asked.clear()
    assert show(store, None, as_json=True) == 0  # type: ignore[arg-type]
    assert len(json.loads(capsys.readouterr().out)) == 100
    assert sorted(store.asked) == sorted([("list", ""), *(("get", f"run{i}/status.json") for i in range(100))])


@pytest.mark.parametrize("as_json", [False, True])
def test_a_run_that_may_not_be_read_hides_no_other(
    as_json: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    from console.status import show

    store = open_store(f"file://{tmp_path}")
    record = {"attempt": 1, "state": "stopped", "step": 7, "steps": 100, "time": time.time()}
    for run in ("first", "second"):
        store.put(f"{run}/status.json", json.dumps(record).encode())
    get = store.get

    def refuse(key: str, *args: object, **kwargs: object) -> object:
        if key.startswith("first/"):
            raise PermissionDenied(f"{key}: permission denied")
        return get(key, *args, **kwargs)  # type: ignore[arg-type]

    store.get = refuse  # type: ignore[method-assign, assignment]
    assert show(store, None, as_json=as_json) == 78
    printed = capsys.readouterr().out
    told = [line for line in printed.splitlines() if "error: " not in line]  # where other tests have logs go to stdout
    assert any("second" in line for line in told)
    assert not any("first" in line for line in told)
    assert [line.getMessage() for line in caplog.records] == ["first/status.json: permission denied"]
    store.get = lambda key, *_, **__: refuse(f"first/{key}")  # type: ignore[method-assign, assignment]
    with pytest.raises(PermissionDenied):  # all of them: no table, and one line
        show(store, None, as_json=as_json)


def test_ages_do_not_depend_on_the_clock_of_whoever_trains(tmp_path: Path) -> None:
    history = History(open_store(f"file://{tmp_path}"), "run")
    for off in (-300, 300):
        now = time.time() + off
        durable = {"name": "000001-00000010", "step": 10, "time": now - 20}
        history.write_record(
            {"attempt": 1, "state": "running", "step": 10, "time": now, "durable": durable}, "status.json"
        )
        told = glance(history)
        assert told is not None
        assert told["attempt_state"] == "running"
        assert told["checkpoint_age_s"] == pytest.approx(20, abs=2)


def test_nor_does_that_of_a_checkpoint_that_another_machine_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    history = checkpoints.history(tmp_path)
    for off in (0, 300):
        clock = SimpleNamespace(time=lambda: time.time() + off)  # noqa: B023
        monkeypatch.setattr("trainer.history.time", clock)
        number = history.claim({"machine": {"host": f"ahead by {off} s"}})
        if not off:
            name = checkpoints.save(history, number, 10).name
    file = tmp_path / "run" / "checkpoints" / f"{name}.json"
    os.utime(file, (file.stat().st_atime - 50, file.stat().st_mtime - 50))
    told = whole(history)
    assert told is not None
    assert (told["attempt"], told["host"], told["checkpoint"]) == (2, "ahead by 300 s", name)
    assert told["checkpoint_age_s"] == pytest.approx(50, abs=5)


def test_how_an_attempt_ended_is_told_in_words_of_every_reason(tmp_path: Path) -> None:
    from console.endings import how
    from watchers import HaltWatcher
    from watchers.drill import DrillWatcher
    from watchers.protocol import Notice

    def told(notice: Notice | None) -> str | None:
        assert notice is not None
        record = {"source": notice.source, "action": notice.action, "detail": notice.detail}
        return how("stopped", [{"source": "aws", "action": "save"}, record], 0)

    for file, words in (("halt", "halted by its operator"), ("preempt.txt", "rehearsed eviction (preempt.txt)")):
        (tmp_path / file).touch()
        assert told(HaltWatcher(tmp_path).check()) == words
        (tmp_path / file).unlink()
    assert told(DrillWatcher("gcp", 0).check()) == "a drill, as if evicted by Google"
    assert told(Notice("azure", "stop", "Preempt", "id", 0.0)) == "evicted by Azure"
    assert how("stopped", None, None) == "stopped"
    assert how("not durable", [], 7) == "the last 7 steps were not saved"


LOOK = """
import sys, entrypoint
from storage import open_store
from trainer.history import History
from trainer.ledger import account
from trainer.records import read
entrypoint.main(["status", "--json", "--store", sys.argv[1]])
print(*(account(read(History(open_store(sys.argv[1]), run))).state for run in ("gone", "there")))
"""


@pytest.mark.skipif(not FAKETIME.exists(), reason="no libfaketime (Debian: faketime)")
@pytest.mark.parametrize("off", ["-10m", "+10m"])
def test_nor_on_that_of_whoever_looks(off: str, tmp_path: Path) -> None:
    """libfaketime moves the viewer's clock; the files' times, which are the store's clock here, stay the kernel's."""
    for run in ("gone", "there"):
        history = History(open_store(f"file://{tmp_path}"), run)
        history.claim({})
        history.write_record({"attempt": 1, "state": "running", "step": 10, "time": time.time()}, "status.json")
    for file in (tmp_path / "gone").rglob("*.json"):
        os.utime(file, (file.stat().st_atime - SILENCE_S, file.stat().st_mtime - SILENCE_S))
    done = subprocess.run(
        [sys.executable, "-c", LOOK, f"file://{tmp_path}"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        env=environment(LD_PRELOAD=str(FAKETIME), FAKETIME=off, NO_FAKE_STAT="1", FAKETIME_DONT_FAKE_MONOTONIC="1"),
    )
    lines = done.stdout.splitlines()
    gone, there = json.loads("\n".join(lines[:-1]))
    assert (gone["attempt_state"], there["attempt_state"]) == ("dead", "running"), done.stderr
    assert SILENCE_S <= gone["last_seen_s"] < SILENCE_S + 60
    assert lines[-1] == "stopped running", "the report says so too"


def test_records_of_others_are_no_commands_to_copy(tmp_path: Path) -> None:
    from console.next_steps import going_on, line

    for words in (["rm", "-rf", "/"], ["cifar10", "--nonsense", "x"], ["cifar10", "--run", "a\nb"], "cifar10", [3], []):
        assert going_on({"arguments": words}) == []  # type: ignore[dict-item]
    assert "'a; rm -rf /'" in line(going_on({"arguments": ["cifar10", "--data", "a; rm -rf /"]}), "s3://b/c")


def test_off_a_terminal_each_row_is_one_line_whatever_its_words() -> None:
    rows = [(("a", "red\n\x1b[2J", ""), "bold"), (("longer", "x" * 300, "-"), "")]
    lines = plain([Words("above"), sheet(("run", "state", "left"), rows)])
    assert lines == [
        "above",
        f"run     {'state':<200}  left",
        "a       red [2J",
        f"longer  {'x' * 200}  -",
    ]


@pytest.mark.parametrize(("end", "code"), [("q", 0), ("\x03", 130)])
def test_a_page_that_is_followed_ends_at_q_and_at_ctrl_c(end: str, code: int, tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path}")
    store.put("run/status.json", json.dumps({"attempt": 1, "state": "running", "step": 7, "steps": 9}).encode())
    words = [sys.executable, str(REPOSITORY / "entrypoint.py"), "status", "--watch", "--store", f"file://{tmp_path}"]
    child, terminal = pty.fork()
    if child == 0:
        os.execve(words[0], words, {**environment(), "COLUMNS": "150", "TERM": "xterm"})
    shown = b""
    while b"q or Ctrl-C ends" not in shown:
        shown += os.read(terminal, 1 << 16)
    assert b"7/9" in shown
    os.write(terminal, end.encode())
    try:
        while os.read(terminal, 1 << 16):
            pass
    except OSError:
        pass  # how a terminal says that nobody is left
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == code
    os.close(terminal)
