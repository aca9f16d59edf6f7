"""What every bench shares: real data, runs in turn, and figures with their spread."""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))
DATA = Path(os.environ.get("BATON_DATA") or REPOSITORY / "data" / "cifar10")

# The cloud is looked for as ever, but where nobody is: no bench sends to link-local addresses
for cloud in ("AWS", "GCP", "AZURE"):
    os.environ.setdefault(f"BATON_{cloud}_METADATA", "http://127.0.0.1:9")


def entrypoint(*arguments: str) -> list[str]:
    return [sys.executable, str(REPOSITORY / "entrypoint.py"), *arguments]


def packed_data() -> Path:
    """The packed CIFAR-10 to measure on; `make bench` packs it first."""
    if not (DATA / "packed.safetensors").exists():
        sys.exit(f"no packed data in {DATA}: pack it with `python entrypoint.py data cifar10 --source ...`")
    return DATA


@contextmanager
def scratch() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="baton-bench-", dir=REPOSITORY))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def in_turn(rounds: int, ways: Mapping[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Measure each way once per round, the order turned round each time, after one round that doesn't count."""
    figures: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(-1, rounds):
        names = list(ways)[:: 1 if number % 2 else -1]
        for name in names:
            figure = ways[name]()
            if number >= 0:
                figures[name].append(figure)
    return figures


def spread(values: Sequence[float], form: str = ".2f") -> str:
    return f"median {statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}}, n={len(values)})"


def ratio(over: Sequence[float], under: Sequence[float]) -> str:
    """Of each round's pair, for the machine's speed drifts."""
    return spread([a / b for a, b in zip(over, under, strict=True)], ".3f")


def seconds_of(command: Sequence[str], **variables: str) -> float:
    begun = time.perf_counter()
    subprocess.run(command, check=True, env={**os.environ, **variables}, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begun


def peak_memory_of_children_mb() -> float:
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


def peak_memory() -> str:
    """Of this process so far, on a GPU too."""
    import torch

    text = f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB"
    return text + (f", GPU {torch.cuda.max_memory_allocated() / 1e6:.0f} MB" if torch.cuda.is_initialized() else "")


def processor_seconds_of_children() -> float:
    """Of those that have ended, their own children included; steadier than the clock where others use the machine."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: a GPU where there is one"
    )


def chosen(device: str) -> str:
    """cpu or cuda."""
    import torch

    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def machine(device: str = "cpu") -> str:
    import torch

    if device == "cuda":
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    return f"{torch.get_num_threads()} threads, torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}"
