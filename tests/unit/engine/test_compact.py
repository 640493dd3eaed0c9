"""Compaction changes no answer: it makes few segments of many and drops what nothing can show any more."""

import gc
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from upwell.engine import compact as compact_module
from upwell.engine.compact import Compacted
from upwell.engine.in_force import partition_name, spare_name
from upwell.engine.stop import Stop
from upwell.errors import ColdFileMissing
from upwell.jobs.compaction import GARBAGE_WAITS, watch_replaced
from upwell.jobs.job import JobType
from upwell.storage.hot import Batch, ExpectationFailed, Kind, RecordWrite
from upwell.testing import cold
from upwell.testing.embedded import Embedded, memory_store
from upwell.testing.wait import wait_until
from upwell.types import SHARED, user_owner

ANN = user_owner("ann")


def partition(db: Embedded, table: str = "app.ours", user: str | None = None) -> cold.Partition:
    found = cold.find_partition(db.cold_root, table, user)
    assert found is not None
    return found


def files(db: Embedded, pattern: str) -> list[str]:
    return sorted(path.name for path in db.cold_root.rglob(pattern) if ".links" not in path.parts)


def fill(db: Embedded, rounds: int, rows: int = 3) -> list[tuple[int, int]]:
    """Flush so many segments; each round changes a row of the one before and deletes one."""
    model: dict[int, int] = {}
    for round_ in range(rounds):
        keys = range(round_ * 10, round_ * 10 + rows)
        db.change("INSERT INTO app.ours VALUES " + ", ".join(f"({key}, 0)" for key in keys))
        model |= dict.fromkeys(keys, 0)
        if round_:
            db.change(f"UPDATE app.ours SET n = {round_} WHERE id = {keys[0] - 10}")
            db.change(f"DELETE FROM app.ours WHERE id = {keys[1] - 10}")
            model[keys[0] - 10] = round_
            del model[keys[1] - 10]
        db.flush("app.ours")
    return sorted(model.items())


def test_many_segments_become_one_without_what_is_superseded(db: Embedded) -> None:
    expected = fill(db, 5)
    assert len(partition(db).segments) == 5
    assert db.compact("app.ours") == {SHARED: Compacted(5, 1, 15 + 8 - len(expected))}
    [segment] = partition(db).segments
    assert segment.row_count == len(expected)
    assert partition(db).hidden == ()
    assert db.rows("SELECT id, n FROM app.ours ORDER BY id") == expected
    assert [tuple(row.values()) for row in db.cold_rows("app.ours")] == expected
    assert db.cold_problems() == []
    assert files(db, "batch-*.parquet") == ["batch-2-5.parquet"]
    assert db.compact("app.ours") == {SHARED: Compacted(1, 1, 0)}, "nothing is left to do"
    db.reopen()
    assert db.rows("SELECT id, n FROM app.ours ORDER BY id") == expected
    assert [db.rows(f"SELECT n FROM app.ours WHERE id = {key}") for key, _ in expected] == [
        [(n,)] for _, n in expected
    ]
    db.change("INSERT INTO app.ours VALUES (1000, 1)")
    db.flush("app.ours")
    assert files(db, "batch-*.parquet") == ["batch-2-5.parquet", "batch-2-6.parquet"]


def test_an_emptied_table_has_no_segment_and_no_file(db: Embedded) -> None:
    db.change("INSERT INTO app.ours VALUES (1, 1), (2, 2), (3, 3)")
    db.flush("app.ours")
    db.change("DELETE FROM app.ours")
    db.flush("app.ours")
    assert db.compact("app.ours") == {SHARED: Compacted(2, 0, 6)}
    assert (partition(db).segments, partition(db).hidden) == ((), ())
    assert [files(db, pattern) for pattern in ("*.parquet", "*.filter", "hidden-*")] == [[], [], []]
    assert db.rows("SELECT count(*) FROM app.ours") == [(0,)]
    assert db.change("INSERT INTO app.ours VALUES (1, 5)") == 1
    db.flush("app.ours")
    assert files(db, "*.parquet") == ["batch-2-2.parquet"], "a name is never used again"
    assert db.cold_rows("app.ours") == [{"id": 1, "n": 5}]


