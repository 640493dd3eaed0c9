"""Promise: a log line is one JSON object with its fields."""

import io
import json
import logging

from upwell import logs


def test_a_line_is_json_with_fields() -> None:
    stream = io.StringIO()
    logger = logging.getLogger("upwell")
    before = (logger.handlers, logger.level, logger.propagate)
    try:
        logs.configure("info", stream)
        logging.getLogger("upwell.sync").info(
            "Successfully processed upload", extra=logs.fields(changes_count=180)
        )
        logging.getLogger("upwell.sync").debug("not shown")
    finally:
        logger.handlers, logger.propagate = before[0], before[2]
        logger.setLevel(before[1])
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert len(lines) == 1
    assert lines[0].pop("ts").endswith("+00:00")
    assert lines[0] == {
        "level": "info",
        "logger": "upwell.sync",
        "msg": "Successfully processed upload",
        "changes_count": 180,
    }
    assert logs.recent_lines()[-1].message == "Successfully processed upload changes_count=180"
