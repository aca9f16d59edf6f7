"""Process start to the end of the first resumed step, against `python -c "import torch"` plus one step.

A run is stopped after some steps. Its store is copied for each measurement, the run resumed by the real entrypoint,
and the clock stopped when it says that its first step is made. The other side imports torch in a process of its own,
up to the end of that import, and one warm step of the same network is added to it.

Besides, the seconds of what needs no torch: `--help`, and a start that finds a halt file.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time

from loop_overhead import bare, build
from measure import entrypoint, in_turn, machine, packed_data, ratio, scratch, seconds_of, spread

from trainer.machine import compute_exactly, thread_count
from trainer.startup import put_off_compiler


def until(command: list[str], words: str) -> float:
    """Seconds from the start of a process until it prints a line with `words`."""
    begun = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "BATON_DEBUG": "1"})
    assert process.stdout is not None
    for line in process.stdout:
        if words in line:
            seconds = time.perf_counter() - begun
            process.send_signal(signal.SIGKILL)
            process.wait()
            return seconds
    raise SystemExit(f"{command} never said {words!r}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    with scratch() as folder:
        place = ["--data", str(packed_data()), "--halt", str(folder)]
        stopped = folder / "stopped"
        until(
            entrypoint("cifar10", "--store", f"file://{stopped}", *place, "--checkpoint-every", "3steps"),
            "durable after",
        )

        def resumed() -> float:
            store = folder / "store"
            shutil.rmtree(store, ignore_errors=True)
            shutil.copytree(stopped, store)
            return until(entrypoint("cifar10", "--store", f"file://{store}", *place), "first step made")

        def import_torch() -> float:
            return until([sys.executable, "-c", "import torch; print('imported', flush=True)"], "imported")

        def help_() -> float:
            return seconds_of(entrypoint("--help"))

        def halted() -> float:
            halt = folder / "halt"
            halt.touch()
            seconds = seconds_of(entrypoint("cifar10", *place))
            halt.unlink()
            return seconds

        ways = {"resumed": resumed, "import torch": import_torch, "help": help_, "halted": halted}
        figures = in_turn(rounds, ways)
    put_off_compiler()
    compute_exactly(thread_count())
    task, plan = build("quick")
    bare(task, plan, 0, 3)
    step = 1 / bare(task, plan, 3, 10)
    baseline = [seconds + step for seconds in figures["import torch"]]
    print(f"cifar10 quick, {machine()}")
    print(f"import torch:                         {spread(figures['import torch'])} s")
    print(f"one step:                             {step:.2f} s")
    print(f"process start to first resumed step:  {spread(figures['resumed'])} s")
    print(f"ratio to import torch plus one step:  {ratio(figures['resumed'], baseline)}")
    print(f"--help:                               {spread(figures['help'])} s")
    print(f"a start with a halt file there:       {spread(figures['halted'])} s")


if __name__ == "__main__":
    main()
