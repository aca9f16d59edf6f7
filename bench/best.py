"""`cifar10 --preset best` beside the PyPI package airbench (its airbench94) on the same files, in turn.

On a GPU the package runs as it is, warmed up once; its seconds are those of a whole call, its set-up with it. Without
one both run in fp32 on the processor, the package through stand-ins for what it asks of CUDA: that tells what accuracy
these files allow, and nothing of a GPU's seconds.
The package isn't among the locked ones: `.venv/bin/python -m pip install --no-deps airbench==0.1.8`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from contextlib import ExitStack, chdir
from pathlib import Path
from typing import Any, Self
from unittest import mock

from measure import entrypoint, machine, packed_data, ratio, scratch, spread

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

    torch.manual_seed(seed)
    with chdir(folder):
        on_gpu = torch.cuda.is_available()
        if on_gpu and not seed:
            airbench.warmup94()
        begun = time.perf_counter()
        model = airbench.train94(verbose=False)
        if on_gpu:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - begun
        return utils.evaluate(model, utils.CifarLoader("cifar10", train=False, batch_size=2000), tta_level=2), seconds


def baton(folder: Path, seed: int) -> tuple[float, float]:
    place = ["--store", f"file://{folder}", "--data", str(packed_data()), "--halt", str(folder / "halt")]
    command = entrypoint("cifar10", "--preset", "best", "--run", f"seed{seed}", "--seed", str(seed), *place)
    if not torch.cuda.is_available():
        command += ["--precision", "fp32"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    result = json.loads((folder / f"seed{seed}" / "result.json").read_bytes())
    manifest = json.loads((folder / f"seed{seed}" / "checkpoints" / f"{result['checkpoint']}.json").read_bytes())
    (entry,) = manifest["ledger"]
    return result["metrics"]["accuracy"], entry["seconds"] - entry["evaluation_s"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    try:
        import airbench  # noqa: F401
    except ImportError:
        parser.exit(78, "airbench isn't installed: .venv/bin/python -m pip install --no-deps airbench==0.1.8\n")
    figures: dict[str, list[tuple[float, float]]] = {"Baton": [], "airbench94": []}
    with scratch() as folder, ExitStack() as stack:
        lay_out(folder)
        if not torch.cuda.is_available():
            stack.enter_context(without_gpu())
        for seed in range(options.seeds):
            for name, way in list({"Baton": baton, "airbench94": theirs}.items())[:: 1 if seed % 2 else -1]:
                figures[name].append(way(folder, seed))
                print(
                    f"{name}, seed {seed}: {100 * figures[name][-1][0]:.2f} % in {figures[name][-1][1]:.1f} s",
                    flush=True,
                )
    print(f"cifar10 best, {machine()}, {options.seeds} seeds")
    for name, runs in figures.items():
        print(
            f"{name + ':':<12}{spread([100 * a for a, _ in runs])} %, training {spread([s for _, s in runs], '.1f')} s"
        )
    print(f"Baton/airbench94, seconds: {ratio(*([s for _, s in runs] for runs in figures.values()))}")


if __name__ == "__main__":
    main()
