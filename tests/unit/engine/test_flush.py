"""A flush moves what is hot into files, at once or not at all, and says exactly what it did."""

import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from upwell.clock import SystemClock
from upwell.effects import OsFiles
from upwell.engine import flush as flush_module
from upwell.engine.catalog import storage_record
from upwell.engine.flush import Flushed
from upwell.engine.stop import Stop
from upwell.errors import AlreadyExists, ColdFileMissing, StorageFailed, TableNotFound
from upwell.jobs.job import Job, JobType
from upwell.storage.hot import Applied, Batch, Kind
from upwell.storage.memory import MemoryStore
from upwell.testing import FailingFiles, PointActions, cold, each_fault
from upwell.testing.bucket import MemoryBucket
from upwell.testing.embedded import Embedded, memory_store
from upwell.types import SHARED, Owner, user_owner

ANN, BOB, EVE = user_owner("ann"), user_owner("bob"), user_owner("eve")


def did(flushed: dict[Owner, Flushed]) -> dict[Owner, tuple[int, int]]:
    return {owner: (each.rows, each.live) for owner, each in flushed.items()}


def segments(db: Embedded, table: str = "app.ours", user: str | None = None) -> list[cold.Segment]:
    partition = cold.find_partition(db.cold_root, table, user)
    return list(partition.segments) if partition else []


def hot_keys(db: Embedded, table: str = "app.ours", owner: Owner = SHARED) -> list[object]:
    return [version.key for version in db.settle().hot.scan_rows(db.table(table).id, owner)]


def files(db: Embedded, pattern: str) -> list[Path]:
    return sorted(path for path in db.cold_root.rglob(pattern) if ".links" not in path.parts)


def make_mine(db: Embedded, *users: str) -> None:
    db.run("CREATE NAMESPACE app; CREATE USER TABLE app.mine (id INT PRIMARY KEY, n INT)")
    for user in users:
        db.change("INSERT INTO app.mine VALUES (1, 10), (2, 20)", user=user)


def flush_group(db: Embedded) -> dict[Owner, tuple[int, int]]:
    table = db.table("app.mine")
    owners = db.flusher.pending(db.view, table)
    flushed = db.flusher.flush_partitions(table, owners, until=None, stop=Stop())
    done = did(dict(zip(sorted(owners), flushed, strict=True)))
    db.settle()
    return done


def test_each_owner_has_a_partition_of_its_own(db: Embedded) -> None:
    db.change("INSERT INTO app.mine (id, n) VALUES (1, 10), (2, 20)", user="ann")
    db.change("INSERT INTO app.mine (id, n) VALUES (1, 30)", user="bob")
    assert did(db.flush("app.mine")) == {ANN: (2, 2), BOB: (1, 1)}
    assert db.flush("app.mine") == {}
    assert db.cold_rows("app.mine", "ann") == [{"id": 1, "n": 10, "s": "-"}, {"id": 2, "n": 20, "s": "-"}]
    assert db.cold_rows("app.mine", "bob") == [{"id": 1, "n": 30, "s": "-"}]
    assert db.rows("SELECT sum(n) FROM app.mine", user="ann") == [(30,)]
    assert hot_keys(db, "app.mine", ANN) == []
    assert db.cold_problems() == []


def test_each_flush_adds_one_segment_with_rising_seqs(db: Embedded) -> None:
    for round_ in range(3):
        db.change(f"INSERT INTO app.ours VALUES ({round_ * 10}, 0), ({round_ * 10 + 1}, 0)")
        db.flush("app.ours")
        found = segments(db)
        assert [segment.row_count for segment in found] == [2] * (round_ + 1)
        assert all(a.max_seq < b.min_seq for a, b in pairwise(found))
    assert db.rows("SELECT count(*) FROM app.ours") == [(6,)]


def test_what_came_and_went_while_hot_leaves_no_file(db: Embedded) -> None:
    db.change("INSERT INTO app.ours VALUES (1, 1)")
    db.change("DELETE FROM app.ours WHERE id = 1")
    assert did(db.flush("app.ours")) == {SHARED: (0, 0)}
    assert segments(db) == []
    assert files(db, "*.parquet") == []
    assert (hot_keys(db), db.flush("app.ours"), db.rows("SELECT * FROM app.ours")) == ([], {}, [])
    assert db.change("INSERT INTO app.ours VALUES (1, 2)") == 1
    db.flush("app.ours")
    assert db.cold_rows("app.ours") == [{"id": 1, "n": 2}]


