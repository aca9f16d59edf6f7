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

    def start(self, *command: str, mounted: bool = True) -> Container:
        mounts = ["-v", f"{self.halt}:/halt", "-v", f"{self.store}:/store"] if mounted else []
        options = (*mounts, *self.way, "-e", "BATON_CLOUD=none")  # no test asks a real cloud's metadata service
        return self.engine.run(self.image, *(command or LONG), options=options)

    def checkpoints(self) -> list[str]:
        """Names of the manifests in the store, oldest first."""
        return sorted(path.stem for path in (self.store / "cifar10" / "checkpoints").glob("*.json"))

    def wait_for_new_checkpoint(self, container: Container) -> str:
        """Name of the newest checkpoint, once there is one newer than now."""
        before, until = self.checkpoints(), time.monotonic() + 90
        while self.checkpoints()[-1:] == before[-1:]:
            assert container.state()["Running"], container.logs()
            assert time.monotonic() < until, container.logs()
            time.sleep(0.1)
        return self.checkpoints()[-1]
