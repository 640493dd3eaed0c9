"""Three times in a row a flush, compaction, drop or backup fails, or its process is killed, at one place.

Then SELECT is the model, no job is running, what is done again completes, the files alone hold each version
once and nothing else lies about, and a live subscriber has seen the statements and nothing besides.
"""

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest

from upwell.clock import SystemClock
from upwell.effects import NoPoints, OsFiles
from upwell.engine import partition as partition_module
from upwell.engine import sweep as sweep_module
from upwell.engine.restore import Restore, adopt_restored
from upwell.engine.stop import Stop
from upwell.jobs import job as job_module
from upwell.jobs.compaction import submit_compaction
from upwell.jobs.job import Job, JobType, Status
from upwell.jobs.queue import load_jobs
from upwell.storage.rocks import RocksStore
from upwell.testing import PointActions, TableModel, cold, wait_until
from upwell.testing.embedded import Embedded, memory_store
from upwell.testing.faults import TornFiles, disk_full
from upwell.testing.live import Subscriber
from upwell.testing.lives import Lives, Place

TABLE = "app.notes"
TIMES = 3
WAIT_S = 30.0
SWEEP = {"SCAN_ROWS": 2, "RANGE_ROWS_MIN": 1, "RANGE_ROWS_MAX": 3}
"""Few rows make several ranges to be forgotten, between which it ends."""


def of(deed: str, points: str, *torn: str) -> list[tuple[str, Place]]:
    places = [Place(f"{deed}:{point}") for point in points.split()]
    return [(deed, place) for place in [*places, *(Place(f"{deed}:begin", torn=part) for part in torn)]]


WORKED = Place("job:worked")
IN_SEGMENT = [(deed, Place(f"{deed}:begin", in_segment=True)) for deed in ("flush", "compact")]
FLUSH = of(
    "flush",
    "begin segment-written segment-published manifest-written before-commit after-commit mid-cleanup "
    "after-cleanup job-completed",
    "batch-",
    "hidden-",
    "manifest-",
    "manifest.json",
)
COMPACT = of(
    "compact",
    "begin segment-written segment-published manifest-written before-commit after-commit after-copy "
    "job-completed",
    "batch-",
    "manifest-",
    "manifest.json",
)
COLLECT = [("compact", Place("collect:removed"))]
DROP = [("drop", place) for _, place in of("cleanup", "begin partition-removed rows-removed")]
BACKUP = of("backup", "hot-copied file-copied files-copied list-written named")
PLACES = [*FLUSH, *COMPACT, *COLLECT, *DROP, *BACKUP, *IN_SEGMENT]
PLACES += [(deed, WORKED) for deed in ("flush", "compact", "drop", "backup")]


def write(db: Embedded, round_: int) -> None:
    """New rows, a changed one, a deleted one and one that came back, of this round and the one before."""
    base = round_ * 10
    values = ", ".join(f"({key}, 'new {round_}')" for key in range(base, base + 5))
    db.change(f"INSERT INTO {TABLE} VALUES {values}")
    for old in (base, base - 10):
        db.change(f"UPDATE {TABLE} SET v = 'changed in {round_}' WHERE id = {old}")
        db.change(f"DELETE FROM {TABLE} WHERE id = {old + 1}")
        db.change(f"DELETE FROM {TABLE} WHERE id = {old + 2}")
    db.change(f"INSERT INTO {TABLE} VALUES ({base + 2}, 'back')")


def expect(model: TableModel, round_: int) -> None:
    """What `write` does, to the model."""
    base = round_ * 10
    for key in range(base, base + 5):
        model.insert(None, {"id": key, "v": f"new {round_}"})
    for old in (base, base - 10):
        model.update(None, {"v": f"changed in {round_}"}, {"id": old})
        model.delete(None, {"id": old + 1})
        model.delete(None, {"id": old + 2})
    model.insert(None, {"id": base + 2, "v": "back"})


