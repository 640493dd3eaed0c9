"""The cache: copies of immutable files of other machines, on this one, bounded in bytes.

Law: a copy has its name only when it is whole and durable, so that it may stay over a restart. One that was
used within `keep_s` isn't removed: a query that was told where it is still finds it there, as long as
queries may take. The cache may be larger than its bound for that long.
"""

import os
import threading
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path

from upwell.clock import Clock, SystemClock
from upwell.effects import is_temp

KEEP_S = 120.0


class FileCache:
    """Which copies there are below `root`, in the order of their last use. Thread-safe."""

    def __init__(
        self, root: Path, *, bytes_max: int, keep_s: float = KEEP_S, clock: Clock | None = None
    ) -> None:
        self.root = root
        self._bytes_max = bytes_max
        self._keep_us = round(keep_s * 1_000_000)
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._sizes: OrderedDict[Path, tuple[int, int]] = OrderedDict()
        self._bytes = 0
        self._load()

    @property
    def size_bytes(self) -> int:
        return self._bytes

    def use(self, path: Path) -> None:
        """Note that a copy is there and was just used; remove those for which there is no room."""
        size_bytes, now_us = path.stat().st_size, self._clock.now_us()
        with self._lock:
            self._bytes += size_bytes - self._sizes.pop(path, (0, 0))[0]
            self._sizes[path] = (size_bytes, now_us)
            self._evict(now_us)

    def forget(self, path: Path) -> None:
        """Note that a copy is gone."""
        with self._lock:
            self._bytes -= self._sizes.pop(path, (0, 0))[0]

    def _evict(self, now_us: int) -> None:
        while self._bytes > self._bytes_max:
            path, (size_bytes, used_us) = next(iter(self._sizes.items()))
            if used_us + self._keep_us > now_us:
                return
            del self._sizes[path]
            self._bytes -= size_bytes
            with suppress(OSError):  # what can't be removed now is found by the next start
                path.unlink()

    def _load(self) -> None:
        """Find what an earlier run left: copies, as used long ago, and halves of copies, which go."""
        found: list[tuple[float, Path, int]] = []
        for directory, _, names in os.walk(self.root):
            if Path(directory).parent.name == ".links":
                continue
            for name in names:
                path = Path(directory, name)
                with suppress(OSError):
                    if is_temp(name):
                        path.unlink()
                    else:
                        status = path.stat()
                        found.append((status.st_mtime, path, status.st_size))
        for _, path, size_bytes in sorted(found):
            self._sizes[path] = (size_bytes, 0)
            self._bytes += size_bytes
