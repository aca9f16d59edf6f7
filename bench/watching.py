"""What watching costs: all sources of each cloud against its metadata service, in processor time and memory.

Each cloud's watchers run in a process of their own, in which torch is imported already, as it is in training; the
service runs in another. Processor time is the whole process's, over some seconds in which nothing else happens.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
CLOUDS = ("aws", "gcp", "azure")
CPU_BOUND, MEMORY_BOUND_MB = 0.2, 5.0  # per cent of one core; both are promised by docs/clouds.md


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def watch(cloud: str, base: str, seconds: float) -> None:
    """In the process that is measured: prints its figures as JSON."""
    sys.path.insert(0, str(REPOSITORY))
    import torch  # noqa: F401

    from watchers import Mailbox, Watch

    before = resident_mb()
    from watchers.cloud import CLOUDS

    watching = Watch(CLOUDS[cloud].sources(base), Mailbox())  # type: ignore[index]
    watching.first_looks(10)
    time.sleep(1)  # connections, tokens
    begun = time.process_time(), time.monotonic()
    time.sleep(seconds)
    used = 100 * (time.process_time() - begun[0]) / (time.monotonic() - begun[1])
    memory = resident_mb() - before
    watching.close()
    print(json.dumps({"cpu": used, "memory": memory}))


def measured(cloud: str, seconds: float) -> dict[str, float]:
    fake = [sys.executable, str(REPOSITORY / "tests" / "emulators" / "metadata.py"), "--cloud", cloud]
    with subprocess.Popen(fake, stdout=subprocess.PIPE, text=True) as service:
        assert service.stdout is not None
        port = service.stdout.readline().rpartition(":")[2].strip()
        command = [sys.executable, __file__, "--watch", cloud, "--base", f"http://127.0.0.1:{port}"]
        done = subprocess.run([*command, "--seconds", str(seconds)], check=True, capture_output=True, text=True)
        service.kill()
    return dict(json.loads(done.stdout))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement")
    parser.add_argument("--watch", choices=CLOUDS, help=argparse.SUPPRESS)
    parser.add_argument("--base", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.watch:
        return watch(options.watch, options.base, options.seconds)
    print(f"bounds: {CPU_BOUND} % of one core, {MEMORY_BOUND_MB:.0f} MB; {options.seconds:g} s each")
    for cloud in CLOUDS:
        got = measured(cloud, options.seconds)
        over = "" if got["cpu"] <= CPU_BOUND and got["memory"] <= MEMORY_BOUND_MB else "   OVER THE BOUND"
        print(f"{cloud:6}{got['cpu']:7.3f} % of one core, {got['memory']:4.1f} MB{over}")
    return None


if __name__ == "__main__":
    main()