def test_a_tombstone_goes_to_the_files_while_it_hides_a_row_there(db: Embedded) -> None:
    db.change("INSERT INTO app.ours VALUES (1, 1), (2, 2)")
    db.flush("app.ours")
    db.change("DELETE FROM app.ours")
    assert did(db.flush("app.ours")) == {SHARED: (2, 0)}
    assert (db.rows("SELECT * FROM app.ours"), db.cold_rows("app.ours"), db.cold_problems()) == ([], [], [])
    db.reopen()
    assert db.rows("SELECT count(*) FROM app.ours") == [(0,)]
    assert db.change("INSERT INTO app.ours VALUES (1, 3)") == 1, "the key is free again"
    db.flush("app.ours")
    assert db.cold_rows("app.ours") == [{"id": 1, "n": 3}]
    assert db.cold_problems() == []


def test_a_synced_table_keeps_the_count_of_what_is_gone(db: Embedded) -> None:
    """A device may still ask for the version of a row that was deleted."""
    db.run("CREATE TABLE app.todo (id TEXT PRIMARY KEY) WITH (TYPE = 'USER', SYNC = TRUE)")
    for sql in ("INSERT INTO app.todo VALUES ('a')", "DELETE FROM app.todo WHERE id = 'a'"):
        db.change(sql, user="ann")
    assert did(db.flush("app.todo")) == {ANN: (1, 0)}
    table = db.table("app.todo")
    found = db.rows_by_key.find(db.view.hot, table, ANN, "a", may_block=True)
    assert found.version is not None
    assert (found.version.count, found.live) == (2, None)


def test_versions_rise_over_all_tiers(db: Embedded) -> None:
    db.change("INSERT INTO app.ours VALUES (1, 0)")
    for n in range(1, 6):
        db.flush("app.ours")
        db.change(f"UPDATE app.ours SET n = {n} WHERE id = 1")
    log = db.settle().hot.read_log(db.table("app.ours").id, SHARED, 0, None, 99)
    assert [(change.count, change.after) for change in log] == [(n + 1, [1, n]) for n in range(6)]
    assert [change.previous for change in log[1:]] == [change.seq for change in log[:-1]]
    db.flush("app.ours")
    assert db.rows("SELECT n FROM app.ours") == [(5,)]
    assert db.cold_problems() == []


def test_a_missing_file_is_an_error_that_names_it_never_fewer_rows(db: Embedded) -> None:
    db.change("INSERT INTO app.ours VALUES (1, 1)")
    db.flush("app.ours")
    db.change("INSERT INTO app.ours VALUES (2, 2)")
    [segment] = files(db, "*.parquet")
    away = segment.rename(segment.with_suffix(".away"))
    for sql in (
        "SELECT * FROM app.ours",
        "SELECT count(*) FROM app.ours",
        "SELECT * FROM app.ours WHERE id = 1",
    ):
        with pytest.raises(ColdFileMissing, match=segment.name):
            db.rows(sql)
    away.rename(segment)
    assert db.rows("SELECT count(*) FROM app.ours") == [(2,)]


def test_old_manifests_and_their_links_are_collected(db: Embedded) -> None:
    for key in range(5):
        db.change(f"INSERT INTO app.ours VALUES ({key}, 0)")
        db.flush("app.ours")
        assert len(db.rows("SELECT id FROM app.ours WHERE n = 0 ORDER BY id DESC")) == key + 1
    numbers = [int(path.stem.split("-")[2]) for path in files(db, "manifest-*.json")]
    assert numbers == [4, 5], "the one in force, and the one before until the next flush"
    assert len(list((db.cold_root / "app" / "ours" / ".links").iterdir())) == 2


def flush_job(db: Embedded, table: str) -> Job:
    job = db.jobs.submit(JobType.FLUSH, {"table_number": db.table(table).id}, f"flush-{table}")
    assert job is not None
    return db.jobs.start(job)


