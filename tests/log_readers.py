"""What the clouds' log readers make of one line of `--log json`: each takes it by its own rules, the strictest of them.

Google's types are its own protocol's, by Google's own code. Of AWS and Azure no reader can be had here: their rules are
those of their manuals.
"""

from __future__ import annotations

import json
import re
from typing import Any

from google.logging.type.log_severity_pb2 import LogSeverity
from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

DOCKER_BYTES = 16 << 10  # json-file and its like cut longer lines; so does ContainerLogV2 without multi-line support
GOOGLE_BYTES = 256 << 10  # of a LogEntry (Cloud Logging, quotas and limits)
AWS_FIELDS = 200  # that Logs Insights finds in an event (supported logs and discovered fields)
AZURE_LEVELS = {"CRITICAL", "ERROR", "WARNING", "INFO", "DEBUG", "TRACE"}  # of ContainerLogV2's LogLevel
GOOGLES_OWN = {"httpRequest", "labels", "operation", "timestamp", "trace", "spanId", "insertId", "logName", "resource"}


def read(line: str) -> dict[str, Any]:
    """The record, after each reader has taken it."""
    assert len(line.encode()) < DOCKER_BYTES - 1, "with its end of line one piece for Docker"
    assert line.isascii(), "and the same in every character set"
    assert line.splitlines() == [line]
    record = json.loads(line, object_pairs_hook=once, parse_constant=no_number)
    assert isinstance(record, dict)
    google(record)
    aws(record)
    azure(record)
    return record


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    assert len(names) == len(set(names)), "of two fields of one name each reader takes another"
    return dict(pairs)


def no_number(word: str) -> None:
    raise AssertionError(f"{word} is no JSON")


def google(record: dict[str, Any]) -> None:
    """Special fields of structured logging; what is left is the jsonPayload."""
    left = {name: value for name, value in record.items() if name != "severity"}
    assert LogSeverity.Value(record["severity"]) > 0, "a name that it knows; 0 is DEFAULT"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", left["time"])
    Timestamp().FromJsonString(left.pop("time"))
    assert isinstance(left["message"], str)
    assert left["message"]
    assert not left.keys() & GOOGLES_OWN
    assert not any(name.startswith("logging.googleapis.com/") for name in left)
    assert ParseDict(left, Struct()).ByteSize() < GOOGLE_BYTES


def aws(record: dict[str, Any]) -> None:
    """Logs Insights: fields that need no backticks, of which it finds all."""
    assert all(re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) for name in record)
    assert not any(isinstance(value, dict | list) for value in record.values()), "each item would be a field"
    assert len(record) < AWS_FIELDS


def azure(record: dict[str, Any]) -> None:
    """ContainerLogV2: LogMessage is dynamic where it is JSON, and LogLevel its `level`."""
    assert record["level"] in AZURE_LEVELS
    assert record["level"] == record["severity"]
    assert all(len(name) <= 45 for name in record), "columns' names in Log Analytics"
