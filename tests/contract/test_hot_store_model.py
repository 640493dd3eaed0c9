"""Both hot stores do what a model of lists and dicts does, through snapshots, restarts and bad clocks."""

import shutil
import tempfile
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from upwell.clock import ManualClock
from upwell.storage.hot import (
    NO_SEQ,
    Batch,
    Change,
    Drop,
    DropRange,
    ExpectationFailed,
    HotReader,
    HotStore,
    Kind,
    NoChangeAfter,
    RecordIs,
    RecordWrite,
    RowIs,
    RowWrite,
    Trim,
    Version,
)
from upwell.storage.memory import MemoryStore
from upwell.storage.rocks import RocksStore
from upwell.testing.fleet import memory_directory
from upwell.types import SHARED, Key, Op, Owner, Row, TableId, user_owner

TABLES = [TableId(1), TableId(2), TableId(3)]
FORGETTABLE = TABLES[2]
OWNERS = [user_owner("a"), user_owner("a\0"), user_owner("b"), SHARED]
NAMES = ["", "a", "a/b", "b"]
KINDS = [Kind.RECEIPT, Kind.SOURCE]
ALL = 1_000_000

Place = tuple[TableId, Owner, Key]
Dump = dict[str, object]


@dataclass
class Model:
    """What a hot store holds, kept in the simplest way there is."""

    seq: int = 0
    rows: dict[Place, Version] = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)
    counters: dict[Owner, int] = field(default_factory=dict)
    records: dict[tuple[Kind, str], bytes] = field(default_factory=dict)
    trimmed: set[int] = field(default_factory=set)
    floors: dict[Owner, int] = field(default_factory=dict)
    epoch: int = 0

    def seq_of(self, place: Place) -> int:
        return self.rows[place].seq if place in self.rows else NO_SEQ

    def apply(self, batch: Batch, seqs: list[int]) -> list[Change]:
        for drop in batch.drops:
            if self.seq_of((drop.table, drop.owner, drop.key)) == drop.seq != NO_SEQ:
                del self.rows[drop.table, drop.owner, drop.key]
        for each in batch.ranges:
            for table, owner, key in list(self.rows):
                is_near = (table, owner) == (each.table, each.owner) and each.first <= key <= each.last
                if is_near and key not in each.kept:
                    del self.rows[table, owner, key]
        made = [
            self._write(row, seq, row is batch.rows[-1]) for row, seq in zip(batch.rows, seqs, strict=True)
        ]
        for record in batch.records:
            self.records.pop((record.kind, record.name), None)
            if record.value is not None:
                self.records[record.kind, record.name] = record.value
        return made

    def _write(self, row: RowWrite, seq: int, last: bool) -> Change:
        counter = 0
        if row.owner != SHARED:
            counter = max(self.counters.get(row.owner, 0), self.epoch * 2**32) + 1
            self.counters[row.owner] = counter
        self.rows[row.table, row.owner, row.key] = Version(row.key, seq, row.count, 1, row.after)
        change = Change(
            seq,
            last,
            row.table,
            row.owner,
            counter,
            row.key,
            row.op.value,
            1,
            row.before,
            row.after,
            0,
            row.count,
        )
        self.changes.append(change)
        return change

    def forget(self, table: TableId) -> None:
        self.rows = {place: row for place, row in self.rows.items() if place[0] != table}
        self.changes = [change for change in self.changes if change.table != table]

    def dump(self) -> Dump:
        """Return everything that `dump` reads from a store."""
        found: Dump = {}
        for table in TABLES:
            at = sorted(place for place in self.rows if place[0] == table)
            found[f"owners {table}"] = sorted({owner for _, owner, _ in at})
            log = [c for c in self.changes if c.table == table and c.seq not in self.trimmed]
            found[f"log {table}"] = log
            found[f"log bytes {table}"] = sum(len(msgspec.msgpack.encode(change)) for change in log)
            for owner in OWNERS:
                found[f"rows {table} {owner}"] = [self.rows[place] for place in at if place[1] == owner]
                found[f"log {table} {owner}"] = self.log(table, owner, 0, None, ALL)
        for owner in OWNERS:
            found[f"owner log {owner}"] = self.owner_log(owner, 0, None, ALL)
            found[f"counter {owner}"] = self.counters.get(owner, 0)
        for kind in KINDS:
            names = sorted(name for of, name in self.records if of == kind)
            found[f"records {kind}"] = [(name, self.records[kind, name]) for name in names]
        return found

    def log(
        self, table: TableId, owner: Owner | None, after: int, until: int | None, limit: int
    ) -> list[Change]:
        in_reach = [c for c in self.changes if after < c.seq <= (until or 1 << 63)]
        kept = [c for c in in_reach if c.seq not in self.trimmed]
        if owner not in (None, SHARED):
            kept = [c for c in kept if c.counter > self.floors.get(c.owner, 0)]
        return [c for c in kept if c.table == table and owner in (None, c.owner)][:limit]

    def owner_log(self, owner: Owner, after: int, until: int | None, limit: int) -> list[Change]:
        if owner == SHARED:
            return []
        last, after = 1 << 63 if until is None else until, max(after, self.floors.get(owner, 0))
        return [c for c in self.changes if c.owner == owner and after < c.counter <= last][:limit]

    def trim(self, change: Change) -> None:
        self.trimmed.add(change.seq)
        if change.owner != SHARED:
            owner = Owner(change.owner)
            self.floors[owner] = max(change.counter, self.floors.get(owner, 0))