def drop(db: Embedded, name: str) -> Job:
    """Drop a table and return the job that removes what is left of it."""
    table = db.table(f"app.{name}")
    db.run(f"DROP TABLE app.{name}")
    job = db.jobs.find_due()
    assert job is not None
    assert job.parameters["table_number"] == table.id
    return job


@pytest.mark.parametrize(
    "point", ["flush:begin", "flush:segment-published", "flush:before-commit", "flush:mid-cleanup"]
)
def test_a_table_may_be_dropped_while_it_is_flushed(tmp_path: Path, point: str) -> None:
    """The flush ends, the cleanup follows, and nothing of the table is left in either tier."""
    cleanups: list[Job] = []
    points = PointActions({point: lambda: cleanups or cleanups.append(drop(db, "ours"))})
    with Embedded(tmp_path, store=memory_store(), points=points) as db:
        db.run(
            "CREATE NAMESPACE app; CREATE TABLE app.ours (id INT PRIMARY KEY, n INT) WITH (TYPE = 'SHARED')"
        )
        db.change("INSERT INTO app.ours VALUES (1, 1)")
        table = db.table("app.ours")
        db.kinds.run(flush_job(db, "app.ours"), Stop())
        with pytest.raises(TableNotFound):
            db.rows("SELECT * FROM app.ours")
        db.kinds.run(cleanups[0], Stop())
        assert files(db, "*.*") == []
        assert db.record_names(Kind.MANIFEST) == []
        assert list(db.committer.newest.scan_rows(table.id, SHARED)) == []


class Meanwhile(OsFiles):
    """Files that do something else, once, when a directory of this name was made."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.act: Callable[[], object] | None = None

    def make_dirs(self, path: Path, *, sync_name: bool = True) -> None:
        super().make_dirs(path, sync_name=sync_name)
        if path.name == self._name and self.act is not None:
            act, self.act = self.act, None
            act()


@pytest.mark.parametrize(("kind", "again"), [("SHARED", "SHARED"), ("USER", "SHARED"), ("SHARED", "USER")])
def test_a_table_made_again_is_flushed_while_the_one_before_is_cleaned_up(
    tmp_path: Path, kind: str, again: str
) -> None:
    """Both have one directory, which the cleanup removes if it is empty: not while the flush needs it."""
    storage = Meanwhile("ours")
    with Embedded(tmp_path, store=memory_store(), files=storage) as db:
        create = "CREATE TABLE app.ours (id INT PRIMARY KEY, n INT) WITH (TYPE = '{}')"
        db.run("CREATE NAMESPACE app;" + create.format(kind))
        db.change("INSERT INTO app.ours VALUES (1, 1)")
        db.flush("app.ours")
        job = drop(db, "ours")
        db.run(create.format(again))
        db.change("INSERT INTO app.ours VALUES (2, 2)")
        cleanup = threading.Thread(target=lambda: db.kinds.run(job, Stop()))

        def clean_up() -> None:
            cleanup.start()
            cleanup.join(0.2)

        storage.act = clean_up
        db.flush("app.ours")
        cleanup.join()
        assert db.rows("SELECT id FROM app.ours") == [(2,)]
        assert {path.name.split("-")[1] for path in db.cold_root.rglob("batch-*")} == {
            str(db.table("app.ours").id)
        }
        assert len(list(db.cold_root.rglob("manifest.json"))) == 1
        assert db.cold_problems() == []


@pytest.mark.parametrize("storage", ["local", "deep", "far"])
def test_dropped_and_moved_tables_leave_no_directory(tmp_path: Path, storage: str) -> None:
    """Empty ones above go too, up to the storage's own; those that others need stay."""
    deep = "{namespace}/{tableName}/{shard}/x/{userId}"
    with Embedded(tmp_path / "db", store=memory_store(), open_bucket=MemoryBucket().opened) as db:
        db.run(
            f"CREATE STORAGE deep TYPE filesystem PATH '{tmp_path}/deep' USER_TABLES_TEMPLATE '{deep}';"
            f"CREATE STORAGE far TYPE s3 PATH 's3://bucket/far' USER_TABLES_TEMPLATE '{deep}'"
        )
        for name in ("one", "two", "three"):
            db.run(
                f"CREATE NAMESPACE IF NOT EXISTS {name[:2]};"
                f"CREATE TABLE {name[:2]}.{name} (id INT PRIMARY KEY)"
                f" WITH (TYPE = 'USER', STORAGE_ID = '{storage}')"
            )
            for user in ("ann", "bob"):
                db.change(f"INSERT INTO {name[:2]}.{name} VALUES (1), (2)", user=user)
            db.flush(f"{name[:2]}.{name}")
            assert db.rows(f"SELECT id FROM {name[:2]}.{name} ORDER BY id", user="ann") == [(1,), (2,)]
        db.run("DROP TABLE on.one")
        db.work_off()
        root = {"local": db.cold_root, "deep": tmp_path / "deep", "far": tmp_path / "db/cache/far"}[storage]
        assert sorted(each.name for each in root.iterdir() if each.is_dir()) == ["th", "tw"]
        other = "local" if storage != "local" else "deep"
        db.run(f"ALTER TABLE tw.two SET TBLPROPERTIES (STORAGE_ID = '{other}')")
        db.compact("tw.two")
        db.flush("th.three")
        assert db.collect()
        assert [each.name for each in root.iterdir() if each.is_dir()] == ["th"]
        assert db.rows("SELECT id FROM tw.two ORDER BY id", user="bob") == [(1,), (2,)]
        db.run("DROP TABLE th.three")
        db.work_off()
        assert [each for each in root.iterdir() if each.is_dir()] == []


