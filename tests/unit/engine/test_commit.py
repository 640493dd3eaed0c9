"""The one write path: all or nothing, in one order, and published only when it is safe."""

import threading
from collections.abc import Callable, Iterator

import msgspec
import pytest

from upwell.clock import ManualClock
from upwell.effects import NoPoints
from upwell.engine import commit as commit_module
from upwell.engine.commit import Committer, KeyRange
from upwell.engine.in_force import ManifestInForce, decode_manifest_record, partition_name
from upwell.engine.schema import Schema
from upwell.errors import ReadOnly
from upwell.storage.hot import (
    NO_SEQ,
    Applied,
    Batch,
    Drop,
    ExpectationFailed,
    Kind,
    RecordIs,
    RecordWrite,
    RowWrite,
)
from upwell.storage.memory import MemoryStore
from upwell.testing.embedded import Embedded
from upwell.types import SHARED, Op, TableId

replace = msgspec.structs.replace
NOTE = RecordWrite(Kind.META, "note", b"1")


class Gated(MemoryStore):
    """A store whose sync waits for permission, and whose disk may break."""

    def __init__(self) -> None:
        super().__init__(clock=ManualClock())
        self.go = threading.Event()
        self.go.set()
        self.entered = threading.Event()
        self.sync_count = 0
        self.broken: Exception | None = None

    def apply(self, batch: Batch) -> Applied:
        if isinstance(self.broken, ReadOnly):
            raise self.broken
        return super().apply(batch)

    def sync(self) -> None:
        self.entered.set()
        assert self.go.wait(30)
        if self.broken is not None:
            raise self.broken
        self.sync_count += 1


@pytest.fixture
def store() -> Gated:
    return Gated()


@pytest.fixture
def committer(store: Gated) -> Iterator[Committer]:
    committer = Committer(store, points=NoPoints())
    yield committer
    store.go.set()
    committer.close()


def row(db: Embedded, key: int, *, previous: int = 0, expect: int = NO_SEQ) -> RowWrite:
    table = db.table("app.ours")
    op = Op.UPDATE if previous else Op.INSERT
    return RowWrite(table.id, SHARED, key, op, table.version, None, [key, 0], 1, expect, previous)


def set_flushed(db: Embedded, until: int) -> None:
    """Say, as a flush does, that everything up to `until` is cold."""
    name = partition_name(db.table("app.ours").id, SHARED)
    record = RecordWrite(Kind.MANIFEST, name, msgspec.msgpack.encode(ManifestInForce(1, until)))
    db.committer.apply(Batch(records=[record]))


def supersedes(db: Embedded, key: int) -> tuple[int, ...]:
    version = db.committer.newest.find_row(db.table("app.ours").id, SHARED, key)
    assert version is not None
    return version.supersedes


def test_a_commit_is_published_at_its_end_and_older_views_stay(db: Embedded) -> None:
    before = db.view
    seq = db.committer.apply(Batch(rows=[row(db, 1), row(db, 2)]))
    after = db.committer.publication.wait(seq)
    table = db.table("app.ours").id
    assert after.seq == seq == db.committer.last_seq
    assert [version.key for version in after.hot.scan_rows(table, SHARED)] == [1, 2]
    assert list(before.hot.scan_rows(table, SHARED)) == []
    assert [change.last for change in db.committer.changelog.read(after, table, None, after=0, limit=9)] == [
        False,
        True,
    ]


def test_a_refused_batch_leaves_no_trace(db: Embedded) -> None:
    db.settle()
    seq, tail = db.committer.last_seq, db.committer.changelog.tail(db.view, after=0)
    with pytest.raises(ExpectationFailed):
        db.committer.apply(Batch([row(db, 1)], [NOTE], [RecordIs(Kind.META, "other", b"x")]))
    with pytest.raises(ExpectationFailed):
        db.committer.apply(Batch([row(db, 1), row(db, 2, expect=7)], [NOTE]))
    assert db.committer.last_seq == seq
    assert db.committer.newest.find_record(Kind.META, "note") is None
    assert db.committer.changelog.tail(db.settle(), after=0) == tail


@pytest.mark.parametrize("changed", [{"schema": 2}, {"table": TableId(77)}])
def test_a_row_of_another_schema_or_of_no_table_is_refused(db: Embedded, changed: dict[str, int]) -> None:
    with pytest.raises(ExpectationFailed, match="changed or dropped"):
        db.committer.apply(Batch(rows=[replace(row(db, 1), **changed)]))


