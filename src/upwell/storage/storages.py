"""The storages that are open: from a definition to the files of a partition in one of its places.

Law: what a storage is, its record in force says: it is asked for on each opening, and a storage whose record
changed is opened anew. A storage belongs to one server, which a marker at its root names, created once;
before a file of a process is written there, the marker has been read and the server's promises have been
put to the test. Who marks a storage looks for markers above, and who writes to a directory first looks for
markers on the way there: of two that are inside each other, begun at once, one sees the other.
"""

import itertools
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import msgspec

from upwell.effects import Files
from upwell.errors import InvalidOperation, StorageFailed, UpwellError
from upwell.storage.cache import FileCache
from upwell.storage.definition import MARKER, Storage, refuse_meeting
from upwell.storage.digests import Digests
from upwell.storage.files import FindSpare, PartitionFiles
from upwell.storage.objects import Bucket
from upwell.storage.place import LOCAL, Partition, Place
from upwell.storage.remote import RemoteFiles
from upwell.storage.volume import Checked, Directory, Secrets, Volume, cause_of, tried

PROBE = "upwell-check"

_checks = itertools.count(1)

Find = Callable[[str], bytes | None]
"""A storage's id → its record, None if there is none."""

OpenBucket = Callable[[Storage, Mapping[str, str]], Bucket]
"""Opens a bucket with its secrets."""


@dataclass(slots=True)
class _Opened:
    record: bytes
    storage: Storage
    volume: Volume
    is_ready: bool = False


