"""Nothing is acknowledged, and nothing seen, before a sync of the log that covers it has returned.

The sync is observed at the effect: the store calls ours in the place of RocksDB's, and ours holds it,
lets it go, or fails it.
"""

import asyncio
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from upwell.engine.commit import Durability
from upwell.errors import AlreadyExists, PermissionDenied, ReadOnly
from upwell.feeds.download import Downloads
from upwell.session.outcome import Changed, Message, StatementFailed
from upwell.storage.rocks import RocksStore
from upwell.testing import PointActions, wait_until
from upwell.testing.embedded import ROOT, Embedded, answer_rows, principal
from upwell.types import SHARED, user_owner

NOTES, OURS = "app.notes", "app.ours"
TIMEOUT_S = 30.0


class Sync:
    """The sync of the log: counts, holds, fails, and knows up to which seq the disk has everything."""

    def __init__(self) -> None:
        self.store: RocksStore | None = None
        self.synced_until = 0
        self.count = 0
        self._fail = False
        self._entered = threading.Event()
        self._go = threading.Event()
        self._go.set()
        self._only = ""

    def __call__(self, sync: Callable[[], None]) -> None:
        covered = self.store.last_seq if self.store is not None else 0
        if not threading.current_thread().name.startswith(self._only):
            sync()
            self.synced_until = covered
            return
        self._entered.set()
        assert self._go.wait(TIMEOUT_S), "held for ever"
        if self._fail:
            raise OSError("the disk is gone")
        sync()
        self.count += 1
        self.synced_until = covered

    def hold(self, only: str = "") -> None:
        """Hold the next sync, of a thread whose name begins so."""
        self._only = only
        self._go.clear()
        self._entered.clear()

    async def is_held(self) -> None:
        """Return when a sync is being held."""
        assert await asyncio.to_thread(self._entered.wait, TIMEOUT_S)

    def release(self, *, fail: bool = False) -> None:
        self._fail = fail
        self._go.set()


@pytest.fixture
def sync() -> Sync:
    return Sync()


@pytest.fixture
def db(tmp_path: Path, sync: Sync) -> Iterator[Embedded]:
    with Embedded(tmp_path, wal_sync=sync) as db:
        assert isinstance(db.store, RocksStore)
        sync.store = db.store
        db.run(
            "CREATE NAMESPACE app;"
            f"CREATE TABLE {NOTES} (id TEXT PRIMARY KEY, v TEXT) WITH (TYPE = 'USER', SYNC = TRUE);"
            f"CREATE TABLE {OURS} (id INT PRIMARY KEY, n INT) WITH (TYPE = 'SHARED');"
            f"INSERT INTO {NOTES} VALUES ('old', 'x'); INSERT INTO {OURS} VALUES (1, 0)"
        )
        db.settle()
        yield db
        sync.release()


def test_each_acknowledgement_and_each_view_follows_a_sync_that_covers_it(db: Embedded, sync: Sync) -> None:
    """64 writers at once: groups share a sync, nobody is answered before theirs has returned."""
    acknowledged_at: dict[str, int] = {}
    published: list[tuple[int, int]] = []
    db.committer.publication.listen(lambda: published.append((db.view.seq, sync.synced_until)))

    async def write(writer: int) -> None:
        for number in range(10):
            key = f"{writer}-{number}"
            await db.outcomes(f"INSERT INTO {NOTES} VALUES ('{key}', 'x')")
            acknowledged_at[key] = sync.synced_until

    async def all_write() -> None:
        await asyncio.gather(*(write(writer) for writer in range(64)))

    syncs_before = sync.count
    db.runner.run(all_write())
    seq_of = dict(db.rows(f"SELECT id, _seq FROM {NOTES} WHERE id <> 'old'"))
    assert acknowledged_at.keys() == seq_of.keys()
    assert [key for key, synced in acknowledged_at.items() if synced < int(str(seq_of[key]))] == []
    assert [pair for pair in published if pair[0] > pair[1]] == []
    assert len(acknowledged_at) == 640
    assert sync.count - syncs_before < 640, "a group of commits shares a sync"


async def seen(db: Embedded) -> dict[str, object]:
    """Return what every kind of reader sees now."""
    view = db.view
    notes = db.table(NOTES)
    tail = db.committer.changelog.tail(view, after=0)
    assert tail is not None, "the store was empty when it was opened"
    downloads = Downloads(db.committer, stream_id="s")
    page = await asyncio.to_thread(
        downloads.download, ROOT, "phone", after=0, until=0, limit=100, schema=None, include_self=True
    )
    select = await db.outcomes(f"SELECT id FROM {NOTES} ORDER BY id")
    point = await db.outcomes(f"SELECT id FROM {NOTES} WHERE id = 'new'")
    log = await db.outcomes("SELECT count(*) FROM system.changes")
    return {
        "view": view.seq,
        "tail": len(tail),
        "download": [change.pk for change in page.changes],
        "select": answer_rows(select[0]),
        "point": answer_rows(point[0]),
        "system.changes": answer_rows(log[0]),
        "log of the table": len(view.hot.read_log(notes.id, user_owner(ROOT), 0, None, 100)),
        "newest that may be read": len(db.committer.changelog.read(view, notes.id, None, after=0, limit=100)),
    }


