"""What the container may use of its machine. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Callable

UNLIMITED = 1 << 60  # cgroup v1 writes a huge number where there is no limit


def memory(text: Callable[[str], str]) -> int:
    """Bytes of memory that the container may use; `UNLIMITED` or more where it has no limit of its own.

    `text` gives a file's text without blanks around it, by its path below the root, or "" where there is none.
    """
    files = ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory/memory.limit_in_bytes")  # cgroup v2, v1
    return min((int(limit) for limit in map(text, files) if limit.isdecimal()), default=UNLIMITED)
