"""The log is trimmed by age and size: what a live device has not read stays, nobody misses it silently."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from upwell.clock import ManualClock
from upwell.effects import NoPoints
from upwell.engine.trim import SLICE_CHANGES, LogLimits, LogTrim
from upwell.engine.view import View
from upwell.errors import SeqTrimmed
from upwell.feeds.upload import UploadLimits, Uploads
from upwell.ids import Seq
from upwell.jobs.job import JobType
from upwell.jobs.schedule import watch_log_size
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


BYTES_MAX = 100_000
TEXT = "x" * 990  # an entry has some 1,040 bytes


@pytest.fixture
def small(db: Embedded) -> LogTrim:
    return replace(db.trim, limits=LogLimits(RETENTION_S, BYTES_MAX))


def fill(db: Embedded, table: str, numbers: range, user: str) -> None:
    for number in numbers:
        db.change(f"INSERT INTO app.{table} VALUES ('{number:03}', '{TEXT}')", user=user)


def table_log(db: Embedded, name: str) -> list[str]:
    return keys(db.view.hot.read_log(db.table(name).id, None, 0, None, 999))


def entry_bytes(changes: list[Change]) -> int:
    return sum(len(msgspec.msgpack.encode(change)) for change in changes)


def test_the_oldest_of_a_log_that_is_too_large_go(db: Embedded, small: LogTrim) -> None:
    fill(db, "notes", range(60), "ann")
    fill(db, "tasks", range(30), "bob")
    assert not small.is_due(db.view)
    assert small.run() == 0
    fill(db, "news", range(30), "root")
    logs = [
        db.view.hot.read_log(db.table(f"app.{name}").id, None, 0, None, 99)
        for name in ("notes", "tasks", "news")
    ]
    everything = sorted((change for log in logs for change in log), key=lambda change: change.seq)
    assert small.log_bytes() == entry_bytes(everything) > BYTES_MAX
    assert small.is_due(db.view)
    count = small.run()
    kept = BYTES_MAX * 9 // 10
    assert entry_bytes(everything[count:]) <= kept < entry_bytes(everything[count - 1 :]), (
        "no more than needed"
    )
    assert small.log_bytes() == entry_bytes(everything[count:])
    assert table_log(db, "app.notes") == [f"{number:03}" for number in range(count, 60)], "the oldest first"
    assert (len(table_log(db, "app.tasks")), len(table_log(db, "app.news"))) == (30, 30)
    assert db.rows("SELECT count(*) FROM app.notes", user="ann") == [(60,)]
    assert not small.is_due(db.view)


def test_readers_below_what_went_for_its_size_are_told(db: Embedded, small: LogTrim) -> None:
    fill(db, "notes", range(120), "ann")
    notes = db.table("app.notes").id
    before = db.view.hot.read_log(notes, ANN, 0, None, 999)
    count = small.run()
    read = db.committer.changelog.read
    for owner in (ANN, None):
        with pytest.raises(SeqTrimmed, match="trimmed"):
            read(db.view, notes, owner, after=before[count - 2].seq, limit=999)
        assert read(db.view, notes, owner, after=before[count - 1].seq, limit=999) == before[count:]
    assert load_floor(db.view.hot, ANN) == Floor(before[count - 1].counter, before[count - 1].seq)


def test_what_a_living_device_has_not_read_stays_and_does_not_cost_others_theirs(
    db: Embedded, small: LogTrim, clock: ManualClock
) -> None:
    db.registry.note("ann", "phone", 20)
    fill(db, "notes", range(100), "ann")
    fill(db, "notes", range(80), "bob")
    assert small.run() == 20, "bob's are among the newest"
    assert (len(own_log(db, ANN)), len(own_log(db, BOB))) == (80, 80)
    assert not small.is_due(db.view), "too large, but nothing may go"
    assert small.run() == 0
    fill(db, "tasks", range(40), "bob")
    assert small.is_due(db.view), "what stays for ann's phone doesn't hide what is behind it"
    assert small.run() > 0
    assert own_log(db, ANN) == [f"{number:03}" for number in range(20, 100)]
    clock.advance(RETENTION_S + 1)
    fill(db, "tasks", range(40, 42), "bob")
    assert small.is_due(db.view)
    small.run()
    assert (own_log(db, ANN), own_log(db, BOB)) == ([], ["040", "041"]), "away for too long"


def test_a_device_that_has_not_begun_to_read_keeps_what_is_young(
    db: Embedded, small: LogTrim, clock: ManualClock
) -> None:
    """Between its hydration and its first download, and before an upload's answer has come."""
    fill(db, "notes", range(120), "ann")
    db.registry.note("ann", "phone", None)
    assert small.run() == 0
    clock.advance(RETENTION_S + 1)
    db.registry.note("ann", "phone", None)
    assert small.run() == 120