def test_cleanup_also_removes_what_a_first_flush_left_that_failed(tmp_path: Path) -> None:
    """No record names these files yet."""
    reached = []

    def fail() -> None:
        reached.append(True)
        raise OSError("no space left")

    points = PointActions({"flush:before-commit": fail})
    with Embedded(tmp_path, store=memory_store(), points=points) as db:
        db.run("CREATE NAMESPACE app; CREATE TABLE app.mine (id INT PRIMARY KEY) WITH (TYPE = 'USER')")
        db.change("INSERT INTO app.mine VALUES (1)", user="ann")
        with pytest.raises(OSError, match="no space"):
            db.flush("app.mine")
        assert files(db, "*.parquet") != []
        job = drop(db, "mine")
        db.kinds.run(job, Stop())
        db.kinds.run(job, Stop())  # a cleanup that is run again meets nothing
        assert files(db, "*.*") == []


def test_before_the_switch_all_that_the_manifest_names_is_on_the_disk(tmp_path: Path) -> None:
    """Content is synced before its name, and each name's directory after it: no power cut takes it back."""
    files, seen = FailingFiles(1_000_000), list[tuple[str, Path]]()
    points = PointActions({"flush:before-commit": lambda: seen.extend(files.trace)})
    with Embedded(tmp_path / "db", store=memory_store(), files=files, points=points) as db:
        db.run("CREATE NAMESPACE app")
        db.run("CREATE TABLE app.ours (id INT PRIMARY KEY, n INT) WITH (TYPE = 'SHARED')")
        # The filter of fewer keys isn't a file.
        db.change("INSERT INTO app.ours VALUES " + ", ".join(f"({key}, 1)" for key in range(200)))
        db.flush("app.ours")
        db.change("UPDATE app.ours SET n = 3")
        files.arm(1_000_000)
        seen.clear()
        db.flush("app.ours")
        named = [(at, path) for at, (call, path) in enumerate(seen) if call == "link"]
        assert sorted(path.name for _, path in named) == [
            "batch-1-1.filter", "batch-1-1.parquet", "hidden-1-0.json", "manifest-1-2.json",
        ]  # fmt: skip
        for at, path in named:
            synced = [name.name for call, name in seen[:at] if call == "fsync"]
            assert any(name.startswith(f".{path.name}.") for name in synced), path
            assert ("fsync-dir", path.parent) in seen[at:], path


