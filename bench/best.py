"""`cifar10 --preset best` beside the PyPI package airbench (its airbench94) on the same files, in turn.

The seconds are those of training alone. Baton's begin where its first step is made, in which CUDA and cuDNN start, and
are scaled up to all steps; its evaluations are left out, its saves are not. The package runs as it is, on a GPU warmed
up once, with its training pictures read before; that it makes its network is in its seconds.
Without a GPU both run in fp32 on the processor, the package through stand-ins for what it asks of CUDA: that tells what
accuracy these files allow, and nothing of a GPU's seconds.
The package isn't among the locked ones: `.venv/bin/python -m pip install --no-deps airbench==0.1.8`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from contextlib import ExitStack, chdir
from pathlib import Path
from typing import Any, Self
from unittest import mock

from measure import REPOSITORY, chosen, machine, packed_data, peak_memory, ratio, scratch, spread

import torch  # isort: skip
from trainer.data.packed import open_packed


class Clock:
    """torch.cuda.Event, for a processor."""

    def __init__(self, **_options: object) -> None: ...

    def record(self) -> None:
        self.at = time.perf_counter()

    def elapsed_time(self, other: Self) -> float:
        """Milliseconds."""
        return 1000 * (other.at - self.at)


def without_gpu() -> ExitStack:
    """While it is open, what asks for CUDA and half precision gets the processor and single precision."""
    load = torch.load
    stand_ins: list[tuple[object, str, Any]] = [
        (torch.cuda, "Event", Clock),
        (torch.cuda, "synchronize", lambda: None),
        (torch, "load", lambda path, map_location: load(path)),
        (torch.Tensor, "half", torch.Tensor.float),
        (torch.nn.Module, "half", torch.nn.Module.float),
        (torch.nn.Module, "cuda", lambda self: self),
    ]
    stack = ExitStack()
    for owner, name, value in stand_ins:
        stack.enter_context(mock.patch.object(owner, name, value))
    return stack


def lay_out(folder: Path) -> None:
    """The packed pictures as the package keeps its own."""
    packed = open_packed(packed_data())
    (folder / "cifar10").mkdir()
    for split in ("train", "test"):
        images, labels = (torch.tensor(packed.arrays[f"{split}_{what}"]) for what in ("images", "labels"))
        torch.save(
            {"images": images, "labels": labels.long(), "classes": packed.classes}, folder / "cifar10" / f"{split}.pt"
        )


def theirs(folder: Path, seed: int) -> tuple[float, float]:
    """Accuracy, and seconds of training without the evaluation."""
    import airbench
    from airbench import utils
    from airbench.lib_airbench94 import hyp

    torch.manual_seed(seed)
    with chdir(folder):
        on_gpu = torch.cuda.is_available()
        if on_gpu and not seed:
            airbench.warmup94()
        batch_size = hyp["opt"]["batch_size"]
        loader = utils.CifarLoader("cifar10", train=True, batch_size=batch_size, aug=hyp["aug"], altflip=True)
        if on_gpu:
            torch.cuda.synchronize()
        begun = time.perf_counter()
        model = airbench.train94(loader, verbose=False)
        if on_gpu:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - begun
        return utils.evaluate(model, utils.CifarLoader("cifar10", train=False, batch_size=2000), tta_level=2), seconds


# the entrypoint, and then what it took at most: MB of memory, and of a GPU's
PROGRAM = """
import resource, sys, entrypoint
code = entrypoint.main(sys.argv[1:])
import torch
gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else 0
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, gpu / 1e6)
sys.exit(code)
"""
PEAKS: list[tuple[float, ...]] = []


def baton(folder: Path, seed: int) -> tuple[float, float]:
    """Likewise."""
    place = ["--store", f"file://{folder}", "--data", str(packed_data()), "--halt", str(folder / "halt")]
    arguments = ["cifar10", "--preset", "best", "--run", f"seed{seed}", "--seed", str(seed), *place]
    if not torch.cuda.is_available():
        arguments += ["--precision", "fp32"]
    command = [sys.executable, "-c", PROGRAM, *arguments]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY).stdout
    PEAKS.append(tuple(map(float, said.splitlines()[-1].split())))
    result = json.loads((folder / f"seed{seed}" / "result.json").read_bytes())
    manifest = json.loads((folder / f"seed{seed}" / "checkpoints" / f"{result['checkpoint']}.json").read_bytes())
    (entry,) = manifest["ledger"]
    before = entry["first_step_made"] - entry["started"]
    seconds = entry["seconds"] - before - entry["evaluation_s"]
    return result["metrics"]["accuracy"], seconds * manifest["step"] / (manifest["step"] - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, help="20 on a GPU, else 5")
    options = parser.parse_args()
    on = chosen("auto")
    seeds = options.seeds or (20 if on == "cuda" else 5)
    try:
        import airbench  # noqa: F401
    except ImportError:
        parser.exit(78, "airbench isn't installed: .venv/bin/python -m pip install --no-deps airbench==0.1.8\n")
    figures: dict[str, list[tuple[float, float]]] = {"Baton": [], "airbench94": []}
    with scratch() as folder, ExitStack() as stack:
        lay_out(folder)
        if not torch.cuda.is_available():
            stack.enter_context(without_gpu())
        for seed in range(seeds):
            for name, way in list({"Baton": baton, "airbench94": theirs}.items())[:: 1 if seed % 2 else -1]:
                figures[name].append(way(folder, seed))
                print(
                    f"{name}, seed {seed}: {100 * figures[name][-1][0]:.2f} % in {figures[name][-1][1]:.1f} s",
                    flush=True,
                )
    print(f"cifar10 best, {machine(on)}, {seeds} seeds")
    for name, runs in figures.items():
        print(
            f"{name + ':':<12}{spread([100 * a for a, _ in runs])} %, training {spread([s for _, s in runs], '.1f')} s"
        )
    print(f"Baton/airbench94, seconds: {ratio(*([s for _, s in runs] for runs in figures.values()))}")
    memory, gpu = (max(values) for values in zip(*PEAKS, strict=True))
    print(f"peak memory: Baton {memory:.0f} MB, GPU {gpu:.0f} MB; airbench94 and this {peak_memory()}")


if __name__ == "__main__":
    main()
