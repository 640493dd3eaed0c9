"""Row groups of segments as they were decoded, kept for who reads by key.

Law: what is kept is bounded in bytes, and the least recently used goes first.
"""

import threading
from collections import OrderedDict
from pathlib import Path

import pyarrow as pa


class GroupCache:
    """Decoded row groups. Thread-safe."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._groups: OrderedDict[tuple[Path, int, int], pa.RecordBatch] = OrderedDict()
        self._lock = threading.Lock()

    def find(self, name: tuple[Path, int, int]) -> pa.RecordBatch | None:
        """Return the row group (file, schema version, index), None if it isn't kept."""
        with self._lock:
            if (batch := self._groups.get(name)) is not None:
                self._groups.move_to_end(name)
            return batch

    def put(self, name: tuple[Path, int, int], batch: pa.RecordBatch) -> None:
        """Keep a row group, at the price of older ones; one above the bound alone isn't kept."""
        size_bytes = batch.nbytes
        if size_bytes > self._bytes_max:
            return
        with self._lock:
            if (old := self._groups.pop(name, None)) is not None:
                self._bytes -= old.nbytes
            self._groups[name] = batch
            self._bytes += size_bytes
            while self._bytes > self._bytes_max:
                self._bytes -= self._groups.popitem(last=False)[1].nbytes

    def forget(self, name: tuple[Path, int, int]) -> None:
        with self._lock:
            if (batch := self._groups.pop(name, None)) is not None:
                self._bytes -= batch.nbytes

    @property
    def size_bytes(self) -> int:
        return self._bytes