def test_flushes_leave_a_bounded_number_of_segments(db: Embedded) -> None:
    """The job of a flush asks for a compaction when it is due."""
    most = 0
    for round_ in range(40):
        db.change(f"INSERT INTO app.ours VALUES ({round_}, 0)")
        run(db, JobType.FLUSH)
        while db.jobs.find_due() is not None:
            run(db, None)
        most = max(most, len(partition(db).segments))
    assert most <= compact_module.CLASS_SEGMENTS_MAX
    assert db.rows("SELECT count(*), sum(id) FROM app.ours") == [(40, 780)]
    assert collected(db)


def run(db: Embedded, kind: JobType | None) -> None:
    """Submit a flush, or take the next job; run it to its end."""
    parameters: dict[str, str | int] = {"table_number": db.table("app.ours").id}
    job = db.jobs.submit(kind, parameters, "flush") if kind else db.jobs.find_due()
    assert job is not None
    job = db.jobs.start(job)
    db.jobs.complete(job, db.kinds.run(job, Stop()).message)
    db.settle()


def collected(db: Embedded) -> bool:
    wait_until(db.collect, timeout_s=60, what="the last reader of replaced files")
    return db.cold_problems() == []


def test_deletes_make_a_compaction_due(db: Embedded) -> None:
    db.change("INSERT INTO app.ours VALUES " + ", ".join(f"({key}, 0)" for key in range(100)))
    run(db, JobType.FLUSH)
    db.change("DELETE FROM app.ours WHERE id < 10")
    run(db, JobType.FLUSH)
    assert db.jobs.find_due() is None, "a fifth of the rows is gone"
    db.change("DELETE FROM app.ours WHERE id < 50")
    run(db, JobType.FLUSH)
    job = db.jobs.find_due()
    assert job is not None
    assert (job.job_type, job.parameters["table_id"]) == (JobType.COMPACT, "app.ours")
    run(db, None)
    [segment] = partition(db).segments
    assert segment.row_count == 50
    assert db.jobs.find_due() is None


def test_who_reads_an_older_view_keeps_its_files(db: Embedded) -> None:
    expected = fill(db, 3)
    old, table = db.view, db.table("app.ours")
    names = files(db, "*.parquet")
    db.compactor.compact_partition(table, SHARED, whole=True)
    db.settle()
    db.partitions.collect_due()
    assert set(files(db, "*.parquet")) > set(names)
    db.change("INSERT INTO app.ours VALUES (500, 5)")
    db.flush("app.ours")
    db.cold.forget_table(table.id)  # the reader opens the files only now
    found = list(db.rows_by_key.scan(old.hot, table, SHARED))
    assert [tuple(version.row or ()) for version in found] == expected
    assert db.rows("SELECT count(*) FROM app.ours") == [(len(expected) + 1,)]
    del old
    assert collected(db)
    assert len(files(db, "*.parquet")) == 2


def test_a_write_that_was_evaluated_before_a_compaction_is_committed_after_it(db: Embedded) -> None:
    """Compaction changes no answer; what was written and flushed meanwhile does."""
    table = db.table("app.ours")
    for key in (1, 2, 3):
        db.change("INSERT INTO app.ours (id, n) VALUES ($1, 0)", [key])
        db.flush("app.ours")
    db.change("DELETE FROM app.ours WHERE id = 3")
    db.flush("app.ours")
    write, late = db.write(), db.write()
    for each in (write, late):
        each.update(table, SHARED, 1, [1, 10])
        each.insert(table, SHARED, [3, 30])
    db.compactor.compact_partition(table, SHARED, whole=True)
    db.committer.apply(write.batch)
    db.settle()
    changed = [(1, 10), (2, 0), (3, 30)]
    assert db.rows("SELECT id, n FROM app.ours ORDER BY id") == changed
    db.flush("app.ours")
    db.compactor.compact_partition(table, SHARED, whole=True)
    with pytest.raises(ExpectationFailed):
        db.committer.apply(late.batch)
    assert db.rows("SELECT id, n FROM app.ours ORDER BY id") == changed