@pytest.mark.parametrize(
    "batch", [Batch(records=[NOTE]), Batch(drops=[Drop(TableId(1), SHARED, 1, 1)]), Batch()]
)
def test_a_commit_without_rows_takes_a_seq_and_is_published(committer: Committer, batch: Batch) -> None:
    before = committer.last_seq
    seq = committer.apply(batch)
    assert seq > before
    assert committer.publication.wait(seq).seq == seq
    assert committer.changelog.tail(committer.publication.view, after=before) == []


def test_commits_that_meet_a_running_sync_share_the_next_one(committer: Committer, store: Gated) -> None:
    store.go.clear()
    first = committer.apply(Batch(records=[NOTE]))
    assert store.entered.wait(30)
    later = [committer.apply(Batch(records=[NOTE])) for _ in range(50)]
    assert committer.publication.view.seq < first
    store.go.set()
    committer.publication.wait(later[-1])
    assert store.sync_count == 2


def test_listeners_are_told_after_the_view_has_changed(committer: Committer) -> None:
    seen: list[int] = []
    committer.publication.listen(lambda: seen.append(committer.publication.view.seq))
    seq = committer.apply(Batch(records=[NOTE]))
    committer.close()
    assert seen == [seq]


def test_close_publishes_what_was_applied(committer: Committer) -> None:
    seqs = [committer.apply(Batch(records=[NOTE])) for _ in range(10)]
    committer.close()
    assert committer.publication.view.seq == seqs[-1]
    assert committer.publication.failure is None


def test_a_failed_sync_stops_writes_and_wakes_all_who_wait(committer: Committer, store: Gated) -> None:
    failure = ReadOnly("the disk is gone")
    store.go.clear()
    seq = committer.apply(Batch(records=[NOTE]))
    store.broken = failure
    store.go.set()
    with pytest.raises(ReadOnly):
        committer.publication.wait(seq)
    assert committer.publication.failure is failure
    with pytest.raises(ReadOnly, match=r"^Storage error: the disk is gone$"):
        committer.apply(Batch(records=[NOTE]))
    assert committer.publication.view.seq < seq
    assert committer.publication.wait(committer.publication.view.seq) is committer.publication.view


def test_a_failed_write_tells_those_who_wait_for_earlier_ones(committer: Committer, store: Gated) -> None:
    """A store that refused a write refuses syncs as well: what is applied is never published."""
    store.go.clear()
    waited = committer.apply(Batch(records=[NOTE]))
    assert store.entered.wait(30)
    store.broken = ReadOnly("the disk is full")
    with pytest.raises(ReadOnly):
        committer.apply(Batch(records=[NOTE]))
    store.go.set()
    with pytest.raises(ReadOnly):
        committer.publication.wait(waited)


def test_a_failed_write_alone_makes_the_server_read_only(committer: Committer, store: Gated) -> None:
    told = threading.Event()
    committer.publication.listen(told.set)
    store.broken = ReadOnly("the disk is full")
    with pytest.raises(ReadOnly):
        committer.apply(Batch(records=[NOTE]))
    assert told.wait(30)
    assert committer.publication.failure is store.broken


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_bug_in_the_syncing_thread_strands_nobody(committer: Committer, store: Gated) -> None:
    store.broken = ZeroDivisionError("a bug")
    seq = committer.apply(Batch(records=[NOTE]))
    with pytest.raises(ReadOnly, match="restart"):
        committer.publication.wait(seq)


def test_only_versions_that_may_be_cold_are_superseded(db: Embedded) -> None:
    first = db.committer.apply(Batch(rows=[row(db, 1)]))
    second = db.committer.apply(Batch(rows=[row(db, 1, previous=first, expect=first)]))
    assert supersedes(db, 1) == ()
    set_flushed(db, second)
    third = db.committer.apply(Batch(rows=[row(db, 1, previous=second, expect=second)]))
    assert supersedes(db, 1) == (second,)
    db.committer.apply(Batch(rows=[replace(row(db, 1, previous=third, expect=third), supersedes=(second,))]))
    assert supersedes(db, 1) == (second,), "inherited; the third was never cold"


