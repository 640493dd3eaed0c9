"""Archives: a backup as a directory, and the list of its files that makes it whole.

    backup.json                             what is in it, with sizes and SHA-256, sealed; written last
    hot/                                    the hot store at one commit
    storage/<directory>/<file>              the files of the storage `local` that it needs
    elsewhere/<storage>/<directory>/<file>  those of other storages

Law: a directory without a whole `backup.json` is no backup; one whose files differ from it is refused by the
name of the first that does. The directory gets its name only when all of it is on the disk.
"""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from upwell.decodable import decodable
from upwell.effects import Files
from upwell.engine.stop import Stop
from upwell.errors import InvalidOperation
from upwell.storage.digests import is_seal_broken, sealed
from upwell.storage.place import LOCAL, Place

LIST = "backup.json"
HOT, STORAGE, ELSEWHERE = "hot", "storage", "elsewhere"
FORMAT = 1
_SYSTEM = ("bin", "boot", "dev", "etc", "lib", "lib32", "lib64", "proc", "run", "sbin", "sys", "usr")
_MEMORY = Path("/dev/shm")
"""Everybody's files in memory: the only ones below /dev that are no devices."""


class Entry(msgspec.Struct, frozen=True):
    """One file; `path` is relative to the archive."""

    path: str
    size_bytes: int
    sha256: str


class Elsewhere(msgspec.Struct, frozen=True):
    """A cold file of another storage than `local`, and whose it is."""

    path: str
    table: int
    owner: str
    storage: str
    directory: str
    name: str

    @property
    def place(self) -> Place:
        return Place(self.storage, self.directory)


@decodable
class Archive(msgspec.Struct, frozen=True, kw_only=True):
    """What `backup.json` says. `seq` and `epoch` are the store's, `created_at` is in ms."""

    format: int
    server_version: str
    job_id: str
    created_at: int
    seq: int
    epoch: int
    files: tuple[Entry, ...]
    elsewhere: tuple[Elsewhere, ...] = ()


def path_of(place: Place, name: str) -> str:
    """Return where an archive keeps a cold file."""
    if place.storage == LOCAL:
        return f"{STORAGE}/{place.directory}/{name}"
    return f"{ELSEWHERE}/{place.storage}/{place.directory}/{name}"


def judged(text: str, data_dir: Path) -> Path:
    """Return the directory that a statement names; a relative one is below `backups` of the data directory.

    Raises `InvalidOperation` for one that belongs to the system or to the server's own files.
    """
    path = Path(text)
    if not text.strip() or "\0" in text or ".." in path.parts:
        raise InvalidOperation(f"'{text[:200]}' is no path of a backup; give a directory's path without '..'")
    home = data_dir.resolve()
    try:
        path = (home / "backups" / path).resolve()
        path.exists()
    except OSError as error:
        raise InvalidOperation(f"'{text[:200]}' can't be a backup: {error.strerror}") from error
    is_system = path.parts[1:2] and path.parts[1] in _SYSTEM and _MEMORY not in path.parents
    if len(path.parts) < 3 or is_system:
        raise InvalidOperation(f"'{path}' belongs to the system; choose another directory")
    if path.is_relative_to(home) and path.parent != home / "backups":
        raise InvalidOperation(f"'{path}' is inside the data directory; only its 'backups' is for backups")
    return path


def refuse_taken(path: Path) -> None:
    """Raise `InvalidOperation` if something is where a backup shall be."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise InvalidOperation(f"'{path}' is there already, and not empty; choose another directory")


def load_archive(path: Path) -> Archive:
    """Read the list of a backup; raise `InvalidOperation` if there is none, or it is of a newer format."""
    if not path.is_dir():
        raise InvalidOperation(f"'{path}' is no directory")
    try:
        data = (path / LIST).read_bytes()
        archive = msgspec.json.decode(data, type=Archive)
    except FileNotFoundError as error:
        raise InvalidOperation(f"'{path}' has no {LIST}: it is no whole backup") from error
    except (OSError, msgspec.DecodeError) as error:
        raise InvalidOperation(f"{path / LIST} can't be read: {error}") from error
    if is_seal_broken(data):
        raise InvalidOperation(f"{path / LIST} is damaged: it isn't what was written; take another backup")
    if archive.format > FORMAT:
        raise InvalidOperation(
            f"'{path}' has the format {archive.format}, and this version knows {FORMAT}; take a newer version"
        )
    return archive


def write_archive(files: Files, path: Path, archive: Archive) -> None:
    """Write the list, which makes the backup whole; all else must be on the disk."""
    files.replace(path / LIST, sealed(archive))


def copy_file(files: Files, source: Path, target: Path, path: str, stop: Stop) -> Entry:
    """Copy a file and return its entry; directories on the way are made, whose names `sync_tree` syncs."""
    digest = _Digest(stop)
    files.write_stream(target, digest.passing(files.read_stream(source)))
    return digest.entry(path)


def measured(files: Files, source: Path, path: str, stop: Stop) -> Entry:
    """Return the entry of a file that is where it shall be."""
    digest = _Digest(stop)
    for _ in digest.passing(files.read_stream(source)):
        pass
    return digest.entry(path)


class _Digest:
    """Measures what passes; looks at `stop` with each chunk."""

    def __init__(self, stop: Stop) -> None:
        self._stop = stop
        self._sha256 = hashlib.sha256()
        self._size_bytes = 0

    def passing(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            self._stop.check()
            self._sha256.update(chunk)
            self._size_bytes += len(chunk)
            yield chunk

    def entry(self, path: str) -> Entry:
        return Entry(path, self._size_bytes, self._sha256.hexdigest())
