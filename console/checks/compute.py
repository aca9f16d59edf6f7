"""What it computes with: processor, threads, GPU, and a GPU that is there but can't be used."""

from __future__ import annotations

import math
import os

from console.checks.examination import Check, Patient, Trouble, Warn
from trainer import gpu, limits
from trainer.processor import Processor


def processor(patient: Patient) -> str:
    found = Processor.of(patient.text("proc/cpuinfo"))
    widest = next((name for name in ("avx512f", "avx2", "asimd", "sse4_2") if name in found.flags), "none known")
    bf16 = "faster" if found.computes_in_bf16 else "not faster, so --precision auto takes fp32"
    if widest not in ("avx512f", "avx2", "asimd"):
        raise Warn(
            f"{found.name}: vectors: {widest}", "take a machine of the last ten years: this one is many times slower"
        )
    return f"{found.name}, vectors: {widest}, bf16: {bf16}"


def threads(patient: Patient) -> str:
    share = limits.processors(patient.text)
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if share is not None:
        if share < 1:
            raise Warn(f"{share:g} of one processor", "docker run --cpus 2 or more, or none of --cpus")
        return f"{min(processors, math.ceil(share))}, of {processors} processors, by the container's limit"
    return f"{processors}, one for each processor"


def graphics(patient: Patient) -> str:
    """torch is asked only where there is one: it takes seconds to import."""
    if (trouble := gpu.hidden(patient.root)) is not None:
        raise Warn(*trouble)
    if (trouble := gpu.unusable(patient.root)) is not None:
        import torch

        raise (Trouble if torch.version.cuda else Warn)(*trouble)
    if not gpu.is_seen(patient.root):
        return "none in this machine: it computes on the processor"
    import torch

    names = {torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
    return f"{torch.cuda.device_count()} x {', '.join(sorted(names))}, driver {gpu.driver(patient.root)}"


CHECKS = (
    Check("compute", "processor", processor),
    Check("compute", "threads", threads),
    Check("compute", "GPU", graphics),
)