def ask(db: Embedded, deed: str, round_: int) -> None:
    """Queue what is to be interrupted."""
    match deed:
        case "flush":
            db.jobs.submit(JobType.FLUSH, {"table_number": db.table(TABLE).id}, "flush")
        case "compact":
            db.flush(TABLE)
            submit_compaction(db.jobs, db.table(TABLE), whole=True)
        case "drop":
            db.run(f"CREATE TABLE app.gone{round_} (id INT PRIMARY KEY) WITH (TYPE = 'USER')")
            for user in ("ann", "bob"):
                db.change(f"INSERT INTO app.gone{round_} VALUES (1), (2)", user=user)
                db.flush(f"app.gone{round_}")
                db.change(f"INSERT INTO app.gone{round_} VALUES (3)", user=user)
            db.run(f"DROP TABLE app.gone{round_}")
        case "backup":
            target = str(db.directory / "backups" / str(round_))
            db.jobs.submit(JobType.BACKUP, {"backup_path": target}, f"backup {round_}")


def work(db: Embedded) -> list[Job]:
    """Do what is queued, and collect what it left, as a server does."""
    jobs = db.work_off()
    db.partitions.collect_due()
    return jobs


def life(directory: Path, deed: str, round_: int, place: Place) -> None:
    """Write, go on with what the last life left, and begin what is to be interrupted, if that was done."""
    points, files = place.deadly()
    job_module.BACKOFF_FIRST_S = 0.0
    for limit, rows in SWEEP.items():
        setattr(sweep_module, limit, rows)
    partition_module.FILTER_IN_MANIFEST_BYTES_MAX = 0
    with Embedded(directory, points=points, files=files) as db:
        write(db, round_)
        work(db)
        ask(db, deed, round_)
        work(db)


@contextmanager
def watched(db: Embedded, before: Subscriber | None = None) -> Iterator[Subscriber]:
    """A live subscriber of the table, which goes on from where the one `before` was."""
    loop = db.runner.get_loop()
    pump = loop.create_task(db.sessions.feed.run())
    client = before.copy(db) if before else Subscriber(db, db.sessions.feed, "root", f"SELECT * FROM {TABLE}")
    loop.run_until_complete(client.resume() if before else client.open())

    async def end() -> None:
        client.close()
        pump.cancel()
        await asyncio.gather(pump, return_exceptions=True)
        await db.sessions.feed.close()

    try:
        yield client
    finally:
        loop.run_until_complete(end())


def check(db: Embedded, model: TableModel, client: Subscriber) -> None:
    """SELECT, by scan and by key, and what the subscriber holds are the model; no job is running."""
    rows = model.rows(None)
    expected = [tuple(row.values()) for row in rows]
    assert db.rows(f"SELECT id, v FROM {TABLE} ORDER BY id") == expected
    for key in (1, 2, 12):
        found = db.rows(f"SELECT id, v FROM {TABLE} WHERE id = {key}")
        assert found == [row for row in expected if row[0] == key]
    by_key = {row["id"]: row for row in rows}
    db.runner.run(client.until(lambda: client.shown(["id", "v"]) == by_key))
    statuses = {job.status for job in load_jobs(db.view.hot)}
    assert statuses <= {Status.COMPLETED, Status.SKIPPED}, statuses


def finish(db: Embedded, model: TableModel, client: Subscriber, deed: str, round_: int) -> None:
    """Done once more it completes; then the files alone hold the truth, each version once, and nothing else
    lies about."""
    work(db)
    check(db, model, client)
    count = len(client.events)
    ask(db, deed, round_)
    work(db)
    check(db, model, client)
    assert len(client.events) == count, "no event of what isn't a statement's"
    write(db, round_)
    expect(model, round_)
    check(db, model, client)
    db.flush(TABLE)
    db.compact(TABLE)
    check(db, model, client)
    assert db.cold_rows(TABLE) == model.rows(None)
    partition = cold.find_partition(db.cold_root, TABLE)
    assert partition is not None
    seqs = [(row["id"], row["_seq"]) for row in cold.versions(partition)]
    assert len(seqs) == len(set(seqs)), "a version twice in Parquet"
    wait_until(lambda: db.collect() and not db.cold_problems(), timeout_s=WAIT_S, what="the collection")
    assert {path.parent.name for path in db.cold_root.rglob("*") if path.is_file()} <= {"notes", ".links"} | {
        path.name for path in db.cold_root.rglob("notes/.links/*")
    }, "nothing is left of dropped tables"


