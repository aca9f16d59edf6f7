"""`status` of 100 runs: from the command's start to its end, and the look into the store alone, on each kind of store.

The servers are the emulators of tests/emulators on this machine. Beside it stands the same command on an empty store:
the import of Python and the SDK, which no store can make quicker.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from collections.abc import Callable

from measure import entrypoint, in_turn, machine, scratch, spread
from stores import served, timed

from console.standing import at_once, glance
from storage import open_store
from trainer.history import History
from trainer.place import runs

KINDS = ("local", "s3", "gs", "az")
SIGN = {
    "attempt": 3,
    "state": "running",
    "step": 410,
    "steps": 975,
    "metrics": {"accuracy": 0.6382, "loss": 1.1175, "train_loss": 1.519},
    "durable": {"name": "000003-00000393", "step": 393, "weights_sha256": "0" * 64, "state_sha256": "0" * 64},
    "host": "machine",
    "arguments": ["cifar10"],
}


def measured(kind: str, count: int, rounds: int) -> None:
    with scratch() as folder, served(kind, folder) as url:
        store = open_store(f"{url}/full")
        for i in range(count):
            store.put(f"run{i:03d}/status.json", json.dumps({**SIGN, "time": time.time()}).encode())

        def look() -> None:
            assert len(at_once(lambda run: glance(History(store, run)), runs(store))) == count

        def command(place: str) -> Callable[[], None]:
            words = entrypoint("status", "--store", f"{url}/{place}")

            def run() -> None:
                subprocess.run(words, check=True, stdout=subprocess.DEVNULL)

            return run

        figures = in_turn(
            rounds,
            {
                "the look alone": timed(look),
                "the command": timed(command("full")),
                "of no runs": timed(command("empty")),
            },
        )
        for name, seconds in figures.items():
            print(f"  {name:16} {spread(seconds)} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--store", action="append", choices=KINDS, help="one of these; again for more; all if not given"
    )
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print(f"{options.runs} runs, {machine()}")
    for kind in options.store or KINDS:
        print(f"{kind}:", flush=True)
        measured(kind, options.runs, options.rounds)


if __name__ == "__main__":
    main()
