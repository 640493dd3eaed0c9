"""What each kind of job does: its message says how much, and a job that is run again does no harm."""

import gc
from pathlib import Path

import pytest

from upwell.engine.cleanup import READERS_POLLS_MAX, Cleanup
from upwell.engine.in_force import partition_name, spare_name
from upwell.engine.stop import Stop, Stopped
from upwell.errors import ColdFileMissing, InvalidOperation
from upwell.jobs.job import Job, JobType
from upwell.jobs.kinds import Done
from upwell.storage.hot import Batch, Kind, RecordWrite
from upwell.testing import FailingFiles, PointActions, cold
from upwell.testing.embedded import Embedded, memory_store
from upwell.types import SHARED, user_owner


def job(db: Embedded, kind: JobType, **parameters: str | int) -> Job:
    made = db.jobs.submit(kind, parameters, f"{kind.value}")
    assert made is not None
    return db.jobs.start(made)


def test_a_flush_counts_rows_and_partitions(db: Embedded, points: PointActions) -> None:
    db.run("CREATE TABLE app.mine (id INT PRIMARY KEY) WITH (TYPE = 'USER')")
    for user in ("ann", "bob", "eve"):
        db.change("INSERT INTO app.mine VALUES (1), (2)", user=user)
    db.change("DELETE FROM app.mine WHERE id = 1", user="eve")
    flush = job(db, JobType.FLUSH, table_number=db.table("app.mine").id)
    assert db.kinds.run(flush, Stop()) == Done("5 row(s) of 3 partition(s) are in Parquet now")
    assert points.reached[-1] != "flush:begin"
    assert points.reached.count("flush:job-completed") == 1
    db.settle()
    assert db.kinds.run(flush, Stop()) == Done("no pending writes: nothing to move to Parquet", True)


def test_a_flush_of_many_users_stops_at_the_first_failure_and_goes_on_from_there(
    db: Embedded, files: FailingFiles
) -> None:
    """Partitions are flushed several at a time; none is lost, none done twice."""
    db.run("CREATE TABLE app.mine (id INT PRIMARY KEY) WITH (TYPE = 'USER')")
    users = [f"u{number:02d}" for number in range(40)]
    for user in users:
        db.change("INSERT INTO app.mine VALUES (1), (2)", user=user)
    flush = job(db, JobType.FLUSH, table_number=db.table("app.mine").id)
    files.arm(30, only="fsync")
    with pytest.raises(OSError, match="injected"):
        db.kinds.run(flush, Stop())
    db.settle()
    left = list(db.view.hot.owners(db.table("app.mine").id))
    assert 0 < len(left) < len(users)
    files.arm(1_000_000)
    done = db.kinds.run(flush, Stop())
    assert done.message.endswith("partition(s) are in Parquet now")
    for user in users:
        assert db.cold_rows("app.mine", user) == [{"id": 1}, {"id": 2}]
        assert db.rows("SELECT id FROM app.mine ORDER BY id", user=user) == [(1,), (2,)]


def lose_manifest(db: Embedded, user: str) -> tuple[Path, dict[Path, bytes]]:
    """Take a partition's manifest away, its copy and spare too; return which it is, and what was there."""
    partition = cold.find_partition(db.cold_root, "app.mine", user)
    assert partition is not None
    found = {path: path.read_bytes() for path in partition.directory.glob("manifest*.json")}
    for path in found:
        path.unlink()
    spare = spare_name(partition_name(db.table("app.mine").id, user_owner(user)))
    db.committer.apply(Batch(records=[RecordWrite(Kind.META, spare, None)]))
    return max(path for path in found if path.name != "manifest.json"), found


@pytest.mark.parametrize("kind", [JobType.FLUSH, JobType.COMPACT])
def test_a_damaged_partition_stops_no_other_of_its_table(db: Embedded, kind: JobType) -> None:
    """The job does what it can, and fails with the name of the partition and of the file."""
    db.run("CREATE TABLE app.mine (id INT PRIMARY KEY) WITH (TYPE = 'USER')")
    users = [f"u{number:02d}" for number in range(40)]
    for number in (1, 2):
        for user in users:
            db.change("INSERT INTO app.mine VALUES ($1)", [number], user=user)
        if number == 1 or kind is JobType.COMPACT:
            db.flush("app.mine")
    lost, found = lose_manifest(db, "u07")
    db.reopen()
    run = job(db, kind, table_number=db.table("app.mine").id, whole=1)
    for _ in range(2):
        with pytest.raises(ColdFileMissing) as raised:
            db.kinds.run(run, Stop())
        assert str(lost) in raised.value.args[0]
        assert "app.mine of user 'u07'" in raised.value.args[0]
        db.settle()
    healthy = [user for user in users if user != "u07"]
    for user in healthy:
        assert db.cold_rows("app.mine", user) == [{"id": 1}, {"id": 2}]
        assert db.rows("SELECT id FROM app.mine ORDER BY id", user=user) == [(1,), (2,)]
    hot = ["u07"] if kind is JobType.FLUSH else []
    assert list(db.view.hot.owners(db.table("app.mine").id)) == [user_owner(user) for user in hot]
    with pytest.raises(ColdFileMissing, match=lost.name):
        db.rows("SELECT id FROM app.mine ORDER BY id", user="u07")
    for path, content in found.items():
        path.write_bytes(content)
    db.kinds.run(run, Stop())
    assert db.cold_rows("app.mine", "u07") == [{"id": 1}, {"id": 2}]


