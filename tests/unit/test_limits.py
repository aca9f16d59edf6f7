"""A container's share of the processors, as either version of cgroups tells it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from trainer import limits
from trainer.machine import thread_count

V1 = "cpu/cpu.cfs_{}_us"


@pytest.mark.parametrize(
    ("files", "share", "threads"),
    [
        ({}, None, 8),
        ({"cpu.max": "max 100000\n"}, None, 8),
        ({"cpu.max": "150000 100000\n"}, 1.5, 2),
        ({V1.format("quota"): "-1\n", V1.format("period"): "100000\n"}, None, 8),
        ({V1.format("quota"): "250000\n", V1.format("period"): "100000\n"}, 2.5, 3),
        ({V1.format("quota"): "50000\n"}, None, 8),
        ({"cpu.max": "rubbish"}, None, 8),
    ],
)
def test_no_more_threads_than_the_container_has_processors(
    files: dict[str, str], share: float | None, threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in files.items():
        file = tmp_path / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert limits.processors(limits.text_below(tmp_path)) == share
    assert thread_count(root=tmp_path) == threads
    assert thread_count(2, root=tmp_path) == max(1, threads // 2)
