"""The files of one partition in one place, and their durable life.

Law: a call that returned is durable; a file has its name only when it is whole. Only files of the partition's
own table have a path here.
"""

import os
import re
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from upwell.effects import Files, Mark, is_temp, temp_beside
from upwell.errors import ColdFileMissing
from upwell.storage.digests import Digests
from upwell.storage.place import MANIFEST_COPY, Partition, Place

LINKS = ".links"

_TEMP = re.compile(r"\.(?P<name>.+)\.[0-9]+-[0-9]+\.tmp")

OpenAt = Callable[[Partition, Place], "PartitionFiles"]

FindSpare = Callable[[Partition], bytes | None]
"""The spare of a partition's manifest in force, None if there is none."""


class Whole(NamedTuple):
    """A file that is what was written: where it can be read now, and whether it stays there until removed."""

    path: Path
    mark: Mark
    is_kept: bool


class Linked(NamedTuple):
    """A directory of links to whole files, as it was when it had exactly these."""

    directory: Path
    changed_ns: int
    marks: tuple[Mark, ...]

    def is_intact(self) -> bool:
        """Whether no link has been added, replaced or removed since."""
        try:
            return os.stat(self.directory).st_mtime_ns == self.changed_ns
        except OSError:
            return False


class PartitionFiles:
    """The files of one partition in one place: a directory of the local file system.

    Flush, compaction and collection of a partition exclude each other. `open_at` opens another place, `ready`
    raises if nothing should be written here.
    """

    is_home = True
    """Whether the files themselves are here, and no copies of them that may go."""

    def __init__(
        self,
        directory: Path,
        partition: Partition,
        place: Place,
        files: Files,
        digests: Digests,
        links_lock: threading.Lock,
        open_at: OpenAt,
        find_spare: FindSpare,
        ready: Callable[[], object] = bool,
    ) -> None:
        self.partition = partition
        self.place = place
        self.directory = directory
        self._files = files
        self._digests = digests
        self._links_lock = links_lock
        self._open_at = open_at
        self._find_spare = find_spare
        self._ready = ready

    def at(self, place: Place | None) -> "PartitionFiles":
        """Return the partition's files in another place; None is this one."""
        return self if place is None or place == self.place else self._open_at(self.partition, place)

    def find_spare(self) -> bytes | None:
        """Return the spare of the manifest in force, None if there is none."""
        return self._find_spare(self.partition)

    def shown(self, name: str) -> str:
        """Return what a message calls the file."""
        return str(self.path(name))

    def path(self, name: str) -> Path:
        """Return the path of a file of this partition; refuse every other name."""
        if name != MANIFEST_COPY and not self.partition.is_file(name):
            raise ColdFileMissing(f"{name!r} is no file of table {self.partition.table_id}")
        return self.directory / name

    def make(self, *, sync_name: bool = True) -> None:
        """Create the directory, durably; an existing one is fine. Comes before anything is written.

        Without `sync_name` its name becomes durable with `sync_beside`.
        """
        self._ready()
        with self._links_lock:
            self._files.make_dirs(self.directory, sync_name=sync_name)

    def sync_beside(self) -> None:
        """Make the directory's own name durable, and those of all directories beside it."""
        self._files.sync_dir(self.directory.parent)

    def sync_names(self) -> None:
        """Make the names of all files here durable."""
        self._files.sync_dir(self.directory)

    def forget_copy(self, name: str) -> None:
        """Let go of a copy of the file, which may be of another history; here there is only the file."""

    def names(self) -> list[str]:
        """Return this table's files in the directory, sorted; none if there is no directory."""
        try:
            return [name for name in self._files.list(self.directory) if self.partition.is_file(name)]
        except FileNotFoundError:
            return []

    def numbers(self, kind: str) -> list[int]:
        """Return the numbers of the `batch`, `hidden` or `manifest` files in the directory, ascending."""
        found = {self.partition.number_of(name, kind) for name in self.names()}
        return sorted(number for number in found if number is not None)

    def next_number(self, kind: str) -> int:
        """Return a number that no `batch`, `hidden` or `manifest` file in the directory has reached."""
        return 1 + max(self.numbers(kind), default=-1)

    def read(self, name: str) -> bytes:
        """Return the content; raise `ColdFileMissing` if the file is not there or can't be read."""
        with self._named(name) as path:
            return self._files.read(path)

    def whole(self, name: str, size_bytes: int, sha256: str) -> Whole:
        """Return where the file can be read now; raise `ColdFileMissing` if it isn't what was written.

        An empty `sha256` is that of a file of which nobody knows more than the size.
        """
        with self._named(name) as path:
            mark = self._files.mark(path)
            if mark.size_bytes != size_bytes:
                raise ColdFileMissing(
                    f"cold file {self.shown(name)} has {mark.size_bytes} bytes, not {size_bytes}: it is "
                    "damaged; bring it back from a backup"
                )
            if sha256 and self._digests.sha256(path, mark) != sha256:
                raise ColdFileMissing(
                    f"cold file {self.shown(name)} is damaged: it isn't what was written; bring it back from "
                    "a backup"
                )
        return Whole(path, mark, self.is_home)

    def digest(self, path: Path) -> str:
        """Return the SHA-256 of a file, one that is yet to be published too."""
        return self._digests.sha256(path, self._files.mark(path))

    def write_new(self, name: str, data: bytes, *, sync_name: bool = True) -> None:
        """Create the file, durably; raise `FileExistsError` if there is one of this name.

        Without `sync_name` its name becomes durable with `sync_names`.
        """
        self._files.write_new(self.path(name), data, sync_name=sync_name)

    def replace(self, name: str, data: bytes, *, sync_name: bool = True) -> None:
        """Put `data` at `name`, durably and at once; without `sync_name` a power cut may still undo it."""
        self._files.replace(self.path(name), data, sync_name=sync_name)

    def temp(self, name: str) -> Path:
        """Return a path beside `name` to write to, before `publish` gives the file its name."""
        return temp_beside(self.path(name))

    def publish(self, temp: Path, name: str, *, sync_name: bool = True) -> None:
        """Sync the written `temp` and name it, durably; `FileExistsError`, `sync_name` as in `write_new`."""
        self._files.publish(temp, self.path(name), sync_name=sync_name)

    def remove(self, name: str) -> None:
        """Remove the file, durably; one that is gone already is fine."""
        try:
            self._files.remove(self.path(name))
        except FileNotFoundError:
            return

    def remove_empty(self) -> None:
        """Remove the directory, and those above it in its storage, as far as nothing is left in them."""
        above = self.directory.parents[: self.place.directory.count("/")]
        with self._links_lock:
            for directory in (self.directory / LINKS, self.directory, *above):
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

    def link_dir(self, number: int, sources: Mapping[str, Whole]) -> Linked:
        """Return a directory with hard links to exactly these files (symbolic ones if it can't be).

        `sources` says for each name where the file is. The directory appears at once and whole; one of this
        number that is whole already is used again. Raises `ColdFileMissing` if it can't be made.
        """
        final = self.directory / LINKS / f"{self.partition.table_id}-{number}"
        try:
            with self._links_lock:
                linked = _linked(final, sources)
                if linked is None:
                    _discard(final if final.parent.is_dir() else final.parent)
                    self._make_links(final, sources)
                    linked = _linked(final, sources)
        except OSError as error:
            raise ColdFileMissing(f"cold files can't be linked in {final}: {error.strerror}") from error
        if linked is None:
            raise ColdFileMissing(f"cold files linked in {final} were taken away at once; ask again")
        return linked

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

    def _make_links(self, final: Path, sources: Mapping[str, Whole]) -> None:
        building = temp_beside(final)
        building.mkdir(parents=True)
        try:
            for name, found in sources.items():
                _link(found.path, building / name, hard=found.is_kept)
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


def _listed(directory: Path) -> list[str] | None:
    try:
        return sorted(os.listdir(directory))
    except FileNotFoundError:
        return None


def _linked(directory: Path, sources: Mapping[str, Whole]) -> Linked | None:
    """Return the directory if it links exactly these files, else None."""
    marks = tuple(found.mark for found in sources.values())
    try:
        changed_ns = os.stat(directory).st_mtime_ns
        if sorted(os.listdir(directory)) != sorted(sources):
            return None
        for name, mark in zip(sources, marks, strict=True):
            status = os.stat(directory / name)
            if (status.st_dev, status.st_ino) != (mark.device, mark.inode):
                return None
    except OSError:
        return None
    return Linked(directory, changed_ns, marks)


def _discard(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    if directory.is_symlink() or directory.exists():  # it is no directory
        directory.unlink()


def _link(source: Path, target: Path, *, hard: bool) -> None:
    if not hard:
        target.symlink_to(source.absolute())
        return
    try:
        os.link(source, target)
    except FileNotFoundError as error:
        raise ColdFileMissing(f"cold file {source} is missing; bring it back from a backup") from error
    except OSError:
        # Some file systems know no hard links; a copy would double the tier.
        target.symlink_to(source.absolute())
