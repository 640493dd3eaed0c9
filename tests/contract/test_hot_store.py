"""The contract of `HotStore`, with exact values, on each implementation."""

import threading
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from upwell.clock import ManualClock
from upwell.storage.hot import (
    NO_SEQ,
    Applied,
    Batch,
    Change,
    Drop,
    DropRange,
    Expectation,
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
from upwell.types import SHARED, Key, Op, Owner, TableId, Value, user_owner

NOTES, TASKS = TableId(1), TableId(2)
ANN, BOB = user_owner("ann"), user_owner("bob")


@pytest.fixture(params=["memory", "rocks"])
def kind_of_store(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def store(kind_of_store: str, tmp_path: Path) -> Iterator[HotStore]:
    clock = ManualClock()
    opened: HotStore
    opened = (
        MemoryStore(clock=clock) if kind_of_store == "memory" else RocksStore(tmp_path / "hot", clock=clock)
    )
    yield opened
    opened.close()


def saved_store(kind: str, path: Path) -> HotStore:
    """Open a checkpoint."""
    clock = ManualClock()
    return MemoryStore(clock=clock, saved=path) if kind == "memory" else RocksStore(path, clock=clock)


def put(
    key: Key, *cells: Value, table: TableId = NOTES, owner: Owner = ANN, expect: int = NO_SEQ, count: int = 1
) -> RowWrite:
    op = Op.INSERT if count == 1 else Op.UPDATE
    return RowWrite(table, owner, key, op, 1, None, [key, *cells], count, expect)


def write(store: HotStore, *rows: RowWrite) -> Applied:
    return store.apply(Batch(rows=list(rows)))


def keys(
    reader: HotReader, table: TableId = NOTES, owner: Owner = ANN, after: Key | None = None
) -> list[Key]:
    return [version.key for version in reader.scan_rows(table, owner, after)]


def logged(
    reader: HotReader,
    table: TableId,
    owner: Owner | None,
    after: int = 0,
    until: int | None = None,
    limit: int = 99,
) -> list[Key]:
    return [change.key for change in reader.read_log(table, owner, after, until, limit)]


def test_a_new_store_is_empty(store: HotStore) -> None:
    seq, reader = store.snapshot()
    assert (seq, store.last_seq, store.owner_counter(ANN)) == (0, 0, 0)
    assert store.find_row(NOTES, ANN, "a") is None
    assert store.find_record(Kind.META, "a") is None
    assert (keys(reader), list(reader.owners(NOTES)), list(reader.scan_records(Kind.META))) == ([], [], [])
    assert (reader.read_log(NOTES, None, 0, None, 9), reader.read_log(NOTES, ANN, 0, None, 9)) == ([], [])
    assert reader.read_owner_log(ANN, 0, None, 9) == []


def test_a_commit_is_its_versions_and_its_changes_and_nothing_else(store: HotStore) -> None:
    first = RowWrite(
        NOTES, ANN, "k", Op.UPDATE, 3, ["k", 1], ["k", 2], count=5, expect=NO_SEQ, previous=77,
        supersedes=(70, 77), source="phone", change_id=9, uploaded='{"n":2.0}',
    )  # fmt: skip
    gone = RowWrite(TASKS, ANN, 4, Op.DELETE, 1, [4, "x"], None, count=2, expect=NO_SEQ)
    applied = store.apply(Batch(rows=[first, gone, put(True, owner=SHARED)]))
    a, b, c = (change.seq for change in applied.changes)
    expected = [
        Change(a, False, NOTES, ANN, 1, "k", "UPDATE", 3, ["k", 1], ["k", 2], 77, 5, "phone", 9, '{"n":2.0}'),
        Change(b, False, TASKS, ANN, 2, 4, "DELETE", 1, [4, "x"], None, 0, 2),
        Change(c, True, NOTES, SHARED, 0, True, "INSERT", 1, None, [True], 0, 1),
    ]
    assert 0 < a < b < c == applied.seq == store.last_seq
    assert list(applied.changes) == expected
    assert store.read_log(NOTES, None, 0, None, 9) == [expected[0], expected[2]]
    assert store.read_owner_log(ANN, 0, None, 9) == expected[:2]
    assert store.read_owner_log(SHARED, 0, None, 9) == []
    assert (store.owner_counter(ANN), store.owner_counter(SHARED)) == (2, 0)
    assert store.find_row(NOTES, ANN, "k") == Version("k", a, 5, 3, ["k", 2], (70, 77), '{"n":2.0}')
    assert list(store.scan_rows(TASKS, ANN)) == [Version(4, b, 2, 1, None)]
    assert list(store.scan_rows(NOTES, SHARED)) == [Version(True, c, 1, 1, [True])]
    assert (list(store.owners(NOTES)), list(store.owners(TASKS))) == ([SHARED, ANN], [ANN])


@pytest.mark.parametrize(
    "in_order",
    [
        [False, True],
        [-(1 << 63), -256, -1, 0, 1, 255, 256, (1 << 63) - 1],
        [-1e300, -2.5, -1e-300, 0.0, 5e-324, 1.0, 2.5, 1e300],
        ["", "\0", "A", "a", "a\0", "aa", "b", "é", "\uffff", "😀"],
        [b"", b"\0", b"\0\0", b"\x01", b"a", b"\xff", b"\xff\xff"],
    ],
    ids=["bool", "int", "float", "str", "bytes"],
)
def test_rows_come_in_the_order_of_their_keys(store: HotStore, in_order: list[Key]) -> None:
    write(store, *(put(key) for key in reversed(in_order)))
    assert keys(store) == in_order
    assert [type(key) for key in keys(store)] == [type(key) for key in in_order]
    for index, key in enumerate(in_order):
        assert keys(store, after=key) == in_order[index + 1 :]


def test_values_come_back_exactly(store: HotStore) -> None:
    row: list[Value] = [
        1,
        None,
        True,
        -(1 << 63),
        (1 << 63) - 1,
        1.0,
        0.1,
        -0.0,
        "",
        "a\0é😀",
        b"",
        b"\0\xff",
    ]
    write(store, put(1, *row[1:]))
    version = store.find_row(NOTES, ANN, 1)
    assert version is not None
    assert repr(version.row) == repr(row)


def test_owners_never_mix(store: HotStore) -> None:
    owners = sorted(
        [SHARED, *map(user_owner, ["", "s:", "a", "a\0", "a\0b", "a\1", "a\1\1", "a\1\2", "ab", "b", "é"])]
    )
    for index, owner in enumerate(owners):
        write(store, put(index, owner=owner), put(-1, owner=owner))
    assert list(store.owners(NOTES)) == owners
    assert list(store.owners(TASKS)) == []
    for index, owner in enumerate(owners):
        assert keys(store, owner=owner) == [-1, index]
        assert logged(store, NOTES, owner) == [index, -1]


def test_the_log_is_read_by_partition_by_table_and_by_owner(store: HotStore) -> None:
    seqs = [
        write(store, put(key, table=table, owner=owner)).seq
        for key, table, owner in [
            (0, NOTES, ANN), (1, TASKS, ANN), (2, NOTES, BOB),
            (3, NOTES, ANN), (4, NOTES, SHARED), (5, NOTES, ANN),
        ]
    ]  # fmt: skip
    assert logged(store, NOTES, None) == [0, 2, 3, 4, 5]
    assert logged(store, NOTES, ANN) == [0, 3, 5]
    assert logged(store, NOTES, SHARED) == [4]
    assert logged(store, NOTES, ANN, after=seqs[0]) == [3, 5]
    assert logged(store, NOTES, ANN, after=seqs[1], until=seqs[4]) == [3]
    assert logged(store, NOTES, ANN, after=seqs[5]) == []
    assert logged(store, NOTES, None, after=seqs[0], until=seqs[3]) == [2, 3]
    assert logged(store, NOTES, None, limit=2) == [0, 2]
    assert logged(store, NOTES, ANN, limit=2) == [0, 3]
    assert logged(store, NOTES, ANN, limit=0) == []
    by_counter = [(change.counter, change.key) for change in store.read_owner_log(ANN, 0, None, 9)]
    assert by_counter == [(1, 0), (2, 1), (3, 3), (4, 5)]
    assert [change.counter for change in store.read_owner_log(ANN, 1, 3, 9)] == [2, 3]
    assert [change.counter for change in store.read_owner_log(ANN, 1, None, 1)] == [2]
    assert store.read_owner_log(ANN, 4, None, 9) == []


def test_records_are_set_deleted_and_listed_by_name(store: HotStore) -> None:
    names = ["", "a", "a/1", "a/2", "b", "é"]
    store.apply(Batch(records=[RecordWrite(Kind.JOB, name, name.encode()) for name in reversed(names)]))
    store.apply(Batch(records=[RecordWrite(Kind.META, "a/9", b"m"), RecordWrite(Kind.JOB, "b", None)]))
    assert [name for name, _ in store.scan_records(Kind.JOB)] == ["", "a", "a/1", "a/2", "é"]
    assert list(store.scan_records(Kind.JOB, "a/")) == [("a/1", b"a/1"), ("a/2", b"a/2")]
    assert list(store.scan_records(Kind.RECEIPT)) == []
    assert (store.find_record(Kind.JOB, ""), store.find_record(Kind.JOB, "b")) == (b"", None)


def test_a_commit_without_rows_takes_a_seq(store: HotStore) -> None:
    before = write(store, put("a")).seq
    applied = store.apply(Batch(records=[RecordWrite(Kind.META, "a", b"1")]))
    assert before < applied.seq == store.last_seq
    assert list(applied.changes) == []
    assert write(store, put("b")).seq > applied.seq


@pytest.mark.parametrize(
    ("holds", "fails"),
    [
        (RecordIs(Kind.META, "m", b"1"), RecordIs(Kind.META, "m", b"2")),
        (RecordIs(Kind.META, "none", None), RecordIs(Kind.META, "m", None)),
        (RowIs(NOTES, ANN, "b", NO_SEQ), RowIs(NOTES, ANN, "a", NO_SEQ)),
        (NoChangeAfter(NOTES, BOB, 0), NoChangeAfter(NOTES, ANN, 0)),
        (NoChangeAfter(NOTES, SHARED, 0), NoChangeAfter(TASKS, SHARED, 0)),
    ],
)
def test_an_expectation_that_fails_writes_nothing(
    store: HotStore, holds: Expectation, fails: Expectation
) -> None:
    start = Batch([put("a"), put(1, table=TASKS, owner=SHARED)], [RecordWrite(Kind.META, "m", b"1")])
    seq = store.apply(start).seq
    batch = Batch([put("x")], [RecordWrite(Kind.META, "n", b"")], [holds, fails])
    with pytest.raises(ExpectationFailed):
        store.apply(batch)
    assert (store.last_seq, keys(store), store.find_record(Kind.META, "n")) == (seq, ["a"], None)
    assert (logged(store, NOTES, ANN), store.owner_counter(ANN)) == (["a"], 1)
    store.apply(replace(batch, expectations=[holds]))
    assert (keys(store), store.find_record(Kind.META, "n")) == (["a", "x"], b"")


def test_expectations_about_seqs_compare_with_the_newest(store: HotStore) -> None:
    seq = write(store, put("a")).seq
    store.apply(Batch(expectations=[RowIs(NOTES, ANN, "a", seq), NoChangeAfter(NOTES, ANN, seq)]))
    write(store, put("a", expect=seq, count=2))
    for stale in (RowIs(NOTES, ANN, "a", seq), NoChangeAfter(NOTES, ANN, seq)):
        with pytest.raises(ExpectationFailed):
            store.apply(Batch(expectations=[stale]))


def test_a_write_lands_only_on_the_version_that_it_expects(store: HotStore) -> None:
    first = write(store, put("a", "1")).seq
    for expect in (NO_SEQ, first - 1, first + 1):
        with pytest.raises(ExpectationFailed):
            write(store, put("b"), put("a", "2", expect=expect))
    second = write(store, put("a", "2", expect=first, count=2)).seq
    assert list(store.scan_rows(NOTES, ANN)) == [Version("a", second, 2, 1, ["a", "2"])]
    tombstone = msgspec.structs.replace(put("a", expect=second), op=Op.DELETE, after=None, count=3)
    third = write(store, tombstone).seq
    assert store.find_row(NOTES, ANN, "a") == Version("a", third, 3, 1, None)
    write(store, put("a", "4", expect=third, count=4))
    assert logged(store, NOTES, ANN) == ["a"] * 4


def test_the_seq_of_a_row_is_read_without_the_row(store: HotStore) -> None:
    seq = write(store, put("a", 1)).changes[0].seq
    assert store.find_seq(NOTES, ANN, "a") == seq
    assert (store.find_seq(NOTES, ANN, "b"), store.find_seq(TASKS, ANN, "a")) == (NO_SEQ, NO_SEQ)


def test_a_batch_that_writes_a_key_twice_is_a_mistake(store: HotStore) -> None:
    with pytest.raises(AssertionError, match="each key once"):
        write(store, put("a"), put("a"))
    assert keys(store) == []


def test_a_drop_forgets_a_row_unless_it_moved_on(store: HotStore) -> None:
    old = {change.key: change.seq for change in write(store, *map(put, "abcd")).changes}
    moved = write(store, put("b", expect=old["b"], count=2)).seq
    drops = [Drop(NOTES, ANN, key, old[key]) for key in "abc"] + [Drop(NOTES, ANN, "none", 5)]
    store.apply(Batch(rows=[put("c", expect=old["c"], count=2)], drops=drops))
    assert keys(store) == ["b", "c", "d"]
    assert store.find_row(NOTES, ANN, "b") == Version("b", moved, 2, 1, ["b"])
    assert logged(store, NOTES, ANN) == ["a", "b", "c", "d", "b", "c"]
    assert store.find_row(NOTES, ANN, "a") is None
    write(store, put("a"))
    assert keys(store) == ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    "names", ["abcdefg", [-3, -1, 0, 1, 2, 1 << 40, 1 << 62], [b"", b"\0", b"a", b"b", b"c", b"d", b"e"]]
)
def test_a_range_of_rows_is_forgotten_but_for_those_that_are_kept(store: HotStore, names: Any) -> None:
    first, second, third, fourth, *rest = names
    write(store, *map(put, names), *(put(key, owner=BOB) for key in names))
    _, before = store.snapshot()
    store.apply(Batch(ranges=[DropRange(NOTES, ANN, second, rest[1], (third, rest[0]))]))
    assert keys(store) == [first, third, rest[0], rest[2]]
    assert keys(store, owner=BOB) == [row.key for row in before.scan_rows(NOTES, ANN)] == list(names)
    assert logged(store, NOTES, ANN) == list(names)
    assert store.find_row(NOTES, ANN, fourth) is None
    store.apply(Batch(rows=[put(fourth)], ranges=[DropRange(NOTES, ANN, first, rest[2], (first,))]))
    assert keys(store) == [first, fourth]
    store.apply(
        Batch(ranges=[DropRange(NOTES, ANN, fourth, fourth), DropRange(NOTES, BOB, first, first, (first,))])
    )
    assert keys(store) == [first]
    assert list(store.owners(NOTES)) == [ANN, BOB]


def test_owners_without_hot_rows_are_not_listed(store: HotStore) -> None:
    applied = write(store, *(put("a", owner=owner) for owner in (ANN, BOB, SHARED)))
    ann = applied.changes[0]
    store.apply(Batch(drops=[Drop(NOTES, ANN, ann.key, ann.seq)]))
    assert list(store.owners(NOTES)) == [SHARED, BOB]
    assert keys(store, owner=ANN) == []


def test_a_snapshot_stays_as_it_was(store: HotStore) -> None:
    rows = {
        change.key: change.seq for change in write(store, put("a"), put("b"), put(1, table=TASKS)).changes
    }
    store.apply(Batch(records=[RecordWrite(Kind.META, "m", b"1"), RecordWrite(Kind.META, "gone", b"")]))
    seq, reader = store.snapshot()
    begun = reader.scan_rows(NOTES, ANN)
    first = next(begun)
    store.apply(
        Batch(
            rows=[put("c"), put("b", "new", expect=rows["b"], count=2), put("a", owner=BOB)],
            records=[RecordWrite(Kind.META, "m", b"2"), RecordWrite(Kind.META, "gone", None)],
            drops=[Drop(NOTES, ANN, "a", rows["a"])],
        )
    )
    store.forget_table(TASKS)
    assert seq < store.last_seq
    expected = [Version(key, rows[key], 1, 1, [key]) for key in "ab"]
    assert [first, *begun] == list(reader.scan_rows(NOTES, ANN)) == expected
    assert [reader.find_row(NOTES, ANN, key) for key in "abc"] == [*expected, None]
    assert (list(reader.owners(NOTES)), keys(reader, TASKS)) == ([ANN], [1])
    assert (logged(reader, NOTES, None), logged(reader, NOTES, ANN)) == (["a", "b"], ["a", "b"])
    assert logged(reader, TASKS, ANN) == [1]
    assert [change.counter for change in reader.read_owner_log(ANN, 0, None, 9)] == [1, 2, 3]
    assert (reader.owner_counter(ANN), reader.owner_counter(BOB)) == (3, 0)
    assert list(reader.scan_records(Kind.META)) == [("gone", b""), ("m", b"1")]
    assert reader.find_record(Kind.META, "m") == b"1"
    assert keys(store.snapshot()[1]) == ["b", "c"]


def test_scans_of_one_snapshot_do_not_disturb_each_other(store: HotStore) -> None:
    count = 3000
    write(store, *(put(key) for key in range(count)), *(put(key, owner=BOB) for key in range(count)))
    _, reader = store.snapshot()
    pairs = zip(reader.scan_rows(NOTES, ANN), reader.scan_rows(NOTES, BOB, after=9), strict=False)
    for index, (ann, bob) in enumerate(pairs):
        assert (ann.key, bob.key) == (index, index + 10)
    assert index == count - 11
    assert len(reader.read_log(NOTES, None, 0, None, 2 * count + 1)) == 2 * count


def test_a_forgotten_table_is_gone_and_the_owner_keeps_the_rest(store: HotStore) -> None:
    write(store, put("a"), put(1, table=TASKS), put("b"), put(2, table=TASKS, owner=SHARED))
    seq = store.last_seq
    store.forget_table(TASKS)
    assert (keys(store, TASKS), list(store.owners(TASKS)), logged(store, TASKS, None)) == ([], [], [])
    assert (logged(store, TASKS, ANN), logged(store, TASKS, SHARED)) == ([], [])
    changes = store.read_owner_log(ANN, 0, None, 2)
    assert [(change.counter, change.key) for change in changes] == [(1, "a"), (3, "b")]
    assert (store.owner_counter(ANN), store.last_seq, keys(store)) == (3, seq, ["a", "b"])
    assert write(store, put("c")).changes[0].counter == 4


def test_trimmed_entries_are_gone_from_each_log_and_counters_go_on(store: HotStore) -> None:
    shared = put("s", owner=SHARED)
    changes = write(store, put("a"), put(1, table=TASKS), put("b"), put("x", owner=BOB), shared).changes
    _, before = store.snapshot()
    gone = [changes[0], changes[1], changes[4]]
    store.apply(Batch(trims=[Trim(TableId(c.table), c.seq, Owner(c.owner), c.counter) for c in gone]))
    assert (logged(store, NOTES, None), logged(store, NOTES, ANN)) == (["b", "x"], ["b"])
    assert (logged(store, TASKS, None), logged(store, NOTES, SHARED)) == ([], [])
    assert [change.counter for change in store.read_owner_log(ANN, 0, None, 9)] == [3]
    assert (keys(store), keys(store, TASKS), keys(store, owner=SHARED)) == (["a", "b"], [1], ["s"])
    assert logged(before, NOTES, None) == ["a", "b", "x", "s"]
    assert [change.counter for change in before.read_owner_log(ANN, 0, None, 9)] == [1, 2, 3]
    rest = store.read_owner_log(ANN, 0, None, 9)
    store.apply(Batch(trims=[Trim(NOTES, c.seq, ANN, c.counter) for c in rest]))
    assert store.read_owner_log(ANN, 0, None, 9) == []
    assert store.owner_counter(ANN) == 3
    assert write(store, put("c")).changes[0].counter == 4


def size(changes: Iterable[Change]) -> int:
    return sum(len(msgspec.msgpack.encode(change)) for change in changes)


def test_how_much_a_log_takes_is_known(store: HotStore, kind_of_store: str, tmp_path: Path) -> None:
    assert (store.log_bytes(NOTES), store.log_bytes(TASKS)) == (0, 0)
    changes = write(
        store, put("a", "x" * 1000), put(1, table=TASKS), put("b"), put("s", owner=SHARED)
    ).changes
    notes = [change for change in changes if change.table == NOTES]
    assert store.log_bytes(NOTES) == size(notes) > 1000
    assert store.log_bytes(TASKS) == size([changes[1]])
    _, before = store.snapshot()
    trim = Trim(NOTES, notes[0].seq, ANN, notes[0].counter)
    store.apply(Batch(rows=[put("c")], trims=[trim]))
    store.apply(Batch(trims=[trim]))  # once more: it is gone already
    left = store.read_log(NOTES, None, 0, None, 9)
    assert [change.key for change in left] == ["b", "s", "c"]
    assert (store.log_bytes(NOTES), before.log_bytes(NOTES)) == (size(left), size(notes))
    store.checkpoint(tmp_path / "copy")
    copy = saved_store(kind_of_store, tmp_path / "copy")
    assert (copy.log_bytes(NOTES), copy.log_bytes(TASKS)) == (size(left), size([changes[1]]))
    copy.close()
    store.forget_table(NOTES)
    assert (store.log_bytes(NOTES), store.log_bytes(TASKS)) == (0, size([changes[1]]))


def test_a_row_that_is_not_there_is_dropped_in_vain(store: HotStore) -> None:
    store.apply(Batch(drops=[Drop(NOTES, ANN, "a", NO_SEQ)]))
    assert keys(store) == []


def test_an_entry_goes_alone_and_a_row_without_a_tombstone(store: HotStore) -> None:
    made = write(store, put("a"), put("b"), put(1, table=TASKS), put("s", owner=SHARED)).changes
    _, before = store.snapshot()
    end = RowWrite(NOTES, ANN, "b", Op.EXPIRE, 1, ["b"], None, 2, made[1].seq, made[1].seq, vanishes=True)
    trims = [Trim(TableId(c.table), c.seq, Owner(c.owner), c.counter, alone=True) for c in made[1:2]]
    [ended] = store.apply(Batch(rows=[end], trims=trims)).changes
    assert (ended.op, ended.before, ended.after, ended.previous) == ("EXPIRE", ["b"], None, made[1].seq)
    assert store.find_row(NOTES, ANN, "b") is None
    assert [keys(store), keys(store, TASKS), keys(before)] == [["a"], [1], ["a", "b"]]
    counters = [change.counter for change in store.read_owner_log(ANN, 0, None, 9)]
    assert counters == [1, 3, 4], "older entries of the owner stay, of other tables too"
    assert [change.op for change in store.read_log(NOTES, ANN, 0, None, 9)] == ["INSERT", "EXPIRE"]
    assert logged(store, NOTES, ANN, after=made[1].seq) == ["b"]
    assert logged(before, NOTES, ANN) == ["a", "b"]
    shared = made[3]
    store.apply(Batch(trims=[Trim(NOTES, shared.seq, SHARED, 0, alone=True)]))
    assert (logged(store, NOTES, SHARED), keys(store, owner=SHARED)) == ([], ["s"])
    store.reclaim(NOTES)
    assert keys(store) == ["a"]
    assert write(store, put("b")).changes[0].counter == 5


def test_a_new_epoch_begins_above_all_counters_of_the_old_one(store: HotStore) -> None:
    first = write(store, put("a"), put("b", owner=BOB))
    assert store.epoch == 0
    store.raise_epoch()
    assert store.epoch == 1
    then = write(store, put("c"), put("d")).changes
    assert [change.counter for change in then] == [2**32 + 1, 2**32 + 2]
    assert store.owner_counter(BOB) == 1
    assert [change.key for change in store.read_owner_log(ANN, 1, None, 9)] == ["c", "d"]
    for after, expected in ((0, "acd"), (first.seq, "cd"), (then[0].seq, "d")):
        assert [change.key for change in store.read_log(NOTES, ANN, after, None, 9)] == list(expected)


def test_a_checkpoint_is_a_whole_store(store: HotStore, kind_of_store: str, tmp_path: Path) -> None:
    write(store, put("a"), put("b", owner=SHARED), put(1, table=TASKS))
    store.apply(Batch(records=[RecordWrite(Kind.META, "m", b"1")]))
    saved_seq, path = store.last_seq, tmp_path / "copy"
    store.checkpoint(path)
    write(store, put("later"))
    copy = saved_store(kind_of_store, path)
    assert (copy.last_seq, keys(copy), copy.owner_counter(ANN)) == (saved_seq, ["a"], 2)
    assert copy.read_owner_log(ANN, 0, None, 9) == store.read_owner_log(ANN, 0, 2, 9)
    assert copy.read_log(NOTES, None, 0, None, 9) == store.read_log(NOTES, None, 0, saved_seq, 9)
    assert list(copy.scan_records(Kind.META)) == [("m", b"1")]
    assert write(copy, put("other")).changes[0].counter == 3
    copy.close()


def test_racing_writers_get_one_order(store: HotStore) -> None:
    def run(writer: int) -> None:
        for index in range(50):
            write(store, put(writer * 100 + index), put(index, owner=user_owner(str(writer))))

    threads = [threading.Thread(target=run, args=(writer,)) for writer in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    changes = store.read_log(NOTES, None, 0, None, 999)
    seqs = [change.seq for change in changes]
    assert len(changes) == 400
    assert seqs == sorted(set(seqs))
    assert [change.last for change in changes] == [False, True] * 200
    assert [change.counter for change in changes if change.owner == ANN] == list(range(1, 201))
    assert keys(store) == sorted(writer * 100 + index for writer in range(4) for index in range(50))