def test_the_filter_of_few_keys_is_said_by_the_manifest(tmp_path: Path) -> None:
    with Embedded(tmp_path / "db") as db:
        db.run("CREATE NAMESPACE app")
        db.run("CREATE TABLE app.ours (id INT PRIMARY KEY, n INT) WITH (TYPE = 'SHARED')")
        filters = []
        for keys in (range(2), range(2, 102), range(200, 350)):
            db.change("INSERT INTO app.ours VALUES " + ", ".join(f"({key}, 1)" for key in keys))
            db.flush("app.ours")
            filters.append([path.name for path in db.cold_root.rglob("*.filter")])
        assert filters == [[], [], ["batch-1-2.filter"]]
        db.reopen()
        with pytest.raises(AlreadyExists):
            db.change("INSERT INTO app.ours VALUES (101, 2)")
        db.change("INSERT INTO app.ours VALUES (102, 2)")
        assert db.rows("SELECT n FROM app.ours WHERE id IN (1, 101, 102, 349)") == [(1,), (1,), (2,), (1,)]
        assert db.cold_problems() == []
        db.flush("app.ours")
        db.compact("app.ours")
        assert db.cold_problems() == []
        assert db.rows("SELECT COUNT(n) FROM app.ours") == [(253,)]


def test_before_several_partitions_switch_all_their_files_are_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New directories too, and one commit switches all of them."""
    monkeypatch.setattr(flush_module, "FLUSH_THREADS", 1)
    files, seen = FailingFiles(1_000_000), list[list[tuple[str, Path]]]()
    points = PointActions({"flush:before-commit": lambda: seen.append([*files.trace])})
    with Embedded(tmp_path / "db", store=memory_store(), files=files, points=points) as db:
        make_mine(db, "ann", "bob", "eve")
        commits = db.committer.commits
        assert flush_group(db) == {ANN: (2, 2), BOB: (2, 2), EVE: (2, 2)}
        assert db.committer.commits == commits + 2, "the switch, and the clean-up"
        for trace in seen:
            made = [(at, path) for at, (call, path) in enumerate(trace) if call in ("link", "mkdir")]
            assert len(made) == 3 * 3 + len(["db", "storage", "app", "mine"])
            for at, path in made:
                assert ("fsync-dir", path.parent) in trace[at:], path
        assert len(seen) == 3


def test_each_call_of_a_flush_of_several_partitions_may_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those before the one that fails are flushed; the next flush does the rest."""
    monkeypatch.setattr(flush_module, "FLUSH_THREADS", 1)
    files, counts = FailingFiles(1_000_000), Counter[int]()
    with Embedded(tmp_path, store=memory_store(), files=files) as db:
        make_mine(db)

        def run(fail_at: int) -> bool:
            # One has files from the run before, the other has never been flushed.
            users = [f"{fail_at:03d}", f"{fail_at + 1:03d}"]
            for user in users:
                db.change(
                    f"INSERT INTO app.mine VALUES ({2 * fail_at}, 1), ({2 * fail_at + 1}, 2)", user=user
                )
            files.arm(fail_at)
            try:
                flush_group(db)
            except (OSError, ColdFileMissing):
                assert files.fired
            fired = files.fired
            files.arm(1_000_000)
            counts[len(db.flusher.pending(db.settle(), db.table("app.mine")))] += 1
            flush_group(db)
            for user, first in zip(users, (max(1, fail_at - 1), fail_at), strict=True):
                rows = db.rows("SELECT id FROM app.mine ORDER BY id", user=user)
                assert rows == [(key,) for key in range(2 * first, 2 * fail_at + 2)]
                assert [(row["id"],) for row in db.cold_rows("app.mine", user)] == rows
                assert hot_keys(db, "app.mine", user_owner(user)) == []
            return fired

        assert each_fault(run) > 40
        assert min(counts[2], counts[1]) > 10
        for user in range(1, counts.total() + 2):
            db.change("INSERT INTO app.mine VALUES (0, 0)", user=f"{user:03d}")
        flush_group(db)  # what a failed one left lying goes with the partition's next flush
        assert db.cold_problems() == []


