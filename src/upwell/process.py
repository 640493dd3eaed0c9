"""This process: what it uses of the machine, since when it runs, and where."""

import os
import platform
import re
import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path

_STARTED_S = time.monotonic()
_STATM = Path("/proc/self/statm")
_CPUS = Path("/proc/cpuinfo")
_NAMED = re.compile(r"^(physical id|core id)\s*:\s*(\d+)", re.MULTILINE)
_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Usage:
    """Memory in MiB, processor time as a part of one processor's (100: all of it), age in seconds."""

    memory_mb: int
    cpu_percent: float
    uptime_s: int

    @property
    def uptime_human(self) -> str:
        days, seconds = divmod(self.uptime_s, 24 * 3600)
        hours, seconds = divmod(seconds, 3600)
        minutes, seconds = divmod(seconds, 60)
        parts = [f"{days}d"] * (days > 0) + [f"{hours}h"] * (hours > 0) + [f"{minutes}m"] * (minutes > 0)
        return " ".join([*parts, f"{seconds}s"])


def usage() -> Usage:
    """Return what the process uses now; the processor time is the average since its start."""
    age_s = time.monotonic() - _STARTED_S
    cpu_percent = 100 * time.process_time() / age_s if age_s > 0 else 0.0
    return Usage(memory_bytes() // _MIB, round(cpu_percent, 1), int(age_s))


def memory_bytes() -> int:
    """Return the resident memory; where the system doesn't tell (outside Linux), the most there was."""
    try:
        return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def physical_cores() -> int | None:
    """Return how many cores the machine has, whatever runs on each at a time; None if nobody tells."""
    try:
        blocks = _CPUS.read_text().strip().split("\n\n")
    except OSError:
        return None
    told = [dict(_NAMED.findall(block)) for block in blocks]
    cores = {(each.get("physical id"), each.get("core id")) for each in told}
    return len(cores) if all(None not in core for core in cores) else None


def hostname() -> str:
    return platform.node()
