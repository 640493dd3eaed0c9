"""Rows of STREAM tables: gone for readers when their time is over, and soon from the store and its log."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from upwell.clock import ManualClock
from upwell.engine.stop import Stop
from upwell.errors import AlreadyExists, InvalidOperation
from upwell.jobs.job import Status
from upwell.jobs.queue import load_jobs
from upwell.jobs.schedule import watch_expired
from upwell.storage.hot import Change, Kind, load_floor, partition_floor
from upwell.storage.memory import MemoryStore
from upwell.testing.embedded import GRACE_S, RETENTION_S, Embedded
from upwell.types import user_owner

ANN, BEN = user_owner("ann"), user_owner("ben")
TTL_S = 10


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture(params=["memory", "rocks"])
def db(request: pytest.FixtureRequest, tmp_path: Path, clock: ManualClock) -> Iterator[Embedded]:
    """An engine with a STREAM table `app.typing`, one without a key `app.clicks`, and a USER table."""
    store = MemoryStore(clock=clock) if request.param == "memory" else None
    with Embedded(tmp_path, clock=clock, store=store) as opened:
        opened.run("CREATE NAMESPACE app")
        opened.run(f"CREATE STREAM TABLE app.typing (id INT PRIMARY KEY, who TEXT) TTL {TTL_S}")
        opened.run("CREATE TABLE app.clicks (kind TEXT, n INT) WITH (TYPE = 'STREAM', TTL_SECONDS = 5)")
        opened.run("CREATE TABLE app.notes (id INT PRIMARY KEY, v TEXT) WITH (TYPE = 'USER')")
        yield opened


def typed(db: Embedded, *ids: int, user: str = "ann") -> None:
    for number in ids:
        db.change(f"INSERT INTO app.typing VALUES ({number}, '{user}')", user=user)


def seen(db: Embedded, user: str = "ann") -> list[object]:
    """Return the ids by every way of reading, which must agree."""
    ids = [row[0] for row in db.rows("SELECT id FROM app.typing", user=user)]
    assert db.rows("SELECT count(*) FROM app.typing", user=user) == [(len(ids),)]
    for number in range(1, 6):
        by_key = db.rows("SELECT id FROM app.typing WHERE id = $1", [number], user=user)
        assert [row[0] for row in by_key] == [each for each in ids if each == number]
    return ids


def entries(db: Embedded, name: str = "app.typing") -> list[Change]:
    return db.committer.newest.read_log(db.table(name).id, None, 0, None, 1_000)


def stored(db: Embedded, name: str = "app.typing") -> list[object]:
    """Return the keys in the store, whoever's they are."""
    table, newest = db.table(name).id, db.committer.newest
    return [found.key for owner in newest.owners(table) for found in newest.scan_rows(table, owner)]


def test_a_row_is_there_for_its_time_and_not_a_millisecond_longer(db: Embedded, clock: ManualClock) -> None:
    typed(db, 1)
    clock.advance(4)
    typed(db, 2)
    typed(db, 3, user="ben")
    assert (seen(db), seen(db, "ben"), seen(db, "root")) == ([1, 2], [3], [])
    clock.advance(TTL_S - 4)
    assert seen(db) == [1, 2]
    clock.advance(0.001)
    assert (seen(db), seen(db, "ben")) == ([2], [3])
    clock.advance(TTL_S)
    assert (seen(db), seen(db, "ben")) == ([], [])
    assert stored(db) == [1, 2, 3], "for readers it is gone before it is removed"


def test_its_end_is_an_entry_and_takes_the_row_and_its_entry_along(db: Embedded, clock: ManualClock) -> None:
    typed(db, 1, 2)
    typed(db, 3, user="ben")
    made = {change.key: change.seq for change in entries(db)}
    assert db.expiry.run() == 0
    clock.advance(TTL_S + 1)
    typed(db, 4)
    assert db.expiry.run() == 3
    assert stored(db) == [4]
    ends = [change for change in entries(db) if change.op == "EXPIRE"]
    assert [(end.owner, end.key, end.before, end.after, end.previous) for end in ends] == [
        (owner, key, [key, owner[2:]], None, made[key]) for owner, key in ((ANN, 1), (ANN, 2), (BEN, 3))
    ]
    assert [change.key for change in entries(db) if change.op == "INSERT"] == [4]
    assert db.expiry.run() == 0
    clock.advance(GRACE_S)
    for table in db.expiry.due():
        assert db.expiry.evict(table.id) == 3
    assert [change.key for change in entries(db)] == [4]
    assert [change.key for change in db.store.read_owner_log(BEN, 0, None, 9)] == []
    assert db.expiry.due() == []


