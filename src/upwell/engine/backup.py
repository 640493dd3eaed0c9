"""BACKUP DATABASE: everything at one commit, in one directory, while the server goes on.

    checkpoint of the hot store → the cold files that its manifests name → the list → the name

Law: the hot copy stands at one commit, and no file that it names goes before it has been copied. What isn't
finished has no name and no list; done again by the same job, it begins anew.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from upwell import __version__
from upwell.clock import Clock
from upwell.effects import Files, Points
from upwell.engine.archive import (
    FORMAT,
    HOT,
    LIST,
    STORAGE,
    Archive,
    Elsewhere,
    Entry,
    copy_file,
    load_archive,
    measured,
    path_of,
    refuse_taken,
    write_archive,
)
from upwell.engine.catalog import load_catalog
from upwell.engine.commit import Committer
from upwell.engine.in_force import decode_manifest_record
from upwell.engine.partition import PartitionWriter
from upwell.engine.rows import partition_of
from upwell.engine.stop import Stop
from upwell.storage.files import PartitionFiles
from upwell.storage.hot import Batch, HotStore, Kind, RecordWrite
from upwell.storage.manifest import Manifest, Segment, encode_manifest, load_manifest
from upwell.storage.place import LOCAL, MANIFEST_COPY, Place
from upwell.storage.storages import Storages
from upwell.types import Owner

OpenStore = Callable[[Path], HotStore]
"""Opens a hot store of its own in a directory."""


@dataclass(frozen=True, slots=True)
class Backup:
    """Makes backups, one after the other."""

    committer: Committer
    partitions: PartitionWriter
    storages: Storages
    open_store: OpenStore
    clock: Clock
    points: Points
    files: Files

    def run(self, target: Path, job_id: str, stop: Stop) -> Archive:
        """Back everything up into the new directory `target`; raises `InvalidOperation` if it is taken.

        Raises `OSError` if the system refuses, `ColdFileMissing` for a cold file that is lost.
        """
        if (target / LIST).exists() and (done := load_archive(target)).job_id == job_id:
            return done  # the attempt before got that far
        refuse_taken(target)
        building = target.with_name(f".{target.name}.{job_id}.incomplete")
        self.files.remove_tree(building)
        try:
            self.files.make_dirs(building)
            archive = self._build(building, job_id, stop)
            self.files.sync_tree(building)
            self.points.reach("backup:files-copied")
            write_archive(self.files, building, archive)
            self.points.reach("backup:list-written")
            self.files.move(building, target)
        except BaseException:
            self.files.remove_tree(building)
            raise
        self.points.reach("backup:named")
        return archive

    def _build(self, building: Path, job_id: str, stop: Stop) -> Archive:
        self.files.make_dirs(building / STORAGE)
        files: list[Entry] = []
        elsewhere: list[Elsewhere] = []
        # While a View has them, the files of a table that is dropped meanwhile stay too.
        view = self.committer.publication.view
        with self.partitions.kept():
            self.committer.newest.checkpoint(building / HOT)
            self.points.reach("backup:hot-copied")
            store = self.open_store(building / HOT)
            try:
                seq, epoch = store.last_seq, store.epoch
                # Who restores it does not go on with what was under way here.
                jobs = [RecordWrite(Kind.JOB, name, None) for name, _ in store.scan_records(Kind.JOB)]
                store.apply(Batch(records=jobs))
                store.sync()
                for partition, manifest in self._manifests(store):
                    copied = self._copy(building, partition, manifest, stop)
                    files += [entry for entry, _ in copied]
                    elsewhere += [found for _, found in copied if found is not None]
            finally:
                store.close()
        del view
        hot = sorted(path for path in (building / HOT).rglob("*") if path.is_file())
        files += [measured(self.files, path, path.relative_to(building).as_posix(), stop) for path in hot]
        return Archive(
            format=FORMAT,
            server_version=__version__,
            job_id=job_id,
            created_at=self.clock.now_us() // 1000,
            seq=seq,
            epoch=epoch,
            files=tuple(files),
            elsewhere=tuple(elsewhere),
        )

    def _manifests(self, store: HotStore) -> Iterator[tuple[PartitionFiles, Manifest]]:
        tables = load_catalog(store).by_id
        for name, record in store.scan_records(Kind.MANIFEST):
            number, _, owner = name.partition("/")
            table, in_force = tables.get(int(number)), decode_manifest_record(record)
            if table is not None and in_force.number:  # else the table was dropped
                files = self.storages.open(partition_of(table, Owner(owner)), in_force.place)
                yield files, load_manifest(files, in_force.number).placed(files.place)

    def _copy(
        self, building: Path, files: PartitionFiles, manifest: Manifest, stop: Stop
    ) -> list[tuple[Entry, Elsewhere | None]]:
        segments = {segment.path: segment for segment in manifest.segments}
        named = [each.place for each in manifest.segments] + [each.place for each in manifest.hidden]
        places = dict.fromkeys([files.place, *(place for place in named if place is not None)])
        copied: list[tuple[Entry, Elsewhere | None]] = []
        for place in places:
            there = files.at(place)
            for name in manifest.names_at(place):
                entry = self._copy_one(building, there, name, segments.get(name), stop)
                copied.append((entry, _elsewhere(entry, there, name)))
                self.points.reach("backup:file-copied")
        if files.place.storage == LOCAL:
            entry = self._copy_one(building, files, MANIFEST_COPY, None, stop, of=manifest)
            copied.append((entry, None))
        return copied

    def _copy_one(
        self,
        building: Path,
        files: PartitionFiles,
        name: str,
        segment: Segment | None,
        stop: Stop,
        of: Manifest | None = None,
    ) -> Entry:
        path = path_of(files.place, name)
        target = building / path
        if segment is not None:
            found = files.whole(name, segment.size_bytes, segment.sha256)
            return copy_file(self.files, found.path, target, path, stop)
        # The copy for other readers may be of an older manifest, or of a newer one.
        self.files.write_stream(target, [encode_manifest(of) if of is not None else files.read(name)])
        return measured(self.files, target, path, stop)


def _elsewhere(entry: Entry, files: PartitionFiles, name: str) -> Elsewhere | None:
    place: Place = files.place
    if place.storage == LOCAL:
        return None
    partition = files.partition
    return Elsewhere(entry.path, partition.table_id, partition.owner, place.storage, place.directory, name)
