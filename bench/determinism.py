"""What determinism costs: steps a second with it against `--no-deterministic`, of cifar10, on a GPU where one is there.

Each figure is of a process of its own, for CUDA's matrix library is told once how to compute. It takes the job's own
loss, backward and update; steps before those that count let cuDNN time its algorithms, where it may. Without a GPU it
counts processor seconds, which say the same where others use the machine.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from functools import partial

from measure import in_turn, machine, packed_data, ratio, spread


def measure(options: argparse.Namespace, quick: bool) -> None:
    """Print this process's steps a second; a processor second where it computes on processors."""
    if not quick:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # as console/train.py does
    from loop_overhead import bare, build

    from trainer.machine import compute_exactly, compute_quickly, keep_memory, pick_device, thread_count
    from trainer.startup import put_off_compiler

    put_off_compiler()
    compute_exactly(thread_count())
    if quick:
        compute_quickly()
    keep_memory()
    task, plan = build(options.preset, pick_device(options.device))
    bare(task, plan, 0, options.warm_up)
    begun = time.process_time()
    by_the_clock = bare(task, plan, options.warm_up, options.steps)
    print(by_the_clock if plan.device.type == "cuda" else options.steps / (time.process_time() - begun))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", help="of cifar10; `best` on a GPU, `quick` without one")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--steps", type=int, help="200 on a GPU, 20 without one")
    parser.add_argument("--warm-up", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--way", choices=["deterministic", "quick"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    from trainer.machine import pick_device

    device = pick_device(options.device)
    options.preset = options.preset or ("best" if device.type == "cuda" else "quick")
    options.steps = options.steps or (200 if device.type == "cuda" else 20)
    if options.way:
        measure(options, options.way == "quick")
        return
    packed_data()

    names = ("preset", "device", "steps", "warm_up")
    given = [f"--{name.replace('_', '-')}={getattr(options, name)}" for name in names]

    def speed(way: str) -> float:
        command = [sys.executable, __file__, *given, "--way", way]
        return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)

    figures = in_turn(options.rounds, {way: partial(speed, way) for way in ("deterministic", "quick")})
    import torch

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else machine()
    second = "second" if device.type == "cuda" else "processor second"
    print(f"cifar10 {options.preset}, {name}")
    print(f"deterministic:      {spread(figures['deterministic'])} steps a {second}")
    print(f"--no-deterministic: {spread(figures['quick'])} steps a {second}")
    print(f"time of a step, with determinism against without: {ratio(figures['quick'], figures['deterministic'])}")


if __name__ == "__main__":
    main()
