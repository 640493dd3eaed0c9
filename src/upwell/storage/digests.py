"""Digests: what is in a file, as its SHA-256, and whether it still is what was written.

Law: a file is read whole once, and again as soon as its mark (which file, how large, when written) is
another one; so a file that is damaged under a running server is noticed by the next one who asks. A file and
its hard links have one mark, and so has a file that got its name after it was written.
"""

import hashlib
import threading
from pathlib import Path

from upwell.effects import Files, Mark

KNOWN_MAX = 200_000
"""So many files are known at a time, at some 300 bytes each."""


class Digests:
    """The digests of files that were asked for. Thread-safe."""

    def __init__(self, files: Files, *, known_max: int = KNOWN_MAX) -> None:
        self._files = files
        self._known_max = known_max
        self._known: dict[Mark, str] = {}
        self._lock = threading.Lock()

    def sha256(self, path: Path, mark: Mark) -> str:
        """Return the digest of the file that has this mark; raise `OSError` if it can't be read."""
        known = self._known.get(mark)
        return known if known is not None else self._read(path, mark)

    def _read(self, path: Path, mark: Mark) -> str:
        digest = hashlib.sha256()
        for chunk in self._files.read_stream(path):
            digest.update(chunk)
        found = digest.hexdigest()
        if self._files.mark(path) == mark:  # else it was written to meanwhile
            with self._lock:
                while len(self._known) >= self._known_max:
                    del self._known[next(iter(self._known))]
                self._known[mark] = found
        return found
