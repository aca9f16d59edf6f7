"""Which process of a run this is, where several share its batches; and how many of them there shall be.

torchrun, Kubernetes and their like say it by torchrun's variables (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT; of more
than one process on a machine LOCAL_RANK and LOCAL_WORLD_SIZE too). `--nproc` has its processes started with the same
ones, by trainer/processes.py. Nothing here imports torch before it must.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from trainer import limits
from trainer.exits import ExitCode, UserError

ROLE = "baton"  # of the processes that `--nproc` starts
PROCESS_BYTES = 300_000_000  # what Python and torch take of memory that no other process shares, and a little more
VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True, slots=True)
class Rank:
    """Process `number` of `count`; on its machine `local` of `local_count`. All are counted from 0."""

    number: int = 0
    count: int = 1
    local: int = 0
    local_count: int = 1

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Rank:
        """Which one this process is; the only one where nobody said. Raises `UserError`."""
        if int_of(environment, "WORLD_SIZE", "1") == 1:
            return cls()
        missing = [name for name in VARIABLES if not environment.get(name)]
        if missing:
            raise UserError(
                f"WORLD_SIZE={environment['WORLD_SIZE']}: set {', '.join(missing)} as well, as torchrun does"
            )
        int_of(environment, "MASTER_PORT", "")
        rank = cls(
            int_of(environment, "RANK", ""),
            int_of(environment, "WORLD_SIZE", ""),
            int_of(environment, "LOCAL_RANK", "0"),
            int_of(environment, "LOCAL_WORLD_SIZE", "1"),
        )
        if not 0 <= rank.number < rank.count or not 0 <= rank.local < rank.local_count <= rank.count:
            raise UserError(f"RANK={rank.number} and WORLD_SIZE={rank.count} do not fit: ranks are counted from 0")
        return rank


def int_of(environment: Mapping[str, str], name: str, default: str) -> int:
    text = environment.get(name) or default
    if not (text.isascii() and text.isdecimal()):
        raise UserError(f"{name}={text}: must be a whole number, as torchrun sets it")
    return int(text)


def speaks_first(environment: Mapping[str, str]) -> bool:
    """Whether no other process of this start says what all would say, before any of them has met the others."""
    return environment.get("RANK", "0") == "0" and environment.get("ROLE_NAME") != ROLE


def wanted(nproc: str) -> int | None:
    """The number that `--nproc` says; None: auto. Raises `UserError` (wrong command line)."""
    if nproc == "auto":
        return None
    if not (nproc.isascii() and nproc.isdecimal()) or not 1 <= int(nproc) <= 1024:
        raise UserError(f"--nproc {nproc}: must be auto or a number from 1 to 1024", ExitCode.USAGE)
    return int(nproc)


def processes(nproc: str, device: str, root: Path = Path("/")) -> int:
    """How many processes this machine shall train with. Raises `UserError` where it has too few GPUs or too little
    memory for them. `root`: where /proc and /sys are."""
    number = wanted(nproc)
    if number == 1 or (device == "cpu" and number is None):
        return 1
    gpus = 0
    if device != "cpu" and any(Path(sign).exists() for sign in ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")):
        import torch  # which takes seconds, and without these need not be asked

        gpus = torch.cuda.device_count()
    if not gpus:
        _check_memory(number or 1, root)
    elif number is not None and number > gpus:
        raise UserError(f"--nproc {number}: this machine has {gpus} GPU{'s' if gpus > 1 else ''} that torch sees")
    return number or max(1, gpus)


def _check_memory(number: int, root: Path) -> None:
    """Raise `UserError` where the container has no memory for so many: it would swap, or be killed, without a word."""
    text = limits.text_below(root)
    machine = re.search(r"^MemTotal: *([0-9]+) kB", text("proc/meminfo"), re.M)
    most = min(limits.memory(text), 1024 * int(machine[1]) if machine else limits.UNLIMITED)
    if number * PROCESS_BYTES > most:
        raise UserError(
            f"--nproc {number}: a process takes {PROCESS_BYTES / 1e6:.0f} MB before it has any data, and here are "
            f"{most / 1e9:.1f} GB for all; on processors alone more of them than processors are no faster"
        )
