"""The image on one machine: a halt folder, a store folder, and containers on them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from tests.container.engine import Container, Engine

# Long enough that no test sees it end; saving often, so that each kill has a checkpoint to go on from.
LONG = ("cifar10", "--epochs", "200", "--checkpoint-every", "4steps")

WAYS = {
    "plain": (),
    "locked down": (
        *("--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL"),
        *("--security-opt", "no-new-privileges"),
    ),
    "as user 12345": ("--user", "12345"),
}


@dataclass
class Runner:
    engine: Engine
    image: str
    halt: Path
    store: Path
    way: tuple[str, ...]

    def start(self, *command: str, mounted: bool = True, data: Path | None = None) -> Container:
        """`data`: a folder that it sees as /data."""
        mounts = ["-v", f"{self.halt}:/halt", "-v", f"{self.store}:/store"] if mounted else []
        if data is not None:
            mounts += ["-v", f"{data}:/data:ro"]
        # no test asks a real cloud's metadata service; on a busy machine whoever runs the tests may want one thread
        options = (*mounts, *self.way, "-e", "BATON_CLOUD=none", "-e", "OMP_NUM_THREADS")
        return self.engine.run(self.image, *(command or LONG), options=options)

    def checkpoints(self, run: str = "cifar10") -> list[str]:
        """Names of the manifests in the store, oldest first."""
        return sorted(path.stem for path in (self.store / run / "checkpoints").glob("*.json"))

    def wait_for_new_checkpoint(self, container: Container, run: str = "cifar10") -> str:
        """Name of the newest checkpoint, once there is one newer than now."""
        before, until = self.checkpoints(run), time.monotonic() + 90
        while self.checkpoints(run)[-1:] == before[-1:]:
            assert container.state()["Running"], container.logs()
            assert time.monotonic() < until, container.logs()
            time.sleep(0.1)
        return self.checkpoints(run)[-1]
