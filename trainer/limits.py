"""What the container may use of its machine. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

UNLIMITED = 1 << 60  # cgroup v1 writes a huge number where there is no limit


def memory(text: Callable[[str], str]) -> int:
    """Bytes of memory that the container may use; `UNLIMITED` or more where it has no limit of its own.

    `text` gives a file's text without blanks around it, by its path below the root, or "" where there is none.
    """
    files = ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory/memory.limit_in_bytes")  # cgroup v2, v1
    return min((int(limit) for limit in map(text, files) if limit.isdecimal()), default=UNLIMITED)


def processors(text: Callable[[str], str]) -> float | None:
    """Processors that the container may use (docker run --cpus); None where it has no limit. `text`: as above."""
    v1 = "sys/fs/cgroup/cpu/cpu.cfs_"
    for words in (text("sys/fs/cgroup/cpu.max"), f"{text(v1 + 'quota_us')} {text(v1 + 'period_us')}"):
        quota, _, period = words.partition(" ")
        if quota.isdecimal() and period.isdecimal() and int(period):  # a word, or -1, where there is none
            return int(quota) / int(period)
    return None


def text_below(root: Path) -> Callable[[str], str]:
    """As the functions above want it."""

    def text(file: str) -> str:
        try:
            return (root / file).read_text(errors="replace").strip()
        except OSError:
            return ""

    return text
