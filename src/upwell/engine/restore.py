"""RESTORE DATABASE: a backup is brought into the data directory, and the next start takes it.

    copy and verify → epoch raised → storages claimed → `restored/` has its name
    the next start: what was there → `replaced-…/`, what was restored → its place

Law: until the next start nothing changes, and an interrupted copy is never taken. The start can be
interrupted anywhere and goes on. The epoch is higher than any that a reader may know, so that cursors of the
history that is replaced are noticed.
"""

import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from upwell.effects import Files, Points
from upwell.engine.archive import (
    ELSEWHERE,
    HOT,
    LIST,
    STORAGE,
    Archive,
    Elsewhere,
    copy_file,
    load_archive,
    write_archive,
)
from upwell.engine.backup import OpenStore
from upwell.engine.catalog import Catalog
from upwell.engine.history import lose_after
from upwell.engine.rows import partition_of
from upwell.engine.stop import Stop
from upwell.errors import InvalidOperation
from upwell.logs import fields
from upwell.storage.files import PartitionFiles
from upwell.storage.hot import Batch, HotStore, RecordWrite
from upwell.storage.manifest import copy_manifest, load_manifest
from upwell.storage.storages import Storages
from upwell.types import Owner

log = logging.getLogger("upwell.restore")

Claim = Callable[[HotStore, Archive], object]
"""Makes the store of an archive the server's that restores it; raises `InvalidOperation` if it can't be."""

RESTORED = "restored"
REPLACED = "replaced-"
_INCOMPLETE = "restored.incomplete"
STORE_FILE = "CURRENT"
"""Without it the directory of a hot store is a new one."""


@dataclass(frozen=True, slots=True)
class Restore:
    """Brings backups into a data directory, for its next start."""

    data_dir: Path
    open_store: OpenStore
    points: Points
    files: Files
    claim: Claim = lambda store, archive: None

    def run(
        self, source: Path, job_id: str, *, epoch: int, stop: Stop, records: Sequence[RecordWrite] = ()
    ) -> Archive:
        """Copy and verify a backup; `epoch` is the store's that it will replace, `records` go into it.

        Raises `InvalidOperation`, naming it, for a file that is missing or differs, or a storage that is
        another server's.
        """
        archive = load_archive(source)
        _refuse_outside(source, archive)
        if f"{HOT}/{STORE_FILE}" not in {entry.path for entry in archive.files}:
            raise InvalidOperation(f"'{source}' is not whole: {LIST} names no {HOT}/{STORE_FILE}")
        staging = self.data_dir / _INCOMPLETE
        self.files.remove_tree(staging)
        try:
            self.files.make_dirs(staging / STORAGE)
            for entry in archive.files:
                self._bring(source, staging, entry.path, stop, entry)
            self.points.reach("restore:files-copied")
            store = self.open_store(staging / HOT)
            try:
                if archive.epoch != store.epoch or archive.seq > store.last_seq:
                    raise InvalidOperation(f"'{source}' is damaged: {LIST} isn't that of the store in {HOT}")
                lose_after(store, archive.seq)
                while store.epoch <= max(archive.epoch, epoch):
                    store.raise_epoch()
                self.claim(store, archive)
                store.apply(Batch(records=list(records)))
                store.sync()
            finally:
                store.close()
            self.files.sync_tree(staging)
            write_archive(self.files, staging, msgspec.structs.replace(archive, job_id=job_id))
            self.files.remove_tree(self.data_dir / RESTORED)
            self.files.move(staging, self.data_dir / RESTORED)
        except BaseException:
            self.files.remove_tree(staging)
            raise
        self.points.reach("restore:named")
        return archive

    def _bring(self, source: Path, staging: Path, path: str, stop: Stop, expected: object) -> None:
        try:
            found = copy_file(self.files, source / path, staging / path, path, stop)
        except FileNotFoundError as error:
            raise InvalidOperation(f"'{source}' is not whole: {path} is missing") from error
        if found != expected:
            raise InvalidOperation(f"'{source}' is damaged: {path} is not what {LIST} says")


def _refuse_outside(source: Path, archive: Archive) -> None:
    """Raise `InvalidOperation` if a list names what isn't in the archive, or leads out of a storage."""
    listed = {entry.path for entry in archive.files}
    named = [*listed, *(f"{each.directory}/{each.name}" for each in archive.elsewhere)]
    outside = [path for path in named if Path(path).is_absolute() or ".." in Path(path).parts]
    outside += [each.path for each in archive.elsewhere if each.path not in listed]
    if outside:
        raise InvalidOperation(f"{LIST} of '{source}' names a file outside of it: {outside[0]}")


def adopt_restored(data_dir: Path, open_store: OpenStore, points: Points, files: Files) -> None:
    """Put what was restored in the place of what is there; nothing if nothing was restored.

    Before the hot store is opened. Raises `StartRefused` if a server runs on it.
    """
    restored = data_dir / RESTORED
    if not (restored / LIST).exists():
        return
    if (data_dir / HOT).exists():
        open_store(data_dir / HOT).close()
    archive = load_archive(restored)
    replaced = data_dir / f"{REPLACED}{archive.job_id}"
    for name in (HOT, STORAGE):
        if (restored / name).exists():
            if (data_dir / name).exists():
                files.make_dirs(replaced)
                files.move(data_dir / name, replaced / name)
            points.reach("restore:replaced")
            files.move(restored / name, data_dir / name)
    log.warning(
        "A restored backup has taken the place of the data",
        extra=fields(replaced=str(replaced), seq=archive.seq, created_at_ms=archive.created_at),
    )


def return_elsewhere(data_dir: Path, storages: Storages, catalog: Catalog) -> None:
    """Bring files of other storages than `local` back if they are gone there; then nothing is left to do.

    Of a partition whose manifest isn't the one that was backed up there may be files of another history,
    under the same names: all of its files are put there again. Copies on this machine say nothing of that:
    another server may have had the bucket meanwhile.
    """
    restored = data_dir / RESTORED
    if not (restored / LIST).exists():
        return
    partitions: dict[tuple[int, str], list[tuple[Elsewhere, PartitionFiles]]] = {}
    for found in load_archive(restored).elsewhere:
        table = catalog.by_id.get(found.table)
        if table is not None:
            files = storages.open(partition_of(table, Owner(found.owner)), found.place)
            partitions.setdefault((found.table, found.owner), []).append((found, files))
    for entries in partitions.values():
        for found, files in entries:
            files.forget_copy(found.name)
        is_ours = any(_is_same_manifest(restored, found, files) for found, files in entries)
        # The manifest last: by it the next start tells what is left if this one is interrupted.
        for found, files in sorted(entries, key=lambda entry: _is_manifest(*entry)):
            if not is_ours:
                files.drop_links(keep=())
            if not is_ours or found.name not in files.names():
                files.make()
                files.replace(found.name, (restored / found.path).read_bytes())
        for found, files in entries:
            number = files.partition.number_of(found.name, "manifest")
            if number is not None:  # what other readers go by
                copy_manifest(files, load_manifest(files, number).placed(files.place))
    shutil.rmtree(restored / ELSEWHERE, ignore_errors=True)
    (restored / LIST).unlink()
    shutil.rmtree(restored)


def _is_same_manifest(restored: Path, found: Elsewhere, files: PartitionFiles) -> bool:
    is_there = _is_manifest(found, files) and found.name in files.names()
    return is_there and files.read(found.name) == (restored / found.path).read_bytes()


def _is_manifest(found: Elsewhere, files: PartitionFiles) -> bool:
    return files.partition.number_of(found.name, "manifest") is not None
