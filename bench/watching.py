"""What watching costs: all sources of each cloud against its metadata service, in processor time, memory, step time.

Each cloud's watchers run in a process of their own, in which torch is imported already, as it is in training; the
service runs in another. Processor time is the whole process's, over some seconds in which nothing else happens. Then
steps of cifar10 quick are made in turn with the watchers and without.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from watchers import Watch

REPOSITORY = Path(__file__).resolve().parent.parent
CLOUDS = ("aws", "gcp", "azure")
CPU_BOUND, MEMORY_BOUND_MB = 0.2, 5.0  # per cent of one core; both are promised by docs/clouds.md
STEPS = 20  # made in one go: two seconds and more, so that every source is looked at


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def watch(cloud: str, base: str, seconds: float, rounds: int) -> None:
    """In the process that is measured: prints its figures as JSON."""
    sys.path.insert(0, str(REPOSITORY))
    import torch  # noqa: F401

    from watchers import Mailbox, Watch

    before = resident_mb()
    from watchers.cloud import CLOUDS

    def begin() -> Watch:
        watching = Watch(CLOUDS[cloud].sources(base), Mailbox())  # type: ignore[index]
        watching.first_looks(10)
        return watching

    watching = begin()
    time.sleep(1)  # connections, tokens
    begun = time.process_time(), time.monotonic()
    time.sleep(seconds)
    used = 100 * (time.process_time() - begun[0]) / (time.monotonic() - begun[1])
    memory = resident_mb() - before
    watching.close()
    print(json.dumps({"cpu": used, "memory": memory, "steps": step_ratio(begin, rounds)}))


def step_ratio(begin: Callable[[], Watch], rounds: int) -> str:
    """A step with what `begin` begins, in parts of one without: by the clock, and by processor time."""
    from measure import in_turn, ratio

    from trainer.machine import compute_exactly, keep_memory
    from trainer.startup import put_off_compiler

    put_off_compiler()
    compute_exactly(1)
    keep_memory()
    from loop_overhead import bare, build

    task, plan = build("quick")
    used: dict[str, list[float]] = {"watched": [], "alone": []}

    def steps(name: str) -> float:
        begun = time.process_time()
        seconds = STEPS / bare(task, plan, 0, STEPS)
        used[name].append(time.process_time() - begun)
        return seconds

    def watched() -> float:
        watching = begin()
        try:
            return steps("watched")
        finally:
            watching.close()

    figures = in_turn(rounds, {"watched": watched, "alone": lambda: steps("alone")})
    processor = ratio(used["watched"][1:], used["alone"][1:])  # the first round doesn't count
    return f"{ratio(figures['watched'], figures['alone'])}; processor time {processor}"


def measured(cloud: str, seconds: float, rounds: int) -> dict[str, Any]:
    fake = [sys.executable, str(REPOSITORY / "tests" / "emulators" / "metadata.py"), "--cloud", cloud]
    with subprocess.Popen(fake, stdout=subprocess.PIPE, text=True) as service:
        assert service.stdout is not None
        port = service.stdout.readline().rpartition(":")[2].strip()
        command = [sys.executable, __file__, "--watch", cloud, "--base", f"http://127.0.0.1:{port}"]
        command += ["--seconds", str(seconds), "--rounds", str(rounds)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        service.kill()
    return dict(json.loads(done.stdout))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement of a processor")
    parser.add_argument("--rounds", type=int, default=8, help=f"of {STEPS} steps with and {STEPS} without")
    parser.add_argument("--watch", choices=CLOUDS, help=argparse.SUPPRESS)
    parser.add_argument("--base", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.watch:
        return watch(options.watch, options.base, options.seconds, options.rounds)
    print(f"bounds: {CPU_BOUND} % of one core, {MEMORY_BOUND_MB:.0f} MB; {options.seconds:g} s each")
    for cloud in CLOUDS:
        got = measured(cloud, options.seconds, options.rounds)
        over = "" if got["cpu"] <= CPU_BOUND and got["memory"] <= MEMORY_BOUND_MB else "   OVER THE BOUND"
        print(f"{cloud:6}{got['cpu']:7.3f} % of one core, {got['memory']:4.1f} MB{over}")
        print(f"        a step's time with it in parts of one without: {got['steps']}")
    return None


if __name__ == "__main__":
    main()
