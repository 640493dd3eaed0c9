"""Promise: fifty runs of the literal scenario leave memory and descriptors of device and server flat."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_fifty_runs_leave_nothing_behind() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks/device_soak.py", "--runs", "50"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert (found["runs"], found["grows"], found["threads_left"]) == (50, [], 0)
