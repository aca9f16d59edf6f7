"""A run tells the same facts on a terminal, in whole lines, and as JSON that the clouds' log readers take."""

from __future__ import annotations

import json
import logging
import math
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from console.logs import _Json
from tests import log_readers
from tests.runs import REPOSITORY, Container, command, environment
from trainer.data.dataset import named
from trainer.data.packed import Origin, write_packed
from trainer.data.pulse import Pulse
from trainer.data.synthetic import generate

# progress each 0.05 s in place of 5, so that each epoch of a run of seconds has some
SCRIPT = (
    "import os, sys, entrypoint, console.progress as p\n"
    "p.Lines.every_s = 0.05\n"
    "code = entrypoint.main(sys.argv[1:])\n"
    "sys.stdout.flush()\n"
    "os._exit(code)"
)
OPTIONS = ["--preset", "tutorial", "--batch-size", "50", "--steps", "60", "--checkpoint-every", "20steps"]


def words(folder: Path, data: Path, form: str) -> list[str]:
    place = ["--store", f"file://{folder}/{form}", "--halt", str(folder), "--data", str(data)]
    return [sys.executable, "-c", SCRIPT, "cifar10", *place, *OPTIONS]


def piped(folder: Path, data: Path, form: str, *options: str) -> list[str]:
    done = subprocess.run(
        [*words(folder, data, form), *options], capture_output=True, text=True, env=environment(), cwd=REPOSITORY
    )
    assert done.returncode == 0, done.stdout
    assert not done.stderr, "a cloud takes what comes there for an error"
    return done.stdout.splitlines()


def on_a_terminal(command: list[str], cwd: Path = REPOSITORY, **variables: str) -> str:
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(cwd)
        os.execve(command[0], command, {**environment(), "COLUMNS": "200", "TERM": "xterm", **variables})
    shown = b""
    try:
        while piece := os.read(terminal, 1 << 16):
            shown += piece
    except OSError:
        pass  # how a terminal says that nobody is left
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, shown
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())


def told(lines: list[str]) -> list[str]:
    """What lines tell, without clock, store and progress, which differ from run to run."""
    bare = [re.sub(r"^\d\d:\d\d:\d\d ", "", line).strip() for line in lines]
    return [re.sub(r"file://\S+?/cifar10", "STORE", line) for line in bare if line and "saved:" not in line]


def test_the_same_facts_in_each_form(tmp_path: Path, small_cifar: Path) -> None:
    text = piped(tmp_path, small_cifar, "text")
    records = [log_readers.read(line) for line in piped(tmp_path, small_cifar, "json", "--log", "json")]
    shown = on_a_terminal(words(tmp_path, small_cifar, "terminal"))

    facts = [line for line in told(text) if "nothing saved yet" not in line]
    assert any("finished: 60 steps" in line for line in facts)
    assert [line for line in told([r["message"] for r in records]) if "nothing saved yet" not in line] == facts
    on_screen = told(re.split(r"[\r\n]+", shown))
    assert [line for line in on_screen if line in facts] == facts, f"the terminal lacks some of {facts}:\n{shown}"

    # progress: in words in all, in fields too for a program
    assert "loss" in shown
    assert "images/s" in shown
    progress = [r for r in records if "durable_step" in r and "samples_per_s" in r]
    assert any("saved: step" in line for line in text)
    assert progress
    for record in progress:
        assert f"step {record['step']}/{record['steps']}" in record["message"]
        assert f"epoch {record['epoch']}/{record['epochs']}" in record["message"]
        if record["durable_step"]:
            assert f"saved: step {record['durable_step']}" in record["message"]
    (finished,) = [r for r in records if r["message"].find("finished:") >= 0]
    assert f"accuracy {finished['accuracy']:.4f}" in finished["message"]

    assert {record["severity"] for record in records} == {"INFO"}


@pytest.fixture(scope="module")
def told_twice(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], list[str]]:
    """A run on the stand-in: its folder, the lines until a Ctrl-C, and what a terminal shows of the rest."""
    folder = tmp_path_factory.mktemp("told")
    (folder / "halt").mkdir()
    splits = generate(named("cifar10"), Pulse(), 2000, 600)
    write_packed(folder / "data", named("cifar10"), splits, Origin("synthetic", "", ""), synthetic=True)
    place = ["--halt", "halt", "--data", "data", "--preset", "tutorial", "--batch-size", "50", "--epochs", "8"]
    command = [sys.executable, "-c", SCRIPT, "cifar10", *place, "--checkpoint-every", "20steps"]
    first = Container.of(command, cwd=folder, PYTHONPATH=str(REPOSITORY))
    first.wait_for("loss .* images/s, [^,]+ left, saved: ")  # not one of an evaluation
    first.signal(signal.SIGINT)
    assert first.wait() == 130, first.text
    shown = on_a_terminal(command, folder, PYTHONPATH=str(REPOSITORY))
    return folder, first.lines, [line.strip() for line in re.split(r"[\r\n]+", shown)]


