"""A bucket in the test's memory, whose n-th call fails, before it has an effect or after it.

Law: it promises what `storage/objects.py` promises, as far as the fault lets it; a put whose answer is lost
has been done. The door to real buckets is tested against a server, over HTTP.
"""

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from upwell.errors import StorageFailed
from upwell.storage.definition import Storage
from upwell.storage.objects import Bucket
from upwell.testing.faults import FailOnce

NEVER = 1_000_000_000


class MemoryBucket(Bucket):
    """Objects by key. Give `opened` to the engine: whatever storage it opens is this bucket.

    Each call of the engine counts; `arm` makes the n-th of them fail, `loses_answer` only after it was done.
    While `is_away` all fail.
    """

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.trace: list[tuple[str, str]] = []
        self.is_away = False
        self._fault = FailOnce(NEVER)
        self._loses_answer = False
        self._lock = threading.Lock()

    def opened(self, storage: Storage, secrets: Mapping[str, str]) -> Self:
        self._id, self._base = storage.id, storage.base
        return self

    @property
    def fired(self) -> bool:
        return self._fault.fired

    def arm(self, fail_at: int, *, loses_answer: bool = False) -> None:
        """Count again from here: the `fail_at`-th call from now fails."""
        self._fault, self._loses_answer, self.trace = FailOnce(fail_at), loses_answer, []

    def put_new(self, key: str, content: bytes | Path) -> None:
        data = content if isinstance(content, bytes) else content.read_bytes()
        lost = self._begin("create", key)
        with self._lock:
            found = self.objects.setdefault(key, data)
        self._end(lost)
        if found != data:
            raise FileExistsError(f"{self.shown(key)} is there already")

    def put(self, key: str, content: bytes) -> None:
        lost = self._begin("put", key)
        self.objects[key] = content
        self._end(lost)

    def get(self, key: str) -> bytes:
        self._end(self._begin("get", key))
        if key not in self.objects:
            raise FileNotFoundError(f"{self.shown(key)} is missing")
        return self.objects[key]

    def fetch(self, key: str, path: Path) -> None:
        path.write_bytes(self.get(key))

    def names(self, directory: str) -> list[str]:
        self._end(self._begin("list", directory))
        prefix = f"{directory}/" if directory else ""
        with self._lock:
            rest = [key.removeprefix(prefix) for key in self.objects if key.startswith(prefix)]
        return sorted(name for name in rest if "/" not in name)

    def delete(self, key: str) -> None:
        lost = self._begin("delete", key)
        with self._lock:
            self.objects.pop(key, None)
        self._end(lost)

    def prove(self, server: str) -> None:
        """It keeps its promises."""
        self._end(self._begin("prove", server))

    def save(self, directory: Path) -> Path:
        """Write all objects as files; return the directory that stands for the root."""
        for key, data in self.objects.items():
            path = directory / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return directory

    def _begin(self, verb: str, key: str) -> bool:
        """Count a call; return whether its answer will be lost."""
        self.trace.append((verb, key))
        is_due = self._fault.is_due()
        if self.is_away or (is_due and not self._loses_answer):
            raise StorageFailed(f"storage '{self._id}': can't {verb} {self.shown(key)}: injected")
        return is_due

    def _end(self, lost: bool) -> None:
        if lost:
            raise StorageFailed(f"storage '{self._id}': the answer was lost: injected")
