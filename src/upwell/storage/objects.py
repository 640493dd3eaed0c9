"""The cold tier's files: where a partition lies, what its files are called, and their durable life.

    <data dir>/storage/{namespace}/{table}            a shared partition
    <data dir>/storage/{namespace}/{table}/{user}     a user's partition
        batch-<table id>-<n>.parquet, batch-<table id>-<n>.filter      a segment and its key filter
        hidden-<table id>-<n>.json, manifest-<table id>-<n>.json       immutable, created once
        manifest.json                                                  a copy for people, replaced
        .links/<table id>-<n>/                                         hard links to one manifest's segments

Law: no name from outside can leave its own directory. Names are percent-encoded to lower-case letters,
digits, `_` and `-`: never `.` or `/`, so that a name is neither a way up nor the name of a file, and never
an upper-case letter, because some file systems fold case. Different names have different directories.
Files hold the numeric table id: a table that is dropped and created again never meets old files.
"""

import hashlib
import os
import re
import shutil
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from upwell.effects import Files, is_temp, temp_beside
from upwell.errors import ColdFileMissing
from upwell.types import Owner, TableId, owner_user

LINKS = ".links"
MANIFEST_COPY = "manifest.json"
NAME_BYTES_MAX = 200

_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789_-")
_PREFIX_BYTES = 100
_NAME = re.compile(
    r"(?P<kind>batch|hidden|manifest)-(?P<table>[0-9]+)-(?P<number>[0-9]+)\.(?:parquet|filter|json)"
)
_TEMP = re.compile(r"\.(?P<name>.+)\.[0-9]+-[0-9]+\.tmp")


def encode_name(name: str) -> str:
    """Return `name` as one directory name, different for different names, at most 200 bytes long.

    `%` alone is the empty name; a name too long becomes its beginning, `%%` and its SHA-256.
    """
    raw = name.encode("utf-8", "surrogatepass")
    encoded = "".join(chr(byte) if byte in _PLAIN else f"%{byte:02x}" for byte in raw) or "%"
    if len(encoded) <= NAME_BYTES_MAX:
        return encoded
    return f"{encoded[:_PREFIX_BYTES]}%%{hashlib.sha256(raw).hexdigest()}"


def partition_dir(namespace: str, table: str, owner: Owner) -> str:
    """Return the partition's directory, relative to the root of the cold tier."""
    names = [namespace, table]
    if (user := owner_user(owner)) is not None:
        names.append(user)
    return "/".join(encode_name(name) for name in names)


@dataclass(frozen=True, slots=True)
class Partition:
    """The rows of one table and owner: who they are, and so where they lie."""

    namespace: str
    table: str
    table_id: TableId
    owner: Owner

    @property
    def path(self) -> str:
        """The directory, relative to the root."""
        return partition_dir(self.namespace, self.table, self.owner)

    def segment_name(self, number: int) -> str:
        return f"batch-{self.table_id}-{number}.parquet"

    def filter_name(self, number: int) -> str:
        return f"batch-{self.table_id}-{number}.filter"

    def hidden_name(self, number: int) -> str:
        return f"hidden-{self.table_id}-{number}.json"

    def manifest_name(self, number: int) -> str:
        return f"manifest-{self.table_id}-{number}.json"

    def is_file(self, name: str) -> bool:
        """Return whether `name` is a file of this very table."""
        match = _NAME.fullmatch(name)
        return match is not None and int(match["table"]) == self.table_id


