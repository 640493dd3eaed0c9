"""`upwell devices register`: what an app's SQLite file becomes on a real server, and that devices agree."""

import re
import sqlite3
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from upwell.cli import main
from upwell.client import Client, ServerError, connect
from upwell.device import Device
from upwell.testing.wire import Site

# Columns of each affinity, for the rows of `EXTREMES`.
KINDS = """
CREATE TABLE kinds (
    id TEXT PRIMARY KEY, i INTEGER, big BIGINT, small UNSIGNED SMALLINT, t TEXT, v VARCHAR(3), c CLOB,
    r REAL, f FLOAT, d DOUBLE PRECISION, x BLOB, flag BOOLEAN, n NUMERIC, m DECIMAL(10, 2), mixed NUMERIC,
    at DATETIME, epoch TIMESTAMP, day DATE, odd DATETIME, any_ , loose)
"""
EXTREMES: list[tuple[Any, ...]] = [
    (
        "first", -(2**63), 2**63 - 1, -1, "", "longer than three", "ü€😀 ' \" \\ \n", 1.7976931348623157e308,
        5e-324, 0.1 + 0.2, b"", 1, 9.99, 5, 2**53 + 1, "2026-01-31 23:59:59", 1_760_000_000,
        "2026-01-31", "never", 12, "12",
    ),
    (
        "second", 2**63 - 1, -(2**63), 0, "0", "1.0", "null", -1.7976931348623157e308, 3.0, 1e15 + 0.3,
        bytes(range(256)), 0, -2**53, 0.1, "text", "2026-01-31T23:59:59.123456+02:00", -1, "0001-01-01",
        2460000.5, 1.5, 1e300,
    ),
    ("third", *[None] * 20),
]  # fmt: skip

Register = Callable[..., tuple[int, str, str]]


@pytest.fixture
def root(site: Site) -> Iterator[Client]:
    """A client of `root`."""
    with connect(site.server.url, user="root", password=site.server.root_password) as client:
        yield client


@pytest.fixture
def ns() -> str:
    """A namespace that isn't there yet."""
    return f"reg_{uuid.uuid4().hex[:8]}"


@pytest.fixture
def register(site: Site, ns: str, capsys: pytest.CaptureFixture[str]) -> Register:
    """Run the command; return its exit code, output and errors."""

    def run(file: Path, *options: str) -> tuple[int, str, str]:
        account = ("--url", site.server.url, "--user", "root", "--password", site.server.root_password)
        code = main(["devices", "register", str(file), "--namespace", ns, *account, *options])
        told = capsys.readouterr()
        return code, told.out, told.err

    return run


def made(path: Path, script: str, **rows: list[tuple[Any, ...]]) -> Path:
    """Make an app's SQLite file."""
    with sqlite3.connect(path) as connection:
        connection.executescript(script)
        for table, values in rows.items():
            marks = ", ".join("?" * len(values[0]))
            connection.executemany(f"INSERT INTO {table} VALUES ({marks})", values)
    connection.close()
    return path


class App:
    """Installations of one app, of one user."""

    def __init__(self, site: Site, ns: str, directory: Path, tables: list[str]) -> None:
        self._site, self._ns, self._directory, self._tables = site, ns, directory, tables
        self.user, wire = site.account()
        self._token = wire.token

    def open(self, file: Path) -> Device:
        """Open a file, signed in and synced, with nothing left behind."""
        device = Device.open(file, schema=self._ns, tables=self._tables)
        device.sign_in(self._site.server.url, self.user, token=self._token)
        device.sync()
        status = device.status()
        assert (status.pending, status.quarantined, status.withheld) == (0, 0, 0), device.pending()
        return device

    def reinstalled(self, script: str) -> Device:
        """Open a fresh file with the app's schema."""
        return self.open(made(self._directory / f"{uuid.uuid4().hex}.sqlite", script))


