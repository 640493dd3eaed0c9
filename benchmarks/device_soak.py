"""The literal scenario again and again: are memory and descriptors flat? One JSON line; exit code 1 if not.

Each run is a new user: 60 users, 120 posts, 120 updates, 30 deletions, one upload, reinstall, hydration.
What the server keeps up to a bound (RocksDB's write buffer and block cache, the newest changes of the log)
is bounded tightly here: otherwise it takes hundreds of runs until they are full, and meanwhile they hide
what has no bound.

Slopes are least-squares fits per run over all runs but the first `--warm`, of this process (the devices) and
of the server: objects are what Python has allocated, which doesn't waver as resident memory does. Descriptors
are counted between runs, when everything is closed.

.venv/bin/python benchmarks/device_soak.py [--runs 50] [--warm 20]
"""

import argparse
import gc
import json
import os
import signal
import statistics
import sys
import tempfile
import threading
from pathlib import Path

from upload import Bench, literal
from upwell.device import Device
from upwell.testing import ServerProcess, wait_until

CONTENT = "long " * 1000
"""Of each of the 100 posts that a run uploads: 500 KiB, so that resident memory tells who keeps them."""
FLAT = {"objects": 90.0, "kib": 150.0, "descriptors": 0.1}
"""What a run may leave and still be called flat: half an object for each of the 180 changes. (A user, two
devices and their tokens are some 40 objects, in caches that have a bound.)"""

TIGHT = """
import gc, signal, sys
from upwell.engine.changelog import Changelog
from upwell.storage import rocks
rocks.WRITE_BUFFER_BYTES = rocks.BLOCK_CACHE_BYTES = 256 * 1024
Changelog.__init__.__kwdefaults__["tail_changes_max"] = 128
from upwell.cli import main
def tell(*_):
    gc.collect()
    print("objects", sys.getallocatedblocks())
signal.signal(signal.SIGUSR1, tell)
sys.exit(main())
"""
SERVE = ("serve", "--data-dir", "{data_dir}", "--host", "127.0.0.1", "--port", "{port}")

Sample = dict[str, int]


class Soak(Bench):
    """One server for all runs; each run has a directory and a user of its own."""

    content = CONTENT

    def __init__(self, server: ServerProcess, directory: Path) -> None:
        super().__init__(server, directory)
        self.root = directory
        self.run = 0

    def begin_run(self) -> None:
        self.run += 1
        self.directory = self.root / f"run{self.run}"
        self.directory.mkdir()

    def device(self, user: str, source: str, name: str) -> Device:
        return super().device(f"{user}-{self.run}", source, name)

    def sample(self) -> Sample:
        """Return what both sides have and hold now."""
        gc.collect()
        objects = {"device_objects": sys.getallocatedblocks(), "server_objects": self._server_objects()}
        return objects | used("device", os.getpid()) | used("server", self.server.pid)

    def _server_objects(self) -> int:
        os.kill(self.server.pid, signal.SIGUSR1)
        found = wait_until(self._told, timeout_s=60, what="the server to count its objects")
        return int(found[-1].split()[1])

    def _told(self) -> list[str] | None:
        """Return what the server has told of its objects, once it has for this run."""
        told = [line for line in self.server.log_text().splitlines() if line.startswith("objects ")]
        return told if len(told) == self.run else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--warm", type=int, default=20)
    options = parser.parse_args()
    samples, times = [], []
    command = (sys.executable, "-c", TIGHT, *SERVE)
    with tempfile.TemporaryDirectory() as name, ServerProcess(Path(name) / "data", command=command) as server:
        soak = Soak(server, Path(name))
        for _ in range(options.runs):
            soak.begin_run()
            times.append(literal(soak))
            samples.append(soak.sample())
    warm = samples[options.warm :]
    slopes = {kind: slope([found[kind] for found in warm]) for kind in warm[0]}
    grows = [kind for kind, value in slopes.items() if value > FLAT[kind.partition("_")[2]]]
    result = {"benchmark": "device_soak", "runs": options.runs, "grows": grows}
    result |= {f"{kind}_per_run": value for kind, value in slopes.items()}
    result |= {f"{kind}_last": count for kind, count in warm[-1].items()}
    result |= {"run_s": round(statistics.median(times), 3), "threads_left": threading.active_count() - 1}
    print(json.dumps(result))
    return 1 if grows else 0


def used(who: str, pid: int) -> Sample:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    kib = pages * os.sysconf("SC_PAGE_SIZE") // 1024
    return {f"{who}_kib": kib, f"{who}_descriptors": len(os.listdir(f"/proc/{pid}/fd"))}


def slope(values: list[int]) -> float:
    return round(statistics.linear_regression(range(len(values)), values).slope, 2)


if __name__ == "__main__":
    sys.exit(main())
