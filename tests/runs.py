"""Drives the real entrypoint in real processes, and ends it in every way that a machine can."""

from __future__ import annotations

import array
import contextlib
import fcntl
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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


def light_command(*arguments: str) -> tuple[int, str]:
    """The same, of one that is quick because of all that is installed it imports click alone."""
    script = (
        "import sys\n"
        "before = set(sys.modules)\n"
        "import entrypoint\n"
        "code = entrypoint.main(sys.argv[1:])\n"
        "late = {name: str(getattr(sys.modules[name], '__file__', '')) for name in sys.modules.keys() - before}\n"
        "installed = {name.partition('.')[0] for name, file in late.items() if '-packages' in file}\n"
        "assert installed == {'click'}, installed\n"
        "sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        env=environment(),
        cwd=REPOSITORY,
        check=False,
    )
    assert "AssertionError" not in done.stderr, done.stderr
    return done.returncode, done.stdout


STARTED: list[subprocess.Popen[str]] = []


def kill_all() -> None:
    """End what a failed test has left running."""
    while STARTED:
        process = STARTED.pop()
        process.kill()
        process.wait()


def _runs(thread: Path) -> bool:
    """Whether a thread of a process that was told to stand still doesn't yet (proc(5), its state)."""
    with contextlib.suppress(FileNotFoundError):
        return (thread / "stat").read_text().rpartition(")")[2].split()[0] not in "TZX"
    return False


@dataclass
class Container:
    """One process, as a container would run it. Its lines are collected as they come."""

    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)
    _news: threading.Condition = field(default_factory=threading.Condition)
    ended: bool = False

    @classmethod
    def of(cls, command: Sequence[str], *, cwd: Path = REPOSITORY, **variables: str) -> Container:
        return cls(
            subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env=environment(PYTHONUNBUFFERED="1", **variables),
                cwd=cwd,
            )
        )

    def __post_init__(self) -> None:
        STARTED.append(self.process)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        rest, pipe = b"", self.process.stdout.fileno()
        while not self.ended:
            select.select([pipe], [], [])
            with self._news:  # what has left the pipe is among the lines
                piece = os.read(pipe, 1 << 16)
                *whole, rest = (rest + piece).split(b"\n")
                self.lines += [line.decode() for line in whole]
                self.ended = not piece
                if self.ended and rest:
                    self.lines.append(rest.decode())
                self._news.notify_all()

    def wait_for(self, pattern: str, seconds: float = 60.0, *, times: int = 1) -> str | None:
        """The first line that matches, or the `times`-th, come or to come; None if the process ends before."""
        deadline = time.monotonic() + seconds
        seen = 0
        with self._news:
            while True:
                for line in self.lines[seen:]:
                    if re.search(pattern, line) and (times := times - 1) == 0:
                        return line
                seen = len(self.lines)
                if self.ended:
                    return None
                assert self._news.wait(deadline - time.monotonic()), f"no {pattern!r} in {seconds} s:\n{self.text}"

    @contextlib.contextmanager
    def standing_still(self) -> Iterator[None]:
        """Meanwhile the process does nothing, and what it has printed is here."""
        threads = Path(f"/proc/{self.process.pid}/task")
        self.signal(signal.SIGSTOP)
        try:
            while self.process.poll() is None and any(_runs(thread) for thread in threads.iterdir()):
                time.sleep(0.001)
            with self._news:
                self._news.wait_for(lambda: self.ended or not self._unread())
            yield
        finally:
            self.signal(signal.SIGCONT)

    def _unread(self) -> int:
        """Bytes in the pipe."""
        assert self.process.stdout is not None
        count = array.array("i", [0])
        fcntl.ioctl(self.process.stdout, termios.FIONREAD, count)
        return count[0]

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
        self,
        folder: Path,
        data: Path,
        *options: str,
        job: str = "cifar10",
        url: str = "",
        variables: Mapping[str, str] | None = None,
    ) -> None:
        """`url`: of a store other than the folder's own; `variables` are what processes need to reach it."""
        self.job = job
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

    def start(self, *options: str, debug: bool = True, **extra: str) -> Container:
        command = self.command(
            self.job,
            *("--store", self.url, "--halt", str(self.halt), "--data", str(self.data)),
            *self.options,
            *options,
        )
        if debug:
            extra["BATON_DEBUG"] = "1"
        return Container.of(command, **self.variables, **extra)

    def finish(self, *options: str) -> Container:
        container = self.start(*options)
        assert container.wait(600) == 0, container.text
        return container

    def status(self, run: str = "") -> dict[str, object]:
        done = subprocess.run(
            self.command("status", "--json", "--store", self.url, "--run", run or self.job),
            capture_output=True,
            text=True,
            env=environment(**self.variables),
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return dict(json.loads(done.stdout)[0])

    def hashes(self) -> dict[str, object]:
        """Of the newest checkpoint, of the run that has the job's name."""
        newest = self.manifests()[-1]
        return {name: newest[name] for name in ("step", *HASHES)}

    def manifests(self, run: str = "") -> list[dict[str, object]]:
        """All manifests that are whole, the oldest first."""
        found = []
        for file in sorted((self.store / (run or self.job) / "checkpoints").glob("*.json")):
            with contextlib.suppress(ValueError):
                found.append(json.loads(file.read_bytes()))
        return found

    def chain(self, run: str = "") -> list[str]:
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


class CompressedLab(Lab):
    """One whose containers have other `constants`, by module and name, and slow steps while `pace` is there.

    See tests/compressed.py.
    """

    def __init__(self, folder: Path, data: Path, *options: str, constants: Mapping[str, float], **more: Any) -> None:
        super().__init__(folder, data, *options, **more)
        self.pace = folder / "slowly"
        self.constants = [f"{name}={value}" for name, value in constants.items()]

    def command(self, *arguments: str) -> list[str]:
        launcher = str(REPOSITORY / "tests" / "compressed.py")
        return [sys.executable, launcher, str(self.pace), *self.constants, "--", *arguments]