def contents(connection: sqlite3.Connection, table: str) -> list[tuple[Any, ...]]:
    """All values of a table with their types."""
    rows = connection.execute(f'SELECT * FROM "{table}" ORDER BY id').fetchall()
    return [tuple((type(value), value) for value in row) for row in rows]


@pytest.mark.parametrize("is_judged_by_values", [True, False])
def test_each_value_of_each_type_comes_back(
    register: Register, site: Site, ns: str, root: Client, tmp_path: Path, is_judged_by_values: bool
) -> None:
    file = made(tmp_path / "app.sqlite", KINDS, kinds=EXTREMES)
    registered = file if is_judged_by_values else made(tmp_path / "empty.sqlite", KINDS)
    before = registered.read_bytes()
    code, told, _ = register(registered)
    assert (code, told.splitlines()[0]) == (0, f"created {ns}.kinds (21 columns)")
    assert registered.read_bytes() == before

    rows = root.query("SELECT column_name, data_type FROM system.columns WHERE namespace_id = $1", [ns])
    types = {row["column_name"]: row["data_type"] for row in rows}
    judged = {
        "n": "DOUBLE", "m": "DOUBLE", "mixed": "TEXT", "at": "TIMESTAMP", "epoch": "BIGINT",
        "day": "TIMESTAMP", "odd": "TEXT",
    }  # fmt: skip
    assert types == {
        "id": "TEXT", "i": "BIGINT", "big": "BIGINT", "small": "BIGINT", "t": "TEXT", "v": "TEXT",
        "c": "TEXT", "r": "DOUBLE", "f": "DOUBLE", "d": "DOUBLE", "x": "BYTES", "flag": "BOOLEAN",
        "any_": "TEXT", "loose": "TEXT", **(judged if is_judged_by_values else dict.fromkeys(judged, "TEXT")),
    }  # fmt: skip
    assert all(f"note: {name} (" in told for name in judged)

    app = App(site, ns, tmp_path, ["kinds"])
    with app.open(file) as first, app.reinstalled(KINDS) as second:
        assert contents(second.connection, "kinds") == contents(first.connection, "kinds")
        assert len(contents(second.connection, "kinds")) == len(EXTREMES)
        root.execute(f"EXECUTE AS USER '{app.user}' (UPDATE {ns}.kinds SET t = 'changed' WHERE true)")
        first.connection.execute("UPDATE kinds SET t = 'changed'")
        first.sync()
        second.sync()
        assert contents(second.connection, "kinds") == contents(first.connection, "kinds")
        assert root.query(f"EXECUTE AS USER '{app.user}' (SELECT big, flag FROM {ns}.kinds WHERE i < 0)") == [
            {"big": 2**63 - 1, "flag": True}
        ]


FAMILY = """
CREATE TABLE "Order" (
    ID TEXT PRIMARY KEY NOT NULL, "Group" TEXT NOT NULL DEFAULT 'it''s', "select" INTEGER DEFAULT -5,
    done BOOLEAN NOT NULL DEFAULT 0, price REAL DEFAULT 1.5, at TEXT DEFAULT CURRENT_TIMESTAMP);
CREATE TABLE lines (
    id TEXT PRIMARY KEY, "order" TEXT NOT NULL REFERENCES "order" (id) ON DELETE CASCADE ON UPDATE CASCADE,
    parent TEXT REFERENCES lines ON DELETE SET NULL);
CREATE TABLE files (id BLOB PRIMARY KEY NOT NULL, data BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE reviews (id BLOB PRIMARY KEY NOT NULL, file BLOB NOT NULL REFERENCES files (id), stars INT);
"""