def test_versions_of_a_partition_that_is_being_flushed_are_superseded(db: Embedded) -> None:
    table = db.table("app.ours").id
    first = db.committer.apply(Batch(rows=[row(db, 1)]))
    view = db.committer.begin_flush(table, SHARED)
    assert view.seq >= first
    second = db.committer.apply(Batch(rows=[row(db, 1, previous=first, expect=first)]))
    assert supersedes(db, 1) == (first,)
    db.committer.end_flush(table, SHARED)
    db.committer.apply(Batch(rows=[row(db, 1, previous=second, expect=second)]))
    assert supersedes(db, 1) == ()


def test_rows_are_forgotten_around_what_was_written_meanwhile_a_part_at_a_time(
    db: Embedded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However much was written, no commit holds the others up for long."""
    monkeypatch.setattr(commit_module, "KEPT_MAX", 2)
    table = db.table("app.ours").id
    old = {key: db.committer.apply(Batch(rows=[row(db, key)])) for key in range(1, 10)}
    until = db.committer.begin_flush(table, SHARED).seq
    for key in (3, 4, 6, 8, 9):
        db.committer.apply(Batch(rows=[row(db, key, previous=old[key], expect=old[key])]))
    pieces = db.committer.forget_flushed(table, SHARED, [KeyRange(2, 9, 10_000)], until=until)
    next(pieces)
    seven = db.committer.apply(Batch(rows=[row(db, 7, previous=old[7], expect=old[7])]))
    assert sum(1 for _ in pieces) == 3, "up to 4 it was, then 6, 8 and 9"
    left = {version.key: version.seq for version in db.settle().hot.scan_rows(table, SHARED)}
    assert list(left) == [1, 3, 4, 6, 7, 8, 9]
    assert left[7] == seven
    db.committer.end_flush(table, SHARED)


def test_a_range_with_many_rows_written_meanwhile_is_given_back(db: Embedded) -> None:
    """Its gaps would be as many ranges, and whoever reads goes through all of them."""
    table = db.table("app.ours").id
    old = {key: db.committer.apply(Batch(rows=[row(db, key)])) for key in range(1, 6)}
    until = db.committer.begin_flush(table, SHARED).seq
    for key in (2, 4):
        db.committer.apply(Batch(rows=[row(db, key, previous=old[key], expect=old[key])]))
    asked = [KeyRange(1, 3, 199), KeyRange(4, 5, 200)]
    assert [*db.committer.forget_flushed(table, SHARED, asked, until=until)] == [asked[0], None]
    assert [version.key for version in db.settle().hot.scan_rows(table, SHARED)] == [1, 2, 3, 4]
    db.committer.end_flush(table, SHARED)


def test_manifest_records_are_read_as_they_were_written() -> None:
    assert decode_manifest_record(None) == ManifestInForce(0, 0)
    assert decode_manifest_record(msgspec.msgpack.encode(ManifestInForce(3, 9))) == ManifestInForce(3, 9)
    assert partition_name(TableId(7), SHARED) == "0000000007/s:"


def test_the_views_in_use_are_the_one_in_force_and_those_that_are_held(committer: Committer) -> None:
    held = committer.publication.view
    for _ in range(3):
        committer.publication.wait(committer.apply(Batch(records=[NOTE])))
    committer.close()  # the syncer let go of the Views that it made
    newest = committer.publication.view
    assert sorted(view.seq for view in committer.publication.views()) == [held.seq, newest.seq]
    del held
    assert committer.publication.views() == [newest]


def test_the_catalog_of_a_view_is_that_of_its_seq(store: Gated, committer: Committer) -> None:
    before = committer.publication.view
    schema = Schema(committer, ManualClock())
    schema.ensure_default_namespace()
    seq = schema.create_namespace("app", if_not_exists=False)
    assert seq is not None
    assert sorted(committer.publication.wait(seq).catalog.namespaces) == ["app", "default"]
    assert dict(before.catalog.namespaces) == {}


def in_threads(count: int, call: Callable[[int], None]) -> None:
    threads = [threading.Thread(target=call, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)


def test_seqs_of_racing_commits_are_one_order_without_gaps_in_views(committer: Committer) -> None:
    """Whatever seq a thread got, a View at it has the record that the thread wrote."""
    problems: list[str] = []

    def commit(number: int) -> None:
        for serial in range(50):
            name, value = f"{number}", str(serial).encode()
            view = committer.publication.wait(
                committer.apply(Batch(records=[RecordWrite(Kind.META, name, value)]))
            )
            if view.hot.find_record(Kind.META, name) != value:
                problems.append(f"{name} {value!r}")

    in_threads(20, commit)
    assert problems == []