class PartitionFiles:
    """The files of one partition. Flush, compaction and collection of a partition exclude each other."""

    def __init__(self, root: Path, partition: Partition, files: Files, links_lock: threading.Lock) -> None:
        self.partition = partition
        self.directory = root / partition.path
        self._files = files
        self._links_lock = links_lock

    def path(self, name: str) -> Path:
        """Return the path of a file of this partition; refuse every other name."""
        if name != MANIFEST_COPY and not self.partition.is_file(name):
            raise ColdFileMissing(f"{name!r} is no file of table {self.partition.table_id}")
        return self.directory / name

    def make(self) -> None:
        """Create the directory, durably; an existing one is fine."""
        self._files.make_dirs(self.directory)

    def names(self) -> list[str]:
        """Return this table's files in the directory, sorted; none if there is no directory."""
        try:
            return [name for name in self._files.list(self.directory) if self.partition.is_file(name)]
        except FileNotFoundError:
            return []

    def numbers(self, kind: str) -> list[int]:
        """Return the numbers of the `batch`, `hidden` or `manifest` files in the directory, ascending."""
        matches = (_NAME.fullmatch(name) for name in self.names())
        return sorted({int(match["number"]) for match in matches if match and match["kind"] == kind})

    def next_number(self, kind: str) -> int:
        """Return a number that no `batch`, `hidden` or `manifest` file in the directory has reached."""
        return 1 + max(self.numbers(kind), default=-1)

    def read(self, name: str) -> bytes:
        """Return the content; raise `ColdFileMissing` if the file is not there or can't be read."""
        with self._named(name) as path:
            return self._files.read(path)

    def size(self, name: str) -> int:
        """Return the size in bytes; raise `ColdFileMissing` if the file is not there."""
        with self._named(name) as path:
            return self._files.size(path)

    def write_new(self, name: str, data: bytes) -> None:
        """Create the file, durably; raise `FileExistsError` if there is one of this name."""
        self._files.write_new(self.path(name), data)

    def replace(self, name: str, data: bytes) -> None:
        """Put `data` at `name`, durably and at once."""
        self._files.replace(self.path(name), data)

    def temp(self, name: str) -> Path:
        """Return a path beside `name` to write to, before `publish` gives the file its name."""
        return temp_beside(self.path(name))

    def publish(self, temp: Path, name: str) -> None:
        """Sync the written `temp` and name it, durably; raise `FileExistsError` if the name is taken."""
        self._files.publish(temp, self.path(name))

    def remove(self, name: str) -> None:
        """Remove the file, durably; one that is gone already is fine."""
        try:
            self._files.remove(self.path(name))
        except FileNotFoundError:
            return

    def remove_empty(self) -> None:
        """Remove the directory, and a user partition's table directory, if nothing is left in them."""
        levels = 1 if owner_user(self.partition.owner) is None else 2
        for directory in [self.directory / LINKS, self.directory, self.directory.parent][: 1 + levels]:
            with suppress(OSError):  # not empty, or gone already
                directory.rmdir()

    def remove_temps(self) -> list[str]:
        """Remove what crashed attempts left half-written, and return the names; nobody may be writing."""
        try:
            entries = sorted(os.listdir(self.directory))
        except FileNotFoundError:
            return []
        temps = [name for name in entries if is_temp(name) and self._is_ours(name)]
        for name in temps:
            self._files.remove(self.directory / name)
        return temps

    def link_dir(self, number: int, names: Iterable[str]) -> Path:
        """Return a directory with hard links to exactly these files (symbolic ones if it can't be).

        It appears at once and whole; one of this number that is whole already is used again.
        """
        expected = sorted(names)
        final = self.directory / LINKS / f"{self.partition.table_id}-{number}"
        with self._links_lock:
            if _listed(final) != expected:
                shutil.rmtree(final, ignore_errors=True)
                self._make_links(final, expected)
        return final

    def drop_links(self, keep: Iterable[int]) -> list[str]:
        """Remove this table's link directories but those of the manifest numbers in `keep`; return names."""
        prefix = f"{self.partition.table_id}-"
        kept = {f"{prefix}{number}" for number in keep}
        links = self.directory / LINKS
        with self._links_lock:
            names = [name for name in _listed(links) or [] if name.lstrip(".").startswith(prefix)]
            dropped = [name for name in names if name not in kept]
            for name in dropped:
                shutil.rmtree(links / name, ignore_errors=True)
        return dropped

    def _make_links(self, final: Path, names: Iterable[str]) -> None:
        building = temp_beside(final)
        building.mkdir(parents=True)
        try:
            for name in names:
                _link(self.path(name), building / name)
            building.rename(final)
        finally:
            shutil.rmtree(building, ignore_errors=True)

    @contextmanager
    def _named(self, name: str) -> Iterator[Path]:
        path = self.path(name)
        try:
            yield path
        except FileNotFoundError as error:
            raise ColdFileMissing(f"cold file {path} is missing; bring it back from a backup") from error
        except OSError as error:
            raise ColdFileMissing(f"cold file {path} can't be read: {error.strerror}") from error

    def _is_ours(self, temp: str) -> bool:
        match = _TEMP.fullmatch(temp)
        return match is not None and (match["name"] == MANIFEST_COPY or self.partition.is_file(match["name"]))


class ObjectStore:
    """The cold tier's root on the local file system."""

    def __init__(self, root: Path, files: Files) -> None:
        self.root = root
        self._files = files
        self._links_lock = threading.Lock()

    def open(self, partition: Partition) -> PartitionFiles:
        """Return the files of a partition; creates nothing."""
        return PartitionFiles(self.root, partition, self._files, self._links_lock)


def _listed(directory: Path) -> list[str] | None:
    try:
        return sorted(os.listdir(directory))
    except FileNotFoundError:
        return None


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except FileNotFoundError as error:
        raise ColdFileMissing(f"cold file {source} is missing; bring it back from a backup") from error
    except OSError:
        # Some file systems know no hard links; a copy would double the tier.
        target.symlink_to(source.absolute())
