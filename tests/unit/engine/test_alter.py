"""Columns that are added while rows lie in every tier: each row reads what it began with, whoever reads it,
whenever it was written, and whatever else goes on meanwhile.
"""

import json
from pathlib import Path

import msgspec
import pytest

from upwell.engine.catalog import Table, table_record
from upwell.engine.result import result_columns
from upwell.session.outcome import Answer
from upwell.testing import PointActions
from upwell.testing.embedded import Embedded, memory_store
from upwell.types import SHARED

ADDED = (
    "flag BOOLEAN DEFAULT true", "small SMALLINT DEFAULT -1", "whole INT DEFAULT 2", "big BIGINT DEFAULT 3",
    "real DOUBLE DEFAULT 1.5", "text TEXT DEFAULT 'it''s'", "at TIMESTAMP DEFAULT 4", "ref UUID"
    " DEFAULT '00000000-0000-4000-8000-00000000000A'", "doc JSON DEFAULT '[1]'", "data BYTES DEFAULT '0aff'",
    "nothing TEXT",
)  # fmt: skip
READS = (
    True, -1, 2, 3, 1.5, "it's", 4, "00000000-0000-4000-8000-00000000000a", "[1]", b"\x0a\xff", None,
)  # fmt: skip
KINDS = (
    "BOOLEAN",
    "SMALLINT",
    "INT",
    "BIGINT",
    "DOUBLE",
    "TEXT",
    "TIMESTAMP",
    "UUID",
    "JSON",
    "BYTES",
    "TEXT",
)


@pytest.mark.parametrize("tier", ["hot", "cold", "flushed after"])
def test_every_type_reads_its_default_in_every_tier(db: Embedded, tier: str) -> None:
    db.change("INSERT INTO app.ours VALUES (1, 10), (2, 20)")
    if tier == "cold":
        db.flush("app.ours")
    for column in ADDED:
        db.run(f"ALTER TABLE app.ours ADD {column}")
    if tier == "flushed after":
        db.flush("app.ours")
    names = ", ".join(column.split()[0] for column in ADDED)
    assert db.rows(f"SELECT id, {names} FROM app.ours") == [(1, *READS), (2, *READS)]
    assert db.rows(f"SELECT id, {names} FROM app.ours WHERE id = 2") == [(2, *READS)]
    answer = db.run(f"SELECT {names} FROM app.ours").result
    assert isinstance(answer, Answer)
    assert tuple(column.type.name for column in result_columns(answer.table.schema)) == KINDS
    # A row that is written now holds the same values itself.
    db.change("INSERT INTO app.ours (id, n) VALUES (3, 30)")
    assert db.rows(f"SELECT {names} FROM app.ours WHERE id = 3") == [READS]
    assert db.change("UPDATE app.ours SET n = n + 1 WHERE big = 3 AND data IS NOT NULL") == 3
    assert db.rows("SELECT sum(n), count(nothing) FROM app.ours") == [(63, 0)]
    db.flush("app.ours")
    assert db.rows(f"SELECT {names} FROM app.ours") == [READS] * 3
    assert db.cold_problems() == []


def test_segments_keep_the_default_of_their_time(db: Embedded) -> None:
    """A NULL that was written stays NULL; only rows from before the column read its default."""
    for number, column in enumerate(("a INT DEFAULT 1", "b INT DEFAULT 2", "c INT DEFAULT 3")):
        db.change(f"INSERT INTO app.ours (id) VALUES ({number * 10}), ({number * 10 + 1})")
        db.flush("app.ours")
        db.run(f"ALTER TABLE app.ours ADD {column}")
        db.change(f"UPDATE app.ours SET {column[0]} = NULL WHERE id = {number * 10}")
    expected = [
        (0, None, 2, 3), (1, 1, 2, 3), (10, 1, None, 3), (11, 1, 2, 3), (20, 1, 2, None), (21, 1, 2, 3),
    ]  # fmt: skip
    for _ in range(2):
        assert db.rows("SELECT id, a, b, c FROM app.ours") == expected
        assert [
            db.rows(f"SELECT id, a, b, c FROM app.ours WHERE id = {row[0]}")[0] for row in expected
        ] == expected
        assert db.rows("SELECT id FROM app.ours WHERE a = 1 AND b = 2 AND c = 3") == [(1,), (11,), (21,)]
        db.flush("app.ours")


