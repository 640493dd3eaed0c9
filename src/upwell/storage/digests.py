"""Digests: what is in a file, as its SHA-256, and whether it still is what was written.

Law: a file is read whole once, and again as soon as its mark (which file, how large, when written) is
another one; so a file that is damaged under a running server is noticed by the next one who asks. A file and
its hard links have one mark, and so has a file that got its name after it was written.

A list of other files is sealed: it begins with the SHA-256 of all that follows on it, since a changed digit
would be another number there, and no error of JSON. Older lists have no seal, and are taken as they are.
"""

import hashlib
import re
import threading
from pathlib import Path

import msgspec

from upwell.effects import Files, Mark

KNOWN_MAX = 200_000
"""So many files are known at a time, at some 300 bytes each."""

_BEGINS_SEALED = re.compile(rb'\s*\{\s*"sha256"')
_SEAL_BYTES = len(b'{"sha256":"') + 64 + len(b'",')


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


def sealed(value: msgspec.Struct) -> bytes:
    """Return a struct as one line of JSON with its seal."""
    rest = msgspec.json.encode(value)[1:]
    return _seal(rest) + rest


def is_seal_broken(data: bytes) -> bool:
    """Whether what `sealed` has written was changed since; False for what has no seal."""
    begin, rest = data[:_SEAL_BYTES], data[_SEAL_BYTES:]
    return _BEGINS_SEALED.match(data) is not None and begin != _seal(rest)


def _seal(rest: bytes) -> bytes:
    return b'{"sha256":"' + hashlib.sha256(rest).hexdigest().encode() + b'",'
