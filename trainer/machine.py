"""This machine: what it computes with, for the ledger and for exactness."""

from __future__ import annotations

import ctypes
import logging
import math
import os
import socket
from pathlib import Path

import torch

from trainer import gpu, limits
from trainer.exits import UserError
from trainer.processor import Processor
from trainer.settings import Json

log = logging.getLogger("baton")

# of a machine, what the bill needs; see `trainer.prepare`
BILLED = ("host", "cloud", "instance_type", "region", "zone", "spot", "price_per_hour", "device")


def pick_device(wanted: str, place: int = 0, root: Path = gpu.ROOT) -> torch.device:
    """`place`: which of the machine's GPUs, from 0. Raises `UserError` if one is asked for and none can be used.

    With `auto` one that is there and can't be used is warned of. `root`: where /sys, /proc and /dev are.
    """
    if wanted == "cpu":
        return torch.device("cpu")
    if not gpu.is_usable():
        trouble = gpu.hidden(root) or gpu.unusable(root)
        if wanted == "cuda":
            what, mend = trouble or ("none in this machine", "use --device auto, or in docker give --gpus all")
            raise UserError(f"--device cuda: GPU: {what}; {mend}")
        if trouble is not None:
            log.warning("GPU: %s: it computes on the processor; %s", *trouble)
        return torch.device("cpu")
    if place >= torch.cuda.device_count():
        raise UserError(f"process {place} of this machine has no GPU: torch sees {torch.cuda.device_count()}")
    if place:
        torch.cuda.set_device(place)
    return torch.device("cuda", place)


def computes_in_bf16(device: torch.device) -> bool:
    """Whether bf16 is computed, and faster than fp32, rather than emulated."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return _processor().computes_in_bf16


def keep_memory() -> None:
    """Let glibc keep large blocks that are freed, for the next step, in place of giving them back to the system.

    Activations over 32 MB would otherwise be mapped and zeroed anew in each operation, which costs more than many an
    operation. All threads share one heap: else each that sends would keep blocks of its own, 200 MB in all.
    Numbers of the options: mallopt(3), malloc.h.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        return  # not glibc
    m_trim_threshold, m_top_pad, m_mmap_max, m_arena_max = -1, -2, -4, -8
    for option, value in ((m_mmap_max, 0), (m_trim_threshold, 2**31 - 1), (m_top_pad, 64 << 20), (m_arena_max, 1)):
        libc.mallopt(option, value)


def keep_few_kernels() -> None:
    """For a job whose batches differ in shape: let oneDNN and torch's layer above it keep few kernels each, not 1,024.

    Each has scratch memory of its own: for MiniLM in bf16 and texts of 20 to 277 tokens they came to 1.7 GB of 4.3. To
    make them anew takes 4 % of the time. Both read this when they make their first one.
    """
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, "32")


def compute_exactly(threads: int) -> None:
    """The same bits on every machine of one type: deterministic algorithms, nothing tuned by timing."""
    torch.set_num_threads(threads)
    # not use_deterministic_algorithms(), which imports the compiler too
    torch.set_deterministic_debug_mode("error")
    torch.backends.cudnn.benchmark = False
    # fp32 means fp32 on a GPU too: convolutions would round what they multiply to TF32's 10 bits. By these names, for
    # once one of the newer ones (fp32_precision) is set, whoever asks for these gets an error, and torch itself does
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    # it would fill all new memory with NaN, for debugging
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def compute_quickly() -> None:
    """Give up the same bits each time: on a GPU, algorithms that add up in any order, chosen by timing them."""
    torch.set_deterministic_debug_mode("default")
    torch.backends.cudnn.benchmark = True


def thread_count(processes: int = 1, root: Path = Path("/")) -> int:
    """Threads to compute with: torch's own choice, but no more than the container's share of the processors.

    `processes` of one machine share them, unless OMP_NUM_THREADS says what each takes. `root`: where /sys is.
    """
    quota = limits.processors(limits.text_below(root))
    threads = min(torch.get_num_threads(), math.ceil(quota)) if quota else torch.get_num_threads()
    return max(1, threads if "OMP_NUM_THREADS" in os.environ else threads // processes)


def facts(device: torch.device, threads: int) -> dict[str, Json]:
    """What decides the last bits of a result, and what a reader of the ledger wants to know. JSON values."""
    return {
        "host": socket.gethostname(),
        "cpu": _processor().name,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": threads,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": str(torch.__version__),
        "revision": os.environ.get("BATON_REVISION") or None,
    }


def _processor() -> Processor:
    try:
        return Processor.of(Path("/proc/cpuinfo").read_text())
    except OSError:
        return Processor.of("")
