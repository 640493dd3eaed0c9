"""The log is trimmed by age: what a live device has not read stays, and nobody misses it silently."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from upwell.clock import ManualClock
from upwell.effects import NoPoints
from upwell.engine.trim import SLICE_CHANGES
from upwell.errors import SeqTrimmed
from upwell.feeds.upload import UploadLimits, Uploads
from upwell.ids import Seq
from upwell.protocol import sync
from upwell.storage.hot import Change, Floor, Kind, load_floor, partition_floor
from upwell.storage.memory import MemoryStore
from upwell.testing.embedded import RETENTION_S, Embedded
from upwell.types import SHARED, Owner, user_owner

ANN, BOB = user_owner("ann"), user_owner("bob")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def db(tmp_path: Path, clock: ManualClock) -> Iterator[Embedded]:
    with Embedded(tmp_path, clock=clock, store=MemoryStore(clock=clock)) as opened:
        opened.run("CREATE NAMESPACE app")
        opened.run("CREATE TABLE app.notes (id TEXT PRIMARY KEY, v TEXT) WITH (TYPE='USER', SYNC=TRUE)")
        opened.run("CREATE TABLE app.tasks (id TEXT PRIMARY KEY, v TEXT) WITH (TYPE='USER', SYNC=TRUE)")
        opened.run("CREATE TABLE app.news (id TEXT PRIMARY KEY, v TEXT) WITH (TYPE='SHARED')")
        yield opened


def keys(changes: list[Change]) -> list[str]:
    return [change.key for change in changes]


def own_log(db: Embedded, owner: Owner, after: int = 0) -> list[str]:
    return keys(db.view.hot.read_owner_log(owner, after, None, 100))


def test_old_entries_go_and_young_ones_stay(db: Embedded, clock: ManualClock) -> None:
    for sql in ("app.notes VALUES ('a', 'x')", "app.tasks VALUES ('b', 'x')", "app.notes VALUES ('c', 'x')"):
        db.change(f"INSERT INTO {sql}", user="ann")
    db.change("INSERT INTO app.news VALUES ('n', 'x')")
    assert not db.trim.is_due(db.view)
    clock.advance(RETENTION_S + 1)
    db.change("INSERT INTO app.notes VALUES ('d', 'x')", user="ann")
    assert db.trim.is_due(db.view)
    assert db.trim.run() == 4
    assert own_log(db, ANN) == ["d"]
    notes, news = db.table("app.notes"), db.table("app.news")
    assert keys(db.view.hot.read_log(notes.id, None, 0, None, 9)) == ["d"]
    assert db.view.hot.read_log(news.id, SHARED, 0, None, 9) == []
    assert load_floor(db.view.hot, ANN).counter == 3
    assert db.rows("SELECT id FROM app.notes ORDER BY id", user="ann") == [("a",), ("c",), ("d",)]
    assert db.view.hot.owner_counter(ANN) == 4
    assert not db.trim.is_due(db.view)
    assert db.trim.run() == 0


def test_what_a_live_device_has_not_read_stays(db: Embedded, clock: ManualClock) -> None:
    for user in ("ann", "bob"):
        for key in "abc":
            db.change(f"INSERT INTO app.notes VALUES ('{key}', 'x')", user=user)
    db.registry.note("bob", "phone", 1)
    clock.advance(RETENTION_S + 1)
    db.registry.note("ann", "phone", 1)
    db.registry.note("ann", "laptop", 2)
    assert db.trim.run() == 1 + 3, "ann's phone has read one entry, bob's has been away too long"
    assert (own_log(db, ANN), own_log(db, BOB)) == (["b", "c"], [])
    assert (load_floor(db.view.hot, ANN).counter, load_floor(db.view.hot, BOB).counter) == (1, 3)


def test_a_device_that_stands_still_holds_nobody_elses_log(db: Embedded, clock: ManualClock) -> None:
    rows = ", ".join(f"('{key}', 'x')" for key in range(SLICE_CHANGES + 1))
    db.change(f"INSERT INTO app.notes VALUES {rows}", user="ann")
    db.change("INSERT INTO app.notes VALUES ('b', 'x')", user="bob")
    clock.advance(RETENTION_S + 1)
    db.registry.note("ann", "phone", 0)
    assert db.trim.is_due(db.view)
    assert db.trim.run() == 1
    assert not db.trim.is_due(db.view)


def test_a_reader_below_the_floor_is_told_and_one_at_the_floor_goes_on(
    db: Embedded, clock: ManualClock
) -> None:
    db.change("INSERT INTO app.notes VALUES ('a', 'x'), ('b', 'x')", user="ann")
    db.change("INSERT INTO app.notes VALUES ('q', 'x')", user="bob")
    notes = db.table("app.notes")
    first, second = db.view.hot.read_log(notes.id, ANN, 0, None, 9)
    [others] = db.view.hot.read_log(notes.id, BOB, 0, None, 9)
    clock.advance(RETENTION_S + 1)
    db.change("INSERT INTO app.notes VALUES ('c', 'x')", user="ann")
    db.trim.run()
    read = db.committer.changelog.read
    with pytest.raises(SeqTrimmed, match="trimmed"):
        read(db.view, notes.id, ANN, after=first.seq, limit=9)
    assert keys(read(db.view, notes.id, ANN, after=second.seq, limit=9)) == ["c"]
    assert keys(read(db.view, notes.id, ANN, after=0, limit=9)) == ["c"]
    assert read(db.view, notes.id, BOB, after=others.seq, limit=9) == []
    with pytest.raises(SeqTrimmed):
        read(db.view, notes.id, None, after=first.seq, limit=9)
    assert load_floor(db.view.hot, notes.id) == Floor(0, max(second.seq, others.seq))


def test_a_receipt_of_a_later_use_of_the_id_stays(db: Embedded, clock: ManualClock) -> None:
    uploads = Uploads(db.committer, db.rows_by_key, db.query, db.engine.defaults, UploadLimits(100, 0))

    def upload(key: str) -> sync.Status:
        change = sync.UploadChange(
            source_change_id=1, schema="app", table="notes", op="INSERT", pk=key, server_version=0,
            payload=msgspec.Raw(b'{"v":"x"}'),
        )  # fmt: skip
        (status,) = uploads.upload("ann", "phone", sync.UploadRequest(changes=[change])).statuses
        return status

    assert upload("a").new_server_version == 1
    clock.advance(RETENTION_S + 1)
    assert upload("b").new_server_version == 1, "an app that was installed again begins at 1"
    assert db.trim.run() == 1
    assert upload("b").duplicate, "its answer was lost"
    clock.advance(RETENTION_S + 1)
    assert db.trim.run() == 1
    assert db.record_names(Kind.RECEIPT) == []


def test_more_than_one_slice_goes(db: Embedded, clock: ManualClock) -> None:
    for part in range(3):
        values = ", ".join(f"('{part}-{i}', 'x')" for i in range(700))
        db.change(f"INSERT INTO app.notes VALUES {values}", user="ann")
    clock.advance(RETENTION_S + 1)
    assert db.trim.run() == 2100
    assert own_log(db, ANN) == []
    assert db.rows("SELECT count(*) FROM app.notes", user="ann") == [(2100,)]
    assert Seq(load_floor(db.view.hot, ANN).seq) <= db.view.seq


def test_a_table_of_a_user_has_a_floor_of_its_own(db: Embedded, clock: ManualClock) -> None:
    """Who follows a quiet table isn't sent away because the user's other tables are busy."""
    db.change("INSERT INTO app.tasks VALUES ('t', 'x')", user="ann")
    tasks, notes = db.table("app.tasks"), db.table("app.notes")
    [quiet] = db.view.hot.read_log(tasks.id, ANN, 0, None, 9)
    for key in "abc":
        db.change(f"INSERT INTO app.notes VALUES ('{key}', 'x')", user="ann")
    busy = db.view.hot.read_log(notes.id, ANN, 0, None, 9)
    clock.advance(RETENTION_S + 1)
    db.change("INSERT INTO app.tasks VALUES ('u', 'x')", user="ann")
    assert db.trim.run() == 4
    read = db.committer.changelog.read
    assert keys(read(db.view, tasks.id, ANN, after=quiet.seq, limit=9)) == ["u"]
    assert keys(read(db.view, notes.id, ANN, after=busy[-1].seq, limit=9)) == []
    for table, cursor in ((notes, busy[1].seq), (tasks, quiet.seq - 1)):
        with pytest.raises(SeqTrimmed):
            read(db.view, table.id, ANN, after=cursor, limit=9)


def test_no_floor_is_behind_what_has_gone_while_a_trim_runs(db: Embedded, clock: ManualClock) -> None:
    """One slice takes pointers of several tables along: each of their readers has to be told."""
    for key in "ab":
        for table in ("notes", "tasks"):
            db.change(f"INSERT INTO app.{table} VALUES ('{key}', 'x')", user="ann")
    ids = [db.table("app.notes").id, db.table("app.tasks").id]
    before = {table: db.view.hot.read_log(table, ANN, 0, None, 9) for table in ids}
    clock.advance(RETENTION_S + 1)
    looked = 0

    class Looking(NoPoints):
        def reach(self, name: str) -> None:
            nonlocal looked
            if name == "trim:after-slice":
                looked += 1
                for table, changes in before.items():
                    left = db.view.hot.read_log(table, ANN, 0, None, 9)
                    gone = [change.seq for change in changes if change not in left]
                    assert partition_floor(db.view.hot, table, ANN).seq >= max(gone, default=0)

    trim = replace(db.trim, points=Looking())
    assert trim.run() == 4
    assert looked == 2
