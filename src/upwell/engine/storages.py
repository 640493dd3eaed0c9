"""Storages in the catalog: they come, change and go by commits of their records.

Law: a place is written down before it is marked as this server's, and for as long as its marker has still to
go: no crash leaves one which nobody knows of. A storage goes only when nothing is in it: no table of the
catalog writes there, and no manifest in force and no table that is still being cleaned up has files there.
Who writes a manifest there expects the record.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import msgspec

from upwell.clock import Clock
from upwell.engine.catalog import Catalog, Table, load_dropped, storage_record
from upwell.engine.commit import Committer, Note, no_note
from upwell.engine.in_force import decode_manifest_record
from upwell.engine.siting import refuse_meeting_tables
from upwell.errors import AlreadyExists, InvalidOperation, NotFound
from upwell.ids import Seq
from upwell.storage.definition import Storage, local_storage, refuse_meeting
from upwell.storage.hot import Batch, Kind, RecordIs, RecordWrite
from upwell.storage.place import LOCAL
from upwell.types import TableId


@dataclass(frozen=True, slots=True)
class StorageSchema:
    """All changes of storages; who makes one waits until all that was committed is durable."""

    committer: Committer
    clock: Clock
    note: Note = no_note

    def noted(self, note: Note) -> "StorageSchema":
        """Return what makes one change, with which `note` is committed."""
        return replace(self, note=note)

    def create(self, storage: Storage) -> Seq:
        """Take up a storage that has been made ready; raise `AlreadyExists` for an id that is taken."""
        now = self.clock.now_us()
        with self.committer.lock:
            self.require_new(storage)
            record = storage_record(replace(storage, created_at_us=now, updated_at_us=now))
            records = [record, _vacant(storage, None), *self.note()]
            return self.committer.apply(
                Batch(records=records, expectations=[RecordIs(Kind.STORAGE, storage.id, None)])
            )

    def announce(self, storage: Storage) -> None:
        """Write down, durably, a place that is about to be marked: it is vacant until `create`."""
        self.committer.publication.wait(self.committer.apply(Batch(records=[_vacant(storage, storage)])))
        self.committer.settle_on_disk()

    def vacant(self, name: str | None = None) -> list[Storage]:
        """Return the storages (of this id only) whose places may have a marker, though nobody has them."""
        found = self.committer.newest.scan_records(Kind.META, _VACANT)
        storages = (msgspec.json.decode(value, type=Storage) for _, value in found)
        return [storage for storage in storages if name in (None, storage.id)]

    def forget_vacant(self, storage: Storage) -> None:
        """Note that a vacant place has no marker of this server any more."""
        self.committer.apply(Batch(records=[_vacant(storage, None)]))

    def require_new(self, storage: Storage) -> None:
        """Raise unless the id is free, and no other storage can have a table's files in the same place."""
        if storage.id in self._catalog.storages:
            raise AlreadyExists(f"Storage '{storage.id}' already exists")
        refuse_meeting(storage, self.storages)

    def alter(self, name: str, change: Callable[[Storage], Storage]) -> Seq:
        """Change a definition; new files follow it, those that are there stay where they are."""
        with self.committer.lock:
            storage = self.get(name)
            changed = replace(change(storage), updated_at_us=self.clock.now_us())
            refuse_meeting(changed, self.storages)
            tables = self._catalog.by_id.values()
            writing = [table for table in tables if table.storage == name]
            refuse_meeting_tables(writing, tables, {**self._catalog.storages, name: changed})
            return self.committer.apply(Batch(records=[storage_record(changed), *self.note()]))

    def drop(self, name: str, *, if_exists: bool) -> Storage | None:
        """Let a storage go; return it, None if there was none."""
        if name == LOCAL:
            raise InvalidOperation("storage 'local' belongs to the server and stays")
        with self.committer.lock:
            storage = self._catalog.storages.get(name)
            if storage is None:
                if if_exists:
                    return None
                raise NotFound(f"Storage '{name}' not found")
            using = self.tables_using(name)
            if using:
                raise InvalidOperation(
                    f"Cannot drop storage '{name}': {len(using)} table(s) still using it: "
                    + ", ".join(sorted(using)[:5])
                )
            records = [storage_record(storage, dropped=True), _vacant(storage, storage), *self.note()]
            self.committer.apply(Batch(records=records))
            return storage

    def tables_using(self, name: str) -> set[str]:
        """Return the tables that write to a storage, or have files there."""
        tables = self._catalog.by_id
        dropped = {table.id: table for table in load_dropped(self.committer.newest)}
        found = {table.full_name for table in tables.values() if table.storage == name}
        found |= {_cleaned(table) for table in dropped.values() if table.storage == name}
        for record, value in self.committer.newest.scan_records(Kind.MANIFEST):
            if any(place.storage == name for place in decode_manifest_record(value).places):
                number = TableId(int(record.partition("/")[0]))
                if number in tables:
                    found.add(tables[number].full_name)
                else:
                    found.add(_cleaned(dropped[number]) if number in dropped else f"table {number}")
        return found

    def is_being_cleaned(self, name: str) -> bool:
        """Whether only dropped tables use the storage, whose files are being removed."""
        using = self.tables_using(name)
        return bool(using) and all(each.endswith(_CLEANED) for each in using)

    def get(self, name: str) -> Storage:
        storage = self._catalog.storages.get(name)
        if storage is None:
            raise NotFound(f"Storage '{name}' not found; SHOW STORAGES lists what there is")
        return storage

    def ensure_local(self, base: str) -> None:
        """Note the storage that is always there, and where it is by now."""
        with self.committer.lock:
            storage = self._catalog.storages.get(LOCAL) or local_storage(base, time_us=self.clock.now_us())
            seq = self.committer.last_seq
            if self._catalog.storages.get(LOCAL) != replace(storage, base=base):
                seq = self.committer.apply(Batch(records=[storage_record(replace(storage, base=base))]))
        self.committer.publication.wait(seq)

    @property
    def storages(self) -> tuple[Storage, ...]:
        """All that there are."""
        return tuple(self._catalog.storages.values())

    @property
    def _catalog(self) -> Catalog:
        return self.committer.newest_catalog


_VACANT = "vacant/"


def _vacant(place: Storage, storage: Storage | None) -> RecordWrite:
    return RecordWrite(
        Kind.META, _VACANT + place.base, None if storage is None else msgspec.json.encode(storage)
    )


_CLEANED = " (dropped, its files are being removed)"


def _cleaned(table: Table) -> str:
    return table.full_name + _CLEANED
