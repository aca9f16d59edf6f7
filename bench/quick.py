"""What `cifar10`'s preset `quick` reaches: accuracy and training seconds over several seeds, and peak memory.

Each seed is a run of the real entrypoint. Seconds are those from its first step to its last evaluation's end, as
its ledger has them; `training` leaves the evaluations out. With a short schedule (--steps) and --predecessor it also
runs the predecessor's loop in the same call, and prints how many times less time it takes to that loop's accuracy.
`--predecessor 1` is the short form: one epoch of that loop, its seconds times 10, and the accuracy from --target.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

from measure import (
    REPOSITORY,
    entrypoint,
    machine,
    packed_data,
    peak_memory_of_children_mb,
    processor_seconds_of_children,
    scratch,
    spread,
)

EPOCHS = 10  # of the predecessor


def one_run(folder: Path, seed: int, options: list[str]) -> tuple[float, float, float, float]:
    """Accuracy, training seconds, evaluation seconds, and processor seconds of the whole process."""
    run = f"seed{seed}"
    place = ["--store", f"file://{folder}", "--data", str(packed_data()), "--halt", str(folder / "halt")]
    command = entrypoint("cifar10", *place, "--run", run, "--seed", str(seed), *options)
    before = processor_seconds_of_children()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=dict(os.environ))
    processor = processor_seconds_of_children() - before
    result = json.loads((folder / run / "result.json").read_bytes())
    manifest = json.loads((folder / run / "checkpoints" / f"{result['checkpoint']}.json").read_bytes())
    (entry,) = manifest["ledger"]
    return result["metrics"]["accuracy"], entry["seconds"] - entry["evaluation_s"], entry["evaluation_s"], processor


def predecessor(epochs: int) -> tuple[float, float, float]:
    """Accuracy and training seconds of the predecessor's loop after its last epoch; processor seconds of it all."""
    command = [sys.executable, str(REPOSITORY / "bench" / "predecessor.py"), "--epochs", str(epochs)]
    before = processor_seconds_of_children()
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    processor = processor_seconds_of_children() - before
    print(out, end="")
    accuracy, seconds = re.findall(r"accuracy ([0-9.]+) after ([0-9.]+) s", out)[-1]
    return float(accuracy), float(seconds), processor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument(
        "--predecessor", type=int, nargs="?", const=EPOCHS, help="race the predecessor's 10 epochs; or as many as given"
    )
    parser.add_argument("--target", type=float, default=0.591, help="its accuracy, where it makes fewer epochs than 10")
    parser.add_argument("--epochs", type=int, help="instead of the preset's")
    parser.add_argument("--steps", type=int, help="instead of the preset's epochs")
    options = parser.parse_args()
    extra = [f"--{name}={value}" for name in ("epochs", "steps") if (value := getattr(options, name))]
    with scratch() as folder:
        first = options.first_seed
        runs = [one_run(folder, seed, extra) for seed in range(first, first + options.seeds)]
    accuracies, training, evaluation, processor = (list(column) for column in zip(*runs, strict=True))
    print(f"cifar10 quick {' '.join(extra)}, {machine()}, {options.seeds} seeds")
    mean = sum(accuracies) / len(accuracies)
    print(f"test accuracy:  mean {100 * mean:.2f} % ({100 * min(accuracies):.2f} to {100 * max(accuracies):.2f})")
    print(f"training:       {spread(training, '.1f')} s")
    print(f"evaluations:    {spread(evaluation, '.1f')} s")
    print(f"processors:     {spread(processor, '.1f')} s of the whole process")
    print(f"peak memory:    {peak_memory_of_children_mb():.0f} MB")
    if options.predecessor:
        accuracy, seconds, its_processor = predecessor(options.predecessor)
        if options.predecessor != EPOCHS:
            more = EPOCHS / options.predecessor
            accuracy, seconds, its_processor = options.target, seconds * more, its_processor * more
            print(f"predecessor:    extrapolated from {options.predecessor} of {EPOCHS} epochs; accuracy as given")
        mine = [a + b for a, b in zip(training, evaluation, strict=True)]
        won = "reached by every seed" if min(accuracies) >= accuracy else "NOT reached by every seed"
        print(f"predecessor:    {100 * accuracy:.2f} % after {seconds:.0f} s of training; {won}")
        print(f"time to it:     {spread([seconds / s for s in mine], '.1f')} times less, evaluation included")
        print(f"processor time: {spread([its_processor / s for s in processor], '.1f')} times less, start-up included")


if __name__ == "__main__":
    main()
