"""A metadata service as each of the three clouds runs one, over real HTTP, with evictions and faults on demand.

    python metadata.py --cloud aws --port 80 --host 0.0.0.0

Standard library only, so it runs in a bare container. It is driven through the same port:

    POST /-/notice   {"kind": ..., "in_s": 120}   a notice appears, or is told anew; no kind: this cloud's eviction
    POST /-/clear                                 what was told is withdrawn
    POST /-/set      {"path": ..., "body": ...}   any one document, as it stands; no body: 404
    POST /-/expire                                AWS: all tokens given out so far are worth nothing
    POST /-/fault    {"kind": ..., "path": ...}   see `Fault`; a list sets several; [] heals all
    GET  /-/log                                   what was asked, each with its time, method, path, status
    GET  /-/facts                                 what this machine is said to be

Kinds of notices. aws: spot, rebalance. gcp: preempted, or a value of maintenance-event. azure: an EventType; further
keys of the event may be given as `event` ({"Resources": [...], "NotBefore": ""}).

In a test's own process: `with Metadata("gcp") as service: service.notice()`.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import signal
import socket
import struct
import threading
import time
import uuid
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

FACTS = {
    "aws": {
        "instance_type": "g5.xlarge",
        "region": "eu-north-1",
        "zone": "eu-north-1b",
        "spot": True,
        "instance_id": "i-0123456789abcdef0",
    },
    "gcp": {
        "instance_type": "g2-standard-4",
        "region": "europe-west4",
        "zone": "europe-west4-a",
        "spot": True,
        "instance_id": "4520031799277581759",
    },
    "azure": {
        "instance_type": "Standard_NC4as_T4_v3",
        "region": "northeurope",
        "zone": "northeurope-1",
        "spot": True,
        "instance_id": "02aab8a4-74ef-476e-8182-f6d2ba4166a6",
    },
}
NOTICE_S = {"aws": 120.0, "gcp": 30.0, "azure": 30.0}  # an eviction's, where `in_s` isn't given
AZURE_NAME = "trainer_3"
HUGE = 10 << 20


@dataclass
class Fault:
    """What befalls requests whose path contains `path` and whose method is `method` (any, where empty).

    answer    `status`, `headers` and `body`, in place of the service's own
    delay     the right answer, `seconds` late
    hang      silence until the client gives up
    trickle   the answer's bytes one by one, `seconds` between them
    huge      200 and 10 MB
    reset     the connection is reset
    """

    kind: str
    path: str = ""
    method: str = ""
    status: int = 500
    body: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = 10.0
    times: int | None = None  # how often it strikes; None: always


class Metadata:
    """One machine's metadata service. Its methods are those of the control paths above."""

    def __init__(self, cloud: str, *, host: str = "127.0.0.1", port: int = 0, **facts: Any) -> None:
        self.cloud = cloud
        self.facts: dict[str, Any] = {**FACTS[cloud], **facts}
        self.faults: list[Fault] = []
        self.log: list[dict[str, Any]] = []
        self.documents: dict[str, str] = {}  # path -> body
        self.acknowledged: list[dict[str, Any]] = []  # Azure: bodies of StartRequests
        self.tokens: dict[str, float] = {}  # AWS: token -> when it ends, by time.monotonic
        self.news = threading.Condition()
        self.closed = False
        self._events: list[dict[str, Any]] = []
        self._incarnation = 1
        self._server = _Server((host, port), self)
        self.port = int(self._server.server_address[1])
        self._describe()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> Metadata:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def stop(self) -> None:
        """Refuse connections from now on, and end the open ones."""
        with self.news:
            self.closed = True
            self.news.notify_all()
        self._server.shutdown()
        self._server.server_close()
        self._server.drop_all()

    def __enter__(self) -> Metadata:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    # -- what a machine is told -------------------------------------------------------------------------------

    def notice(self, kind: str = "", in_s: float | None = None, **event: Any) -> float:
        """Let a notice appear. Returns the time when the machine goes, in seconds since 1970.

        `event`: further keys of the document, or others than usual.
        """
        in_s = NOTICE_S[self.cloud] if in_s is None else in_s
        goes = time.time() + in_s
        if self.cloud == "aws" and kind == "rebalance":
            self.set("/latest/meta-data/events/recommendations/rebalance", {"noticeTime": _iso(time.time()), **event})
        elif self.cloud == "aws":
            self.set("/latest/meta-data/spot/instance-action", {"action": "terminate", "time": _iso(goes), **event})
        elif self.cloud == "gcp" and kind in ("", "preempted"):
            self.set("/computeMetadata/v1/instance/preempted", "TRUE")
        elif self.cloud == "gcp":
            self.set("/computeMetadata/v1/instance/maintenance-event", kind)
        else:
            self._tell_event(kind or "Preempt", goes, event)
        return goes

    def clear(self) -> None:
        """Withdraw what was told."""
        if self.cloud == "aws":
            self.set("/latest/meta-data/spot/instance-action", None)
            self.set("/latest/meta-data/events/recommendations/rebalance", None)
        elif self.cloud == "gcp":
            self.set("/computeMetadata/v1/instance/preempted", "FALSE")
            self.set("/computeMetadata/v1/instance/maintenance-event", "NONE")
        else:
            self._events = []
            self._put_events()

    def set(self, path: str, body: object) -> None:
        """Let `path` answer with `body`, JSON of what is no string; None: 404."""
        with self.news:
            if body is None:
                self.documents.pop(path, None)
            else:
                self.documents[path] = body if isinstance(body, str) else json.dumps(body)
            self.news.notify_all()

    def expire(self) -> None:
        self.tokens.clear()

    def fault(self, kind: str, **details: Any) -> None:
        self.faults.append(Fault(kind, **details))

    def heal(self) -> None:
        self.faults = []

    def asked(self, path: str, method: str = "") -> list[dict[str, Any]]:
        """What was asked of paths that contain `path`."""
        return [entry for entry in list(self.log) if path in entry["path"] and method in ("", entry["method"])]

    def _tell_event(self, kind: str, goes: float, event: dict[str, Any]) -> None:
        """Tell an event of Azure's anew if its EventId is known."""
        told = {
            "EventId": str(uuid.uuid4()).upper(),
            "EventType": kind,
            "ResourceType": "VirtualMachine",
            "Resources": [AZURE_NAME],
            "EventStatus": "Scheduled",
            "NotBefore": formatdate(goes, usegmt=True),
            "Description": "",
            "EventSource": "Platform",
            "DurationInSeconds": -1,
            **event,
        }
        self._events = [e for e in self._events if e["EventId"] != told["EventId"]] + [told]
        self._put_events()

    def _put_events(self) -> None:
        self._incarnation += 1
        self.set("/metadata/scheduledevents", {"DocumentIncarnation": self._incarnation, "Events": self._events})

    def acknowledge(self, body: dict[str, Any]) -> None:
        """Azure's StartRequests: the events named start at once."""
        self.acknowledged.append({**body, "at": time.time()})
        ids = {request["EventId"] for request in body["StartRequests"]}
        for event in self._events:
            if event["EventId"] in ids:
                event.update(EventStatus="Started", NotBefore="")
        self._put_events()

    def _describe(self) -> None:
        facts = self.facts
        spot = facts["spot"]
        if self.cloud == "aws":
            base = "/latest/meta-data/"
            self.set(base + "instance-id", facts["instance_id"])
            self.set(base + "instance-type", facts["instance_type"])
            self.set(base + "placement/region", facts["region"])
            self.set(base + "placement/availability-zone", facts["zone"])
            self.set(base + "instance-life-cycle", "spot" if spot else "on-demand")
        elif self.cloud == "gcp":
            base = "/computeMetadata/v1/instance/"
            self.set(base + "id", facts["instance_id"])
            self.set(base + "name", "trainer-1")
            self.set(base + "machine-type", f"projects/123456789/machineTypes/{facts['instance_type']}")
            self.set(base + "zone", f"projects/123456789/zones/{facts['zone']}")
            self.set(base + "scheduling/preemptible", "TRUE" if spot else "FALSE")
            self.set(base + "preempted", "FALSE")
            self.set(base + "maintenance-event", "NONE")
        else:
            compute = {
                "name": AZURE_NAME,
                "vmId": facts["instance_id"],
                "vmSize": facts["instance_type"],
                "location": facts["region"],
                "zone": facts["zone"].rpartition("-")[2],
                "priority": "Spot" if spot else "",
                "vmScaleSetName": "trainer",
                "resourceId": "/subscriptions/00000000-0000-0000-0000-000000000000/resourceGroups/baton/providers"
                f"/Microsoft.Compute/virtualMachineScaleSets/trainer/virtualMachines/{AZURE_NAME.rpartition('_')[2]}",
            }
            self.set("/metadata/instance", {"compute": compute})
            self.set("/metadata/instance/compute", compute)
            self._put_events()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    @property
    def service(self) -> Metadata:
        return self.server.service

    def log_message(self, *_: Any) -> None:
        """The log is `GET /-/log`."""

    def do_GET(self) -> None:
        self._serve()

    do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815 (names that the base class looks for)

    def _serve(self) -> None:
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.target = urlsplit(self.path)
        if self.target.path.startswith("/-/"):
            return self._control()
        entry = {"time": time.time(), "method": self.command, "path": self.path, "status": None}
        self.service.log.append(entry)
        self._entry = entry
        fault = self._strike()
        if fault is not None and fault.kind in ("hang", "reset"):
            return self._break_off(fault.kind)
        if fault is not None and fault.kind == "answer":
            return self._send(fault.status, fault.body.encode(), fault.headers)
        if fault is not None and fault.kind == "huge":
            return self._send(200, b"[" + b" " * HUGE, {"Metadata-Flavor": "Google"})
        if fault is not None and fault.kind == "delay":
            self._wait(fault.seconds)
        self._pause = fault.seconds if fault is not None and fault.kind == "trickle" else 0.0
        status, body, headers = getattr(self, "_" + self.service.cloud)()
        return self._send(status, body.encode(), headers)

    def _strike(self) -> Fault | None:
        for fault in list(self.service.faults):
            if fault.path in self.path and fault.method in ("", self.command) and fault.times != 0:
                if fault.times is not None:
                    fault.times -= 1
                return fault
        return None

    _pause = 0.0
    _entry: dict[str, Any] | None = None

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        if self._entry is not None:
            self._entry["status"] = status
        lines = {"Content-Length": str(len(body)), **(headers or {})}
        head = f"HTTP/1.1 {status} Status\r\n" + "".join(f"{k}: {v}\r\n" for k, v in lines.items()) + "\r\n"
        data, pause, self._pause, self._entry = head.encode() + body, self._pause, 0.0, None
        with contextlib.suppress(OSError):
            for piece in [data] if not pause else [data[i : i + 1] for i in range(len(data))]:
                self.wfile.write(piece)
                if pause:
                    self._wait(pause)

    def _wait(self, seconds: float) -> None:
        """Sleep, but no longer than the service lives."""
        with self.service.news:
            self.service.news.wait_for(lambda: self.service.closed, seconds)

    def _break_off(self, kind: str) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            if kind == "hang":
                while self.connection.recv(1 << 16):
                    pass
            else:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()

    # -- what each cloud answers: status, body, headers -------------------------------------------------------

    def _document(self) -> str | None:
        return self.service.documents.get(self.target.path)

    def _aws(self) -> tuple[int, str, dict[str, str]]:
        tokens = self.service.tokens
        if self.headers.get("X-Forwarded-For"):
            return 403, "", {}
        if self.target.path == "/latest/api/token":
            ttl = self.headers.get("X-aws-ec2-metadata-token-ttl-seconds", "")
            if self.command != "PUT" or not ttl.isdigit() or not 1 <= int(ttl) <= 21600:
                return 400, "", {}
            token = uuid.uuid4().hex
            tokens[token] = time.monotonic() + int(ttl)
            return 200, token, {"X-Aws-Ec2-Metadata-Token-Ttl-Seconds": ttl}
        if tokens.get(self.headers.get("X-aws-ec2-metadata-token", ""), 0.0) < time.monotonic():
            return 401, "", {}
        body = self._document()
        return (404, "<html>404 - Not Found</html>", {}) if body is None else (200, body, {})

    def _gcp(self) -> tuple[int, str, dict[str, str]]:
        flavor = {"Metadata-Flavor": "Google", "Content-Type": "application/text"}
        if self.headers.get("Metadata-Flavor") != "Google" or self.headers.get("X-Forwarded-For"):
            return 403, "", flavor
        query = {name: values[-1] for name, values in parse_qs(self.target.query).items()}
        with self.service.news:
            body = self._document()
            if query.get("wait_for_change", "").lower() == "true":
                known = query.get("last_etag", _etag(body))
                self.service.news.wait_for(
                    lambda: self.service.closed or _etag(self._document()) != known,
                    float(query.get("timeout_sec", 3600)),
                )
                body = self._document()
        return (404, "", flavor) if body is None else (200, body, {**flavor, "ETag": _etag(body)})

    def _azure(self) -> tuple[int, str, dict[str, str]]:
        if self.headers.get("Metadata", "").lower() != "true" or "api-version=" not in self.target.query:
            return 400, json.dumps({"error": "Bad request"}), {}
        if self.command == "POST":
            self.service.acknowledge(json.loads(self._body))
            return 200, "", {}
        body = self._document()
        return (404, "", {}) if body is None else (200, body, {"Content-Type": "application/json"})

    # -- the control paths ------------------------------------------------------------------------------------

    def _control(self) -> None:
        service = self.service
        given = json.loads(self._body or b"{}")
        answer: object = {}
        match self.target.path.removeprefix("/-/"):
            case "notice":
                event = given.pop("event", {})
                answer = {"goes": service.notice(**given, **event), "time": time.time()}
            case "clear":
                service.clear()
            case "set":
                service.set(given["path"], given.get("body"))
            case "expire":
                service.expire()
            case "fault":
                many = given if isinstance(given, list) else [given]
                service.faults = [Fault(**one) for one in many]
            case "log":
                answer = {"requests": service.log, "acknowledged": service.acknowledged}
            case "facts":
                answer = {"cloud": service.cloud, **service.facts}
            case _:
                return self._send(404, b"")
        return self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], service: Metadata) -> None:
        self.service = service
        self._open: set[socket.socket] = set()
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """Without the base class's look-up of this host's name."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = "metadata", int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone is no news."""

    def drop_all(self) -> None:
        for sock in list(self._open):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


def _iso(when: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(when))


def _etag(body: str | None) -> str:
    return hashlib.sha256((body or "").encode()).hexdigest()[:16]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cloud", choices=sorted(FACTS), required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args()
    service = Metadata(options.cloud, host=options.host, port=options.port)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))  # as process 1 it would not hear of it
    print(f"{service.cloud} metadata on {options.host}:{service.port}", flush=True)
    service._server.serve_forever()


if __name__ == "__main__":
    main()
