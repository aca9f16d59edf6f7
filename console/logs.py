"""Log lines: text for people, or one JSON object a line as the clouds' log readers take it."""

from __future__ import annotations

import io
import json
import logging
import math
import os
import re
import sys
import time
from datetime import UTC, datetime
from typing import TextIO

LONGEST_LINE = 4000  # characters
LONGEST_JSON = 15 << 10  # bytes; Docker's log drivers split lines at 16 KiB
# Control characters, halves of characters, separators of lines, and what turns the direction of writing
_UNFIT = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\u2028-\u202e\u2066-\u2069]+")
_SEVERITY = {"DEBUG": "DEBUG", "INFO": "INFO", "WARNING": "WARNING", "ERROR": "ERROR", "CRITICAL": "CRITICAL"}


class _Synthetic(logging.Filter):
    """Once the data is known to be the generated stand-in, every line says so."""

    on = False

    def filter(self, record: logging.LogRecord) -> bool:
        if self.on:
            record.msg, record.args = marked(record.getMessage()), ()
        return True


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        mark = {"WARNING": "warning: ", "ERROR": "error: ", "CRITICAL": "error: "}.get(record.levelname, "")
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        text = f"{clock} {mark}{one_line(record.getMessage())}"
        # the traceback first: it is the last line that people look at
        return f"{self.formatException(record.exc_info)}\n{text}" if record.exc_info else text


class _Json(logging.Formatter):
    """What the clouds' log readers take as it is.

    Google's reads `severity`, `message` and `time` (structured logging), Azure's ContainerLogV2 `level`; every other
    field can be asked for by its name in all three. For CloudWatch, which gives each item of a list a field of its own
    and stops at 200, there are no lists. Nothing is ever longer than LONGEST_JSON: Docker, and so each cloud's agent,
    gets longer lines in pieces, of which none is JSON.
    """

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, object] = {
            "time": at.replace("+00:00", "Z"),  # as Google's own logs write it
            "severity": _SEVERITY.get(record.levelname, "DEFAULT"),
            "level": record.levelname,
            "message": one_line(record.getMessage()),
        }
        if record.exc_info:
            # halves of characters, which a file's name may have, are no text to Google
            line["exception"] = self.formatException(record.exc_info).encode(errors="replace").decode()
        for name, value in getattr(record, "fields", {}).items():
            if not isinstance(value, list):
                # a job may call a metric `level`
                line.setdefault(name, one_line(value) if isinstance(value, str) else finite(value))
        text = json.dumps(line)
        if len(text) > LONGEST_JSON:  # of a long traceback the end says most
            line = {name: line[name] for name in ("time", "severity", "level", "message", "exception") if name in line}
            line["message"] = str(line["message"])[: LONGEST_JSON // 16]
            if "exception" in line:
                line["exception"] = str(line["exception"])[-LONGEST_JSON // 16 :]
            text = json.dumps(line)
        return text


_synthetic = _Synthetic()


class _Standard(logging.StreamHandler[TextIO]):
    """Standard output, or error, as it is when a line is written: the live display puts itself in its place."""

    def __init__(self, *, error: bool) -> None:
        logging.Handler.__init__(self)
        self._error = error

    @property
    def stream(self) -> TextIO:
        return sys.stderr if self._error else sys.stdout

    @stream.setter
    def stream(self, _: TextIO) -> None:
        pass

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  (logging's own name)
        """Nobody reads any more, or the disk under the log is full: training goes on unheard."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


def keep_streams() -> None:
    """Open what this process was started without, to nowhere.

    Else a checkpoint's file would get the number of standard output or error, and what is written there.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # it gets the lowest number that is free: this one
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


def set_up(form: str, *, debug: bool = False, aside: bool = False) -> None:
    """Send all of Baton's log lines to standard output, as "text" or "json".

    `aside`: to standard error, where standard output is for a program that reads what it asked for.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that has no such character gets its number
    handler = _Standard(error=aside)
    handler.setFormatter(_Json() if form == "json" else _Text())
    handler.addFilter(_synthetic)
    logger = logging.getLogger("baton")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.DEBUG if debug else logging.INFO)
    logger.propagate = False


def say_only_errors(who: str) -> None:
    """One of several processes leaves the talking to another, but tells of what ends it."""

    def named(record: logging.LogRecord) -> bool:
        record.msg, record.args = f"{who}: {record.getMessage()}", ()
        return True

    logger = logging.getLogger("baton")
    logger.setLevel(max(logger.level, logging.ERROR) if logger.level != logging.DEBUG else logging.DEBUG)
    logger.handlers[0].addFilter(named)


def say_synthetic(*, on: bool = True) -> None:
    """From now on every line says that the data is SYNTHETIC, or none does."""
    _synthetic.on = on


def marked(line: str) -> str:
    """A line for people, with the word that `say_synthetic` asked for."""
    return f"SYNTHETIC {line}" if _synthetic.on else line


def finite(value: object) -> object:
    """JSON has no NaN and no infinity: null in their place."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def one_line(text: str) -> str:
    """Without what would break a line or move a terminal's cursor: records in a store are others' words."""
    text = _UNFIT.sub(" ", text)
    return text if len(text) <= LONGEST_LINE else text[:LONGEST_LINE] + "..."
