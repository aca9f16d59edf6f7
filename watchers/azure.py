"""Azure: Scheduled Events, from the instance metadata service.

Azure's manual: "Scheduled Events for Linux VMs", "Azure Instance Metadata Service". The document lists the events of a
whole scale set or availability set, so an event counts only if its Resources name this machine.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from datetime import UTC
from email.utils import formatdate, parsedate_to_datetime
from typing import Any, Literal

from watchers.metadata import Instance, Odd, Service, short
from watchers.protocol import Notice, Watcher, plannable

NOTICE_S = 30.0  # an eviction's; other events' are told 5 to 15 minutes before
FAR_S = 1800.0  # hardware that is expected to fail is told of days before: no reason to leave yet
ACKNOWLEDGE_S = 2.0
HEADERS = {"Metadata": "true"}
EVENTS = "/metadata/scheduledevents?api-version=2020-07-01"
COMPUTE = "/metadata/instance/compute?api-version=2020-09-01&format=json"  # later ones carry up to 87 KB of user data
STOPS = ("Preempt", "Terminate", "Reboot", "Redeploy")


class AzureWatcher:
    """The most urgent event of this machine."""

    name = "azure"
    interval_s = 1.0

    def __init__(self, base: str) -> None:
        self._base = base
        self._service = Service(base)
        self._names: frozenset[str] = frozenset()  # what Resources may call this machine
        self._incarnation: int | None = None
        self._mine: list[dict[str, Any]] = []

    def check(self) -> Notice | None:
        self._names = self._names or _names(_compute(self._service))
        document = _get(self._service, EVENTS)
        match document:
            case {"DocumentIncarnation": incarnation, "Events": list(events)}:
                pass
            case _:
                raise Odd(f"its scheduled events are odd: {short(document)}")
        if not isinstance(incarnation, int) or incarnation != self._incarnation:  # else the same events as before
            self._mine = events_of(events, self._names)
            self._incarnation = incarnation if isinstance(incarnation, int) else None
        return most_urgent(self._mine, time.time(), self._acknowledge)

    def _acknowledge(self, event_id: str) -> None:
        """Let Azure begin, now rather than at NotBefore. Raises `Odd`."""
        body = json.dumps({"StartRequests": [{"EventId": event_id}]}).encode()
        # on a connection of its own, for another thread asks
        answer = Service(self._base).ask(EVENTS, HEADERS, method="POST", body=body, timeout_s=ACKNOWLEDGE_S)
        if answer.status != 200:
            raise Odd(f"{self._base} answers {answer.status} to the acknowledgement")

    def close(self) -> None:
        self._service.close()


def _get(service: Service, path: str) -> Any:
    answer = service.ask(path, HEADERS)
    if answer.status != 200:
        raise Odd(f"{service.base} answers {answer.status} to {path.partition('?')[0]}")
    return answer.json()


def _compute(service: Service) -> dict[str, Any]:
    match _get(service, COMPUTE):
        case {"name": str(), "vmId": str()} as compute:
            return dict(compute)
    raise Odd(f"{service.base} is no metadata service of Azure's")


def _names(compute: dict[str, Any]) -> frozenset[str]:
    """In lower case: the machine's name, and its resource's where that is no mere number within a scale set."""
    last = str(compute.get("resourceId", "")).rpartition("/")[2]
    return frozenset(name.lower() for name in (compute["name"], last) if name and not name.isdigit())


def events_of(events: list[Any], names: frozenset[str]) -> list[dict[str, Any]]:
    """Those of the machine. Raises `Odd` if one can't be read and none is this machine's."""
    mine, odd = [], None
    for event in events:
        match event:
            case {"EventId": str(), "EventType": str(), "Resources": list(resources)}:
                if names & {str(name).lower() for name in resources}:
                    mine.append(event)
            case _:
                odd = event
    if odd is not None and not mine:
        raise Odd(f"one of its scheduled events is odd: {short(odd)}")
    return mine


def most_urgent(events: list[dict[str, Any]], now: float, acknowledge: Callable[[str], None]) -> Notice | None:
    """One that stops before one that saves; of these the one that has begun, or begins first."""
    notices = [_notice(event, now, acknowledge) for event in events]
    return min(notices, key=lambda n: (n.action == "save", n.deadline or 0.0), default=None)


def _notice(event: dict[str, Any], now: float, acknowledge: Callable[[str], None]) -> Notice:
    kind, event_id, not_before = event["EventType"], event["EventId"], event.get("NotBefore")
    begins = _seconds(not_before)
    stops = kind in STOPS
    far = stops and begins is not None and begins - now > FAR_S
    action: Literal["stop", "save"] = "stop" if stops and not far else "save"
    when = f"not before {short(not_before)}" if begins else "which has begun"
    alone = len(event["Resources"]) == 1  # to acknowledge it would let it begin for all that it names
    return Notice(
        "azure",
        action,
        f"Azure has scheduled an event for this machine: {short(kind)}, {when}",
        f"azure:{event_id[:80]}:{action}",
        now,
        plannable(begins, now),
        (lambda: acknowledge(event_id)) if stops and alone else None,
    )


def _seconds(not_before: Any) -> float | None:
    """'Mon, 19 Sep 2016 18:29:47 GMT' in seconds since 1970; None if it isn't one. It is blank once an event begins."""
    try:
        moment = parsedate_to_datetime(not_before)
    except (TypeError, ValueError, AttributeError, IndexError, OverflowError):
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def in_firmware(dmi: Mapping[str, str]) -> bool:
    """The asset tag that all of Azure's machines bear, and Hyper-V elsewhere does not."""
    return dmi.get("chassis_asset_tag") == "7783-7084-3265-9085-8269-3286-77"


def describe(service: Service) -> Instance:
    """Raises `Odd`, also where it is no service of Azure's."""
    compute = _compute(service)

    def text(name: str) -> str | None:
        value = compute.get(name)
        return value if isinstance(value, str) and value else None

    region, zone = text("location"), text("zone")
    return Instance(
        "azure",
        instance_type=text("vmSize"),
        region=region,
        zone=f"{region}-{zone}" if region and zone else None,
        spot=compute.get("priority") in ("Spot", "Low"),
        instance_id=compute["vmId"] or None,
    )


def sources(base: str) -> list[Watcher]:
    return [AzureWatcher(base)]


def drill(now: float) -> Notice:
    """What Azure would say now. It is not acknowledged, for Azure doesn't know of it."""
    event = {"EventId": "drill", "EventType": "Preempt", "Resources": ["this machine", "and none"]}
    notice = most_urgent([{**event, "NotBefore": formatdate(now + NOTICE_S, usegmt=True)}], now, lambda event_id: None)
    assert notice is not None
    return notice
