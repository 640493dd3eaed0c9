"""What is cold is open: DuckDB and Polars read it without the server, by what the manifests say."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import duckdb
import polars as pl
import pytest

from upwell.cli import main
from upwell.testing.embedded import Embedded, Tuples, memory_store

TYPED = (
    "a BOOLEAN DEFAULT TRUE", "b SMALLINT DEFAULT -7", "c BIGINT DEFAULT 9007199254740993",
    "d DOUBLE DEFAULT 1.5", "e TEXT DEFAULT 'it''s'", "f TIMESTAMP DEFAULT '2026-01-02T03:04:05.678901Z'",
    "g JSON DEFAULT '{\"x\": 1}'", "h TEXT", "i BYTES",
)  # fmt: skip


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Embedded]:
    with Embedded(tmp_path, store=memory_store()) as db:
        db.run(
            "CREATE NAMESPACE app;"
            "CREATE TABLE app.ours (id INT PRIMARY KEY, n INT) WITH (TYPE = 'SHARED');"
            "CREATE TABLE app.mine (id TEXT PRIMARY KEY, n INT) WITH (TYPE = 'USER')"
        )
        yield db


@pytest.fixture
def ask(db: Embedded, capsys: pytest.CaptureFixture[str]) -> Callable[..., Tuples]:
    """Run what `upwell cold-sql` prints in DuckDB."""

    def run(table: str, user: str | None = None) -> Tuples:
        arguments = ["cold-sql", table, "--data-dir", str(db.directory)]
        assert main(arguments if user is None else [*arguments, "--user", user]) == 0
        return duckdb.sql(capsys.readouterr().out).fetchall()

    return run


def by_polars(directory: Path) -> Tuples:
    """Read a shared partition by its manifest alone, as docs/data-on-disk.md says."""
    manifest = json.loads((directory / "manifest.json").read_bytes())
    names = {column["path"]: column["name"] for column in manifest["columns"]}
    [key] = [column["path"] for column in manifest["columns"] if column["primary_key"]]
    files = [directory / segment["path"] for segment in manifest["segments"]]
    frame = (
        pl.scan_parquet(files, missing_columns="insert", extra_columns="ignore")
        .sort("_seq")
        .group_by(key)
        .last()
        .filter(~pl.col("_deleted"))
        .select(pl.col(path).alias(name) for path, name in names.items())
        .sort(names[key])
    )
    return frame.collect().rows()


def test_versions_over_several_files(db: Embedded, ask: Callable[..., Tuples]) -> None:
    for sql in (
        "INSERT INTO app.ours VALUES (1, 1), (2, 2), (3, 3)",
        "UPDATE app.ours SET n = 20 WHERE id = 2; INSERT INTO app.ours VALUES (4, 4)",
        "DELETE FROM app.ours WHERE id = 1; UPDATE app.ours SET n = 21 WHERE id = 2",
    ):
        db.run(sql)
        db.flush("app.ours")
        expected = db.rows("SELECT id, n FROM app.ours ORDER BY id")
        assert ask("app.ours") == expected
        assert by_polars(db.cold_root / "app" / "ours") == expected
    assert expected == [(2, 21), (3, 3), (4, 4)]
    db.compact("app.ours")
    assert ask("app.ours") == expected
    assert by_polars(db.cold_root / "app" / "ours") == expected
    db.run("DELETE FROM app.ours")
    db.flush("app.ours")
    assert ask("app.ours") == []
    db.compact("app.ours")
    assert ask("app.ours") == []


def test_each_user_and_all_of_them(db: Embedded, ask: Callable[..., Tuples]) -> None:
    for user, n in (("ann", 1), ("it's", 2)):
        db.change("INSERT INTO app.mine VALUES ('k', $1), ('l', 0)", [n], user=user)
    db.flush("app.mine")
    db.change("DELETE FROM app.mine WHERE id = 'l'", user="ann")
    db.flush("app.mine")
    assert ask("app.mine", "ann") == [("ann", "k", 1)]
    assert ask("app.mine", "it's") == [("it's", "k", 2), ("it's", "l", 0)]
    assert ask("app.mine") == [("ann", "k", 1), ("it's", "k", 2), ("it's", "l", 0)]


def test_columns_that_came_went_and_changed(db: Embedded, ask: Callable[..., Tuples]) -> None:
    """Old files read what a column began with; names and types are those of the last flush."""
    db.run("INSERT INTO app.ours VALUES (1, 1), (2, 2)")
    db.flush("app.ours")
    for column in TYPED:
        db.run(f"ALTER TABLE app.ours ADD COLUMN {column}")
    db.run("ALTER TABLE app.ours RENAME COLUMN n TO number")
    db.run("ALTER TABLE app.ours DROP COLUMN h; ALTER TABLE app.ours ADD COLUMN h INT DEFAULT 8")
    db.compact("app.ours")  # nothing to merge, but the copy of the manifest tells the names
    names = "id, number, a, b, c, d, e, f, g, i, h"

    def check() -> None:
        expected = duckdb_rows(db, f"SELECT {names} FROM app.ours ORDER BY id")
        assert ask("app.ours") == expected

    check()
    db.run("INSERT INTO app.ours (id, e, f, h) VALUES (3, NULL, NULL, NULL)")
    db.run("ALTER TABLE app.ours ALTER COLUMN number TYPE BIGINT")
    db.run("UPDATE app.ours SET number = 5000000000, i = $1 WHERE id = 2", [b"\x00\xff"])
    db.flush("app.ours")
    check()
    db.compact("app.ours")
    check()


def test_columns_may_have_any_name(db: Embedded, ask: Callable[..., Tuples]) -> None:
    """Also one that a query might take for its own purposes."""
    names = "_file, _newest, filename, _owner, file_row_number"
    typed = names.replace(",", " TEXT,")
    db.run(f"CREATE TABLE app.named (id INT PRIMARY KEY, {typed} TEXT) WITH (TYPE = 'SHARED')")
    db.run("INSERT INTO app.named VALUES (1, 'a', 'b', 'c', 'd', 'e'), (2, 'f', 'g', 'h', 'i', 'j')")
    db.flush("app.named")
    db.run("ALTER TABLE app.named ADD COLUMN late TEXT DEFAULT 'z'")
    db.run("UPDATE app.named SET _file = 'x' WHERE id = 2")
    db.flush("app.named")
    assert ask("app.named") == [(1, "a", "b", "c", "d", "e", "z"), (2, "x", "g", "h", "i", "j", "z")]


def test_exact_numbers_days_and_times(db: Embedded, capsys: pytest.CaptureFixture[str]) -> None:
    """Stored and begun with alike."""
    db.run("INSERT INTO app.ours (id) VALUES (1)")
    db.flush("app.ours")
    for column in (
        "f FLOAT DEFAULT 0.5", "d DECIMAL(10, 2) DEFAULT 12.5", "day DATE DEFAULT '2026-03-04'",
        "t TIME DEFAULT '01:02:03.000004'", "z DATETIME DEFAULT '2026-03-04T05:06:07Z'",
    ):  # fmt: skip
        db.run(f"ALTER TABLE app.ours ADD COLUMN {column}")
    db.run("INSERT INTO app.ours (id) VALUES (2)")
    db.flush("app.ours")
    assert main(["cold-sql", "app.ours", "--data-dir", str(db.directory)]) == 0
    query = capsys.readouterr().out.strip().rstrip(";")
    shown = "id, f, d::VARCHAR, day::VARCHAR, t::VARCHAR, epoch_us(z)"
    told = (0.5, "12.50", "2026-03-04", "01:02:03.000004", 1_772_600_767_000_000)
    assert duckdb.sql(f"SELECT {shown} FROM ({query})").fetchall() == [(1, *told), (2, *told)]


def duckdb_rows(db: Embedded, sql: str) -> Tuples:
    """Return the rows as DuckDB has them: moments are datetimes there."""
    from datetime import datetime, timedelta

    at = 7
    rows = db.rows(sql)
    moments = [
        None if row[at] is None else datetime(1970, 1, 1) + timedelta(microseconds=int(str(row[at])))
        for row in rows
    ]
    return [
        (*row[:at], moment, *row[at + 1 :])  # type: ignore[misc]
        for row, moment in zip(rows, moments, strict=True)
    ]


def test_copies_of_a_table_are_not_taken_for_it(
    db: Embedded, ask: Callable[..., Tuples], capsys: pytest.CaptureFixture[str]
) -> None:
    """A row that was deleted since is still in a backup below the data directory, its deletion nowhere."""
    db.run("INSERT INTO app.ours VALUES (1, 1), (2, 2)")
    db.flush("app.ours")
    for copy in ("backups/monday", "restored", "replaced-RS-1"):
        shutil.copytree(db.cold_root, db.directory / copy / "storage")
    for archive in ("backups/monday", "restored"):
        (db.directory / archive / "backup.json").touch()
    db.run("DELETE FROM app.ours WHERE id = 1")
    db.flush("app.ours")
    db.compact("app.ours")
    assert ask("app.ours") == [(2, 2)]
    assert main(["cold-sql", "app.ours", "--data-dir", str(db.directory / "backups" / "monday")]) == 0
    assert duckdb.sql(capsys.readouterr().out).fetchall() == [(1, 1), (2, 2)], "the backup itself"
    shutil.copytree(db.cold_root, db.directory / "by-hand")
    assert main(["cold-sql", "app.ours", "--data-dir", str(db.directory)]) == 2
    assert "app.ours is there twice" in capsys.readouterr().err


def test_what_is_not_there_is_said(db: Embedded, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["cold-sql", "app.ours", "--data-dir", str(db.directory)]
    assert main(arguments) == 2
    assert "no manifest.json of app.ours below" in capsys.readouterr().err
    db.run("INSERT INTO app.ours VALUES (1, 1)")
    db.flush("app.ours")
    path = db.cold_root / "app" / "ours" / "manifest.json"
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"live_count":1', b'"live_count":2'))
    assert main(arguments) == 2
    assert f"manifest {path} is damaged" in capsys.readouterr().err
    path.write_bytes(whole[:50])
    assert main(arguments) == 2
    assert f"manifest {path} can't be read" in capsys.readouterr().err
