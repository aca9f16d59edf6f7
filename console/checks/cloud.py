"""The cloud: whose machine this is, and whether its notices are heard."""

from __future__ import annotations

import time
from typing import Any

from console.checks.examination import Check, Patient, Trouble, Warn
from watchers import cloud
from watchers.metadata import Odd, Silent

MENDS = {
    "aws": (
        "aws ec2 modify-instance-metadata-options --instance-id ID --http-endpoint enabled "
        "--http-put-response-hop-limit 2, or docker run --network host"
    ),
    "gcp": "let no firewall or network policy keep this container from 169.254.169.254, or docker run --network host",
    "azure": "let no firewall or proxy keep this container from 169.254.169.254, or docker run --network host",
}


def machine(patient: Patient) -> str:
    try:
        found = cloud.find(patient.cloud, dmi=patient.path("sys/class/dmi/id"))
    except ValueError as e:
        raise Trouble(str(e), "unset that variable, or give it a whole address") from e
    patient.instance = found
    if found is None:
        return "none that is known here: the halt folder and SIGTERM tell it to go"
    if found.instance_type is None:
        raise Warn(f"{found.cloud}, but its metadata service doesn't say which machine", MENDS[found.cloud])
    life = {True: "spot", False: "on demand: never evicted, and several times the price", None: "spot or not: not told"}
    return f"{found.cloud}: {found.instance_type} in {found.zone or found.region}, {life[found.spot]}"


def notices(patient: Patient) -> str:
    """Each source is asked once, as a running trainer asks it."""
    found = patient.instance
    if found is None:
        return "no cloud, so none to hear"
    names = []
    try:
        sources = cloud.CLOUDS[found.cloud].sources(cloud.base_of(found.cloud))
    except ValueError as e:
        raise Trouble(str(e), "correct that variable, or leave it out") from e
    for source in sources:
        names.append(source.name)
        _ask(source, found.cloud)
    heard = "Scheduled Events are on" if found.cloud == "azure" else "heard"
    return f"{', '.join(names)}: {heard}"


def _ask(source: Any, name: str) -> None:
    try:
        notice = source.check()
    except Silent as e:
        if name == "azure":
            raise Warn(
                f"{e}: Scheduled Events are being turned on, which the first question to them does",
                "ask again in 2 minutes; the trainer does so by itself",
            ) from e
        raise Trouble(str(e), MENDS[name]) from e
    except Odd as e:
        raise Trouble(str(e), MENDS[name]) from e
    finally:
        source.close()
    if notice is not None and notice.action == "stop":
        left = "" if notice.deadline is None else f", in {max(0.0, notice.deadline - time.time()):.0f} s"
        raise Warn(f"{notice.detail}{left}", "start on another machine: this one is about to go")


CHECKS = (
    Check("cloud", "machine", machine),
    Check("cloud", "notices", notices, ("machine",)),
)
