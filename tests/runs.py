"""Drives the real entrypoint in real processes, and ends it in every way that a machine can."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")
HASHES = ("weights_sha256", "state_sha256", "order_sha256")


def environment(**extra: str) -> dict[str, str]:
    """This process's environment without any setting of Baton's own, and with `extra`. No test asks a real cloud, and
    where there is a GPU only those use it that say so: it computes other bits, and has no place for two processes."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("BATON_")}
    return {**clean, "BATON_CLOUD": "none", "BATON_DEVICE": "cpu", **extra}


def command(*arguments: str, **variables: str) -> tuple[int, str]:
    """Run a command of the real entrypoint; its exit code and what it printed."""
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "entrypoint.py"), *arguments],
        capture_output=True,
        text=True,
        env=environment(**variables),
        cwd=REPOSITORY,
        check=False,
    )
    return done.returncode, done.stdout


STARTED: list[subprocess.Popen[str]] = []


def kill_all() -> None:
    """End what a failed test has left running."""
    while STARTED:
        process = STARTED.pop()
        process.kill()
        process.wait()


@dataclass
class Container:
    """One process, as a container would run it. Its lines are collected as they come."""

    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)
    _news: threading.Condition = field(default_factory=threading.Condition)
    ended: bool = False

    def __post_init__(self) -> None:
        STARTED.append(self.process)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._news:
                self.lines.append(line.rstrip("\n"))
                self._news.notify_all()
        with self._news:
            self.ended = True
            self._news.notify_all()

    def wait_for(self, pattern: str, seconds: float = 60.0) -> str | None:
        """The next line that matches, among those to come and those that came; None if the process ends first."""
        deadline = time.monotonic() + seconds
        seen = 0
        with self._news:
            while True:
                for line in self.lines[seen:]:
                    if re.search(pattern, line):
                        return line
                seen = len(self.lines)
                if self.ended:
                    return None
                assert self._news.wait(deadline - time.monotonic()), f"no {pattern!r} in {seconds} s:\n{self.text}"

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self, seconds: float = 120.0) -> int:
        """The exit code, with every line read."""
        code = self.process.wait(seconds)
        self._reader.join(10)
        return code

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


class Lab:
    """One run's store and halt folder, and containers for it."""

    def __init__(
        self, folder: Path, data: Path, *options: str, url: str = "", variables: Mapping[str, str] | None = None
    ) -> None:
        """`url`: of a store other than the folder's own; `variables` are what processes need to reach it."""
        self.store = folder / "store"
        self._url = url
        self.variables = dict(variables or {})
        self.halt = folder / "halt"
        self.halt.mkdir(parents=True, exist_ok=True)
        self.data = data
        self.options = options

    @property
    def url(self) -> str:
        return self._url or f"file://{self.store}"

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, str(REPOSITORY / "entrypoint.py"), *arguments]

    def start(self, *options: str, job: str = "cifar10", debug: bool = True, **extra: str) -> Container:
        command = self.command(
            job,
            *("--store", self.url, "--halt", str(self.halt), "--data", str(self.data)),
            *self.options,
            *options,
        )
        if debug:
            extra["BATON_DEBUG"] = "1"
        return Container(
            subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env=environment(PYTHONUNBUFFERED="1", **self.variables, **extra),
                cwd=REPOSITORY,
            )
        )

    def finish(self, *options: str) -> Container:
        container = self.start(*options)
        assert container.wait(600) == 0, container.text
        return container

    def status(self, run: str = "cifar10") -> dict[str, object]:
        done = subprocess.run(
            self.command("status", "--json", "--store", self.url, "--run", run),
            capture_output=True,
            text=True,
            env=environment(**self.variables),
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return dict(json.loads(done.stdout)[0])

    def hashes(self) -> dict[str, object]:
        """Of the newest checkpoint."""
        newest = self.manifests()[-1]
        return {name: newest[name] for name in ("step", *HASHES)}

    def manifests(self, run: str = "cifar10") -> list[dict[str, object]]:
        """All manifests that are whole, the oldest first."""
        found = []
        for file in sorted((self.store / run / "checkpoints").glob("*.json")):
            with contextlib.suppress(ValueError):
                found.append(json.loads(file.read_bytes()))
        return found

    def chain(self, run: str = "cifar10") -> list[str]:
        """Names of the newest checkpoint and its ancestors, as far as they are kept, the newest first."""
        by_name = {f"{m['attempt']:06d}-{m['step']:08d}": m for m in self.manifests(run)}
        names: list[str] = []
        name: object = max(by_name, default=None)
        while isinstance(name, str) and name in by_name:
            names.append(name)
            name = by_name[name]["parent"]
        return names

    def copy_of(self, other: Lab) -> Lab:
        shutil.copytree(other.store, self.store)
        return self


# how a container ends, and the exit code that it then has
ENDS = {"SIGTERM": 75, "SIGKILL": -9, "halt": 0, "preempt.txt": 75, "SIGINT": 130}
# the line after which it ends; None: at any moment from the start of the process on
MOMENTS = {
    "start-up": None,
    "training": "to stop:",
    "saving": "saving the state",
    "evaluation": "evaluating after",
}


@dataclass(frozen=True)
class Interruption:
    """One end of a container: how, and when: `delay_s` after the `occurrence`-th line of `moment`."""

    end: str
    moment: str
    delay_s: float


def random_interruptions(seed: int, count: int) -> Iterator[Interruption]:
    """Each moment and each end in turn, in random order, with random delays."""
    rng = random.Random(seed)
    ends = [list(ENDS)[i % len(ENDS)] for i in range(count)]
    moments = [list(MOMENTS)[i % len(MOMENTS)] for i in range(count)]
    rng.shuffle(ends)
    rng.shuffle(moments)
    for end, moment in zip(ends, moments, strict=True):
        # saves and evaluations here last some milliseconds; start-up about two seconds
        longest = {"start-up": 2.5, "training": 0.4, "saving": 0.02, "evaluation": 0.05}[moment]
        yield Interruption(end, moment, rng.uniform(0, longest))


def interrupt(lab: Lab, what: Interruption, *options: str) -> Container:
    """Start a container, end it so, and check that it ended as promised."""
    container = lab.start(*options)
    line = MOMENTS[what.moment]
    if line is not None:
        container.wait_for(line)
    time.sleep(what.delay_s)
    if what.end.startswith("SIG"):
        container.signal(getattr(signal, what.end))
        code = container.wait()
    else:
        file = lab.halt / what.end
        file.touch()
        code = container.wait()
        file.unlink()
    # a container may have come to the run's end, or to Python's start, before it heard of it
    early = {-signal.SIGTERM, -signal.SIGINT} if what.moment == "start-up" and what.delay_s < 0.3 else set()
    assert code in {ENDS[what.end], 0, *early}, f"{what}: exit {code}\n{container.text}"
    return container
