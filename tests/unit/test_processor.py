"""Which processors compute in bf16."""

from __future__ import annotations

import pytest

from trainer.processor import Processor


@pytest.mark.parametrize(
    ("cpuinfo", "computes"),
    [
        ("vendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC 9655\nflags\t\t: avx2 avx512f avx512_bf16\n", True),
        ("vendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC 7763\nflags\t\t: avx2\n", False),
        ("vendor_id\t: GenuineIntel\nmodel name\t: Xeon 8380H\nflags\t\t: avx2 avx512f avx512_bf16\n", False),
        ("vendor_id\t: GenuineIntel\nmodel name\t: Xeon 8481C\nflags\t\t: avx512_bf16 amx_bf16\n", True),
        ("BogoMIPS\t: 243.75\nFeatures\t: asimd bf16\nCPU implementer\t: 0x41\n", True),
        ("", False),
    ],
)
def test_bf16_is_chosen_where_it_is_faster(cpuinfo: str, computes: bool) -> None:
    # of another processor of the same machine nothing is taken
    processor = Processor.of(cpuinfo and f"{cpuinfo}\nvendor_id\t: AuthenticAMD\nflags\t\t: avx512_bf16\n")
    assert processor.computes_in_bf16 == computes
    assert processor.name
