"""The literal scenario again and again: do memory and descriptors stay flat? One JSON line.

Each run is a new user: 60 users, 120 posts, 120 updates, 30 deletions, one upload, reinstall, hydration.
Slopes are least-squares fits per run over all runs but the first `--warm`, of this process (the devices) and
of the server; descriptors are counted between runs, when everything is closed.

.venv/bin/python benchmarks/device_soak.py [--runs 50] [--warm 10]
"""

import argparse
import gc
import json
import os
import statistics
import tempfile
import threading
from pathlib import Path

from upload import Bench, literal
from upwell.device import Device
from upwell.testing import ServerProcess

Sample = dict[str, int]


class Soak(Bench):
    """One server for all runs; each run has a directory and a user of its own."""

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--warm", type=int, default=10)
    options = parser.parse_args()
    samples, times = [], []
    with tempfile.TemporaryDirectory() as name, ServerProcess(Path(name) / "data") as server:
        soak = Soak(server, Path(name))
        for _ in range(options.runs):
            soak.begin_run()
            times.append(literal(soak))
            gc.collect()
            samples.append(sample("device", os.getpid()) | sample("server", server.pid))
    warm = samples[options.warm :]
    slopes = {f"{kind}_per_run": slope([found[kind] for found in warm]) for kind in warm[0]}
    last = {f"{kind}_last": count for kind, count in warm[-1].items()}
    spent = {"run_s": round(statistics.median(times), 3), "threads_left": threading.active_count() - 1}
    print(json.dumps({"benchmark": "device_soak", "runs": options.runs, **slopes, **last, **spent}))


def sample(who: str, pid: int) -> Sample:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    kib = pages * os.sysconf("SC_PAGE_SIZE") // 1024
    return {f"{who}_kib": kib, f"{who}_descriptors": len(os.listdir(f"/proc/{pid}/fd"))}


def slope(values: list[int]) -> float:
    return round(statistics.linear_regression(range(len(values)), values).slope, 2)


if __name__ == "__main__":
    main()
