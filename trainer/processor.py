"""The processor, as /proc/cpuinfo tells of it (proc(5)); without torch, for the doctor."""

from __future__ import annotations

import platform
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Processor:
    name: str
    flags: frozenset[str]
    is_amd: bool

    @classmethod
    def of(cls, cpuinfo: str) -> Processor:
        """Of a machine without that file, "", the name alone may be known."""
        fields = [line.partition(":") for line in cpuinfo.split("\n\n")[0].splitlines()]
        values = {name.strip().lower(): value.strip() for name, _, value in fields}
        flags = frozenset((values.get("flags") or values.get("features") or "").split())
        name = values.get("model name") or platform.machine()
        return cls(name, flags, values.get("vendor_id") == "AuthenticAMD")

    @property
    def computes_in_bf16(self) -> bool:
        """Whether bf16 should be faster than fp32: with AMX, Arm's own, or AVX-512's of AMD (Zen 4 and later).

        Two were measured: an Intel with AVX-512 but without AMX computes convolutions in bf16 at 0.6 times the speed of
        fp32, a Zen 5 at 1.5 to 2.5 times, and linear layers at 4 times and more.
        """
        return bool({"amx_bf16", "bf16"} & self.flags) or (self.is_amd and "avx512_bf16" in self.flags)
