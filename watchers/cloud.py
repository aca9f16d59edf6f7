"""Which cloud this machine is of, and what that cloud's notices are watched by.

A new cloud is one file beside this one and one line in `CLOUDS`.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from watchers import aws, azure, gcp
from watchers.metadata import LINK_LOCAL, Instance, Odd, Service
from watchers.protocol import Notice, Watcher
from watchers.runner import Watch

log = logging.getLogger("baton.watchers")

BOUND_S = 0.8  # for all that is asked at the start
LATER_S = (3.0, 10.0, 30.0, 3.0)  # the same for looks beside training, each of which begins when the one before is over
DMI = Path("/sys/class/dmi/id")
FIELDS = ("sys_vendor", "product_name", "bios_version", "chassis_asset_tag")


class Cloud(Protocol):
    """What a cloud's file has."""

    def in_firmware(self, dmi: Mapping[str, str]) -> bool: ...

    def describe(self, service: Service) -> Instance: ...

    def sources(self, base: str) -> list[Watcher]: ...

    def drill(self, now: float) -> Notice: ...


CLOUDS: dict[str, Cloud] = {"aws": aws, "gcp": gcp, "azure": azure}


def base_of(name: str) -> str:
    """Where a cloud's metadata service is: BATON_AWS_METADATA and so on, or its own address."""
    return os.environ.get(f"BATON_{name.upper()}_METADATA") or LINK_LOCAL


def find_and_watch(choice: str, watch: Watch) -> Instance | None:
    """As `find`; what is found is told of, and watched for its cloud's notices from then on.

    Where nothing is found it is looked for again, beside what follows: on a busy machine, or one that has only just
    started, an answer may take longer, and whoever is never watched for is never heard. Raises `ValueError` for a
    setting of no use.
    """
    instance = find(choice)
    if instance is not None:
        _watch(instance, watch)
    elif choice == "auto":
        threading.Thread(target=_find_later, args=(watch,), name="find-later", daemon=True).start()
    return instance


def _find_later(watch: Watch) -> None:
    for bound_s in LATER_S:
        over = time.monotonic() + bound_s
        instance = find("auto", bound_s=bound_s)
        if instance is not None:
            try:
                _watch(instance, watch)
            except ValueError as e:
                log.error("%s; until then no notice of %s is heard", e, instance.cloud)
            return
        # refused at once, it may be a service that has yet to come up
        time.sleep(max(0.0, over - time.monotonic()))


def _watch(instance: Instance, watch: Watch) -> None:
    watch.add(CLOUDS[instance.cloud].sources(base_of(instance.cloud)))
    life = "" if instance.spot is None else "spot" if instance.spot else "on demand"
    facts = filter(None, (instance.cloud, instance.instance_type, instance.zone, life))
    log.info("machine: %s; its notices are watched for", ", ".join(facts))


def find(choice: str, *, dmi: Path = DMI, bound_s: float = BOUND_S) -> Instance | None:
    """This machine, or None if it is of no cloud that is known here; after `bound_s` at the latest.

    `choice`: auto, none, or the cloud that it is. The firmware is asked first; where it names none, as in some
    sandboxes, all metadata services are, at once. Raises `ValueError` for an address of no use.
    """
    if choice == "none":
        return None
    sure = [choice] if choice != "auto" else _named_in(dmi)
    until = time.monotonic() + bound_s
    services = {name: Service(base_of(name), until=until) for name in sure or CLOUDS}
    found: queue.Queue[Instance | None] = queue.Queue()

    def ask(name: str, service: Service) -> None:
        try:
            found.put(CLOUDS[name].describe(service))
        except Odd:
            found.put(None)

    for name, service in services.items():
        threading.Thread(target=ask, args=(name, service), name=f"find-{name}", daemon=True).start()
    try:
        for _ in services:
            instance = found.get(timeout=max(0.0, until - time.monotonic()))
            if instance is not None:
                return instance
    except queue.Empty:
        pass
    finally:
        for service in services.values():
            service.close()
    return Instance(sure[0]) if sure else None


def _named_in(folder: Path) -> list[str]:
    dmi = {}
    for name in FIELDS:
        try:
            dmi[name] = (folder / name).read_text(errors="replace").strip()
        except OSError:
            continue
    return [name for name, cloud in CLOUDS.items() if cloud.in_firmware(dmi)]