def test_keys_references_defaults_and_reserved_words(
    register: Register, site: Site, ns: str, root: Client, tmp_path: Path
) -> None:
    file, picture, review = tmp_path / "app.sqlite", uuid.uuid4(), uuid.uuid4()
    made(
        file,
        FAMILY,
        lines=[("l1", "o1", None), ("l2", "o1", "l1")],
        files=[(picture.bytes, b"\x00\xff")],
        reviews=[(review.bytes, picture.bytes, 5)],
    )
    made(file, "INSERT INTO \"Order\" (ID) VALUES ('o1')")
    code, told, errors = register(file, "--table", "lines")
    assert (code, told) == (1, "")
    assert f"Table not found: {ns}.order" in errors

    code, told, _ = register(file)
    assert code == 0
    assert told.splitlines() == [
        f"created {ns}.files (2 columns)",
        f"created {ns}.order (6 columns)",
        "  note: the DEFAULT of at is the device's only",
        f"created {ns}.lines (3 columns)",
        f"created {ns}.reviews (3 columns)",
    ]
    app = App(site, ns, tmp_path, ["order", "lines", "files", "reviews"])
    as_user = f"EXECUTE AS USER '{app.user}'"
    with app.open(file) as first, app.reinstalled(FAMILY) as second:
        for table in ("Order", "lines", "files", "reviews"):
            assert contents(second.connection, table) == contents(first.connection, table) != []
        joined = f"SELECT r.stars, f.id FROM {ns}.reviews r JOIN {ns}.files f ON f.id = r.file"
        assert root.query(f"{as_user} ({joined})", raw=True) == [{"stars": "5", "id": str(picture)}]

        root.execute(f"{as_user} (INSERT INTO {ns}.\"order\" (id) VALUES ('o2'))")
        second.sync()
        found = second.connection.execute("SELECT * FROM \"Order\" WHERE id = 'o2'").fetchall()
        assert found == [("o2", "it's", -5, 0, 1.5, None)]
        assert (
            "NOT NULL" in site.root.sql(f"{as_user} (INSERT INTO {ns}.lines (id) VALUES ('x'))").body.decode()
        )

        first.connection.execute("DELETE FROM lines WHERE id = 'l1'")
        first.sync()
        assert root.query(f"{as_user} (SELECT id, parent FROM {ns}.lines)") == [{"id": "l2", "parent": None}]
        root.execute(f"{as_user} (DELETE FROM {ns}.\"order\" WHERE id = 'o1')")
        second.sync()
        assert contents(second.connection, "lines") == []


def test_what_the_server_does_not_enforce_is_named(register: Register, ns: str, tmp_path: Path) -> None:
    file = made(
        tmp_path / "app.sqlite",
        "CREATE TABLE codes (id INTEGER PRIMARY KEY);"
        "CREATE TABLE people (id TEXT PRIMARY KEY, mail TEXT UNIQUE, age INT CHECK (age > 0),"
        " years AS (age), [a check (] TEXT AS (mail), code INTEGER REFERENCES codes,"
        " nick TEXT REFERENCES people (mail), created TEXT DEFAULT (datetime('now')));"
        "CREATE TABLE mine (id TEXT PRIMARY KEY, 'check (' TEXT AS (id), body TEXT DEFAULT 'CHECK (x)');"
        "CREATE TABLE left (id TEXT PRIMARY KEY, other TEXT REFERENCES right);"
        "CREATE TABLE right (id TEXT PRIMARY KEY, other TEXT NOT NULL REFERENCES left ON DELETE SET NULL)",
    )
    code, told, _ = register(file, *(f"--table={name}" for name in ("people", "mine", "LEFT", "Right")))
    assert code == 0
    assert told.splitlines() == [
        f"created {ns}.mine (2 columns)",
        "  note: check ( is a generated column, and the device's only",
        f"created {ns}.people (6 columns)",
        "  note: the reference (nick) to people is enforced on the device only: it doesn't name the primary"
        " key",
        "  note: the reference (code) to codes is enforced on the device only: the referenced table isn't one"
        " that can be synced",
        "  note: the DEFAULT of created is the device's only",
        "  note: years is a generated column, and the device's only",
        "  note: a check ( is a generated column, and the device's only",
        "  note: UNIQUE (mail) is enforced on the device only",
        "  note: CHECK is enforced on the device only",
        f"created {ns}.left (2 columns)",
        f"created {ns}.right (2 columns)",
        "  note: the reference (other) to left restricts on the server: SET NULL needs columns that may be"
        " NULL",
    ]


