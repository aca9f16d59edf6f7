"""Google Cloud: preemption and host maintenance, from the metadata server, which answers as soon as they change.

Compute Engine's manual: "About VM metadata", "Query VM metadata" (Metadata-Flavor, wait_for_change, ETag), "Spot VMs",
"Monitor and plan for a host maintenance event". A migration is told of 60 s before only to who has asked for the key
since the last one, which a watcher does.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping

from watchers.metadata import TIMEOUT_S, Answer, Instance, Odd, Service, short
from watchers.protocol import Notice, Watcher

NOTICE_S = 30.0  # from `preempted` to the end, where the VM has no longer preemption notice duration
MAINTENANCE_S = 60.0
WAIT_S = 5.0  # for a change, before it is asked again: so long a server that hangs goes unnoticed
FLAVOR = {"Metadata-Flavor": "Google"}
INSTANCE = "/computeMetadata/v1/instance/"


class GcpWatcher:
    """One key of the instance, waited on."""

    interval_s = 0.5  # a change in between is answered at once, by the ETag

    def __init__(
        self, base: str, name: str, key: str, judge: Callable[[str, float], Notice | None], *, wait_s: float = WAIT_S
    ) -> None:
        """`judge`: the notice in a value of `key` first seen now, if it is one. Raises `Odd`."""
        self.name = name
        self._service = Service(base)
        self._key = key
        self._judge = judge
        self._wait_s = wait_s
        self._etag = ""
        self._value: str | None = None
        self._notice: Notice | None = None

    def check(self) -> Notice | None:
        etag, self._etag = self._etag, ""  # after a failure the next look doesn't wait
        if etag:
            query = f"?wait_for_change=true&last_etag={etag}&timeout_sec={max(1, round(self._wait_s))}"
            answer = _ask(self._service, self._key + query, self._wait_s + TIMEOUT_S)
        else:
            answer = _ask(self._service, self._key)
        value = answer.text()
        if value != self._value:
            self._notice, self._value = self._judge(value, time.time()), value
        etag = answer.headers.get("etag", "")
        self._etag = etag if etag.isalnum() else ""
        return self._notice

    def close(self) -> None:
        self._service.close()


def _ask(service: Service, key: str, timeout_s: float = TIMEOUT_S) -> Answer:
    answer = service.ask(INSTANCE + key, FLAVOR, timeout_s=timeout_s)
    if answer.headers.get("metadata-flavor") != "Google":
        raise Odd(f"{service.base} is no metadata server of Google's: its answer lacks Metadata-Flavor")
    if answer.status != 200:
        raise Odd(f"{service.base} answers {answer.status} to {key.partition('?')[0]}")
    return answer


def notice_s() -> float:
    """Seconds from `preempted` to the end. The metadata don't tell a VM's preemption notice duration, so
    BATON_GCP_NOTICE does. Raises `ValueError`."""
    text = os.environ.get("BATON_GCP_NOTICE", str(NOTICE_S)).removesuffix("s")
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < 86400:
        raise ValueError(f"BATON_GCP_NOTICE={text}: must be a number of seconds, for example 120")
    return seconds


def _preemption(lasts_s: float) -> Callable[[str, float], Notice | None]:
    def judge(value: str, now: float) -> Notice | None:
        if value == "TRUE":
            return Notice("gcp", "stop", "Google preempts this machine", "gcp:preempted", now, now + lasts_s)
        if value == "FALSE":
            return None
        raise Odd(f"its instance/preempted is odd: {short(value)}")

    return judge


def _maintenance(value: str, now: float) -> Notice | None:
    if value == "NONE":
        return None
    if value.startswith("MIGRATE"):
        detail = f"Google moves this machine to another host: {short(value)}"
        return Notice("gcp", "save", detail, f"gcp:migrate:{now:.0f}", now)
    if value.startswith("TERMINATE"):
        detail = f"Google stops this machine for maintenance: {short(value)}"
        return Notice("gcp", "stop", detail, "gcp:terminate", now, now + MAINTENANCE_S)
    raise Odd(f"its instance/maintenance-event is odd: {short(value)}")


def in_firmware(dmi: Mapping[str, str]) -> bool:
    return dmi.get("product_name") == "Google Compute Engine"


def describe(service: Service) -> Instance:
    """Raises `Odd`, also where it is no server of Google's."""
    zone = _ask(service, "zone").text().rpartition("/")[2]
    return Instance(
        "gcp",
        instance_type=_ask(service, "machine-type").text().rpartition("/")[2] or None,
        region=zone.rpartition("-")[0] or None,
        zone=zone or None,
        spot=_ask(service, "scheduling/preemptible").text() == "TRUE",
        instance_id=_ask(service, "id").text() or None,
    )


def sources(base: str, *, wait_s: float = WAIT_S) -> list[Watcher]:
    return [
        GcpWatcher(base, "gcp", "preempted", _preemption(notice_s()), wait_s=wait_s),
        GcpWatcher(base, "gcp-maintenance", "maintenance-event", _maintenance, wait_s=wait_s),
    ]


def drill(now: float) -> Notice:
    """What Google would say now."""
    notice = _preemption(notice_s())("TRUE", now)
    assert notice is not None
    return notice