def test_no_reader_sees_a_write_whose_sync_is_held(db: Embedded, sync: Sync) -> None:
    async def scenario() -> None:
        before = await seen(db)
        sync.hold()
        write = asyncio.create_task(db.outcomes(f"INSERT INTO {NOTES} VALUES ('new', 'x')"))
        await sync.is_held()
        assert db.committer.newest.find_row(db.table(NOTES).id, user_owner(ROOT), "new") is not None
        assert await seen(db) == before
        assert not write.done()
        sync.release()
        [outcome] = await write
        assert outcome.result == Changed("Inserted", 1)
        after = await seen(db)
        assert after["select"] == [("new",), ("old",)]
        assert after["point"] == [("new",)]
        assert [name for name in after if after[name] == before[name]] == []

    db.runner.run(scenario())


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        (f"INSERT INTO {NOTES} VALUES ('new', 'y')", AlreadyExists),
        (f"UPDATE {NOTES} SET v = 'z' WHERE id = 'gone'", 0),
        (f"DELETE FROM {NOTES} WHERE v = 'gone'", 0),
        (f"INSERT INTO {NOTES} SELECT 'new', 'y'", AlreadyExists),
        ("CREATE NAMESPACE space", AlreadyExists),
        ("CREATE NAMESPACE IF NOT EXISTS space", "already exists"),
        ("DROP TABLE IF EXISTS app.dropped", "skipped"),
    ],
)
def test_an_answer_that_rests_on_an_unsynced_commit_waits_for_its_sync(
    db: Embedded, sync: Sync, sql: str, expected: object
) -> None:
    """Also an error, or that nothing was to be done, would tell what a power cut can still take back."""
    db.run("CREATE TABLE app.dropped (id INT PRIMARY KEY) WITH (TYPE = 'SHARED')")
    db.run(f"INSERT INTO {NOTES} VALUES ('gone', 'gone')")
    db.settle()

    async def scenario() -> None:
        sync.hold()
        first = asyncio.create_task(db.outcomes(f"INSERT INTO {NOTES} VALUES ('new', 'x')"))
        await sync.is_held()
        others = [
            asyncio.create_task(db.outcomes(text))
            for text in (
                f"DELETE FROM {NOTES} WHERE id = 'gone'",
                "CREATE NAMESPACE space",
                "DROP TABLE app.dropped",
            )
        ]
        await asyncio.sleep(0)
        second = asyncio.create_task(db.outcomes(sql))
        # Readers that take their turn in the loop and in threads come and go; the writer has no answer.
        for _ in range(3):
            assert answer_rows((await db.outcomes(f"SELECT count(*) FROM {NOTES}"))[0]) == [(2,)]
        assert not second.done()
        assert not first.done()
        sync.release()
        await asyncio.gather(first, *others)
        if isinstance(expected, type):
            with pytest.raises(expected):
                await second
        else:
            [outcome] = await second
            match outcome.result:
                case Changed(_, count):
                    assert count == expected
                case Message(text):
                    assert str(expected) in text
                case other:
                    raise AssertionError(other)

    db.runner.run(scenario())


@pytest.mark.parametrize(
    ("sql", "actor"),
    [
        (f"EXECUTE AS USER 'ann' (SELECT id FROM {NOTES} WHERE id = 'old')", ROOT),
        (f"EXECUTE AS USER 'ann' (SELECT COUNT(*) + 1 FROM {NOTES})", ROOT),
        (f"SELECT id FROM all_owners('{NOTES}')", ROOT),
        (f"EXECUTE AS USER 'ann' (SELECT id FROM {NOTES})", "bob"),
    ],
)
def test_who_acts_for_others_is_answered_when_the_audit_log_has_it(
    db: Embedded, sync: Sync, sql: str, actor: str
) -> None:
    """Also a refusal: a power cut takes back no entry of what somebody has been told."""

    async def scenario() -> None:
        sync.hold()
        act = asyncio.create_task(db.outcomes(sql, (), actor))
        await sync.is_held()
        for _ in range(3):
            await db.outcomes(f"SELECT count(*) + 0 FROM {NOTES}")
        assert not act.done()
        sync.release()
        await asyncio.wait([act])
        assert isinstance(act.exception(), PermissionDenied) == (actor == "bob")

    db.runner.run(scenario())
    entries = "SELECT COUNT(*) FROM system.audit_log WHERE action LIKE 'EXECUTE%' OR action LIKE 'READ%'"
    assert db.rows(entries) == [(1,)]


