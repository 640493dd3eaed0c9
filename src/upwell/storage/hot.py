"""The hot store: newest rows, the change log and named records, behind one small protocol.

Law: `apply` verifies what must still be true, allots seqs and writes, all under one lock and all or
nothing. What it wrote is durable after the next `sync`, and never visible in a snapshot taken before.

A store speaks of tables, owners, keys, rows and changes; how these become bytes is its own business.
Order: rows of a partition come by primary key, changes by seq, an owner's changes by the owner's counter.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

import msgspec

from upwell.decodable import decodable
from upwell.errors import UpwellError
from upwell.ids import Seq
from upwell.types import Key, Op, Owner, Row, TableId, owner_user

NO_SEQ = Seq(0)
"""The seq of a key that the hot store has never seen (or has handed to the cold tier and dropped)."""


class Kind(Enum):
    """What a named record is about; each has its own name space."""

    __hash__ = object.__hash__  # a member is one object; the hash of its name costs a call

    META = "meta"
    NAMESPACE = "namespace"
    TABLE = "table"
    USER = "user"
    STORAGE = "storage"
    QUERY = "query"
    MANIFEST = "manifest"
    RECEIPT = "receipt"
    SOURCE = "source"
    JOB = "job"
    DEVICE = "device"
    CONFLICT = "conflict"
    DEAD_LETTER = "dead_letter"
    FLOOR = "floor"
    HYDRATION = "hydration"
    AUDIT = "audit"
    SIGN_IN = "sign_in"


class Version(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The newest version of a row in the hot store; `row` None is a tombstone.

    `count` is the number of changes that the key has seen (the row version of devices);
    `supersedes` are the `_seq`s of this key that may be in cold segments and are now hidden;
    `uploaded` is the payload text as a device sent it, where the columns alone would not give it back.
    """

    key: Any
    seq: int
    count: int
    schema: int
    row: list[Any] | None
    supersedes: tuple[int, ...] = ()
    uploaded: str | None = None