def dump(reader: HotReader) -> Dump:
    found: Dump = {}
    for table in TABLES:
        found[f"owners {table}"] = list(reader.owners(table))
        found[f"log {table}"] = reader.read_log(table, None, 0, None, ALL)
        found[f"log bytes {table}"] = reader.log_bytes(table)
        for owner in OWNERS:
            rows = list(reader.scan_rows(table, owner))
            assert [reader.find_row(table, owner, row.key) for row in rows] == rows
            found[f"rows {table} {owner}"] = rows
            found[f"log {table} {owner}"] = reader.read_log(table, owner, 0, None, ALL)
    for owner in OWNERS:
        found[f"owner log {owner}"] = reader.read_owner_log(owner, 0, None, ALL)
        found[f"counter {owner}"] = reader.owner_counter(owner)
    for kind in KINDS:
        records = list(reader.scan_records(kind))
        assert [(name, reader.find_record(kind, name)) for name, _ in records] == records
        found[f"records {kind}"] = records
    return found


places = st.tuples(st.sampled_from(TABLES), st.sampled_from(OWNERS), st.integers(-2, 3))
key_ranges = st.builds(
    lambda table, owner, keys: DropRange(table, owner, keys[0], keys[-1], tuple(keys[1:-1])),
    st.sampled_from(TABLES),
    st.sampled_from(OWNERS),
    st.sets(st.integers(-3, 4), min_size=1).map(sorted),
)
records = st.builds(
    RecordWrite, st.sampled_from(KINDS), st.sampled_from(NAMES), st.sampled_from([None, b"", b"v", b"w"])
)