def test_a_large_flush_lets_go_of_all_but_what_came_after(tmp_path: Path) -> None:
    """Hot rows go in ranges of keys; what was written around the switch lies between them."""

    def write(low: int) -> None:
        if low + 1 in expected:
            return  # the next flush passes here too
        assert db.change(f"UPDATE app.ours SET n = {low} WHERE id = {low}") == 1
        assert db.change(f"INSERT INTO app.ours VALUES ({low + 1}, {low})") == 1
        assert db.change(f"DELETE FROM app.ours WHERE id = {low + 2}") == 1
        expected.update({low: low, low + 1: low})
        del expected[low + 2]

    points = PointActions(
        {"flush:segment-written": lambda: write(800), "flush:after-commit": lambda: write(1200)}
    )
    with Embedded(tmp_path / "db", points=points) as db:
        db.run(
            "CREATE NAMESPACE app; CREATE TABLE app.ours (id INT PRIMARY KEY, n INT) WITH (TYPE = 'SHARED')"
        )
        expected = dict.fromkeys(range(0, 4000, 2), 0)
        values = ", ".join(f"({key}, 0)" for key in expected)
        db.change(f"INSERT INTO app.ours VALUES {values}")
        asked = db.settle().seq
        write(400)
        flushed = db.flusher.flush_partition(db.table("app.ours"), SHARED, until=asked)
        assert (flushed.rows, flushed.left[0]) == (1998, 3)
        assert hot_keys(db) == [low + each for low in (400, 800, 1200) for each in range(3)]
        db.reopen()
        assert dict(db.rows("SELECT id, n FROM app.ours")) == expected
        db.flush("app.ours")
        assert hot_keys(db) == []
        assert db.cold_rows("app.ours") == [{"id": key, "n": n} for key, n in sorted(expected.items())]


def test_what_is_cold_is_forgotten_by_a_flush_that_was_asked_for_before(tmp_path: Path) -> None:
    """A flush that got beyond it ended before its cleanup; the rows are in the files."""
    stops: list[bool] = []

    def stop() -> None:
        stops.append(True)
        raise OSError("the process ends here")

    points = PointActions({"flush:after-commit": lambda: stops or stop()})
    with Embedded(tmp_path, store=memory_store(), points=points) as db:
        db.run(
            "CREATE NAMESPACE app; CREATE TABLE app.ours (id INT PRIMARY KEY, n INT) WITH (TYPE = 'SHARED')"
        )
        db.change("INSERT INTO app.ours VALUES (1, 1)")
        asked = db.settle().seq
        db.change("INSERT INTO app.ours VALUES (2, 2)")
        with pytest.raises(OSError, match="ends here"):
            db.flush("app.ours")
        db.change("INSERT INTO app.ours VALUES (3, 3)")
        flushed = db.flusher.flush_partition(db.table("app.ours"), SHARED, until=asked)
        assert (flushed.rows, flushed.left[0]) == (0, 1)
        assert hot_keys(db) == [3]


def test_a_table_of_the_same_name_meets_nothing_of_the_old_one(db: Embedded) -> None:
    db.change("INSERT INTO app.ours VALUES (1, 1)")
    db.flush("app.ours")
    job = drop(db, "ours")
    db.run("CREATE TABLE app.ours (id INT PRIMARY KEY, n INT) WITH (TYPE = 'SHARED')")
    assert db.rows("SELECT * FROM app.ours") == []
    db.change("INSERT INTO app.ours VALUES (1, 2)")
    db.flush("app.ours")
    db.kinds.run(job, Stop())
    assert db.rows("SELECT id, n FROM app.ours") == [(1, 2)]
    assert db.cold_rows("app.ours") == [{"id": 1, "n": 2}]
    assert db.cold_problems() == []


def test_readers_and_writers_never_notice_a_flush(db: Embedded) -> None:
    """Twenty flushes in a row: each SELECT has all rows, and the two that moved together still agree."""
    db.change("INSERT INTO app.ours VALUES " + ", ".join(f"({key}, 0)" for key in range(10)))

    def flush() -> None:
        for _ in range(20):
            while not db.flush("app.ours"):
                pass  # the writer is at it

    moved = 0
    with ThreadPoolExecutor(1) as thread:
        flushing = thread.submit(flush)
        while not flushing.done():
            moved += 1
            db.change(f"UPDATE app.ours SET n = {moved} WHERE id IN (3, 7)")
            found = db.rows("SELECT count(*), min(n), max(n), sum(n) FROM app.ours")
            assert found == [(10, 0, moved, 2 * moved)]
        flushing.result()
    assert moved > 10
    db.flush("app.ours")
    assert db.cold_rows("app.ours") == [{"id": key, "n": moved if key in (3, 7) else 0} for key in range(10)]
    assert db.cold_problems() == []