def test_tables_that_refer_to_each_other_do_so_on_the_server(
    register: Register, root: Client, ns: str, tmp_path: Path
) -> None:
    """But for references of several columns."""
    file = made(
        tmp_path / "app.sqlite",
        "CREATE TABLE albums (id TEXT PRIMARY KEY, cover BLOB REFERENCES photos ON DELETE SET NULL);"
        "CREATE TABLE photos (id BLOB PRIMARY KEY NOT NULL, album TEXT NOT NULL REFERENCES albums, no INT);"
        "CREATE TABLE pages (id TEXT PRIMARY KEY, album TEXT REFERENCES albums);"
        "CREATE TABLE ones (id TEXT PRIMARY KEY, org TEXT, two TEXT,"
        " FOREIGN KEY (two, org) REFERENCES twos (id, org));"
        "CREATE TABLE twos (id TEXT PRIMARY KEY, org TEXT, one TEXT,"
        " FOREIGN KEY (one, org) REFERENCES ones (id, org))",
    )
    code, told, _ = register(file)
    notes = [line for line in told.splitlines() if "note" in line]
    assert (code, len(notes)) == (0, 1)
    assert "(two, org) to twos is enforced on the device only: the tables refer to each other" in notes[0]
    root.execute(f"INSERT INTO {ns}.albums VALUES ('a', NULL)")
    photo = str(uuid.UUID(int=1))
    with pytest.raises(ServerError, match="does not exist; insert the parent first"):
        root.execute(f"UPDATE {ns}.albums SET cover = $1", [photo])
    root.execute(f"INSERT INTO {ns}.photos VALUES ($1, 'a', 1)", [photo])
    root.execute(f"UPDATE {ns}.albums SET cover = $1", [photo])
    root.execute(f"DELETE FROM {ns}.photos")
    assert root.query(f"SELECT id, cover FROM {ns}.albums") == [{"id": "a", "cover": None}]
    code, told, _ = register(file)
    assert (code, {line.split()[0] for line in told.splitlines()}) == (0, {"exists"})


REFUSED = """
CREATE TABLE fine (id TEXT PRIMARY KEY, body TEXT);
CREATE TABLE numbered (id INTEGER PRIMARY KEY);
CREATE TABLE paired (a TEXT, b TEXT, PRIMARY KEY (a, b));
CREATE TABLE keyless (a TEXT);
CREATE TABLE "my notes" (id TEXT PRIMARY KEY);
CREATE TABLE columns (id TEXT PRIMARY KEY, _seq INT, "größe" INT);
CREATE TABLE blobs (id TEXT PRIMARY KEY, body TEXT, data BLOB);
CREATE TABLE short (id BLOB PRIMARY KEY);
CREATE TABLE unkeyed (id TEXT PRIMARY KEY);
CREATE VIEW seen AS SELECT * FROM fine;
CREATE VIRTUAL TABLE words USING fts5 (body);
CREATE TABLE _sync_pending (id INTEGER PRIMARY KEY);
CREATE TABLE counted (id INTEGER PRIMARY KEY AUTOINCREMENT);
INSERT INTO blobs VALUES ('1', x'00', 'text');
INSERT INTO short VALUES (x'0102');
INSERT INTO unkeyed VALUES (NULL);
"""