def test_a_flush_of_many_users_stops_when_it_is_killed(tmp_path: Path) -> None:
    stop = Stop()
    points = PointActions({"flush:after-commit": lambda: stop.request() and None})
    with Embedded(tmp_path, store=memory_store(), points=points) as db:
        db.run("CREATE NAMESPACE app; CREATE TABLE app.mine (id INT PRIMARY KEY) WITH (TYPE = 'USER')")
        for number in range(40):
            db.change("INSERT INTO app.mine VALUES (1)", user=f"u{number}")
        table = db.table("app.mine").id
        with pytest.raises(Stopped):
            db.kinds.run(job(db, JobType.FLUSH, table_number=table), stop)
        db.settle()
        assert 0 < len(list(db.view.hot.owners(table))) < 40


def test_a_scheduled_flush_ends_what_a_crash_interrupted(tmp_path: Path) -> None:
    """After its commit the partition isn't due any more, but hot copies and no `manifest.json` are left."""
    crashes = iter([InterruptedError])

    def crash() -> None:
        for failure in crashes:
            raise failure

    points = PointActions({"flush:after-commit": crash})
    with Embedded(tmp_path, store=memory_store(), points=points) as db:
        db.run("CREATE TABLE t (id INT PRIMARY KEY) WITH (TYPE = 'SHARED', FLUSH_POLICY = 'rows:2')")
        db.change("INSERT INTO t VALUES (1), (2)")
        table = db.table("default.t")
        flush = job(db, JobType.FLUSH, table_number=table.id, policy="rows:2")
        with pytest.raises(InterruptedError):
            db.kinds.run(flush, Stop())
        db.reopen()
        db.jobs.recover()
        again = db.jobs.find(flush.job_id)
        assert again is not None
        db.kinds.run(again, Stop())
        assert list(db.settle().hot.owners(table.id)) == []
        assert db.cold_rows("default.t") == [{"id": 1}, {"id": 2}]
        assert db.cold_problems() == []


def test_a_flush_of_a_table_that_is_gone_is_skipped(db: Embedded) -> None:
    assert db.kinds.run(job(db, JobType.FLUSH, table_number=99), Stop()) == Done(
        "the table was dropped meanwhile", True
    )


def test_a_cleanup_leaves_nothing_and_may_be_repeated(db: Embedded) -> None:
    table = db.table("app.ours")
    db.flush("app.ours")
    db.change("INSERT INTO app.ours VALUES (3, 3)")
    db.run(
        "CREATE TABLE app.rest (id INT PRIMARY KEY) WITH (TYPE = 'SHARED'); INSERT INTO app.rest VALUES (1)"
    )
    db.flush("app.rest")
    db.run("DROP TABLE app.ours")
    cleanup = db.jobs.find_due()
    assert cleanup is not None
    assert db.kinds.run(cleanup, Stop()) == Done("rows, log and 1 cold partition(s) removed")
    newest = db.committer.newest
    assert list(newest.scan_rows(table.id, SHARED)) == []
    assert newest.read_log(table.id, None, 0, None, 9) == []
    assert [name.split("/")[0] for name in db.record_names(Kind.MANIFEST)] == [
        f"{db.table('app.rest').id:010d}"
    ]
    spares = [name for name in db.record_names(Kind.META) if name.startswith("manifest/")]
    assert spares == [spare_name(name) for name in db.record_names(Kind.MANIFEST)]
    assert [path.name for path in (db.cold_root / "app" / "ours").rglob("*") if path.is_file()] == []
    assert db.kinds.run(cleanup, Stop()) == Done("rows, log and 0 cold partition(s) removed")
    db.settle()
    assert db.rows("SELECT id FROM app.rest") == [(1,)]
    assert db.cold_problems() == []


def test_a_cleanup_waits_for_those_who_still_read_the_table(db: Embedded) -> None:
    """A query that was planned before the DROP must not find its files gone: it would see no rows."""
    db.flush("app.ours")
    view, table = db.view, db.table("app.ours")
    db.run("DROP TABLE app.ours")
    waited: list[float] = []
    cleanup = Cleanup(db.committer, db.storages, db.partitions, db.cold, pause=waited.append)
    with pytest.raises(InvalidOperation, match="a query still reads the dropped table"):
        cleanup.remove_table(table.id, namespace="app", name="ours")
    assert len(waited) == READERS_POLLS_MAX
    assert [v.key for v in db.rows_by_key.scan(view.hot, table, SHARED)] != [], "nothing was taken from it"
    del view
    assert cleanup.remove_table(table.id, namespace="app", name="ours") == 1


def test_a_cleanup_does_not_wait_for_a_view_that_is_only_garbage(db: Embedded) -> None:
    """What holds itself is there until Python finds the circle, which on an idle server is never."""
    gc.collect()
    gc.disable()
    try:
        garbage: list[object] = [db.view]
        garbage.append(garbage)
        table = db.table("app.ours")
        db.run("DROP TABLE app.ours")
        del garbage
        assert any(table.id in view.catalog.by_id for view in db.committer.publication.views())
        cleanup = Cleanup(db.committer, db.storages, db.partitions, db.cold, pause=lambda _: None)
        assert cleanup.remove_table(table.id, namespace="app", name="ours") == 0
    finally:
        gc.enable()
