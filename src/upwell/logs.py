"""Log lines: one JSON object a line, so that a machine can read what a person does.

Fields are passed as `logger.info("message", extra={"fields": {...}})`.
"""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import TextIO


class JsonLines(logging.Formatter):
    """Format a record as `{"ts", "level", "logger", "msg", **fields}`; `ts` is RFC 3339 in UTC."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "msg": record.getMessage(),
        }
        fields = getattr(record, "fields", None)
        if isinstance(fields, dict):
            line.update(fields)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure(level: str, stream: TextIO | None = None) -> None:
    """Send the log of the whole process to `stream` (default: stderr) from `level` upward."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines())
    for name, lowest in (("upwell", level.upper()), ("uvicorn", "WARNING")):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(lowest)
        logger.propagate = False


def fields(**values: object) -> dict[str, dict[str, object]]:
    """Return the `extra` argument that carries structured fields: `log.info("x", extra=fields(n=1))`."""
    return {"fields": values}