def test_names_in_parquet_are_nobody_elses(db: Embedded) -> None:
    db.run("CREATE TABLE app.odd (id INT PRIMARY KEY, _owner TEXT) WITH (TYPE = 'USER')")
    db.change("INSERT INTO app.odd VALUES (1, 'mine')", user="ann")
    db.run("ALTER TABLE app.odd ADD _version INT DEFAULT 5")
    db.change("INSERT INTO app.odd VALUES (2, NULL, 6)", user="ann")
    physical = [column.physical for column in db.table("app.odd").columns]
    assert physical == ["id", "_owner__2", "_version__3"]
    db.flush("app.odd")
    assert db.rows("SELECT id, _owner, _version FROM app.odd", user="ann") == [(1, "mine", 5), (2, None, 6)]
    assert db.cold_problems() == []


def test_a_flush_takes_the_columns_of_its_view(tmp_path: Path) -> None:
    """Columns and rows that come before the flush has its View, and others while it writes."""

    def meanwhile() -> None:
        if db.table("default.t").version == 2:
            db.run("ALTER TABLE t ADD b INT DEFAULT 2; INSERT INTO t VALUES (3, 30, 40)")
            db.run("UPDATE t SET a = 21 WHERE id = 2")

    points = PointActions({"flush:segment-written": meanwhile})
    with Embedded(tmp_path, store=memory_store(), points=points) as db:
        db.run("CREATE SHARED TABLE t (id INT PRIMARY KEY); INSERT INTO t VALUES (1)")
        before = db.table("default.t")
        db.run("ALTER TABLE t ADD a INT DEFAULT 1; INSERT INTO t VALUES (2, 20)")
        for table in (before, before, db.table("default.t")):
            db.flusher.flush_partition(table, SHARED)
            db.settle()
            assert db.rows("SELECT id, a, b FROM t") == [(1, 1, 2), (2, 21, 2), (3, 30, 40)]
        assert db.cold_problems() == []


def test_a_column_is_one_commit_that_a_restart_finds(tmp_path: Path) -> None:
    """Whatever was synced when the power went: the whole column, or none of it."""
    with Embedded(tmp_path) as db:
        db.run("CREATE TABLE t (id INT PRIMARY KEY); INSERT INTO t VALUES (1)")
        db.run("ALTER TABLE t ADD a INT NOT NULL DEFAULT 7; ALTER TABLE t ADD b BYTES")
        table = db.table("default.t")
        assert (table.version, [column.added for column in table.columns]) == (3, [0, 2, 3])
        db.reopen()
        assert db.table("default.t") == table
        assert db.rows("SELECT id, a, b FROM t") == [(1, 7, None)]


def test_only_the_newest_rows_are_kept_in_memory(db: Embedded) -> None:
    """Changes from before a column are read from the log, in the new shape; later ones from memory again."""
    table = db.table("app.ours")
    start = db.view.seq
    db.change("INSERT INTO app.ours VALUES (1, 10)")
    assert db.committer.changelog.tail(db.view, after=start) is not None
    db.run("ALTER TABLE app.ours ADD a INT DEFAULT 7")
    altered = db.view.seq
    db.change("UPDATE app.ours SET n = 11")
    assert db.committer.changelog.tail(db.view, after=start) is None
    tail = db.committer.changelog.tail(db.view, after=altered) or []
    assert [(change.before, change.after) for change in tail] == [([1, 10, 7], [1, 11, 7])]
    changes = db.committer.changelog.read(db.view, table.id, SHARED, after=start, limit=10)
    assert [(change.before, change.after) for change in changes] == [
        (None, [1, 10, 7]),
        ([1, 10, 7], [1, 11, 7]),
    ]
    db.run("CREATE TABLE app.more (id INT PRIMARY KEY)")
    assert db.committer.changelog.tail(db.view, after=altered) is not None, "a new table changes no shape"


def test_tables_of_an_older_release_are_read(db: Embedded) -> None:
    db.run("CREATE TABLE app.child (id INT PRIMARY KEY, p INT REFERENCES app.mine (id)) WITH (TYPE = 'USER')")
    table = db.table("app.child")
    record = json.loads(table_record(table).value or b"")
    for column in record["columns"]:
        del column["added"], column["initial"]
    for reference in record["references"]:
        del reference["others"]
    assert msgspec.json.decode(json.dumps(record), type=Table) == table
