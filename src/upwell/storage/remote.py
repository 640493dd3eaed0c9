"""The files of one partition in a bucket, with copies of those in use on this machine.

Law: the bucket has the truth, and a file is there before anything can name it. Files are immutable, so a copy
of what was written is the file; only `manifest.json` is replaced, and it is never read from a copy.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from upwell.effects import Files, temp_beside
from upwell.errors import ColdFileMissing
from upwell.storage.cache import FileCache
from upwell.storage.digests import Digests
from upwell.storage.files import FindSpare, OpenAt, PartitionFiles, Whole
from upwell.storage.objects import Bucket
from upwell.storage.place import MANIFEST_COPY, Partition, Place

ARRIVING = ".arriving"


class RemoteFiles(PartitionFiles):
    """Files in a bucket; `directory` is where their copies are."""

    is_home = False

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
        ready: Callable[[], object],
        bucket: Bucket,
        cache: FileCache,
    ) -> None:
        super().__init__(directory, partition, place, files, digests, links_lock, open_at, find_spare, ready)
        self._bucket = bucket
        self._cache = cache

    def shown(self, name: str) -> str:
        return self._bucket.shown(self._key(name))

    def forget_copy(self, name: str) -> None:
        self._forget(name)

    def names(self) -> list[str]:
        return [name for name in self._bucket.names(self.place.directory) if self.partition.is_file(name)]

    def read(self, name: str) -> bytes:
        if name == MANIFEST_COPY:
            with self._naming(name):
                return self._bucket.get(self._key(name))
        return self._files.read(self._copy(name))

    def whole(self, name: str, size_bytes: int, sha256: str) -> Whole:
        self._copy(name)
        with suppress(ColdFileMissing):
            return super().whole(name, size_bytes, sha256)
        self._forget(name)
        self._copy(name)
        try:
            return super().whole(name, size_bytes, sha256)
        except ColdFileMissing:
            self._forget(name)
            raise

    def write_new(self, name: str, data: bytes, *, sync_name: bool = True) -> None:
        self._bucket.put_new(self._key(name), data)
        self._forget(name)
        temp = temp_beside(self.path(name))
        try:
            with suppress(
                OSError
            ):  # the bucket has it: without room for a copy it is fetched when it is read
                self._files.write_stream(temp, (data,))
                self._keep(temp, self.path(name))
        finally:
            temp.unlink(missing_ok=True)

    def sync_beside(self) -> None:
        """What a bucket has taken it keeps."""

    def sync_names(self) -> None:
        """What a bucket has taken it keeps."""

    def replace(self, name: str, data: bytes, *, sync_name: bool = True) -> None:
        self._forget(name)
        self._bucket.put(self._key(name), data)

    def publish(self, temp: Path, name: str, *, sync_name: bool = True) -> None:
        self._bucket.put_new(self._key(name), temp)
        self._forget(name)
        self._keep(temp, self.path(name))

    def remove(self, name: str) -> None:
        # First the copy: its name may be given again as soon as the file is gone.
        self._forget(name)
        self._bucket.delete(self._key(name))

    def _key(self, name: str) -> str:
        return f"{self.place.directory}/{self.path(name).name}"

    def _copy(self, name: str) -> Path:
        """Return the path of a copy, which is fetched if there is none."""
        path = self.path(name)
        with suppress(FileNotFoundError):
            self._cache.use(path)
            return path
        # Not beside the copy: who writes the partition removes what is half-written there.
        arriving = self._cache.root / ARRIVING
        with self._links_lock:
            for directory in (self.directory, arriving):
                self._files.make_dirs(directory)
        temp = temp_beside(arriving / name)
        try:
            with self._naming(name):
                self._bucket.fetch(self._key(name), temp)
            self._keep(temp, path)
        finally:
            temp.unlink(missing_ok=True)
        return path

    @contextmanager
    def _naming(self, name: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            missing = f"cold file {self.shown(name)} is missing; bring it back from a backup"
            raise ColdFileMissing(missing) from None

    def _keep(self, temp: Path, path: Path) -> None:
        with suppress(FileExistsError):  # somebody else was faster: the files are the same
            try:
                self._files.publish(temp, path)
            except FileNotFoundError:
                # The directory was empty, and went with a table that was dropped; this one has its name.
                with self._links_lock:
                    self._files.make_dirs(path.parent)
                    self._files.publish(temp, path)
        self._cache.use(path)

    def _forget(self, name: str) -> None:
        path = self.path(name)
        path.unlink(missing_ok=True)
        self._cache.forget(path)
