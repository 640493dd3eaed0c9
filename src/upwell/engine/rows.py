"""Rows over both tiers: the current version of a key, and all current versions of a partition.

Law: the newest version of a key wins wherever it lies. A hot version is always the newest one; a cold
one counts only if no hot one exists and its `_seq` isn't hidden. What is found has the columns of its
table, whatever columns the table had when the row was written.
"""

from collections.abc import Iterator

import msgspec

from upwell.engine.catalog import Catalog, Table
from upwell.engine.in_force import ManifestInForce, decode_manifest_record, partition_name
from upwell.engine.payload import payload_of
from upwell.errors import StorageFailed
from upwell.storage.cold import ColdCache, ColdPartition
from upwell.storage.hot import NO_SEQ, Expectation, HotReader, Kind, RecordIs, RowIs, Version
from upwell.storage.place import LOCAL, Partition, Place
from upwell.types import Key, Owner


class WouldBlock(Exception):
    """The answer needs a file; the caller has to ask again from a worker thread."""


class Found(msgspec.Struct, frozen=True):
    """The newest version of a key (None: never existed), and what proves it at commit time.

    `hot_seq` is the hot version's `_seq` or NO_SEQ; with NO_SEQ the answer also relied on the
    partition's manifest record `manifest`.
    """

    version: Version | None
    hot_seq: int
    manifest: bytes | None
    expired: Version | None = None
    """The hot version, if its time is over: whoever reads finds no row, whoever writes replaces it."""

    @property
    def live(self) -> Version | None:
        """The version if the row exists, None if it doesn't or is deleted."""
        return self.version if self.version is not None and self.version.row is not None else None

    def expectations(self, table: Table, owner: Owner, key: Key) -> list[Expectation]:
        """Return what must still be true for this answer to be the newest."""
        expected: list[Expectation] = [RowIs(table.id, owner, key, self.hot_seq)]
        return expected + self.manifest_expectation(table, owner)

    def manifest_expectation(self, table: Table, owner: Owner) -> list[Expectation]:
        if self.hot_seq != NO_SEQ:
            return []
        return [RecordIs(Kind.MANIFEST, partition_name(table.id, owner), self.manifest)]


_NOTHING = Found(None, NO_SEQ, None)
"""Of a key that is nowhere, in a partition of which nothing was ever cold."""


