"""A cloud on this machine: a docker network whose metadata service answers at the real address, 169.254.169.254."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.request
from dataclasses import dataclass
from typing import Any

from tests.container.engine import REPOSITORY, Container, Engine, seconds
from tests.container.runner import WAYS
from tests.relay.janitor import Janitor
from tests.runs import Container as Log
from watchers.cloud import DMI, _named_in

METADATA = REPOSITORY / "tests" / "emulators" / "metadata.py"
ADDRESS = "169.254.169.254"
NAMES = {"gcp": "Google", "aws": "AWS", "azure": "Azure"}
NO_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))
LOCKED_DOWN = WAYS["locked down"]


class Cloud:
    """Makes its network and begins its metadata service at once, and machines when asked."""

    def __init__(self, key: str, engine: Engine, image: str, janitor: Janitor, mounts: tuple[str, ...] = ()) -> None:
        """`mounts`: docker's options that give its machines folders of this one."""
        self.key = key
        self._mounts = mounts
        self.name = NAMES[key]
        self._engine = engine
        self._image = image
        self._janitor = janitor
        self._network = f"baton-relay-{janitor.id}-{key}"
        self._machines = 0
        engine("network", "create", "--label", janitor.label, self._network)
        self._metadata = f"{self._network}-metadata"
        engine(
            *("run", "-d", "--name", self._metadata, "--label", janitor.label, *LOCKED_DOWN),
            *("--network", self._network, "--link-local-ip", ADDRESS),
            *("-v", f"{METADATA}:/metadata.py:ro", "--entrypoint", "python3", image),
            *("/metadata.py", "--cloud", key, "--host", "0.0.0.0", "--port", "80"),
        )
        address = engine.inspect(self._metadata)["NetworkSettings"]["Networks"][self._network]["IPAddress"]
        self._control = f"http://{address}/-/"

    def wait(self) -> None:
        """Until the metadata service answers."""
        Container(self._engine, self._metadata).wait_for("metadata on")

    @property
    def gateway(self) -> str:
        """This machine's address in the cloud's network."""
        return str(self._engine.inspect(self._network)["IPAM"]["Config"][0]["Gateway"])

    def start(self, variables: tuple[str, ...], *command: str, entrypoint: str = "") -> Machine:
        """A fresh machine that runs the image, with these variables of this process's environment."""
        self._tell("clear", {})  # what was told was for the machine before
        # of a cloud's machine, this one's own firmware would name that cloud in every container
        command += ("--cloud", self.key) if _named_in(DMI) else ()
        self._machines += 1
        name = f"{self._network}-{self._machines}"
        self._engine(
            *("run", "-d", "--name", name, "--hostname", f"{self.key}-{self._machines}"),
            *("--label", self._janitor.label, *LOCKED_DOWN),
            *("--network", self._network, "--link-local-ip", "169.254.10.10"),
            *self._mounts,
            *("--add-host", f"metadata.google.internal:{ADDRESS}"),
            *(word for variable in variables for word in ("-e", variable)),
            *(("--entrypoint", entrypoint) if entrypoint else ()),
            *(self._image, *command),
        )
        return Machine(self, Container(self._engine, name), _follow(self._engine, name))

    def evict(self) -> Eviction:
        """Tell the machine of its eviction, as this cloud does."""
        sent = time.time()
        return Eviction(sent, float(self._tell("notice", {})["goes"]))

    def _tell(self, path: str, what: dict[str, Any]) -> dict[str, Any]:
        request = urllib.request.Request(self._control + path, json.dumps(what).encode())
        with NO_PROXY.open(request, timeout=30) as answer:
            found: dict[str, Any] = json.load(answer)
        return found


@dataclass(frozen=True)
class Eviction:
    sent: float  # seconds since 1970
    goes: float  # when the machine goes


@dataclass
class Machine:
    cloud: Cloud
    container: Container
    log: Log  # its lines begin with Docker's time

    def time_of(self, text: str) -> float | None:
        """When it first said so; seconds since 1970."""
        return next((seconds(line.split(" ")[0]) for line in self.log.lines if text in line), None)

    def wait(self, until: float) -> int:
        """Its exit code. At `until`, the cloud takes the machine whether it is through or not."""
        try:
            return self.container.exit_code(max(1.0, until - time.time()))
        except subprocess.TimeoutExpired:
            return self.kill()

    def kill(self) -> int:
        self.container.engine("kill", self.container.name, check=False)
        return self.container.exit_code()


def _follow(engine: Engine, name: str) -> Log:
    return Log(
        subprocess.Popen(
            [engine.client, "logs", "-f", "-t", name], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
    )