def test_of_the_stand_in_every_line_the_manifests_and_the_result_say_synthetic(
    told_twice: tuple[Path, list[str], list[str]],
) -> None:
    folder, lines, shown = told_twice
    assert [line for line in lines if " SYNTHETIC " not in line] == []
    live = [line for line in shown if "% " in line and "starting" not in line]
    logged = [line for line in shown if re.match(r"\d\d:\d\d:\d\d ", line)]
    assert live
    assert logged
    assert [line for line in (*live, *logged) if " SYNTHETIC " not in line] == []
    records = [json.loads(file.read_text()) for file in (folder / "store/cifar10/checkpoints").glob("*.json")]
    records.append(json.loads((folder / "store/cifar10/result.json").read_text()))
    assert len(records) > 2
    assert all(record["synthetic"] is True for record in records)


def test_a_start_says_in_four_lines_what_runs_where_it_saves_whence_it_goes_on_and_how_to_stop_it(
    told_twice: tuple[Path, list[str], list[str]],
) -> None:
    folder, lines, shown = told_twice
    logged = [line for line in shown if re.match(r"\d\d:\d\d:\d\d ", line)]
    for said, whence in (
        (lines, "attempt 1 starts at step 0: the store has no checkpoint of this run"),
        (logged, r"attempt 2 goes on at step \d+ of 320: checkpoint 000001-\d+ is the newest good one"),
    ):
        wanted = (
            r"cifar10, preset tutorial: 320 steps of 50 samples on cpu \(.+\), data: cifar10",
            rf"checkpoints: file://{re.escape(str(folder))}/store/cifar10, every 20 steps",
            whence,
            "to stop: touch halt/halt, or Ctrl-C; the place is kept",
        )
        bare = [re.sub(r"^\S+ (SYNTHETIC )?", "", line).strip() for line in said[:4]]
        for line, pattern in zip(bare, wanted, strict=True):
            assert re.fullmatch(pattern, line), (pattern, bare)


def test_the_readmes_transcript_is_what_such_a_run_prints(told_twice: tuple[Path, list[str], list[str]]) -> None:
    def form(line: str) -> str:
        """Without clock and figures."""
        line = re.sub(r"^\d\d:\d\d:\d\d (SYNTHETIC )?", "", line)
        line = re.sub(r"\d+ (h|min|s)( \d+ (min|s))?\b", "TIME", line)
        return re.sub(r"\d+([.,]\d+)*", "N", line)

    _, lines, shown = told_twice
    printed = {form(line) for line in (*lines, *shown)}
    transcript = re.findall(r"^    (\d\d:\d\d:\d\d .+)$", (REPOSITORY / "README.md").read_text(), re.MULTILINE)
    assert len(transcript) > 5
    assert [line for line in transcript if form(line) not in printed] == []


SHOW_ONE = """if True:
    import time
    from console.progress import Live
    from trainer.progress import Progress
    from trainer.saver import Durable
    live = Live()
    live.show(Progress(
        step=346, steps=975, epoch=2, epochs=5, loss=1.531, samples_per_s=2080.0, seconds_left=2003.0,
        durable=Durable("000001-00000340", 340, time.time() - 5, False, "", "", "", ()), save_error="disk full",
        evaluated=None, unit="images",
    ))
    live.close()
"""


@pytest.mark.parametrize("columns", ["200", "100", "80", "40"])
def test_a_narrow_terminal_hides_nothing_of_the_progress(columns: str) -> None:
    shown = on_a_terminal([sys.executable, "-c", SHOW_ONE], COLUMNS=columns)
    words = " ".join(re.sub("[\u2500-\u257f]", " ", shown).split())
    ahead = "33 min 23 s left, SAVING FAILS, saved: step 340, 5 s ago"
    line = f"epoch 2/5, step 346/975, loss 1.531, 2,080 images/s, {ahead}"
    assert line.replace(",", "") in words.replace(",", "")
    if columns == "80":
        assert re.search(rf"^\s+{ahead}", shown, re.MULTILINE)


def deep(level: int, words: str) -> None:
    if level:
        deep(level - 1, words)
    raise ValueError(words)


@pytest.mark.parametrize("words", ["short", "\u20ac" * 30_000, '{"a": "\x1b[2J\r\n\u2028\ud800"} ' * 2000])
@pytest.mark.parametrize("level", [logging.DEBUG, logging.WARNING, logging.ERROR, logging.CRITICAL])
def test_every_clouds_log_reader_takes_every_line(level: int, words: str) -> None:
    record = logging.LogRecord("baton", level, __file__, 1, words, (), None)
    record.fields = {"detail": words, "loss": math.nan, "left_s": math.inf, "confusion": [[1] * 10] * 10, "level": 3}
    try:
        deep(50, words)
    except ValueError:
        record.exc_info = sys.exc_info()
    told = log_readers.read(_Json().format(record))
    assert told["severity"] == logging.getLevelName(level)
    assert told["exception"]
    if words == "short":
        assert "ValueError: short" in told["exception"]
        assert (told["detail"], told["loss"], told["left_s"]) == (words, None, None)


def test_what_ends_a_start_is_json_too() -> None:
    for arguments, code in (
        (["cifar10", "--log", "json", "--lr", "x"], 64),
        (["bert", "--log=json", "--run", "/"], 64),
    ):
        done, said = command(*arguments)
        assert done == code
        (line,) = said.splitlines()
        assert log_readers.read(line)["severity"] == "ERROR"