def test_what_cannot_be_synced_is_refused_by_name_and_nothing_is_made(
    register: Register, ns: str, root: Client, tmp_path: Path
) -> None:
    file = made(tmp_path / "app.sqlite", REFUSED)
    code, told, errors = register(file)
    assert (code, told) == (2, "")
    first, *lines = errors.splitlines()
    assert first == f"upwell: some tables of {file} can't be synced, and nothing was registered:"
    named = [re.match(r"  table '([^']+)'.*: \S", line) for line in lines[:-1]]
    assert [found and found[1] for found in named] == [
        "blobs", "blobs", "columns", "columns", "counted", "keyless", "my notes", "numbered", "paired",
        "short", "unkeyed",
    ]  # fmt: skip
    assert lines[-1] == "  to leave a table out, name the others: --table fine"
    assert root.query("SELECT name FROM system.namespaces WHERE name = $1", [ns]) == []

    code, told, errors = register(
        file, "--table", "seen", "--table", "words", "--table", "Nope", "--table=fine"
    )
    assert (code, told) == (2, "")
    assert errors.splitlines()[1:] == [
        "  'seen' is a view: name the tables that its rows come from",
        "  'words' is a virtual table: name the tables that its rows come from",
        "  table 'Nope' does not exist: create it before registering it",
        "  to leave a table out, name the others: --table fine",
    ]
    assert register(file, "--table", "FINE") == (0, f"created {ns}.fine (2 columns)\n", "")


def test_a_file_that_cannot_be_read_is_said_in_a_sentence(register: Register, tmp_path: Path) -> None:
    (tmp_path / "text.sqlite").write_text("no database, but long enough to be looked at as one" * 100)
    sqlite3.connect(tmp_path / "nothing.sqlite").close()
    (tmp_path / "nothing.sqlite").touch()
    for name, reason in {
        "missing.sqlite": "is no file",
        "": "is no file",
        "text.sqlite": "can't be read as an SQLite database: file is not a database",
        "nothing.sqlite": "has no tables to sync",
    }.items():
        code, told, errors = register(tmp_path / name)
        assert (code, told) == (2, "")
        (line,) = errors.splitlines()
        assert line.startswith(f"upwell: {tmp_path / name} {reason}")
    file = made(tmp_path / "odd?name#%41.sqlite", "CREATE TABLE t (id TEXT PRIMARY KEY)")
    assert register(file, "--dry-run")[0] == 0
    assert not (tmp_path / "missing.sqlite").exists()
    assert main(["devices", "register", str(file), "--namespace", "no-good", "--dry-run"]) == 2


def test_again_is_harmless_and_a_new_column_is_added(
    register: Register, site: Site, ns: str, tmp_path: Path
) -> None:
    schema = "CREATE TABLE notes (id TEXT PRIMARY KEY, body TEXT NOT NULL)"
    file = made(tmp_path / "app.sqlite", schema, notes=[("1", "old")])
    assert register(file) == (0, f"created {ns}.notes (2 columns)\n", "")
    app = App(site, ns, tmp_path, ["notes"])
    with app.open(file) as device, app.reinstalled(schema) as older:
        assert register(file) == (0, f"exists {ns}.notes\n", "")
        device.connection.execute("ALTER TABLE notes ADD COLUMN stars INTEGER NOT NULL DEFAULT 0")
        assert register(file) == (0, f"added column {ns}.notes.stars (BIGINT)\n", "")
        assert register(file) == (0, f"exists {ns}.notes\n", "")

        device.connection.execute("INSERT INTO notes VALUES ('2', 'new', 5)")
        older.connection.execute("INSERT INTO notes VALUES ('3', 'from an older app')")
        for each in (device, older, device):
            each.sync()
        assert contents(older.connection, "notes") == [
            ((str, "1"), (str, "old")), ((str, "2"), (str, "new")), ((str, "3"), (str, "from an older app")),
        ]  # fmt: skip
        found = device.connection.execute("SELECT id, stars FROM notes ORDER BY id").fetchall()
        assert found == [("1", 0), ("2", 5), ("3", 0)]
        stars = f"EXECUTE AS USER '{app.user}' (SELECT stars FROM {ns}.notes WHERE id = '2')"
        assert site.root.run(stars).cell == "5"