class Rows:
    """Reads of rows by key over both tiers."""

    def __init__(self, cold: ColdCache) -> None:
        self._cold = cold

    def find(self, reader: HotReader, table: Table, owner: Owner, key: Key, *, may_block: bool) -> Found:
        """Return the newest version of a key; with `may_block` False never touch a file (`WouldBlock`)."""
        version = self.find_hot(reader, table, owner, key)
        if version is not None:
            return Found(version, version.seq, None)
        record = self.manifest_record(reader, table, owner)
        return self.find_cold(reader, table, owner, key, record, may_block=may_block)

    @staticmethod
    def find_hot(reader: HotReader, table: Table, owner: Owner, key: Key) -> Version | None:
        """Return the hot version of a key, a tombstone too; None if there is none."""
        version = reader.find_row(table.id, owner, key)
        return None if version is None else shaped(version, table)

    @staticmethod
    def manifest_record(reader: HotReader, table: Table, owner: Owner) -> bytes | None:
        """Return the record of the partition's manifest in force, None if nothing was ever cold."""
        return reader.find_record(Kind.MANIFEST, partition_name(table.id, owner))

    def find_cold(
        self,
        reader: HotReader,
        table: Table,
        owner: Owner,
        key: Key,
        record: bytes | None,
        *,
        may_block: bool,
    ) -> Found:
        """Return the newest version of a key that has no hot one, under its partition's `record`."""
        if record is None:
            return _NOTHING
        if not may_block:
            if self._known_absent(record, table, owner, key):
                return Found(None, NO_SEQ, record)
            raise WouldBlock
        partition = self.cold_partition(reader, table, owner)
        version = partition.find(key) if partition else None
        return Found(None if version is None else shaped(version, table), NO_SEQ, record)

    def manifest_number(self, reader: HotReader, table: Table, owner: Owner) -> int:
        """Return the number of the partition's manifest in force, 0 if nothing was ever cold."""
        return decode_manifest_record(self.manifest_record(reader, table, owner)).number

    def cold_partition(self, reader: HotReader, table: Table, owner: Owner) -> ColdPartition | None:
        """Return the partition's cold part at the manifest in force, None if nothing is cold."""
        name = partition_name(table.id, owner)
        in_force = decode_manifest_record(reader.find_record(Kind.MANIFEST, name))
        return self._open(table, owner, in_force) if in_force.number else None

    def scan(
        self, reader: HotReader, table: Table, owner: Owner, after: Key | None = None
    ) -> Iterator[Version]:
        """Yield live versions in primary-key order, keys above `after`; may read files.

        Rows are as long as they were written: columns that were added since are missing.
        """
        versions = self.scan_versions(reader, table, owner, after)
        return (version for version in versions if version.row is not None)

    def scan_versions(
        self, reader: HotReader, table: Table, owner: Owner, after: Key | None = None
    ) -> Iterator[Version]:
        """Yield the newest versions, tombstones too as far as they are kept, as `scan` does."""
        cold = self.cold_partition(reader, table, owner)
        hot = (_narrowed(version, table) for version in reader.scan_rows(table.id, owner, after))
        return hot if cold is None else _newest_first(hot, cold.scan(after))

    def owners(self, reader: HotReader, table: Table) -> list[Owner]:
        """Return all owners that may have rows in the table, in either tier."""
        prefix = f"{table.id:010d}/"
        cold = {Owner(name[len(prefix) :]) for name, _ in reader.scan_records(Kind.MANIFEST, prefix)}
        return sorted(cold.union(reader.owners(table.id)))

    def _known_absent(self, record: bytes, table: Table, owner: Owner, key: Key) -> bool:
        number = decode_manifest_record(record).number
        opened = self._cold.find_open(partition_of(table, owner), number, schema=table.version)
        return opened is not None and opened.is_known_absent(key)

    def _open(self, table: Table, owner: Owner, in_force: ManifestInForce) -> ColdPartition:
        partition = partition_of(table, owner)
        return self._cold.open(
            partition, in_force.place, in_force.number, table.columns, schema=table.version
        )


def shaped(version: Version, table: Table) -> Version:
    """Return the version with the columns of `table`, which its row may be older or newer than.

    The payload of a synced row says nothing of a column that the row never had: its text is kept.
    """
    if version.schema != table.version:
        version = _narrowed(version, table)
    row = version.row
    if row is None or len(row) == len(table.columns):
        return version
    uploaded = version.uploaded
    if uploaded is None and table.synced:
        uploaded = payload_of(table, row, None).decode()
    return msgspec.structs.replace(version, row=table.shaped(row, table.version), uploaded=uploaded)


def _narrowed(version: Version, table: Table) -> Version:
    if version.row is None or version.schema == table.version:
        return version
    row = table.narrowed(version.row, version.schema)
    return version if row is version.row else msgspec.structs.replace(version, row=row, schema=table.version)


def partition_of(table: Table, owner: Owner) -> Partition:
    """Return who the partition is to the cold tier."""
    return Partition(table.namespace, table.name, table.id, owner)


def target_of(catalog: Catalog, table: Table, owner: Owner) -> Place:
    """Return where new files of a partition go; raise `StorageFailed` if its storage is gone."""
    partition = partition_of(table, owner)
    storage = catalog.storages.get(table.storage)
    if storage is not None:
        return storage.place_of(partition)
    if table.storage != LOCAL:
        raise StorageFailed(f"storage '{table.storage}' of {table.full_name} isn't defined any more")
    return partition.home


def _newest_first(hot: Iterator[Version], cold: Iterator[Version]) -> Iterator[Version]:
    """Merge two streams in key order; where both have a key, the hot version wins."""
    hot_version, cold_version = next(hot, None), next(cold, None)
    while hot_version is not None or cold_version is not None:
        if cold_version is None or (hot_version is not None and hot_version.key <= cold_version.key):
            assert hot_version is not None
            if cold_version is not None and hot_version.key == cold_version.key:
                cold_version = next(cold, None)
            yield hot_version
            hot_version = next(hot, None)
        else:
            yield cold_version
            cold_version = next(cold, None)