def test_readers_from_outside_have_a_grace(tmp_path: Path) -> None:
    """Who has read `manifest.json` may open its files for so long, whatever is flushed or compacted."""
    now = [1_000_000_000_000]

    class Hands:
        def now_us(self) -> int:
            return now[0]

        def monotonic(self) -> float:
            return now[0] / 1e6

    with Embedded(tmp_path, store=memory_store(), clock=Hands(), grace_s=10) as db:
        db.run(
            "CREATE NAMESPACE app; CREATE TABLE app.x (id INT PRIMARY KEY);"
            "CREATE TABLE app.ours (id INT PRIMARY KEY, n INT)"
        )
        fill(db, 3)
        told = json.loads((partition(db).directory / "manifest.json").read_bytes())
        named = [each["path"] for each in told["segments"]] + [each["path"] for each in told["hidden"]]
        db.compactor.compact_partition(db.table("app.ours"), SHARED, whole=True)
        for _ in range(3):
            now[0] += 3_000_000
            db.change(f"INSERT INTO app.ours VALUES ({now[0] // 1_000_000 % 1000 + 100}, 0)")
            db.flush("app.ours")
            db.partitions.collect_due()
            assert set(named) <= set(files(db, "*.*"))
        now[0] += 1_000_001

        def are_gone() -> bool:
            db.partitions.collect_due()
            return not set(named) & set(files(db, "*.*"))

        wait_until(are_gone, timeout_s=60, what="the last reader")


def test_a_view_that_is_only_garbage_keeps_no_file(db: Embedded) -> None:
    """An error and the frames that it came through hold each other, and so the View of the statement."""
    fill(db, 3)
    garbage: list[object] = [db.view]
    garbage.append(garbage)
    db.compactor.compact_partition(db.table("app.ours"), SHARED, whole=True)
    db.settle()
    look = watch_replaced(db.partitions).look
    gc.disable()
    try:
        for _ in range(GARBAGE_WAITS - 1):
            look()
        assert len(files(db, "batch-*.parquet")) == 4, "somebody may still read them"
        del garbage
        look()
        look()
        assert len(files(db, "batch-*.parquet")) == 1
    finally:
        gc.enable()