class HotStores(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(dir=memory_directory()))
        self.clock = ManualClock()
        self.memory = MemoryStore(clock=self.clock)
        self.rocks = RocksStore(self.directory / "hot", clock=self.clock)
        self.model = Model()
        self.snapshots: list[tuple[int, Dump, list[tuple[int, HotReader]]]] = []
        self.forgotten = False

    def stores(self) -> Iterable[HotStore]:
        return (self.memory, self.rocks)

    @rule(
        written=st.dictionaries(places, st.sampled_from([None, 1, 2, "three"]), max_size=6),
        dropped=st.lists(places, max_size=4),
        ranges=st.lists(key_ranges, max_size=2),
        stale=st.booleans(),
        records=st.lists(records, max_size=3),
    )
    def commit(
        self,
        written: dict[Place, str | int | None],
        dropped: list[Place],
        ranges: list[DropRange],
        stale: bool,
        records: list[RecordWrite],
    ) -> None:
        rows = [self.row(place, cell) for place, cell in written.items() if self.may_write(place)]
        seq_off = 1 if stale else 0
        drops = [
            Drop(*place, self.model.seq_of(place) + seq_off) for place in dropped if place not in written
        ]
        distinct = list({(drop.table, drop.owner, drop.key): drop for drop in drops}.values())
        self.commit_everywhere(Batch(rows, records, self.truths(), distinct, ranges))

    def row(self, place: Place, cell: str | int | None) -> RowWrite:
        known = self.model.rows.get(place)
        after: Row | None = None if cell is None else [place[2], cell]
        op = Op.DELETE if cell is None else Op.UPDATE if known else Op.INSERT
        before = known.row if known else None
        count = known.count + 1 if known else 1
        return RowWrite(*place, op, 1, before, after, count, known.seq if known else NO_SEQ)

    def may_write(self, place: Place) -> bool:
        return not (self.forgotten and place[0] == FORGETTABLE)

    def truths(self) -> list[RecordIs | RowIs | NoChangeAfter]:
        found: list[RecordIs | RowIs | NoChangeAfter] = [
            RecordIs(kind, name, self.model.records.get((kind, name))) for kind in KINDS for name in NAMES
        ]
        for table in TABLES:
            for owner in OWNERS:
                found.append(RowIs(table, owner, 1, self.model.seq_of((table, owner, 1))))
                found.append(NoChangeAfter(table, owner, self.last_change(table, owner)))
        return found

    def last_change(self, table: TableId, owner: Owner) -> int:
        return max((c.seq for c in self.model.log(table, owner, 0, None, ALL)), default=0)

    def commit_everywhere(self, batch: Batch) -> None:
        memory, rocks = (store.apply(batch) for store in self.stores())
        assert memory == rocks
        seqs = [change.seq for change in rocks.changes]
        assert [self.model.seq, *seqs] == sorted({self.model.seq, *seqs})
        assert rocks.seq == (seqs[-1] if seqs else rocks.seq) > self.model.seq
        assert list(rocks.changes) == self.model.apply(batch, seqs)
        self.model.seq = rocks.seq

    @rule(place=places, seq_off=st.sampled_from([-1, 1]), which=st.integers(0, 2))
    def commit_on_something_untrue(self, place: Place, seq_off: int, which: int) -> None:
        table, owner, _ = place
        row = self.row(place, 7)
        batch = Batch(rows=[row], records=[RecordWrite(KINDS[0], "x", b"x")])
        last = self.last_change(table, owner)
        if which == 0:
            batch.rows = [msgspec.structs.replace(row, expect=row.expect + seq_off)]
        elif which == 1:
            batch.expectations = [RowIs(*place, row.expect + seq_off)]
        elif last:
            batch.expectations = [NoChangeAfter(table, owner, last - 1)]
        else:
            batch.expectations = [RecordIs(KINDS[0], "x", b"x")]
        for store in self.stores():
            with pytest.raises(ExpectationFailed):
                store.apply(batch)
            assert store.last_seq == self.model.seq

    @rule()
    def take_snapshot(self) -> None:
        taken: list[tuple[int, HotReader]] = [store.snapshot() for store in self.stores()]
        self.snapshots.append((self.model.seq, deepcopy(self.model).dump(), taken))

    @precondition(lambda self: self.snapshots)
    @rule(data=st.data(), release=st.booleans())
    def read_snapshot(self, data: st.DataObject, release: bool) -> None:
        index = data.draw(st.integers(0, len(self.snapshots) - 1))
        seq, expected, taken = self.snapshots[index]
        for at, reader in taken:
            assert at == seq
            assert dump(reader) == expected
        if release:
            del self.snapshots[index]

    @rule()
    def read_newest(self) -> None:
        expected = self.model.dump()
        for store in self.stores():
            assert store.last_seq == self.model.seq
            assert dump(store) == expected

    @rule(place=places, data=st.data(), limit=st.integers(0, 5))
    def read_logs(self, place: Place, data: st.DataObject, limit: int) -> None:
        table, owner, _ = place
        seqs = st.sampled_from([0, *(c.seq for c in self.model.changes), self.model.seq])
        after, until = data.draw(seqs), data.draw(st.none() | seqs.filter(bool))
        counter = st.integers(0, 9) | st.sampled_from([0, *(c.counter for c in self.model.changes)])
        counters = data.draw(counter), data.draw(st.none() | counter)
        for store in self.stores():
            for of in (None, owner):
                expected = self.model.log(table, of, after, until, limit)
                assert store.read_log(table, of, after, until, limit) == expected
            assert store.read_owner_log(owner, *counters, limit) == self.model.owner_log(
                owner, *counters, limit
            )

    @rule(place=places)
    def scan_after(self, place: Place) -> None:
        table, owner, key = place
        rows = sorted(item for item in self.model.rows.items() if item[0][:2] == (table, owner))
        expected = [row for at, row in rows if at > place]
        for store in self.stores():
            assert list(store.scan_rows(table, owner, key)) == expected

    @rule(seconds=st.sampled_from([0.001, 5.0, -3600.0]))
    def move_clock(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule()
    def restart(self) -> None:
        """The state is the same, and no seq is used again, although the memory store was not restarted."""
        self.snapshots.clear()
        self.rocks.close()
        self.rocks = RocksStore(self.directory / "hot", clock=self.clock)
        self.read_newest()

    @precondition(lambda self: self.model.changes)
    @rule(data=st.data(), count=st.integers(1, 3))
    def trim(self, data: st.DataObject, count: int) -> None:
        """Entries go, with what their owner has before them; some may be gone already."""
        start = data.draw(st.integers(0, len(self.model.changes) - 1))
        gone = self.model.changes[start : start + count]
        trims = [Trim(TableId(c.table), c.seq, Owner(c.owner), c.counter) for c in gone]
        self.commit_everywhere(Batch(trims=trims))
        for change in gone:
            self.model.trim(change)

    @precondition(lambda self: self.model.changes)
    @rule(data=st.data())
    def trim_alone(self, data: st.DataObject) -> None:
        """One entry goes from both logs, and nothing else."""
        gone = data.draw(st.sampled_from(self.model.changes))
        trim = Trim(TableId(gone.table), gone.seq, Owner(gone.owner), gone.counter, alone=True)
        self.commit_everywhere(Batch(trims=[trim]))
        self.model.changes = [change for change in self.model.changes if change.seq != gone.seq]

    @rule()
    def raise_epoch(self) -> None:
        self.model.epoch += 1
        for store in self.stores():
            store.raise_epoch()
            assert store.epoch == self.model.epoch

    @precondition(lambda self: not self.forgotten)
    @rule()
    def forget(self) -> None:
        self.forgotten = True
        self.model.forget(FORGETTABLE)
        for store in self.stores():
            store.forget_table(FORGETTABLE)

    def teardown(self) -> None:
        self.read_newest()
        self.rocks.close()
        shutil.rmtree(self.directory)


TestHotStores = HotStores.TestCase
TestHotStores.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
