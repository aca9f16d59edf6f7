"""A hand-over in real containers: notice to durable checkpoint, and container start to the first resumed step.

A container trains, is told of its preemption by a (fake) metadata server of Google's, saves and goes; the next one
goes on, and so on. In turn with them a container of the same image that only imports torch: from `docker run` to the
end of that import. The store is an emulator on this machine, the containers are locked down as in tests/relay.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from contextlib import ExitStack

from measure import in_turn, machine, ratio, spread

from storage import open_store
from tests.clouds import reached
from tests.container.engine import Engine
from tests.relay.janitor import Janitor
from tests.relay.simulated import Cloud, Machine
from tests.relay.store import BUCKET, SCHEMES, start_store
from trainer.history import History

TRAINS_S = 1.5  # of training before the notice: a dozen steps
IMPORT = "import torch, time; print('imported', time.time(), flush=True)"


class HandOver:
    """Each call of `resumed` is one container's life."""

    def __init__(self, cloud: Cloud, url: str, variables: tuple[str, ...]) -> None:
        self._cloud = cloud
        self._url = url
        self._variables = variables
        self._history = History(open_store(url), "cifar10")
        self.to_seen: list[float] = []  # seconds from the notice's appearance
        self.to_durable: list[float] = []
        self.seen_to_durable: list[float] = []
        self.to_exit: list[float] = []

    def resumed(self) -> float:
        """Seconds from `docker run` to the end of the first step; notes those that its eviction takes."""
        begun = time.time()
        machine = self._cloud.start(self._variables, "cifar10", "--store", self._url)
        line = machine.log.wait_for(r"attempt \d+ ")
        if line is None:
            sys.exit(machine.log.text)
        time.sleep(TRAINS_S)
        self._evict(machine)
        entry = self._history.manifest(self._newest()).ledger[-1]
        return float(entry["first_step_made"]) - begun  # type: ignore[arg-type]

    def _newest(self) -> str:
        attempt, step = self._history.checkpoints()[0]
        return f"{attempt:06d}-{step:08d}"

    def _evict(self, machine: Machine) -> None:
        eviction = self._cloud.evict()
        if machine.wait(eviction.goes) != 75:
            sys.exit(machine.log.text)
        record = self._history.read_record("attempts", f"{self._history.attempts()[-1]:06d}.end.json") or {}
        notice = next(n for n in record["notices"] if n["source"] == "gcp")  # type: ignore[union-attr,index,call-overload]
        self.to_seen.append(notice["seen"] - eviction.sent)
        self.to_durable.append(notice["durable"] - eviction.sent)
        self.seen_to_durable.append(notice["durable"] - notice["seen"])
        self.to_exit.append(machine.container.ended_at() - eviction.sent)

    def import_torch(self) -> float:
        """Seconds from `docker run` to the end of the import."""
        begun = time.time()
        machine = self._cloud.start(self._variables, "-c", IMPORT, entrypoint="python3")
        line = machine.log.wait_for("imported") or ""
        machine.container.exit_code()
        return float(re.findall(r"imported ([\d.]+)", line)[0]) - begun

    def forget_the_first(self) -> None:
        for values in (self.to_seen, self.to_durable, self.seen_to_durable, self.to_exit):
            del values[:2]  # the run's start, and the round that doesn't count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image", default="baton:cuda")
    parser.add_argument("--store", choices=SCHEMES, default="gs")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    engine = Engine("docker")
    with ExitStack() as stack:
        janitor = stack.enter_context(Janitor(engine.client))
        cloud = Cloud("gcp", engine, options.image, janitor)
        cloud.wait()
        emulator = start_store(options.store, cloud.gateway, janitor)
        stack.enter_context(reached(emulator.env))
        bench = HandOver(cloud, emulator.url(BUCKET, "runs"), tuple(emulator.env))
        bench.resumed()
        ways = {"resumed": bench.resumed, "import torch": bench.import_torch}
        figures = in_turn(options.rounds, ways)
    bench.forget_the_first()
    print(f"cifar10 quick in containers of {options.image}, store {options.store}://, {machine()}")
    print(f"notice to seen:                         {spread(bench.to_seen)} s")
    print(f"notice to durable checkpoint:           {spread(bench.to_durable)} s")
    print(f"  of which from seen to durable:        {spread(bench.seen_to_durable)} s")
    print(f"notice to the container's end:          {spread(bench.to_exit)} s")
    print(f"docker run to import torch:             {spread(figures['import torch'])} s")
    print(f"docker run to first resumed step:       {spread(figures['resumed'])} s")
    print(f"ratio:                                  {ratio(figures['resumed'], figures['import torch'])}")


if __name__ == "__main__":
    main()