class Change(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One entry of the log. `before` and `after` are whole rows of schema version `schema`.

    `counter` is the owner's own dense number; `last` marks the end of a commit; `previous` is the
    `_seq` of the row's version before (0: none); `source` and `change_id` name the device's change.
    `joined`: without it what the owner's entry before left is not whole, so no device stops in between.
    """

    seq: int
    last: bool
    table: int
    owner: str
    counter: int
    key: Any
    op: str
    schema: int
    before: list[Any] | None
    after: list[Any] | None
    previous: int
    count: int
    source: str | None = None
    change_id: int | None = None
    uploaded: str | None = None
    joined: bool = False


class RowWrite(msgspec.Struct, frozen=True, gc=False):
    """One row change asked for. `expect` is the `_seq` that the key's hot version must have, or NO_SEQ."""

    table: TableId
    owner: Owner
    key: Key
    op: Op
    schema: int
    before: Row | None
    after: Row | None
    count: int
    expect: int
    previous: int = 0
    supersedes: tuple[int, ...] = ()
    source: str | None = None
    change_id: int | None = None
    uploaded: str | None = None
    vanishes: bool = False
    """Whether a row that goes leaves no tombstone."""
    joined: bool = False
    """Whether its entry of the log belongs together with the owner's before it."""


class RecordWrite(msgspec.Struct, frozen=True):
    """Set a named record, or delete it with `value` None."""

    kind: Kind
    name: str
    value: bytes | None


class RecordIs(msgspec.Struct, frozen=True):
    """The record must have exactly this value (None: must not exist)."""

    kind: Kind
    name: str
    value: bytes | None


class RowIs(msgspec.Struct, frozen=True):
    """The key's hot version must have this `_seq` (NO_SEQ: none must be there)."""

    table: TableId
    owner: Owner
    key: Key
    seq: int


class NoChangeAfter(msgspec.Struct, frozen=True):
    """The partition (owner None: the whole table) must not have changed after this seq."""

    table: TableId
    owner: Owner | None
    after: int


Expectation = RecordIs | RowIs | NoChangeAfter


class Drop(msgspec.Struct, frozen=True, gc=False):
    """Forget the hot copy of a row that is cold by now, if its `_seq` is still `seq`. No change of data."""

    table: TableId
    owner: Owner
    key: Key
    seq: int


class DropRange(msgspec.Struct, frozen=True, gc=False):
    """Forget the hot copies of a partition's rows from key `first` until `last`, all cold by now, but those
    of the keys `kept`, which are sorted. No change of data; it costs nothing per row."""

    table: TableId
    owner: Owner
    first: Key
    last: Key
    kept: tuple[Key, ...] = ()

    def covers(self, key: Any) -> bool:
        """Whether a key is between the first and the last."""
        return bool(self.first <= key <= self.last)


@dataclass(frozen=True, slots=True)
class Trim:
    """Forget one entry of the log, and with it what the owner's own log has up to its counter, but for
    entries of tables whose floor is their own.

    `alone`: forget this entry only, from both logs.
    """

    table: TableId
    seq: int
    owner: Owner
    counter: int
    alone: bool = False


@dataclass(slots=True)
class Batch:
    """What one commit writes, and what must still be true for it."""

    rows: list[RowWrite] = field(default_factory=list)
    records: list[RecordWrite] = field(default_factory=list)
    expectations: list[Expectation] = field(default_factory=list)
    drops: list[Drop] = field(default_factory=list)
    ranges: list[DropRange] = field(default_factory=list)
    trims: list[Trim] = field(default_factory=list)
    is_newest: bool = False
    """Evaluated on the newest state while holding the write lock: all that it relies on is true."""
    seen: int = 0
    """The seq of the View on which it was evaluated; 0: nobody said."""


class Applied(msgspec.Struct, frozen=True):
    """What a commit became: the seq of its end, and its changes in order."""

    seq: Seq
    changes: Sequence[Change]


class ExpectationFailed(UpwellError):
    """Something that the batch relied on is no longer true; nothing was written."""


class HotReader(Protocol):
    """Reads of one moment: a snapshot, or the newest state."""

    def find_row(self, table: TableId, owner: Owner, key: Key) -> Version | None: ...

    def find_seq(self, table: TableId, owner: Owner, key: Key) -> int:
        """Return the `_seq` of the key's hot version without reading more of it; NO_SEQ if there is none."""
        ...

    def scan_rows(self, table: TableId, owner: Owner, after: Key | None = None) -> Iterator[Version]:
        """Yield versions, tombstones too, in primary-key order, keys above `after`."""
        ...

    def owners(self, table: TableId) -> Iterator[Owner]:
        """Yield the owners that have hot versions in the table, at a cost per owner, not per row."""
        ...

    def read_log(
        self, table: TableId, owner: Owner | None, after: int, until: int | None, limit: int
    ) -> list[Change]:
        """Return changes of a table (of one owner, or of all) with after < seq ≤ until."""
        ...

    def read_owner_log(self, owner: Owner, after: int, until: int | None, limit: int) -> list[Change]:
        """Return an owner's changes over all tables with after < counter ≤ until."""
        ...

    def log_bytes(self, table: TableId) -> int:
        """Return how many bytes a table's entries of the log have in MessagePack, at no cost per entry."""
        ...

    def owner_counter(self, owner: Owner) -> int:
        """Return the counter of the owner's newest change, 0 if there is none."""
        ...

    def find_record(self, kind: Kind, name: str) -> bytes | None: ...

    def scan_records(self, kind: Kind, prefix: str = "") -> Iterator[tuple[str, bytes]]:
        """Yield (name, value) in the order of names."""
        ...


class HotStore(HotReader, Protocol):
    """The newest state, and the only way to change it. Thread-safe."""

    @property
    def last_seq(self) -> Seq:
        """The end of the newest commit."""
        ...

    @property
    def epoch(self) -> int:
        """The number of the store's history: counters that are allotted now begin above epoch · 2³²."""
        ...

    def raise_epoch(self) -> None:
        """Begin a new history: cursors of the one before may be ahead of what is stored. Durable."""
        ...

    def apply(self, batch: Batch) -> Applied:
        """Verify, allot seqs, write without sync; raise `ExpectationFailed` with nothing written."""
        ...

    def snapshot(self) -> tuple[Seq, HotReader]:
        """Return the end of the newest commit and a reader that stays at it."""
        ...

    def sync(self) -> None:
        """Return when all that was applied before the call survives a power cut."""
        ...

    def forget_table(self, table: TableId) -> None:
        """Remove rows and log of a dropped table; its id is never used again."""
        ...

    def reclaim(self, table: TableId) -> None:
        """Return when what was removed of a table has left its files, but for what a View still reads."""
        ...

    def checkpoint(self, path: Path) -> None:
        """Write a consistent copy of the store into the new directory `path`."""
        ...

    def close(self) -> None: ...


@decodable
class Floor(msgspec.Struct, frozen=True, array_like=True):
    """The newest entry that was trimmed, of an owner or of a table: its counter (tables: 0) and its seq.

    `is_own`: entries of this table go by a time of their own, whatever their owner's floor is; `end` is the
    newest one that went and told of the end of a row.
    """

    counter: int = 0
    seq: int = 0
    is_own: bool = False
    end: int = 0


def load_floor(reader: HotReader, place: Owner | TableId) -> Floor:
    """Return up to where the log of an owner, or of a table over all owners, was trimmed."""
    record = reader.find_record(Kind.FLOOR, _floor_name(place))
    return msgspec.msgpack.decode(record, type=Floor) if record else Floor()


def has_own_floor(reader: HotReader, table: int) -> bool:
    """Whether entries of a table go by a time of their own, and not with their owner's."""
    return load_floor(reader, TableId(table)).is_own


def partition_floor(reader: HotReader, table: TableId, owner: Owner | None) -> Floor:
    """Return up to where the log was trimmed that is read for a table and an owner (None: all)."""
    if owner is None or owner_user(owner) is None:
        return load_floor(reader, table)
    of_table, of_owner = load_floor(reader, table), load_floor(reader, owner)
    # What went of the partition is below either of the two, unless the table's entries go by themselves.
    return of_table if of_table.is_own else min(of_table, of_owner, key=_seq)


def _seq(floor: Floor) -> int:
    return floor.seq


def floor_record(place: Owner | TableId, floor: Floor) -> RecordWrite:
    """Return the record to commit together with the trims."""
    return RecordWrite(Kind.FLOOR, _floor_name(place), msgspec.msgpack.encode(floor))


def _floor_name(place: Owner | TableId) -> str:
    return f"table/{place:010d}" if isinstance(place, int) else f"owner/{place}"


def unmet(expectations: Sequence[Expectation], reader: HotReader) -> Expectation | None:
    """Return the first expectation that doesn't hold in `reader`, None if all hold."""
    for expectation in expectations:
        if not _holds(expectation, reader):
            return expectation
    return None


def _holds(expectation: Expectation, reader: HotReader) -> bool:
    match expectation:
        case RecordIs(kind, name, value):
            return reader.find_record(kind, name) == value
        case RowIs(table, owner, key, seq):
            return reader.find_seq(table, owner, key) == seq
        case NoChangeAfter(table, owner, after):
            is_whole = after >= partition_floor(reader, table, owner).seq
            return is_whole and not reader.read_log(table, owner, after, None, 1)