def test_a_table_that_does_not_fit_is_a_warning(
    register: Register, root: Client, ns: str, tmp_path: Path
) -> None:
    file = made(
        tmp_path / "app.sqlite",
        "CREATE TABLE a (id TEXT PRIMARY KEY, n INTEGER, body TEXT, data BLOB);"
        "CREATE TABLE b (id TEXT PRIMARY KEY, up TEXT REFERENCES b);"
        "CREATE TABLE c (id TEXT PRIMARY KEY);"
        "CREATE TABLE d (name TEXT PRIMARY KEY)",
    )
    root.execute(f"CREATE NAMESPACE {ns}")
    synced = "WITH (TYPE = 'USER', SYNC = TRUE)"
    root.execute(f"CREATE TABLE {ns}.a (id TEXT PRIMARY KEY, n TEXT, body UUID, data TEXT) {synced}")
    root.execute(f"CREATE TABLE {ns}.b (id UUID PRIMARY KEY, up UUID REFERENCES {ns}.b) {synced}")
    root.execute(f"CREATE TABLE {ns}.c (id TEXT PRIMARY KEY) WITH (TYPE = 'USER')")
    root.execute(f"CREATE TABLE {ns}.d (id TEXT PRIMARY KEY, name TEXT) {synced}")
    code, told, errors = register(file)
    assert (code, errors) == (1, "")
    assert told.splitlines() == [
        f"exists {ns}.a",
        f"warning: {ns}.a has body as UUID, which may refuse values of the file: it needs TEXT",
        f"warning: {ns}.a has data as TEXT, which may refuse values of the file: it needs BYTES",
        f"exists {ns}.b",
        f"warning: {ns}.c exists and isn't a synced USER table: drop it, or choose another namespace",
        f"exists {ns}.d",
        f"warning: {ns}.d has the primary key id, the file's is name: drop it, or rename the column",
    ]


def test_a_dry_run_prints_statements_that_can_be_run(
    register: Register, root: Client, ns: str, tmp_path: Path
) -> None:
    file = made(tmp_path / "app.sqlite", FAMILY)
    code, printed, _ = register(file, "--dry-run", "--url", "http://127.0.0.1:1", "--password", "wrong")
    assert code == 0
    assert root.query("SELECT name FROM system.namespaces WHERE name = $1", [ns]) == []
    root.execute(printed)
    assert register(file)[:2] == (
        0,
        "".join(f"exists {ns}.{t}\n" for t in ("files", "order", "lines", "reviews")),
    )


def test_a_composite_reference_keeps_its_columns(
    register: Register, site: Site, ns: str, tmp_path: Path
) -> None:
    schema = """
        CREATE TABLE teams (id TEXT PRIMARY KEY, kind INTEGER NOT NULL, UNIQUE (kind, id));
        CREATE TABLE members (
            id TEXT PRIMARY KEY, kind INTEGER, team TEXT,
            FOREIGN KEY (kind, team) REFERENCES teams (kind, id) ON DELETE CASCADE);
    """
    rows: dict[str, list[tuple[Any, ...]]] = {"teams": [("t", 1)], "members": [("m", 1, "t"), ("n", 2, None)]}
    file = made(tmp_path / "app.sqlite", schema, **rows)
    _, printed, _ = register(file, "--dry-run")
    assert (
        f'FOREIGN KEY ("kind", "team") REFERENCES "{ns}"."teams" ("kind", "id") ON DELETE CASCADE' in printed
    )
    assert register(file)[0] == 0
    app = App(site, ns, tmp_path, ["teams", "members"])
    with app.open(file) as first, app.reinstalled(schema) as second:
        for table in rows:
            assert contents(second.connection, table) == contents(first.connection, table) != []