def test_the_floors_of_all_tables_hold_when_a_trim_by_size_is_cut_short(db: Embedded, small: LogTrim) -> None:
    """What a crash between two slices leaves is trimmed by the next run, and no reader takes it for whole."""
    fill(db, "notes", range(40), "ann")
    fill(db, "tasks", range(40), "ann")
    fill(db, "news", range(40), "root")
    ids = [db.table(f"app.{name}").id for name in ("notes", "tasks", "news")]
    before = {table: db.view.hot.read_log(table, None, 0, None, 99) for table in ids}

    class Crash(NoPoints):
        def reach(self, name: str) -> None:
            if name == "trim:after-slice":
                raise KeyboardInterrupt

    few = replace(small, limits=LogLimits(RETENTION_S, 40_000))
    with pytest.raises(KeyboardInterrupt):
        replace(few, points=Crash()).run()
    for table, changes in before.items():
        left = db.view.hot.read_log(table, None, 0, None, 99)
        gone = [change.seq for change in changes if change not in left]
        assert load_floor(db.view.hot, table).seq >= max(gone, default=0)
    few.run()
    assert few.log_bytes() <= 36_000


def test_the_watch_asks_again_only_when_a_log_that_must_stay_has_grown(db: Embedded, small: LogTrim) -> None:
    looks: list[View] = []

    def slowest(user: str, since_us: int, unread: int | None = None) -> int | None:
        looks.append(db.view)
        return db.registry.slowest_cursor(user, since_us, unread)

    def trims() -> int:
        watch.look()
        return sum(job.job_type is JobType.TRIM for job in db.jobs.open_jobs())

    watch = watch_log_size(db.jobs, replace(small, slowest_device=slowest), db.committer)
    fill(db, "notes", range(90), "ann")
    assert (trims(), looks) == (0, []), "small enough"
    db.registry.note("ann", "phone", 0)
    fill(db, "notes", range(90, 120), "ann")
    assert (trims(), len(looks)) == (0, 1), "nothing is due while the phone needs all"
    fill(db, "tasks", range(5), "ann")
    assert (trims(), len(looks)) == (0, 1)
    fill(db, "tasks", range(5, 12), "ann")
    assert (trims(), len(looks)) == (0, 2), "a tenth more"
    db.registry.note("ann", "phone", 60)
    fill(db, "tasks", range(12, 24), "ann")
    assert trims() == 1


@pytest.mark.parametrize("on_rocks", [False, True])
def test_rows_that_end_by_themselves_outlive_their_owner_s_log(tmp_path: Path, on_rocks: bool) -> None:
    """A user's STREAM rows, older than the log: no query and no reader of the log loses one."""
    clock = ManualClock()
    store = None if on_rocks else MemoryStore(clock=clock)
    with Embedded(tmp_path, clock=clock, store=store, tail_changes_max=1) as db:
        db.run(
            "CREATE NAMESPACE app; CREATE USER TABLE app.notes (id INT PRIMARY KEY, v INT);"
            "CREATE TABLE app.steps (id INT PRIMARY KEY, v INT) WITH (TYPE = 'STREAM', TTL_SECONDS = 100000)"
        )
        steps = db.table("app.steps")

        def step(key: int) -> None:
            db.change(f"INSERT INTO app.steps VALUES ({key}, 0)", user="ann")

        def noted(key: int) -> None:
            db.change(f"INSERT INTO app.notes VALUES ({key}, 0)", user="ann")

        for key in range(3):
            step(key)
        seen = db.committer.last_seq
        assert len(db.rows("SELECT id FROM app.steps", user="ann")) == 3
        step(3)
        db.change("DELETE FROM app.steps WHERE id = 0", user="ann")
        for key in range(5):
            noted(key)
        clock.advance(RETENTION_S + 1)
        step(4)
        assert db.trim.run() == 5
        assert own_log(db, ANN) == [0, 1, 2, 3, 0, 4]
        found = db.committer.changelog.read(db.settle(), steps.id, ANN, after=seen, limit=9)
        assert keys(found) == [3, 0, 4]
        assert db.rows("SELECT id FROM app.steps ORDER BY id", user="ann") == [(1,), (2,), (3,), (4,)]
