"""What it computes with: processor, threads, GPU, and a GPU that is there but can't be used."""

from __future__ import annotations

import math
import os
import re

from console.checks.examination import Check, Patient, Trouble, Warn

NVIDIA, DISPLAY = "0x10de", ("0x0300", "0x0302")  # PCI: vendor; class of graphics and of compute cards


def processor(patient: Patient) -> str:
    first = patient.text("proc/cpuinfo").split("\n\n")[0]
    fields = {
        name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in first.splitlines())
    }
    flags = set((fields.get("flags") or fields.get("features") or "").split())
    widest = next((name for name in ("avx512f", "avx2", "asimd", "sse4_2") if name in flags), "none known")
    bf16 = "computed" if {"amx_bf16", "bf16"} & flags else "not computed, so --precision auto takes fp32"
    name = fields.get("model name") or os.uname().machine
    if widest not in ("avx512f", "avx2", "asimd"):
        raise Warn(f"{name}: vectors: {widest}", "take a machine of the last ten years: this one is many times slower")
    return f"{name}, vectors: {widest}, bf16: {bf16}"


def threads(patient: Patient) -> str:
    quota, _, period = patient.text("sys/fs/cgroup/cpu.max").partition(" ")
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if quota.isdigit() and period.isdigit():
        share = int(quota) / int(period)
        if share < 1:
            raise Warn(f"{share:g} of one processor", "docker run --cpus 2 or more, or none of --cpus")
        return f"{min(processors, math.ceil(share))}, of {processors} processors, by the container's limit"
    return f"{processors}, one for each processor"


def gpu(patient: Patient) -> str:
    """torch is asked only where there is one: it takes seconds to import."""
    present = _nvidia_cards(patient)
    if not patient.path("dev/nvidiactl").exists():
        if present:
            raise Warn(
                f"{present} of NVIDIA's in this machine, which the container can't see",
                "docker run --gpus all (Kubernetes: limits: nvidia.com/gpu: 1), with the driver and NVIDIA's container "
                "toolkit on the host",
            )
        return "none in this machine: it computes on the processor"
    driver = re.search(r"Kernel Module\s+(?:for \S+\s+)?([\d.]+)", patient.text("proc/driver/nvidia/version"))
    import torch

    if torch.version.cuda is None:
        raise Warn("a GPU, and a torch without CUDA", "take the image of the cuda flavour: make image FLAVOUR=cuda")
    if not torch.cuda.is_available():
        raise Trouble(
            f"a GPU that torch can't use (driver {driver[1] if driver else 'unknown'}, CUDA {torch.version.cuda})",
            "update the driver on the host to one that knows this CUDA (nvidia-smi shows which), or --device cpu",
        )
    names = {torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
    return f"{torch.cuda.device_count()} x {', '.join(sorted(names))}, driver {driver[1] if driver else 'unknown'}"


def _nvidia_cards(patient: Patient) -> int:
    devices = patient.path("sys/bus/pci/devices")
    try:
        names = [path.name for path in devices.iterdir()]
    except OSError:
        return 0
    return sum(
        patient.text(f"sys/bus/pci/devices/{name}/vendor") == NVIDIA
        and patient.text(f"sys/bus/pci/devices/{name}/class")[:6] in DISPLAY
        for name in names
    )


CHECKS = (
    Check("compute", "processor", processor),
    Check("compute", "threads", threads),
    Check("compute", "GPU", gpu),
)