def test_no_file_goes_while_the_copy_for_other_readers_names_it(
    db: Embedded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A compaction that ends between its commit and the copy leaves the copy of before."""
    expected = fill(db, 3)
    with monkeypatch.context() as patch:
        patch.setattr(db.partitions, "copy", refuse)
        with pytest.raises(OSError, match="no space"):
            db.compactor.compact_partition(db.table("app.ours"), SHARED, whole=True)
    db.settle()
    assert len(partition(db).segments) == 3
    assert collected(db)
    assert len(partition(db).segments) == 1
    assert [tuple(row.values()) for row in db.cold_rows("app.ours")] == expected


def refuse(*_: object) -> None:
    raise OSError("no space")


def test_segments_of_several_schemas_are_written_in_the_columns_of_today(db: Embedded) -> None:
    """What a column began with is fixed by then; a later default, or NULL, means only rows that have it."""
    for number, column in enumerate(("a INT DEFAULT 1", "b TEXT DEFAULT 'two'", "c TIMESTAMP")):
        db.change(f"INSERT INTO app.ours (id) VALUES ({number * 10}), ({number * 10 + 1})")
        db.flush("app.ours")
        db.run(f"ALTER TABLE app.ours ADD {column}")
        db.change(f"UPDATE app.ours SET {column[0]} = NULL, n = 1 WHERE id = {number * 10}")
    expected = db.rows("SELECT id, n, a, b, c FROM app.ours ORDER BY id")
    assert [row[2:4] for row in expected] == [
        (None, "two"), (1, "two"), (1, None), (1, "two"), (1, "two"), (1, "two")
    ]  # fmt: skip
    db.compact("app.ours")
    assert db.rows("SELECT id, n, a, b, c FROM app.ours ORDER BY id") == expected
    db.flush("app.ours")
    db.compact("app.ours")
    assert db.rows("SELECT id, n, a, b, c FROM app.ours ORDER BY id") == expected
    assert [row["b"] for row in db.cold_rows("app.ours")] == [row[3] for row in expected]
    db.run("ALTER TABLE app.ours ADD d INT DEFAULT 9")
    assert db.rows("SELECT id FROM app.ours WHERE d = 9 AND id < 11") == [(0,), (1,), (10,)]


def test_a_synced_table_keeps_tombstones_and_payloads(db: Embedded) -> None:
    """A device's row comes back as it was uploaded, without the columns that it never had."""
    db.run("CREATE TABLE app.todo (id TEXT PRIMARY KEY, s TEXT) WITH (TYPE = 'USER', SYNC = TRUE)")
    db.change("INSERT INTO app.todo VALUES ('a', 'x'), ('b', 'y')", user="ann")
    db.flush("app.todo")
    db.run("ALTER TABLE app.todo ADD extra INT DEFAULT 7")
    db.change("INSERT INTO app.todo VALUES ('c', 'z', 8)", user="ann")
    db.change("DELETE FROM app.todo WHERE id = 'b'", user="ann")
    db.flush("app.todo")
    before = find(db, "a"), find(db, "b"), find(db, "c")
    assert db.compact("app.todo") == {ANN: Compacted(2, 1, 1)}
    assert (find(db, "a"), find(db, "b"), find(db, "c")) == before
    assert before[0][1:] == ('{"id":"a","s":"x"}', ["a", "x", 7])
    assert before[1] == (2, None, None)


def find(db: Embedded, key: str) -> tuple[int, str | None, list[object] | None]:
    found = db.rows_by_key.find(db.view.hot, db.table("app.todo"), ANN, key, may_block=True).version
    assert found is not None
    return found.count, found.uploaded, found.row


def test_a_tombstone_stays_while_a_segment_that_stays_has_its_row(
    db: Embedded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader of the files alone must not see the row again."""
    monkeypatch.setattr(compact_module, "FULL_ROWS", 5)
    monkeypatch.setattr(compact_module, "CLASS_SEGMENTS_MAX", 2)
    db.change("INSERT INTO app.ours VALUES " + ", ".join(f"({key}, 0)" for key in range(50)))
    db.flush("app.ours")
    for key in (3, 4):
        db.change(f"DELETE FROM app.ours WHERE id = {key}")
        db.change(f"INSERT INTO app.ours VALUES ({key + 100}, 1)")
        db.flush("app.ours")
    expected = db.rows("SELECT id, n FROM app.ours ORDER BY id")
    assert db.compact("app.ours", whole=False) == {SHARED: Compacted(3, 2, 0)}
    assert [segment.row_count for segment in partition(db).segments] == [50, 4]
    assert db.rows("SELECT id, n FROM app.ours ORDER BY id") == expected
    assert [tuple(row.values()) for row in db.cold_rows("app.ours")] == expected
    assert db.cold_problems() == []
    db.compact("app.ours")
    assert sum(segment.row_count for segment in partition(db).segments) == 50
    assert db.rows("SELECT id, n FROM app.ours ORDER BY id") == expected


@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        ("BOOLEAN", ["TRUE", "FALSE"]),
        ("SMALLINT", ["-5", "7", "0", "3"]),
        ("BIGINT", ["-9223372036854775808", "9223372036854775807", "0", "-1"]),
        ("DOUBLE", ["-1.5", "0.0", "1e300", "-1e-300"]),
        ("TEXT", ["''", "'b'", "'é'", "'z'", "'Z'", "'\U0001f600'", "'\uffff'"]),
        ("TIMESTAMP", ["'2026-01-02T00:00:00Z'", "'1969-12-31T23:59:59.999999Z'", "'2001-01-01T00:00:00Z'"]),
        ("UUID", ["'ffffffff-0000-4000-8000-000000000000'", "'00000000-0000-4000-8000-000000000000'"]),
    ],
)
def test_keys_of_every_type_keep_their_order(db: Embedded, kind: str, keys: list[str]) -> None:
    db.run(f"CREATE TABLE app.k (id {kind} PRIMARY KEY, n INT) WITH (TYPE = 'SHARED')")
    for n, key in enumerate(keys):
        db.change(f"INSERT INTO app.k VALUES ({key}, {n})")
        db.flush("app.k")
    db.change(f"UPDATE app.k SET n = 99 WHERE id = {keys[0]}")
    db.flush("app.k")
    expected = db.rows("SELECT id, n FROM app.k ORDER BY id")
    assert db.compact("app.k") == {SHARED: Compacted(len(keys) + 1, 1, 1)}
    assert db.rows("SELECT id, n FROM app.k ORDER BY id") == expected
    table = db.table("app.k")
    assert [tuple(v.row or ()) for v in db.rows_by_key.scan(db.view.hot, table, SHARED)] == [
        tuple(v.row or ()) for v in sorted(db.rows_by_key.scan(db.view.hot, table, SHARED), key=by_key)
    ]
    for n, key in enumerate(keys):
        assert db.rows(f"SELECT n FROM app.k WHERE id = {key}") == [(n if n else 99,)]


def by_key(version: object) -> object:
    return version.key  # type: ignore[attr-defined]


def test_a_damaged_segment_stops_its_compaction_and_nothing_else(db: Embedded) -> None:
    expected = fill(db, 3)
    db.change("INSERT INTO app.mine (id) VALUES (1)", user="ann")
    db.flush("app.mine")
    path = partition(db).files()[1]
    whole = path.read_bytes()
    damages: list[Callable[[], object]] = [
        path.unlink,
        lambda: path.write_bytes(whole[:100]),
        lambda: path.write_bytes(whole[:8] + bytes([whole[8] ^ 1]) + whole[9:]),
    ]
    for damage in damages:
        damage()
        with pytest.raises(ColdFileMissing, match=path.name):
            db.compact("app.ours")
        assert db.compact("app.mine") == {ANN: Compacted(1, 1, 0)}
        path.unlink(missing_ok=True)
        path.write_bytes(whole)
    assert db.rows("SELECT id, n FROM app.ours ORDER BY id") == expected
    db.compact("app.ours")
    assert db.rows("SELECT id, n FROM app.ours ORDER BY id") == expected
    assert db.cold_problems() == []


def test_a_lost_hidden_set_is_written_anew(db: Embedded) -> None:
    expected = fill(db, 3)
    for name in partition(db).hidden:
        (partition(db).directory / name).unlink()
    db.reopen()
    assert db.rows("SELECT id, n FROM app.ours ORDER BY id") == expected
    db.compact("app.ours")
    assert db.rows("SELECT id, n FROM app.ours ORDER BY id") == expected
    assert db.cold_problems() == []


def test_a_lost_manifest_is_made_of_its_copy(db: Embedded) -> None:
    expected = fill(db, 2)
    [path] = sorted(partition(db).directory.glob("manifest-2-2.json"))
    for damage in (path.unlink, lambda: path.write_bytes(b"{}")):
        damage()
        db.reopen()
        assert db.rows("SELECT id, n FROM app.ours ORDER BY id") == expected
        assert path.stat().st_size > 100


@pytest.mark.parametrize("then", ["read", "flush", "compact"])
def test_a_manifest_that_is_lost_with_its_copy_is_made_of_its_spare(db: Embedded, then: str) -> None:
    fill(db, 2)
    damages: list[Callable[[bytes], bytes | None]] = [
        lambda whole: None,
        lambda whole: b"{}",
        lambda whole: whole[:-9],
        lambda whole: whole.replace(b'"row_count":', b'"row_count":1', 1),
    ]
    for number, damage in enumerate(damages):
        db.change(f"INSERT INTO app.ours VALUES ({1000 + number}, 1)")
        expected = db.rows("SELECT id, n FROM app.ours ORDER BY id")
        found = partition(db)
        path = found.directory / f"manifest-2-{found.version}.json"
        whole = path.read_bytes()
        for each in (path, found.directory / "manifest.json"):
            each.unlink()
            if (content := damage(whole)) is not None:
                each.write_bytes(content)
        db.reopen()
        if then == "read":
            assert db.rows("SELECT id, n FROM app.ours ORDER BY id") == expected
            assert path.read_bytes() == whole
            assert (found.directory / "manifest.json").read_bytes() == whole
        if then == "compact":
            db.compact("app.ours")
        db.flush("app.ours")
        assert db.rows("SELECT id, n FROM app.ours ORDER BY id") == expected
        assert db.rows("SELECT count(*) FROM app.ours") == [(len(expected),)]
        assert db.cold_problems() == []


def test_of_a_manifest_that_is_lost_for_good_the_name_is_told(db: Embedded) -> None:
    fill(db, 2)
    for path in partition(db).directory.glob("manifest*.json"):
        path.unlink()
    spare = spare_name(partition_name(db.table("app.ours").id, SHARED))
    db.committer.apply(Batch(records=[RecordWrite(Kind.META, spare, None)]))
    db.reopen()
    with pytest.raises(ColdFileMissing, match=r"manifest-2-2\.json is missing"):
        db.rows("SELECT id, n FROM app.ours ORDER BY id")
    assert db.rows("SELECT id FROM app.mine") == []


def test_a_table_that_is_dropped_leaves_nothing_to_collect(db: Embedded) -> None:
    fill(db, 3)
    db.compactor.compact_partition(db.table("app.ours"), SHARED, whole=True)
    db.run("DROP TABLE app.ours")
    job = db.jobs.find_due()
    assert job is not None
    db.kinds.run(db.jobs.start(job), Stop())
    wait_until(db.collect, timeout_s=60, what="the last reader")
    assert files(db, "*.*") == []
    assert [name for name in db.record_names(Kind.META) if name.startswith("collect/")] == []