def test_a_key_may_come_again_when_its_row_is_over(db: Embedded, clock: ManualClock) -> None:
    typed(db, 1)
    with pytest.raises(AlreadyExists, match="value '1' already exists in column 'id'"):
        typed(db, 1)
    clock.advance(TTL_S + 1)
    typed(db, 1)
    [first, second] = entries(db)
    assert (second.op, second.before, second.previous) == ("INSERT", [1, "ann"], first.seq)
    assert db.expiry.run() == 1
    assert (seen(db), stored(db)) == ([1], [1])
    assert [change.seq for change in entries(db)] == [second.seq], "the one that was replaced ended with that"


def test_a_row_that_is_written_again_lives_from_then_on(db: Embedded, clock: ManualClock) -> None:
    """How presence is renewed: the row has a new `_seq`, and its life begins anew."""
    upsert = "INSERT INTO app.typing VALUES (1, $1) ON CONFLICT (id) DO UPDATE SET who = EXCLUDED.who"
    assert db.change(upsert, ["a"], user="ann") == 1
    clock.advance(TTL_S - 1)
    assert db.change(upsert, ["b"], user="ann") == 1
    clock.advance(TTL_S - 1)
    assert (seen(db), db.expiry.run(), seen(db)) == ([1], 1, [1])
    assert [change.op for change in entries(db)] == ["UPDATE"]
    clock.advance(2)
    assert (seen(db), db.expiry.run(), stored(db)) == ([], 1, [])
    assert [(end.op, end.before) for end in entries(db)] == [("EXPIRE", [1, "b"])]


def test_delete_leaves_no_tombstone_and_of_what_is_over_nothing(db: Embedded, clock: ManualClock) -> None:
    typed(db, 1, 2, 3)
    assert db.change("DELETE FROM app.typing WHERE id = 2", user="ann") == 1
    assert db.change("DELETE FROM app.typing WHERE who = 'nobody'", user="ann") == 0
    assert (seen(db), stored(db)) == ([1, 3], [1, 3])
    clock.advance(TTL_S + 1)
    assert db.change("DELETE FROM app.typing WHERE id = 1", user="ann") == 0
    assert db.change("DELETE FROM app.typing", user="ann") == 0
    assert db.expiry.run() == 3, "the inserts"
    assert [change.op for change in entries(db)] == ["DELETE", "EXPIRE", "EXPIRE"]
    clock.advance(GRACE_S - 1)
    assert db.expiry.run() == 0
    assert db.expiry.due() == []
    assert len(entries(db)) == 3, (
        "who resumes learns of all the ends, although rows live for less than the grace"
    )
    clock.advance(1)
    assert db.expiry.evict(db.table("app.typing").id) == 3
    assert entries(db) == []


def test_rows_without_a_key(db: Embedded, clock: ManualClock) -> None:
    db.run("INSERT INTO app.clicks VALUES ('buy', 1), ('buy', 1), ('look', 2)", user="ann")
    assert db.rows("SELECT kind, n FROM app.clicks", user="ann") == [("buy", 1), ("buy", 1), ("look", 2)]
    [(seq,)] = db.rows("SELECT _seq FROM app.clicks WHERE n = 2", user="ann")
    assert db.rows("SELECT kind FROM app.clicks WHERE _seq = $1", [seq], user="ann") == [("look",)]
    assert db.change("DELETE FROM app.clicks WHERE kind = 'buy'", user="ann") == 2
    assert db.rows("SELECT kind FROM app.clicks", user="ann") == [("look",)]
    assert len(stored(db, "app.clicks")) == 1
    clock.advance(6)
    assert db.expiry.run() > 0
    assert stored(db, "app.clicks") == []


