"""The run's own papers: the log lines that the scenario's document names, with their fields.

Law: they are read back from the files that the run leaves, not from memory.
"""

import json
from pathlib import Path
from typing import Any

from upwell.demo.expected import TABLES
from upwell.demo.world import Counts, World

RUN_S_MAX = 60.0


def check_papers(world: World) -> Counts:
    """Compare the lines of the demo's and the server's log with what happened."""
    demo = _lines(world.directory / "demo.log")
    server = world.server.log_lines()
    checks = world.checks
    checks.equal(
        "“Complex offline operations finished”",
        [
            {
                "total_users_created": 60,
                "users_updated_multiple_times": 30,
                "users_deleted": 10,
                "posts_deleted": 20,
                "expected_final_users": 50,
                "expected_final_posts": 100,
            }
        ],
        _fields(demo, "Complex offline operations finished"),
    )
    uploads = _fields(server, "Successfully processed upload")
    checks.equal(
        "“Successfully processed upload”: changes_count of each, in the server's log",
        world.upload_sizes,
        [line.get("changes_count") for line in uploads],
    )
    seqs = [line.get("highest_server_seq") for line in uploads]
    checks.equal(
        "“Successfully processed upload”: the first highest_server_seq", 150, seqs[0] if seqs else None
    )
    first_upload = _fields(demo, "All changes uploaded successfully")[:1]
    checks.equal(
        "“All changes uploaded successfully”", [180], [line.get("uploaded") for line in first_upload]
    )
    verified = [(v.get("users"), v.get("posts")) for v in _fields(demo, "Database state verification passed")]
    checks.equal("“Database state verification passed”", (2, (50, 100)), (len(verified), verified[0]))
    rows = [line.get("rows") for line in _fields(demo, "Fresh install and hydration finished")]
    # A new file hydrates before its first upload: the first phone nothing, the other user's phone its own
    # rows. The edit after the reinstallation inserted one more post than was hydrated.
    restored = sum(world.expected.count(table) for table in TABLES) - 1
    checks.equal(
        "“Fresh install and hydration finished”",
        [0, sum(map(len, world.stranger_rows.values())), restored],
        rows,
    )
    tracebacks = [line for line in world.server.log_text().splitlines() if "Traceback" in line]
    checks.equal("tracebacks in the server's log", [], tracebacks)
    checks.below("seconds of the whole run", RUN_S_MAX, world.elapsed_s())
    return {"demo_log_lines": len(demo), "server_log_lines": len(server)}


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _fields(lines: list[dict[str, Any]], message: str) -> list[dict[str, Any]]:
    found = [line for line in lines if line.get("msg") == message]
    return [{k: v for k, v in line.items() if k not in ("ts", "level", "logger", "msg")} for line in found]
