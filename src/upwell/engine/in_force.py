"""The record of a partition's manifest in force: its number, and until where the rows are cold.

Law: the commit that writes it is the switch from one manifest to the next. It is in the hot
store, not in a file.
"""

import msgspec

from upwell.decodable import decodable
from upwell.storage.hot import HotReader, Kind
from upwell.storage.place import Partition, Place
from upwell.types import Owner, TableId


@decodable
class ManifestInForce(msgspec.Struct, frozen=True, array_like=True):
    """The record of a partition's manifest: its number, the seq up to which rows are cold, and whether its
    segments are due to be compacted.

    `places` are those that may have files of the partition; the manifest is in the first. Without any, all
    is where it lies by default.
    """

    number: int
    flushed_until: int
    is_due: bool = False
    places: tuple[Place, ...] = ()

    @property
    def place(self) -> Place | None:
        """Where the manifest is; None: where it lies by default."""
        return self.places[0] if self.places else None


NO_MANIFEST = ManifestInForce(0, 0)


def partition_name(table: TableId, owner: Owner) -> str:
    """Return the name of a partition's manifest record."""
    return f"{table:010d}/{owner}"


def decode_manifest_record(record: bytes | None) -> ManifestInForce:
    """Return what a manifest record says; without a record nothing is cold yet."""
    return msgspec.msgpack.decode(record, type=ManifestInForce) if record else NO_MANIFEST


def spare_name(name: str) -> str:
    """Return the name of the record with the spare of the manifest that the record `name` is of."""
    return f"manifest/{name}"


def find_spare(reader: HotReader, partition: Partition) -> bytes | None:
    """Return the spare of a partition's manifest in force, None if an older release wrote that."""
    name = partition_name(partition.table_id, partition.owner)
    return reader.find_record(Kind.META, spare_name(name))


def partition_named(name: str) -> tuple[TableId, Owner]:
    """Return whose manifest record has the name."""
    table, _, owner = name.partition("/")
    return TableId(int(table)), Owner(owner)