class Storages:
    """Opens storages and the files in them. Thread-safe.

    `root` is that of the storage `local`; `server` names the server in the markers of the others.
    """

    def __init__(
        self,
        root: Path,
        files: Files,
        *,
        find: Find = lambda storage: None,
        find_spare: FindSpare = lambda partition: None,
        cache: FileCache | None = None,
        secrets: Secrets | None = None,
        server: str = "server",
        open_bucket: OpenBucket = Bucket,
    ) -> None:
        self.root = root
        self._files = files
        self._find = find
        self._find_spare = find_spare
        self._cache = cache or FileCache(root.parent / "cache", bytes_max=1 << 30)
        self._secrets = secrets or Secrets()
        self._server = server
        self._open_bucket = open_bucket
        self._digests = Digests(files)
        self._links_lock = threading.Lock()
        self._lock = threading.Lock()
        self._opened: dict[str, _Opened] = {}
        self._unclaimed: set[tuple[str, str]] = set()

    def open(self, partition: Partition, place: Place | None = None) -> PartitionFiles:
        """Return the files of a partition in a place (None: where it lies by default); creates nothing.

        Raises `StorageFailed` if the place is of a storage that isn't defined.
        """
        place = place or partition.home
        open_local = partial(self._open_files, partition, place)
        if place.storage == LOCAL:
            return open_local(self.root)
        opened = self._open(place.storage)
        ready = partial(self._require, opened)
        if isinstance(opened.volume, Directory):
            return open_local(opened.volume.root, ready)
        assert isinstance(opened.volume, Bucket), "a volume is a directory or a bucket"
        return RemoteFiles(
            self._cache.root / place.storage / place.directory,
            partition,
            place,
            self._files,
            self._digests,
            self._links_lock,
            self.open,
            self._find_spare,
            ready,
            opened.volume,
            self._cache,
        )

    def create(
        self, storage: Storage, others: Iterable[Storage] = (), announce: Callable[[], object] = bool
    ) -> None:
        """Make a storage ready for use: reach it, put it to the test, mark it as this server's.

        `announce` is called before it is marked. Raises `InvalidOperation`, which names the cause, if it
        can't be used, or meets one of the `others`.
        """
        try:
            self.refuse_meeting(storage, others)
            volume = self._volume(storage)
            if isinstance(volume, Directory):
                self._refuse_inside(storage, volume.root)
                self._files.make_dirs(volume.root)
            else:
                volume.prove(self._server)
            announce()
            self._mark(storage, volume)
        except StorageFailed as error:
            raise InvalidOperation(error.args[0]) from error
        except OSError as error:
            cause = error.strerror or str(error)
            raise InvalidOperation(f"storage '{storage.id}': can't use {storage.base}: {cause}") from error

    def release(self, storage: Storage, others: Iterable[Storage]) -> bool:
        """Let other servers use the place of a storage that is dropped, unless one of the `others` is there.

        Whether that is done for certain: where no marker is, a disk may only not be mounted. Raises
        `OSError` or `StorageFailed` if the place can't be reached; the marker stays there then.
        """
        with self._lock:
            self._unclaimed = {each for each in self._unclaimed if each[0] != storage.id}
        base = _resolved(storage).base
        if any(_resolved(other).base == base for other in others):
            return True
        volume = self._volume(storage)
        if self._is_claimed(volume, MARKER, ours=True):
            volume.delete(MARKER)
            return True
        return self._is_claimed(volume, MARKER)

    @staticmethod
    def refuse_meeting(storage: Storage, others: Iterable[Storage]) -> None:
        """Raise `InvalidOperation` if another storage is in the same place, by links too."""
        refuse_meeting(_resolved(storage), map(_resolved, others))

    def check(self, storage: Storage, *, count_bytes: bool) -> Checked:
        """Try each ability with a file of its own; what fails is in the answer."""
        try:
            volume = self._volume(storage)
            if storage.id == LOCAL:
                self._files.make_dirs(self.root)
            else:
                self._read_marker(storage, volume)
        except (OSError, UpwellError) as error:
            return Checked(error=cause_of(error))
        found = tried(volume, f"{PROBE}-{self._server}-{next(_checks)}")
        if count_bytes and isinstance(volume, Directory):
            usage = shutil.disk_usage(volume.root)
            return replace(found, total_bytes=usage.total, used_bytes=usage.used)
        return found

    def _open_files(
        self, partition: Partition, place: Place, root: Path, ready: Callable[[], object] = bool
    ) -> PartitionFiles:
        directory = root / place.directory
        return PartitionFiles(
            directory,
            partition,
            place,
            self._files,
            self._digests,
            self._links_lock,
            self.open,
            self._find_spare,
            ready,
        )

    def _open(self, name: str) -> _Opened:
        record = self._find(name)
        if record is None:
            raise StorageFailed(f"storage '{name}' isn't defined any more; CREATE STORAGE defines it")
        with self._lock:
            opened = self._opened.get(name)
        if opened is None or opened.record != record:
            storage = msgspec.json.decode(record, type=Storage)
            opened = _Opened(record, storage, self._volume(storage))
            with self._lock:
                self._opened[name] = opened
        return opened

    def _volume(self, storage: Storage) -> Directory | Bucket:
        if storage.is_remote:
            return self._open_bucket(storage, self._secrets.resolve(storage))
        return Directory(self.root if storage.id == LOCAL else Path(storage.base), self._files)

    def _require(self, opened: _Opened) -> None:
        """Raise `StorageFailed` unless the storage is there, ours, and keeps its promises."""
        storage, volume = opened.storage, opened.volume
        if isinstance(volume, Bucket):
            if opened.is_ready:
                return
            volume.prove(self._server)
        try:
            self._read_marker(storage, volume)
        except (OSError, InvalidOperation) as error:
            raise StorageFailed(cause_of(error)) from error
        opened.is_ready = True

    def _read_marker(self, storage: Storage, volume: Volume) -> None:
        """Raise `StorageFailed` if there is no marker: the disk isn't mounted, or the bucket is a new one."""
        try:
            found = volume.get(MARKER)
        except FileNotFoundError as error:
            raise StorageFailed(
                f"storage '{storage.id}': {storage.base}/{MARKER} is missing; is the right disk mounted, "
                "is it the right bucket?"
            ) from error
        if found != self._marker():
            raise InvalidOperation(
                f"storage '{storage.id}': {storage.base} belongs to another server (see {MARKER} there), and "
                "two would remove each other's files; choose another directory or prefix"
            )

    def refuse_claimed(self, place: Place) -> None:
        """Raise `StorageFailed` if another server has a storage on the way to a directory."""
        volume = (
            self._open(place.storage).volume if place.storage != LOCAL else Directory(self.root, self._files)
        )
        parts = place.directory.split("/")
        for depth in range(1, len(parts) + 1):
            directory = "/".join(parts[:depth])
            with self._lock:
                if (place.storage, directory) in self._unclaimed:
                    continue
            if self._is_claimed(volume, f"{directory}/{MARKER}"):
                raise StorageFailed(
                    f"storage '{place.storage}': {directory} in it belongs to another server (see {MARKER} "
                    "there), and two would remove each other's files; ALTER STORAGE changes a template"
                )
            if depth < len(parts):  # that of a partition is asked for once
                with self._lock:
                    self._unclaimed.add((place.storage, directory))

    def _mark(self, storage: Storage, volume: Volume) -> None:
        was_ours = self._is_claimed(volume, MARKER, ours=True)
        with suppress(FileExistsError):
            volume.put_new(MARKER, self._marker())
        self._read_marker(storage, volume)
        try:
            self._refuse_within(storage)
        except BaseException:
            if not was_ours:
                volume.delete(MARKER)
            raise

    def _refuse_within(self, storage: Storage) -> None:
        """Raise `InvalidOperation` if a place above is a storage of another server, or its data directory."""
        for above in _above(storage):
            volume = self._volume(above)
            has_data = isinstance(volume, Directory) and self._files.exists(volume.root / "hot" / "CURRENT")
            # Who may not look above may not write there either.
            with suppress(StorageFailed, PermissionError):
                if has_data or self._is_claimed(volume, MARKER):
                    raise InvalidOperation(
                        f"storage '{storage.id}': {above.base} belongs to another server, and two would "
                        "remove each other's files; choose a directory or prefix that isn't inside of it"
                    )

    def _is_claimed(self, volume: Volume, marker: str, *, ours: bool = False) -> bool:
        """Whether a marker is there that is another server's, or our own."""
        try:
            return (volume.get(marker) == self._marker()) is ours
        except (FileNotFoundError, NotADirectoryError):
            return False

    def _marker(self) -> bytes:
        return msgspec.json.encode({"server": self._server, "format": 1})

    def _refuse_inside(self, storage: Storage, base: Path) -> None:
        data = self.root.parent.resolve()
        place = base.resolve()
        if place.is_relative_to(data) or data.is_relative_to(place):
            raise InvalidOperation(
                f"storage '{storage.id}': {base} and the server's data directory are inside each other"
            )


def _above(storage: Storage) -> Iterator[Storage]:
    """Return what storages would be at the places above."""
    if not storage.is_remote:
        for directory in Path(storage.base).resolve().parents:
            yield replace(storage, base=str(directory))
        return
    bucket, *prefix = storage.base.removeprefix(storage.type.scheme).split("/")
    for depth in range(len(prefix)):
        yield replace(storage, base=storage.type.scheme + "/".join([bucket, *prefix[:depth]]))


def _resolved(storage: Storage) -> Storage:
    """Return the definition with the directory that its base leads to."""
    return storage if storage.is_remote else replace(storage, base=str(Path(storage.base).resolve()))