def test_what_lasting_tables_have_is_refused(db: Embedded) -> None:
    for sql, what in (
        ("UPDATE app.typing SET who = 'x'", "UPDATE is not supported for STREAM tables"),
        ("STORAGE COMPACT TABLE app.typing", "STORAGE COMPACT is not supported for STREAM tables"),
        ("STORAGE FLUSH TABLE app.typing", "STORAGE FLUSH is not supported for STREAM tables"),
        ("CREATE TABLE app.x (id INT PRIMARY KEY, t INT REFERENCES app.typing)", "cannot reference STREAM"),
        ("CREATE TABLE app.x (id INT PRIMARY KEY, t INT REFERENCES app.clicks)", "cannot reference STREAM"),
    ):
        with pytest.raises(InvalidOperation, match=what):
            db.run(sql)
    typed(db, 1)
    assert db.flush("app.typing") == {}
    assert not db.cold_root.exists()


def test_the_time_goes_on_while_the_server_is_down(db: Embedded, clock: ManualClock) -> None:
    typed(db, 1)
    clock.advance(6)
    typed(db, 2)
    db.reopen()
    assert seen(db) == [1, 2]
    clock.advance(6)
    assert seen(db) == [2]
    db.reopen()
    assert db.expiry.run() == 1
    assert (seen(db), stored(db)) == ([2], [2])
    clock.advance(TTL_S + 1)
    db.reopen()
    assert db.expiry.run() == 1, "2's entry"
    assert seen(db) == []
    assert [(change.op, change.key) for change in entries(db)] == [("EXPIRE", 1), ("EXPIRE", 2)]
    clock.advance(GRACE_S)
    db.expiry.evict(db.table("app.typing").id)
    assert entries(db) == []


def test_other_tables_of_the_owner_keep_their_log(db: Embedded, clock: ManualClock) -> None:
    db.change("INSERT INTO app.notes VALUES (1, 'a')", user="ann")
    typed(db, 1)
    db.change("INSERT INTO app.notes VALUES (2, 'b')", user="ann")
    clock.advance(TTL_S + 1)
    assert db.expiry.run() == 1
    notes, typing = db.table("app.notes").id, db.table("app.typing").id
    assert [change.key for change in db.store.read_log(notes, ANN, 0, None, 9)] == [1, 2]
    assert partition_floor(db.store, notes, ANN).seq == 0
    assert partition_floor(db.store, typing, ANN).seq == load_floor(db.store, typing).seq > 0
    clock.advance(RETENTION_S)
    typed(db, 2)
    assert db.trim.run() == 2, "the log of a STREAM table isn't the log trim's"
    assert partition_floor(db.store, typing, ANN) == load_floor(db.store, typing), "nor is its floor"
    assert [change.key for change in entries(db)] == [1, 2]


def test_an_older_row_gets_the_columns_of_now(db: Embedded, clock: ManualClock) -> None:
    typed(db, 1)
    db.run("ALTER TABLE app.typing ADD COLUMN device TEXT DEFAULT 'phone'")
    clock.advance(TTL_S + 1)
    assert db.expiry.run() == 1
    assert [change.before for change in entries(db)] == [[1, "ann", "phone"]]


def test_jobs_clear_the_disk_and_none_is_made_for_nothing(db: Embedded, clock: ManualClock) -> None:
    watch = watch_expired(db.jobs, db.expiry, 1)
    watch.look()
    assert db.record_names(Kind.JOB) == []
    typed(db, 1)
    clock.advance(TTL_S + 1)
    db.expiry.run()
    watch.look()
    assert db.record_names(Kind.JOB) == [], "the grace isn't over"
    clock.advance(GRACE_S)
    watch.look()
    [job] = load_jobs(db.committer.newest)
    table = db.table("app.typing")
    assert job.job_id.startswith("SE-")
    assert (job.job_type.value, job.status) == ("stream_eviction", Status.QUEUED)
    assert job.parameters == {
        "table_id": "app.typing", "table_number": table.id, "table_type": "stream", "ttl_seconds": TTL_S,
        "batch_size": 500,
    }  # fmt: skip
    told = "expired rows have left the disk; 1 entries of their ends are gone too"
    assert db.kinds.run(job, Stop()).message == told
    assert entries(db) == []
    watch.look()
    assert len(db.record_names(Kind.JOB)) == 1
    db.run("DROP TABLE app.typing")
    assert db.expiry.due() == []
    assert db.expiry.run() == 0
