"""GPUs: one that is in the machine and can't be used, and what an error of one's means to whoever runs Baton.

Torch is imported only where there is a GPU to ask it about: that takes seconds.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from trainer.exits import ExitCode, UserError

ROOT = Path("/")
NVIDIA, DISPLAY = "0x10de", ("0x0300", "0x0302")  # PCI: vendor; class of graphics and of compute cards

# Numbers of cudaError_t (CUDA Runtime API, "Data types used by CUDA Runtime"). A program's own mistakes: invalid value,
# function or handle, illegal address, failed assertion on the device, instruction, alignment, address space, counter
MISTAKES = (1, 98, 400, 700, 710, 715, 716, 717, 718)
NO_MEMORY = 2
UNFIT = (35, 209, 803, 804)  # a driver too old, a GPU that this torch has no code for, driver and library that differ


class Failed(UserError):
    """A GPU that failed while it computed."""


class Trouble(NamedTuple):
    """Why a GPU can't be used, and what mends it."""

    what: str
    mend: str


# -- before training --------------------------------------------------------------------------------------------------


def hidden(root: Path = ROOT) -> Trouble | None:
    """A GPU of this machine that the container can't see, if so. `root`: where /sys and /dev are."""
    cards = _nvidia_cards(root)
    if not cards or is_seen(root):
        return None
    return Trouble(
        f"{cards} of NVIDIA's in this machine, which the container can't see",
        "docker run --gpus all (Kubernetes: limits: nvidia.com/gpu: 1), with the driver and NVIDIA's container "
        "toolkit on the host",
    )


def unusable(root: Path = ROOT) -> Trouble | None:
    """A GPU that is seen, and that torch can't use, if so. Imports torch where one is seen."""
    if not is_seen(root):
        return None
    import torch

    if torch.version.cuda is None:
        return Trouble("one, and a torch without CUDA", "take the image of the cuda flavour: make image FLAVOUR=cuda")
    if is_usable():
        return None
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return Trouble(
            f"one that CUDA_VISIBLE_DEVICES={os.environ['CUDA_VISIBLE_DEVICES']} hides", "unset that variable"
        )
    return Trouble(
        f"one that torch can't use (driver {driver(root)}, CUDA {torch.version.cuda})",
        "update the driver on the host to one that knows this CUDA (nvidia-smi shows which), or --device cpu",
    )


def is_usable() -> bool:
    """Whether torch can compute on a GPU. Says nothing by itself: torch would warn of a driver that is too old."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return bool(torch.cuda.is_available())


def driver(root: Path = ROOT) -> str:
    """The version of NVIDIA's driver."""
    found = re.search(r"Kernel Module\s+(?:for \S+\s+)?([\d.]+)", _text(root / "proc/driver/nvidia/version"))
    return found[1] if found else "unknown"


def is_seen(root: Path = ROOT) -> bool:
    """Whether NVIDIA's driver is at hand, here in the container."""
    return (root / "dev/nvidiactl").exists()


def _nvidia_cards(root: Path) -> int:
    try:
        cards = list((root / "sys/bus/pci/devices").iterdir())
    except OSError:
        return 0
    return sum(_text(card / "vendor") == NVIDIA and _text(card / "class")[:6] in DISPLAY for card in cards)


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


# -- while it computes ------------------------------------------------------------------------------------------------


def fault(error: RuntimeError, micro_batch: int | None) -> Failed | None:
    """The line for an error of the GPU's, with its exit code; None where the job or Baton made a mistake.

    `micro_batch`: samples computed at once; None before any were.
    """
    import torch

    why = str(error).partition("\n")[0][:200].rstrip(" .")
    code = getattr(error, "error_code", None)
    if isinstance(error, torch.OutOfMemoryError) or code == NO_MEMORY:
        return Failed(f"the GPU has too little memory for {_wanted(micro_batch)} ({why})")
    if not isinstance(error, torch.AcceleratorError) or code in MISTAKES:
        return None
    if code in UNFIT:
        return Failed(f"this torch can't use this GPU ({why}): take another image or another GPU, or --device cpu")
    return Failed(
        f"the GPU is lost ({why}): start again, on another machine if dmesg there tells of NVRM and Xid; without a GPU "
        "--device auto goes on on the processor",
        ExitCode.NOT_DURABLE,
    )


def _wanted(micro_batch: int | None) -> str:
    if micro_batch is None:
        return "this network and its data: take a larger one, or --device cpu"
    if micro_batch == 1:
        return "a single sample: take a larger one, or --device cpu"
    return (
        f"{micro_batch} samples at once: --micro-batch-size {-(-micro_batch // 2)} --allow-change micro_batch_size "
        "computes the same batch in smaller pieces"
    )


@contextmanager
def in_one_line(micro_batch: int | None = None) -> Iterator[None]:
    """Raise the GPU's errors as `UserError`."""
    try:
        yield
    except RuntimeError as e:
        told = fault(e, micro_batch)
        if told is None:
            raise
        raise told from e