def test_after_a_failed_sync_nothing_is_acknowledged_and_everybody_refused(db: Embedded, sync: Sync) -> None:
    async def scenario() -> None:
        before = await seen(db)
        told = threading.Event()
        db.committer.publication.listen(told.set)
        sync.hold()
        waiting = [
            asyncio.create_task(db.sessions.execute(principal(ROOT), sql, (), "default"))
            for sql in (
                f"INSERT INTO {NOTES} VALUES ('new', 'x')",
                f"INSERT INTO {NOTES} VALUES ('new', 'y')",
                f"UPDATE {OURS} SET n = n + 1",
                "CREATE NAMESPACE space",
            )
        ]
        await sync.is_held()
        sync.release(fail=True)
        for task in waiting:
            with pytest.raises(StatementFailed) as failed:
                await task
            assert isinstance(failed.value.cause, ReadOnly)
        assert await asyncio.to_thread(told.wait, TIMEOUT_S), "who listens is told as well"
        # Later ones as well: also those whose error would rest on what was never synced.
        for sql in (
            f"INSERT INTO {NOTES} VALUES ('new', 'z')",
            f"INSERT INTO {NOTES} VALUES ('other', 'z')",
            f"DELETE FROM {NOTES} WHERE id = 'new'",
            "CREATE NAMESPACE IF NOT EXISTS space",
        ):
            with pytest.raises(ReadOnly) as refused:
                await db.outcomes(sql)
            assert str(refused.value) == (
                "Storage error: syncing the log of the store failed; restart the server"
            )
        assert await seen(db) == before, "readers go on, with what is safe"

    db.runner.run(scenario())
    sync.release()
    db.reopen()
    assert [row[0] for row in db.rows(f"SELECT id FROM {NOTES} ORDER BY id")] in (["new", "old"], ["old"])
    assert db.change(f"INSERT INTO {NOTES} VALUES ('again', 'x')") == 1


def test_jobs_and_flushes_stop_at_a_failed_sync(db: Embedded, sync: Sync) -> None:
    """A flush whose commit isn't synced has switched nothing that a reader sees, and says so."""
    sync.release(fail=True)
    with pytest.raises(ReadOnly):
        db.flush(OURS)
    assert db.rows(f"SELECT id, n FROM {OURS}") == [(1, 0)]
    with pytest.raises(ReadOnly):
        db.flusher.flush_partition(db.table(OURS), SHARED)
    sync.release()
    db.reopen()
    assert db.rows(f"SELECT id, n FROM {OURS}") == [(1, 0)]
    db.flush(OURS)
    assert db.rows(f"SELECT id, n FROM {OURS}") == [(1, 0)]
    assert db.cold_rows(OURS) == [{"id": 1, "n": 0}]


def test_async_durability_answers_before_the_sync(tmp_path: Path) -> None:
    """It is what the setting says: faster, and a power cut may take it back."""
    sync = Sync()
    with Embedded(tmp_path, wal_sync=sync, durability=Durability.ASYNC) as db:
        db.run("CREATE NAMESPACE app; CREATE TABLE app.t (id INT PRIMARY KEY) WITH (TYPE = 'SHARED')")
        sync.hold()
        assert db.change("INSERT INTO app.t VALUES (1)") == 1
        assert db.rows("SELECT id FROM app.t") == [(1,)]
        sync.release()
        count = sync.count
        db.change("INSERT INTO app.t VALUES (2)")
        wait_until(lambda: sync.count > count, timeout_s=TIMEOUT_S, what="the sync that follows")


def test_async_durability_removes_no_file_before_the_disk_knows_why(tmp_path: Path) -> None:
    """A power cut could take back the DROP or the compaction that made a file superfluous, but not the file's
    end: so that commit is synced first, here while the thread that syncs for writers never gets to it."""
    sync = Sync()
    reached: dict[str, tuple[int, int]] = {}

    def note(point: str) -> None:
        reached[point] = (sync.synced_until, db.committer.last_seq)

    points = PointActions(
        {
            point: partial(note, point)
            for point in ("cleanup:begin", "compact:after-commit", "collect:removed")
        }
    )
    with Embedded(tmp_path, wal_sync=sync, durability=Durability.ASYNC, points=points) as db:
        assert isinstance(db.store, RocksStore)
        sync.store = db.store
        db.run("CREATE NAMESPACE app; CREATE TABLE app.t (id INT PRIMARY KEY) WITH (TYPE = 'SHARED')")
        for key in (1, 2):
            db.change(f"INSERT INTO app.t VALUES ({key})")
            db.flush("app.t")
        sync.hold(only="upwell-wal-sync")
        try:
            db.compact("app.t")
            files = sorted(path.name for path in tmp_path.rglob("batch-*.parquet"))
            assert len(set(files)) == 1, "what was merged is gone"
            assert reached["collect:removed"][0] >= reached["compact:after-commit"][1], (
                "the switch was synced"
            )
            table = db.table("app.t")
            db.run("DROP TABLE app.t")
            dropped = db.committer.last_seq
            db.cleanup.remove_table(table.id, namespace="app", name="t")
            assert reached["cleanup:begin"][0] >= dropped
            assert not list(tmp_path.rglob("batch-*.parquet"))
        finally:
            sync.release()