def prepare(db: Embedded, model: TableModel) -> None:
    db.run(f"CREATE NAMESPACE app; CREATE TABLE {TABLE} (id INT PRIMARY KEY, v TEXT) WITH (TYPE = 'SHARED')")
    for round_ in range(2):
        write(db, round_)
        expect(model, round_)
        db.flush(TABLE)


@pytest.fixture(scope="module")
def lives() -> Iterator[Lives]:
    with Lives() as lives:
        yield lives


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_module, "BACKOFF_FIRST_S", 0.0)


@pytest.fixture(autouse=True)
def ranges_of_few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    for limit, rows in SWEEP.items():
        monkeypatch.setattr(sweep_module, limit, rows)


@pytest.fixture(autouse=True)
def filters_are_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of many keys are: one more that may be torn."""
    monkeypatch.setattr(partition_module, "FILTER_IN_MANIFEST_BYTES_MAX", 0)


@pytest.mark.parametrize(("deed", "place"), PLACES, ids=map(str, (place for _, place in PLACES)))
def test_a_process_killed_three_times_at_a_place(
    tmp_path: Path, lives: Lives, deed: str, place: Place
) -> None:
    model = TableModel("id", ("id", "v"))
    with Embedded(tmp_path) as db:
        prepare(db, model)
        with watched(db) as client:
            pass
    for round_ in range(2, 2 + TIMES):
        code = lives.live(life, tmp_path, deed, round_, place)
        assert code == (-signal.SIGXFSZ if place.in_segment else -signal.SIGKILL), "it was to die"
        expect(model, round_)
    with Embedded(tmp_path) as db, watched(db, client) as client:
        finish(db, model, client, deed, 2 + TIMES)
        if deed == "backup":
            check_backups(db, tmp_path.with_name(f"{tmp_path.name}-other"), model)


def check_backups(db: Embedded, other: Path, model: TableModel) -> None:
    """Each backup is whole or isn't there; the newest holds what was there when it was made."""
    made = sorted((db.directory / "backups").iterdir())
    assert {path.name for path in made} >= {"2", str(2 + TIMES)}, "interrupted and done later; done at once"
    restore = Restore(other, partial(RocksStore, clock=SystemClock()), NoPoints(), OsFiles())
    other.mkdir()
    for path in made:
        restore.run(path, "RS-1", epoch=0, stop=Stop())
    adopt_restored(other, partial(RocksStore, clock=SystemClock()), NoPoints(), OsFiles())
    with Embedded(other) as there:
        before = model.rows(None, lambda row: int(str(row["id"])) < 10 * (2 + TIMES))
        found = there.rows(f"SELECT id FROM {TABLE} ORDER BY id")
        assert {key for (key,) in found} >= {row["id"] for row in before}
        assert max(int(str(key)) for (key,) in found) < 10 * (2 + TIMES)


class Failing:
    """Effects that fail three times at a place."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.count = 0
        self.is_armed = False
        self.torn = TornFiles(place.torn, self._fail)
        self.points = PointActions({place.point: self._arm if place.torn else self._fail})

    def _arm(self) -> None:
        if self.is_armed and self.count < TIMES:
            self.torn.arm()

    def _fail(self) -> None:
        if self.is_armed and self.count < TIMES:
            self.count += 1
            raise disk_full()


FAILING = [(deed, place) for deed, place in PLACES if not place.in_segment]


@pytest.mark.parametrize(("deed", "place"), FAILING, ids=map(str, (place for _, place in FAILING)))
def test_an_attempt_that_fails_three_times_at_a_place(tmp_path: Path, deed: str, place: Place) -> None:
    model, failing = TableModel("id", ("id", "v")), Failing(place)
    store = None if deed == "backup" else memory_store()
    with Embedded(tmp_path, store=store, points=failing.points, files=failing.torn) as db:
        prepare(db, model)
        with watched(db) as client:
            failing.is_armed = True
            for round_ in range(2, 2 + TIMES):
                write(db, round_)
                expect(model, round_)
                ask(db, deed, round_)
                with suppress(OSError):  # a collection is no job: who keeps the watch tries again
                    work(db)
                check(db, model, client)
            assert failing.count == TIMES, f"it failed {failing.count} times"
            finish(db, model, client, deed, 2 + TIMES)