@pytest.mark.parametrize("point", ["flush:manifest-written", "flush:before-commit", "flush:after-commit"])
def test_of_two_tables_with_one_directory_the_second_stays_hot(tmp_path: Path, point: str) -> None:
    """By templates of a definition that is older than their check; whenever the second one comes."""
    told: list[str] = []

    def flush_second() -> None:
        if not told:
            told.append("it is flushed")
            with pytest.raises(StorageFailed) as refused:
                db.flush("app.root")
            told[:] = [str(refused.value)]

    points = PointActions({point: flush_second})
    with Embedded(tmp_path / "data", points=points) as db:
        db.run(
            f"CREATE NAMESPACE app; CREATE NAMESPACE x; CREATE STORAGE s TYPE filesystem PATH '{tmp_path}/s';"
            "CREATE TABLE x.app (id INT PRIMARY KEY) WITH (TYPE = 'USER', STORAGE_ID = 's');"
            "CREATE TABLE app.root (id INT PRIMARY KEY) WITH (TYPE = 'SHARED', STORAGE_ID = 's');"
            "INSERT INTO x.app VALUES (1), (2); INSERT INTO app.root VALUES (3)"
        )
        older = replace(db.view.catalog.storages["s"], shared_template="x/{namespace}/{tableName}")
        db.committer.publication.wait(db.committer.apply(Batch(records=[storage_record(older)])))
        db.flush("x.app")
        for _ in range(2):
            with pytest.raises(StorageFailed, match=r"is that of table 'x\.app'"):
                db.flush("app.root")
        assert "is that of table 'x.app'" in told[0]
        assert cold.find_partition(tmp_path / "s", "x.app", "root", roots={"s": tmp_path / "s"}) is not None
        assert (db.rows("SELECT id FROM app.root"), db.rows("SELECT count(*) FROM x.app")) == ([(3,)], [(2,)])


class Counting(MemoryStore):
    """Counts the ranges that are deleted: each gap between rows that are kept is one."""

    ranges = 0

    def apply(self, batch: Batch) -> Applied:
        self.ranges += sum(len(each.kept) + 1 for each in batch.ranges)
        return super().apply(batch)


@pytest.mark.parametrize(("every", "ranges_max"), [(1, 0), (2, 0), (3, 0), (50, 0), (400, 4), (5_000, 2)])
def test_rows_written_during_a_flush_stay_and_cost_few_ranges(
    tmp_path: Path, every: int, ranges_max: int
) -> None:
    """Each so-manieth is changed between the View and the clean-up: of the others none is left hot."""
    rows, store = 1_200, Counting(clock=SystemClock())
    updates = [f"UPDATE app.ours SET n = -1 WHERE id % {every} = 0"]
    points = PointActions({"flush:after-commit": lambda: updates and db.run(updates.pop())})
    with Embedded(tmp_path, store=store, points=points) as db:
        db.run("CREATE NAMESPACE app; CREATE SHARED TABLE app.ours (id INT PRIMARY KEY, n INT)")
        db.run("INSERT INTO app.ours VALUES " + ", ".join(f"({key}, {key})" for key in range(rows)))
        db.flush("app.ours")
        assert hot_keys(db) == list(range(0, rows, every))
        expected = [(key, -1 if key % every == 0 else key) for key in range(rows)]
        assert db.rows("SELECT id, n FROM app.ours ORDER BY id") == expected
        assert store.ranges <= ranges_max


def test_rows_written_while_others_are_forgotten_stay(tmp_path: Path) -> None:
    """Around those that were written before, and once more around those written while that goes on."""
    sqls = [f"UPDATE app.ours SET n = -1 WHERE id % 7 = {rest}" for rest in (2, 1, 0)]
    points = PointActions(
        {point: lambda: sqls and db.run(sqls.pop()) for point in ("flush:after-commit", "flush:mid-cleanup")}
    )
    with Embedded(tmp_path, store=memory_store(), points=points) as db:
        db.run("CREATE NAMESPACE app; CREATE SHARED TABLE app.ours (id INT PRIMARY KEY, n INT)")
        db.run("INSERT INTO app.ours VALUES " + ", ".join(f"({key}, {key})" for key in range(4_000)))
        db.flush("app.ours")
        assert not sqls
        assert hot_keys(db) == [key for key in range(4_000) if key % 7 < 3]
        assert db.rows("SELECT count(*), sum(n) FROM app.ours") == [
            (4_000, sum(-1 if key % 7 < 3 else key for key in range(4_000)))
        ]
