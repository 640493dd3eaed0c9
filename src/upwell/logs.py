"""Log lines: one JSON object a line, so that a machine can read what a person does.

Fields are passed as `logger.info("message", extra={"fields": {...}})`; what is logged while a request is
served names the request.
"""

import json
import logging
import sys
from collections import deque
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple, TextIO

RECENT_LINES_MAX = 1_000


class Origin(NamedTuple):
    """Where a piece of work comes from: the request, and the address of who sent it."""

    request_id: str
    address: str | None


_origin: ContextVar[Origin | None] = ContextVar("origin", default=None)


def origin() -> Origin | None:
    """Return which request is served here; None if it is nobody's."""
    return _origin.get()


def begin_request(origin: Origin) -> None:
    """Say which request this task serves from now on."""
    _origin.set(origin)


class JsonLines(logging.Formatter):
    """Format a record as `{"ts", "level", "logger", "msg", "request_id", **fields}`; `ts` as RFC 3339."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "msg": record.getMessage(),
        }
        line.update(_fields_of(record))
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def _fields_of(record: logging.LogRecord) -> dict[str, object]:
    """Return the fields of a line, the request that is served among them."""
    request, own = origin(), getattr(record, "fields", None)
    found: dict[str, object] = {} if request is None else {"request_id": request.request_id}
    return {**found, **own} if isinstance(own, dict) else found


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the log, as `system.server_logs` shows it; its fields stand behind the message."""

    timestamp: str
    level: str
    thread: str | None
    target: str
    line: int
    message: str


class _Recent(logging.Handler):
    """Keeps the newest lines in memory, whatever becomes of the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: deque[Line] = deque(maxlen=RECENT_LINES_MAX)

    def emit(self, record: logging.LogRecord) -> None:
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        level, own = record.levelname, _fields_of(record)
        message = " ".join([record.getMessage(), *(f"{name}={value}" for name, value in own.items())])
        self.lines.append(Line(moment, level, record.threadName, record.name, record.lineno, message))


_recent = _Recent()


def recent_lines() -> list[Line]:
    """Return the newest lines of this process's log, oldest first."""
    return list(_recent.lines)


def configure(level: str, stream: TextIO | None = None) -> None:
    """Send the log of the whole process to `stream` (default: stderr) from `level` upward."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines())
    for name, lowest in (("upwell", level.upper()), ("uvicorn", "WARNING")):
        logger = logging.getLogger(name)
        logger.handlers = [handler, _recent]
        logger.setLevel(lowest)
        logger.propagate = False


def fields(**values: object) -> dict[str, dict[str, object]]:
    """Return the `extra` argument that carries structured fields: `log.info("x", extra=fields(n=1))`."""
    return {"fields": values}
