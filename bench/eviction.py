"""An eviction from notice to exit, and the next container's way to its first step: times, and a picture of them.

For each cloud the real entrypoint trains beside a metadata service that tells it to go. The times are those on the
attempt's record, `exit` and `first step` this program's own clock. `--svg FILE` draws them.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from pathlib import Path

from measure import REPOSITORY, packed_data, scratch

from tests.emulators.metadata import Metadata
from tests.runs import Lab

CLOUDS = ("aws", "gcp", "azure")
MARKS = ("seen", "stopped", "durable", "exit")
PATIENCE_S = 240.0


def evicted(cloud: str, folder: Path, preset: str) -> dict[str, float]:
    """Seconds after the notice; `first step`: after the next container's start; `deadline`: after the notice."""
    lab = Lab(folder / cloud, packed_data(), "--preset", preset, "--checkpoint-every", "1000s")
    with Metadata(cloud) as service:
        variables = {"BATON_CLOUD": cloud, f"BATON_{cloud.upper()}_METADATA": service.url}
        container = lab.start(**variables)
        assert container.wait_for("first step made", PATIENCE_S), container.text
        time.sleep(2 + random.random())  # in the midst of a step, and of the time between two looks
        told = time.time()
        goes = service.notice()
        assert container.wait(PATIENCE_S) == 75, container.text
        ended = time.time()
        service.clear()
        began = time.time()
        again = lab.start(**variables)
        assert again.wait_for("first step made", PATIENCE_S), again.text
        first = time.time() - began
        again.process.kill()
        again.wait()
    end = json.loads((lab.store / "cifar10" / "attempts" / "000001.end.json").read_text())
    (notice,) = end["notices"]
    times = {mark: notice[mark] - told for mark in MARKS[:3]}
    return {**times, "exit": ended - told, "deadline": goes - told, "first step": first}


def svg(figures: dict[str, dict[str, float]]) -> str:
    """One line for each cloud, from the notice to the exit."""
    width, left, row = 760, 90, 64
    longest = max(times["exit"] for times in figures.values())
    scale = (width - left - 170) / longest
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {row * len(figures) + 10}" '
        'font-family="sans-serif" font-size="12">',
        "<title>From an eviction notice to the exit</title>",
    ]
    for number, (cloud, times) in enumerate(figures.items()):
        y = row * number + 36
        end = left + scale * times["exit"]
        parts.append(f'<text x="8" y="{y + 4}" font-weight="bold">{cloud}</text>')
        parts.append(f'<line x1="{left}" y1="{y}" x2="{end:.0f}" y2="{y}" stroke="#456" stroke-width="3"/>')
        for place, mark in enumerate(("notice", *MARKS)):
            at = times.get(mark, 0.0)
            x = left + scale * at
            label = f"{mark} {at:.2f} s" if mark in times else mark
            up = place % 2 == 0
            parts.append(f'<circle cx="{x:.0f}" cy="{y}" r="4" fill="#c40"/>')
            parts.append(f'<text x="{x:.0f}" y="{y - 10 if up else y + 20}">{label}</text>')
        parts.append(f'<text x="{end + 85:.0f}" y="{y + 4}" fill="#666">gone after {times["deadline"]:.0f} s</text>')
    return "\n".join([*parts, "</svg>", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="quick")
    parser.add_argument("--svg", type=Path)
    options = parser.parse_args()
    with scratch() as folder:
        figures = {cloud: evicted(cloud, folder, options.preset) for cloud in CLOUDS}
    load = f"{os.getloadavg()[0]:.1f} on {os.cpu_count()} processors"
    print(f"cifar10 {options.preset}, load {load}; seconds after the notice")
    columns = (*MARKS, "deadline")
    print(f"{'':8}" + "".join(f"{name:>10}" for name in columns) + f"{'next container: start to first step':>38}")
    for cloud, times in figures.items():
        print(f"{cloud:8}" + "".join(f"{times[name]:10.2f}" for name in columns) + f"{times['first step']:38.2f}")
    if options.svg:
        options.svg.write_text(svg(figures))
        print(f"drawn in {options.svg.resolve().relative_to(REPOSITORY)}")


if __name__ == "__main__":
    main()
