"""AWS: a spot instance's interruption and rebalance notices, from the instance metadata service, version 2.

EC2 User Guide: "Spot Instance interruption notices", "EC2 instance rebalance recommendations", "Use the Instance
Metadata Service". A token is asked for first; 404 is the normal "nothing yet".
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from watchers.metadata import TIMEOUT_S, Answer, Instance, Odd, Service, Silent, short
from watchers.protocol import Notice, Watcher, plannable

NOTICE_S = 120.0  # between an interruption notice and the end
TOKEN_S = 21600  # as long as they are given out for
RENEW_S = 300.0  # before a token ends, a new one is asked for


class _Reader:
    """The service's documents, each request with a token."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._token = ""
        self._renew_at = 0.0

    def read(self, path: str) -> Answer | None:
        """A document, or None where there is none. Raises `Odd`."""
        answer = self._get(path)
        if answer.status == 401:  # the token is worth nothing any more
            self._token = ""
            answer = self._get(path)
        if answer.status == 404:
            return None
        if answer.status != 200:
            raise Odd(f"{self.service.base} answers {answer.status} to {path}{_meaning(answer.status)}")
        return answer

    def text(self, path: str) -> str | None:
        answer = self.read(path)
        return answer.text() if answer else None

    def _get(self, path: str) -> Answer:
        if not self._token or time.monotonic() > self._renew_at:
            self._renew()
        return self.service.ask(f"/latest/meta-data/{path}", {"X-aws-ec2-metadata-token": self._token})

    def _renew(self) -> None:
        lasts = {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_S)}
        try:
            answer = self.service.ask("/latest/api/token", lasts, method="PUT")
        except Silent as e:
            # the answer to the token's request alone has an IP hop limit, 1 by default: a bridge network is a hop
            raise Odd(
                f"the metadata service takes the request for a token but no answer comes back within {TIMEOUT_S:g} s. "
                "In a container on a bridge network that is the instance's hop limit of 1: raise it (aws ec2 "
                "modify-instance-metadata-options --instance-id ID --http-put-response-hop-limit 2), or run with "
                "--network host. Until then AWS's own notices are not heard; SIGTERM and the halt folder are"
            ) from e
        token = answer.text()
        if answer.status != 200 or not re.fullmatch(r"[!-~]{1,512}", token):
            raise Odd(f"{self.service.base} gives no token: {answer.status}{_meaning(answer.status)}")
        self._token, self._renew_at = token, time.monotonic() + TOKEN_S - RENEW_S


def _meaning(status: int) -> str:
    return " (is the instance's metadata service turned off?)" if status == 403 else ""


class AwsWatcher:
    """The interruption notice, and the rebalance recommendation that may come before it."""

    name = "aws"
    interval_s = 2.0

    def __init__(self, base: str) -> None:
        self._service = Service(base)
        self._reader = _Reader(self._service)

    def check(self) -> Notice | None:
        answer = self._reader.read("spot/instance-action")
        if answer is not None:
            return interruption(answer.json(), time.time())
        answer = self._reader.read("events/recommendations/rebalance")
        return None if answer is None else _rebalance(answer.json())

    def close(self) -> None:
        self._service.close()


def interruption(document: Any, now: float) -> Notice:
    """The notice in a spot/instance-action. Raises `Odd`."""
    match document:
        case {"action": str(action)}:
            when = document.get("time")
            deadline = plannable(_seconds(when), now)
            detail = f"AWS takes this machine away: {short(action)}{f' at {short(when)}' if when else ''}"
            return Notice("aws", "stop", detail, "aws:spot", now, deadline)
    raise Odd(f"its spot/instance-action is odd: {short(document)}")


def _rebalance(document: Any) -> Notice:
    match document:
        case {"noticeTime": str(when)}:
            detail = "AWS says that this machine is at elevated risk of interruption"
            return Notice("aws", "save", detail, f"aws:rebalance:{when:.40}", time.time())
    raise Odd(f"its rebalance recommendation is odd: {short(document)}")


def _seconds(when: Any) -> float | None:
    """2026-09-18T08:22:00Z in seconds since 1970; None if it isn't one: a notice is one without its time too."""
    try:
        moment = datetime.fromisoformat(when)
    except (TypeError, ValueError):
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def in_firmware(dmi: Mapping[str, str]) -> bool:
    """EC2 User Guide, "Identify EC2 Linux instances": Nitro's vendor, Xen's version."""
    return dmi.get("sys_vendor") == "Amazon EC2" or "amazon" in dmi.get("bios_version", "").lower()


def describe(service: Service) -> Instance:
    """Raises `Odd`, also where it is no service of AWS."""
    reader = _Reader(service)
    instance_id = reader.text("instance-id") or ""
    if not re.fullmatch(r"i-[0-9a-f]{8,32}", instance_id):
        raise Odd(f"{service.base} is no metadata service of AWS")
    life = reader.text("instance-life-cycle")
    return Instance(
        "aws",
        instance_type=reader.text("instance-type"),
        region=reader.text("placement/region"),
        zone=reader.text("placement/availability-zone"),
        spot=None if life is None else life == "spot",
        instance_id=instance_id,
    )


def sources(base: str) -> list[Watcher]:
    return [AwsWatcher(base)]


def drill(now: float) -> Notice:
    """What AWS would say now."""
    when = datetime.fromtimestamp(now + NOTICE_S, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return interruption({"action": "terminate", "time": when}, now)
