"""What the state machine of the fleet and people who tried found, each in its smallest form."""

import itertools
import sqlite3
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from upwell.clock import ManualClock
from upwell.device import Unreachable
from upwell.feeds.upload import UploadLimits
from upwell.testing.embedded import RETENTION_S, Embedded
from upwell.testing.inprocess import LIMITS, App, CrashPoints, Fault, Killed, SyncServer

KEYS = [f"00000000-0000-4000-8000-{number:012d}" for number in range(1, 4)]
RINGS = (("00000000-0001", 6), ("00000000-0002", 3))

APP_TABLES = """
CREATE TABLE users (id TEXT PRIMARY KEY, name TEXT);
CREATE TABLE posts (id TEXT PRIMARY KEY, title TEXT, author TEXT REFERENCES users (id));
CREATE TABLE nodes (id TEXT PRIMARY KEY, next TEXT REFERENCES nodes (id) DEFERRABLE INITIALLY DEFERRED);
"""
SERVER_TABLES = (
    "users (id UUID PRIMARY KEY, name TEXT)",
    "posts (id UUID PRIMARY KEY, title TEXT, author UUID REFERENCES app.users (id))",
    "nodes (id UUID PRIMARY KEY, next UUID REFERENCES app.nodes (id))",
)
TABLES = ["users", "posts", "nodes"]
REQUIRED_TABLES = """
CREATE TABLE pages (id TEXT PRIMARY KEY, author TEXT NOT NULL REFERENCES users (id));
CREATE TABLE lines (id TEXT PRIMARY KEY, page TEXT NOT NULL REFERENCES pages (id));
CREATE TABLE marks (id TEXT PRIMARY KEY, line TEXT REFERENCES lines (id));
"""
SERVER_REQUIRED_TABLES = (
    "pages (id UUID PRIMARY KEY, author UUID NOT NULL REFERENCES app.users (id))",
    "lines (id UUID PRIMARY KEY, page UUID NOT NULL REFERENCES app.pages (id))",
    "marks (id UUID PRIMARY KEY, line UUID REFERENCES app.lines (id))",
)
PAIR_TABLES = """
CREATE TABLE pairs (
    id TEXT PRIMARY KEY, author TEXT NOT NULL REFERENCES users (id),
    other TEXT NOT NULL REFERENCES pairs (id) DEFERRABLE INITIALLY DEFERRED);
CREATE TABLE tags (id TEXT PRIMARY KEY, pair TEXT REFERENCES pairs (id));
"""
SERVER_PAIR_TABLES = (
    "pairs (id UUID PRIMARY KEY, author UUID NOT NULL REFERENCES app.users (id),"
    " other UUID NOT NULL REFERENCES app.pairs (id))",
    "tags (id UUID PRIMARY KEY, pair UUID REFERENCES app.pairs (id))",
)


class World:
    """A server with two synced tables, and apps of one user."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.clock = ManualClock()
        points = CrashPoints()
        self.db = Embedded(directory / "server", clock=self.clock, points=points)
        self.db.run("CREATE NAMESPACE app")
        for table in SERVER_TABLES:
            self.create(table)
        self.server = SyncServer(self.db, points)
        self.apps: list[App] = []

    def create(self, table: str) -> None:
        self.db.run(f"CREATE TABLE app.{table} WITH (TYPE='USER', SYNC=TRUE)")

    def app(self, name: str, *, more: str = "", tables: Sequence[str] = TABLES, **options: Any) -> App:
        path = self.directory / f"{name}.sqlite"
        with sqlite3.connect(path) as connection:
            connection.executescript(APP_TABLES + more)
        connection.close()
        app = App(
            path,
            self.server,
            user="ada",
            schema="app",
            tables=tables,
            **options,
            new_source=lambda: name,
        )
        self.apps.append(app)
        return app

    def sql(self, statement: str, *parameters: str) -> None:
        assert self.db.change(statement, parameters, user="ada") == 1

    def insert(self, key: str) -> None:
        self.sql("INSERT INTO app.users VALUES ($1, 'Ada')", key)

    def close(self) -> None:
        for app in self.apps:
            app.device.close()
        self.server.close()
        self.db.close()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.close()


@pytest.mark.parametrize("download_limit", [1, 2, 200])
def test_a_hydration_from_zero_skips_nothing_when_the_floor_is_low(world: World, download_limit: int) -> None:
    """A phone synced while there was nothing, was away longer than the log is kept, and comes back."""
    app = world.app("phone", download_limit=download_limit)
    app.device.sync()
    world.insert(KEYS[2])
    world.clock.advance(RETENTION_S + 1)
    world.db.trim.run()
    for key in KEYS[:2]:
        world.insert(key)

    app.device.sync()

    rows = app.device.connection.execute("SELECT id FROM users ORDER BY id").fetchall()
    assert [key for (key,) in rows] == KEYS


def test_a_conflict_brings_no_orphan(world: World) -> None:
    """An upload takes the server's row, whose author this phone hasn't seen yet."""
    app = world.app("phone")
    world.sql("INSERT INTO app.posts VALUES ($1, 'draft', NULL)", KEYS[1])
    app.device.sync()
    world.insert(KEYS[0])
    world.sql("UPDATE app.posts SET author = $2 WHERE id = $1", KEYS[1], KEYS[0])
    app.device.connection.execute("UPDATE posts SET title = 'mine'")

    assert app.device.upload().conflicts == 1

    assert app.device.connection.execute("PRAGMA foreign_key_check").fetchall() == []
    app.device.download()
    assert app.device.connection.execute("SELECT * FROM posts").fetchall() == [(KEYS[1], "draft", KEYS[0])]


def nodes(app: App) -> dict[str, str | None]:
    return dict(app.device.connection.execute("SELECT id, next FROM nodes"))


@pytest.mark.parametrize("fault", [None, Fault.REQUEST_LOST, Fault.ANSWER_LOST])
def test_an_unsent_edit_keeps_what_it_hangs_on(world: World, fault: Fault | None) -> None:
    """The app deletes a root; the back end hangs a node under it, the app another under that node."""
    app = world.app("phone")
    root, middle, leaf = KEYS
    world.sql("INSERT INTO app.nodes VALUES ($1, NULL)", root)
    world.sql("INSERT INTO app.nodes VALUES ($1, NULL)", middle)
    app.device.sync()
    app.device.connection.execute("DELETE FROM nodes WHERE id = ?", (root,))
    if fault is not None:
        app.line.faults.append(fault)
        with pytest.raises(Unreachable):
            app.device.upload()
    if fault is Fault.ANSWER_LOST:  # the root is gone there, too, and somebody makes it anew
        world.sql("INSERT INTO app.nodes VALUES ($1, NULL)", root)
    world.sql("UPDATE app.nodes SET next = $2 WHERE id = $1", middle, root)
    app.device.connection.execute("INSERT INTO nodes VALUES (?, ?)", (leaf, middle))

    app.device.download()

    assert nodes(app) == {root: None, middle: root, leaf: middle}
    assert app.device.connection.execute("PRAGMA foreign_key_check").fetchall() == []
    [(given_up, decision)] = app.device.connection.execute(
        "SELECT pk_uuid, decision FROM _sync_conflicts WHERE local_payload IS NULL"
    )
    assert (given_up, decision) == (root, "server")
    app.device.sync()
    assert app.device.status().pending == 0
    assert nodes(app) == {root: None, middle: root, leaf: middle}
    assert sorted(world.db.rows("SELECT id, next FROM app.nodes", user="ada"), key=str) == [
        (root, None),
        (middle, root),
        (leaf, middle),
    ]


def test_a_row_lives_on_without_the_parent_that_it_was_revived_for_nothing(world: World) -> None:
    """The back end hangs a node under one that the app deletes, and deletes it before an unsent child."""
    app = world.app("phone")
    root, middle, leaf = KEYS
    world.sql("INSERT INTO app.nodes VALUES ($1, NULL)", root)
    world.sql("INSERT INTO app.nodes VALUES ($1, NULL)", middle)
    app.device.sync()
    app.device.connection.execute("DELETE FROM nodes WHERE id = ?", (root,))
    app.device.connection.execute("INSERT INTO nodes VALUES (?, ?)", (leaf, middle))
    world.sql("UPDATE app.nodes SET next = $2 WHERE id = $1", middle, root)
    world.sql("DELETE FROM app.nodes WHERE id = $1", middle)

    app.device.sync()

    assert nodes(app) == {middle: None, leaf: middle}
    assert app.device.status().pending == 0
    assert set(world.db.rows("SELECT id, next FROM app.nodes", user="ada")) == {
        (middle, None),
        (leaf, middle),
    }


def test_an_edit_below_a_row_that_cannot_be_revived_is_recorded(world: World) -> None:
    """As before, but every row needs its parent: what can't be is given up, what can goes on without it."""
    for table in SERVER_REQUIRED_TABLES:
        world.create(table)
    app = world.app("phone", more=REQUIRED_TABLES, tables=["users", "pages", "lines", "marks"])
    run = app.device.connection.execute
    author, other, page = KEYS
    world.insert(author)
    world.insert(other)
    world.sql("INSERT INTO app.pages VALUES ($1, $2)", page, other)
    app.device.sync()
    run("DELETE FROM users WHERE id = ?", (author,))
    run("INSERT INTO lines VALUES (?, ?)", (KEYS[0], page))
    run("INSERT INTO marks VALUES (?, ?)", (KEYS[1], KEYS[0]))
    world.sql("UPDATE app.pages SET author = $2 WHERE id = $1", page, author)
    world.sql("DELETE FROM app.pages WHERE id = $1", page)

    app.device.sync()

    found = {
        table: run(f"SELECT * FROM {table}").fetchall() for table in ("users", "pages", "lines", "marks")
    }
    assert found == {"users": [(other, "Ada")], "pages": [], "lines": [], "marks": [(KEYS[1], None)]}
    assert run("PRAGMA foreign_key_check").fetchall() == []
    assert app.device.status().pending == 0
    assert world.db.rows("SELECT id, line FROM app.marks", user="ada") == [(KEYS[1], None)]
    given_up = run("SELECT table_name, pk_uuid, local_payload FROM _sync_conflicts ORDER BY id").fetchall()
    assert given_up == [
        ("pages", page, f'{{"id":"{page}","author":"{author}"}}'),
        ("lines", KEYS[0], f'{{"id":"{KEYS[0]}","page":"{page}"}}'),
    ]


def test_a_circle_that_cannot_be_revived_is_given_up_once(world: World) -> None:
    """As before, but the two rows that can't be revived need each other, too."""
    for table in SERVER_PAIR_TABLES:
        world.create(table)
    app = world.app("phone", more=PAIR_TABLES, tables=["users", "pairs", "tags"])
    run = app.device.connection.execute
    author, other, tag = KEYS
    world.insert(author)
    world.insert(other)
    app.device.sync()
    run("BEGIN")
    for key, partner in ((author, other), (other, author)):
        run("INSERT INTO pairs VALUES (?, ?, ?)", (key, other, partner))
    run("COMMIT")
    app.device.sync()
    run("DELETE FROM users WHERE id = ?", (author,))
    run("INSERT INTO tags VALUES (?, ?)", (tag, author))
    assert world.db.change("UPDATE app.pairs SET author = $1", [author], user="ada") == 2
    assert world.db.change("DELETE FROM app.pairs", user="ada") == 2

    app.device.sync()

    found = {table: run(f"SELECT * FROM {table}").fetchall() for table in ("users", "pairs", "tags")}
    assert found == {"users": [(other, "Ada")], "pairs": [], "tags": [(tag, None)]}
    assert app.device.status().pending == 0
    assert world.db.rows("SELECT id, pair FROM app.tags", user="ada") == [(tag, None)]
    given_up = run("SELECT table_name, pk_uuid FROM _sync_conflicts ORDER BY pk_uuid").fetchall()
    assert given_up == [("pairs", author), ("pairs", other)]


def test_a_row_moved_below_one_that_cannot_be_revived_is_where_the_server_has_it(world: World) -> None:
    """The edit is given up and recorded; the row, which the server has elsewhere, isn't gone."""
    for table in SERVER_REQUIRED_TABLES:
        world.create(table)
    app = world.app("phone", more=REQUIRED_TABLES, tables=["users", "pages", "lines", "marks"])
    run = app.device.connection.execute
    author, other, page = KEYS
    home, line = KEYS[:2]
    world.insert(author)
    world.insert(other)
    world.sql("INSERT INTO app.pages VALUES ($1, $2)", page, other)
    world.sql("INSERT INTO app.pages VALUES ($1, $2)", home, other)
    world.sql("INSERT INTO app.lines VALUES ($1, $2)", line, home)
    app.device.sync()
    run("DELETE FROM users WHERE id = ?", (author,))
    run("UPDATE lines SET page = ?", (page,))
    world.sql("UPDATE app.pages SET author = $2 WHERE id = $1", page, author)
    world.sql("DELETE FROM app.pages WHERE id = $1", page)

    app.device.sync()

    assert run("SELECT * FROM pages").fetchall() == [(home, other)]
    assert run("SELECT * FROM lines").fetchall() == [(line, home)]
    assert world.db.rows("SELECT id, page FROM app.lines", user="ada") == [(line, home)]
    status = app.device.status()
    assert (status.pending, status.withheld) == (0, 0)
    given_up = run(
        "SELECT local_payload, server_payload, decision FROM _sync_conflicts WHERE table_name = 'lines'"
    ).fetchall()
    assert given_up == [
        (f'{{"id":"{line}","page":"{page}"}}', f'{{"id":"{line}","page":"{home}"}}', "server"),
    ]


def test_a_deletion_stands_when_nothing_unsent_hangs_on_it(world: World) -> None:
    """The back end's node waits aside; the server refuses the deletion, and both are back."""
    app = world.app("phone")
    root, middle, _ = KEYS
    world.sql("INSERT INTO app.nodes VALUES ($1, NULL)", root)
    app.device.sync()
    app.device.connection.execute("DELETE FROM nodes WHERE id = ?", (root,))
    world.sql("INSERT INTO app.nodes VALUES ($1, $2)", middle, root)

    app.device.download()

    assert nodes(app) == {}
    assert app.device.status().pending == 1
    for _ in range(2):
        app.device.sync()
    assert nodes(app) == {root: None, middle: root}


def test_a_table_made_anew_gets_its_rows_back_from_the_devices(world: World) -> None:
    phone, laptop = world.app("phone"), world.app("laptop")
    phone.device.connection.execute("INSERT INTO users VALUES (?, 'one'), (?, 'two')", KEYS[:2])
    phone.device.sync()
    laptop.device.sync()
    world.db.run("DROP TABLE app.posts")
    world.db.run("DROP TABLE app.users")
    world.create(SERVER_TABLES[0])
    world.create(SERVER_TABLES[1])
    world.insert(KEYS[2])
    phone.device.connection.execute("UPDATE users SET name = 'edited' WHERE id = ?", (KEYS[0],))

    for app in (phone, laptop, phone):
        app.device.sync()

    expected = [(KEYS[0], "edited"), (KEYS[1], "two"), (KEYS[2], "Ada")]
    assert world.db.rows("SELECT id, name FROM app.users ORDER BY id", user="ada") == expected
    for app in (phone, laptop):
        assert app.device.connection.execute("SELECT * FROM users ORDER BY id").fetchall() == expected
        assert app.device.status().pending == 0


def test_a_circle_of_rows_gets_through_whatever_the_limit(world: World) -> None:
    app = world.app("phone", upload_limit=1)
    app.device.connection.execute("BEGIN")
    for key, following in zip(KEYS, [*KEYS[1:], KEYS[0]], strict=True):
        app.device.connection.execute("INSERT INTO nodes VALUES (?, ?)", (key, following))
    app.device.connection.execute("COMMIT")

    report = app.device.upload()

    assert (report.applied, report.pending) == (3, 0)
    assert world.db.rows("SELECT count(*) FROM app.nodes", user="ada") == [(3,)]


@pytest.mark.parametrize("limit", [1, 2, 200])
@pytest.mark.parametrize("is_held", [False, True])
def test_the_deletion_of_a_circle_gets_through_whatever_the_limit(
    world: World, limit: int, is_held: bool
) -> None:
    """And what goes beside it; but for a row that the server holds, for another device refers to it."""
    phone, laptop = world.app("phone", upload_limit=limit), world.app("laptop")
    execute = phone.device.connection.execute
    for table, keys in (("nodes", KEYS), ("users", KEYS)):
        execute("BEGIN")
        for key, following in zip(keys, [*keys[1:], keys[0]], strict=True):
            execute(f"INSERT INTO {table} VALUES (?, ?)", (key, following))
        execute("COMMIT")
    phone.device.sync()
    laptop.device.sync()
    if is_held:
        laptop.device.connection.execute("INSERT INTO posts VALUES (?, 'new', ?)", (KEYS[0], KEYS[1]))
        laptop.device.sync()
    execute("DELETE FROM nodes")
    execute("DELETE FROM users")

    for _ in range(3):
        phone.device.sync()

    held = [(KEYS[1],)] if is_held else []
    for table, expected in (("nodes", []), ("users", held)):
        assert world.db.rows(f"SELECT id FROM app.{table}", user="ada") == expected
        assert execute(f"SELECT id FROM {table}").fetchall() == expected
    assert phone.device.status().pending == 0
    assert phone.device.status().conflicts == int(is_held)


@pytest.mark.parametrize("limit", [1, 2, 200])
def test_deletions_that_others_hold_are_undone_whatever_the_limit(world: World, limit: int) -> None:
    """Several rows at once, none of which refers to another one."""
    phone, laptop = world.app("phone", upload_limit=limit), world.app("laptop")
    for key in KEYS:
        world.insert(key)
    phone.device.sync()
    laptop.device.sync()
    for key in KEYS:
        laptop.device.connection.execute("INSERT INTO posts VALUES (?, 'new', ?)", (key, key))
    laptop.device.sync()
    phone.device.connection.execute("DELETE FROM users")

    for _ in range(3):
        phone.device.sync()

    held = [(key, "Ada") for key in KEYS]
    assert phone.device.connection.execute("SELECT * FROM users ORDER BY id").fetchall() == held
    assert phone.device.connection.execute("SELECT count(*) FROM posts").fetchone() == (3,)
    assert (phone.device.status().pending, phone.device.status().conflicts) == (0, 3)


def test_a_circle_larger_than_an_upload_says_so_and_goes_when_the_server_takes_it(world: World) -> None:
    """It comes, and later goes, only together; what isn't of it isn't kept waiting."""
    large, small = (
        [f"{prefix}-4000-8000-{number:012d}" for number in range(count)] for prefix, count in RINGS
    )
    app = world.app("phone", upload_limit=2)
    execute = app.device.connection.execute

    def serve(limits: UploadLimits) -> None:
        world.server.limits = limits
        world.server.restart()

    def on_server() -> list[str]:
        return [key for (key,) in world.db.rows("SELECT id FROM app.nodes ORDER BY id", user="ada")]

    serve(UploadLimits(changes_max=4, payload_bytes_max=0))
    execute("BEGIN")
    for ring in (large, small):
        for key, following in zip(ring, [*ring[1:], ring[0]], strict=True):
            execute("INSERT INTO nodes VALUES (?, ?)", (key, following))
    execute("COMMIT")
    for whole, half in (([*large, *small], small), ([], large)):
        app.device.sync()
        assert on_server() == half
        assert app.device.status().pending == len(large)
        assert "6 changes refer to each other" in (app.device.status().last_error or "")
        serve(LIMITS)
        app.device.sync()
        assert on_server() == whole
        assert (app.device.status().pending, app.device.status().last_error) == (0, None)
        serve(UploadLimits(changes_max=4, payload_bytes_max=0))
        execute("DELETE FROM nodes")


def test_who_has_used_up_the_change_ids_loses_nothing_and_still_reads(world: World) -> None:
    app = world.app("phone")
    app.device.connection.execute("UPDATE _sync_client_info SET next_change_id = 9223372036854775806")
    for key in KEYS:
        app.device.connection.execute("INSERT INTO users VALUES (?, 'mine')", (key,))
    other = "00000000-0000-4000-8000-000000000009"
    world.insert(other)

    app.device.sync()

    assert [(change.key, change.reason) for change in app.device.pending()] == [
        (KEYS[1], "no_change_id"),
        (KEYS[2], "no_change_id"),
    ]
    assert world.db.rows("SELECT id FROM app.users ORDER BY id", user="ada") == [(KEYS[0],), (other,)]
    assert app.device.connection.execute("SELECT count(*) FROM users").fetchall() == [(4,)]
    again = world.app("again", source="phone")
    again.device.sync()
    assert again.device.connection.execute("SELECT id FROM users ORDER BY id").fetchall() == [
        (KEYS[0],),
        (other,),
    ]


@pytest.mark.parametrize("statement", ["UPDATE users SET name = 'mine'", "DELETE FROM users"])
def test_a_change_refused_after_it_took_effect_is_known_again_after_a_hydration(
    world: World, statement: str
) -> None:
    """Its answer was lost, a proxy refused the repetition, and all rows were read again in between."""
    app = world.app("phone")
    world.insert(KEYS[0])
    app.device.sync()
    app.device.connection.execute(statement)
    app.line.faults.append(Fault.ANSWER_LOST)
    with pytest.raises(Unreachable):
        app.device.upload()
    app.line.faults.append(Fault.REFUSED_413)
    app.device.upload()
    assert app.device.status().quarantined == 1

    app.device.hydrate()
    app.device.retry_refused()
    app.device.hydrate()
    report = app.device.upload()

    assert (report.duplicates, report.pending, report.conflicts) == (1, 0, 0)
    assert app.device.status().conflicts == 0


def test_a_deletion_that_had_no_effect_takes_no_version_from_others(world: World) -> None:
    """The row never was on the server; its key comes there between the deletion and its repetition."""
    app = world.app("phone")
    app.device.sync()
    app.device.connection.execute("INSERT INTO users VALUES (?, 'mine')", (KEYS[0],))
    app.device.connection.execute("DELETE FROM users")
    app.line.faults.append(Fault.ANSWER_LOST)
    with pytest.raises(Unreachable):
        app.device.upload()
    world.insert(KEYS[0])

    app.device.sync()

    assert app.device.connection.execute("SELECT * FROM users").fetchall() == [(KEYS[0], "Ada")]
    assert world.db.rows("SELECT id FROM app.users", user="ada") == [(KEYS[0],)]


def test_a_text_that_is_no_utf8_stops_only_its_row(world: World) -> None:
    app = world.app("phone")
    execute = app.device.connection.execute
    execute("INSERT INTO users VALUES (?, CAST(x'ff41' AS TEXT))", (KEYS[0],))
    execute("INSERT INTO users VALUES (?, 'two \ufffd')", (KEYS[1],))

    report = app.device.sync()

    assert report.upload.applied == 1
    [held] = app.device.pending()
    assert (held.key, held.is_quarantined, held.reason) == (KEYS[0], True, "invalid_text")
    assert world.db.rows("SELECT name FROM app.users", user="ada") == [("two \ufffd",)]
    execute("UPDATE users SET name = 'mended' WHERE id = ?", (KEYS[0],))
    app.device.sync()
    assert world.db.rows("SELECT name FROM app.users ORDER BY id", user="ada") == [
        ("mended",),
        ("two \ufffd",),
    ]


def test_a_row_that_was_deleted_before_a_hydration_goes_although_its_upload_is_repeated(world: World) -> None:
    """The answer to an upload is lost, the row goes, the phone hydrates: the hydration shows no deletion."""
    app = world.app("phone")
    app.device.connection.execute("INSERT INTO users VALUES (?, 'Ada')", (KEYS[0],))
    app.line.faults.append(Fault.ANSWER_LOST)
    with pytest.raises(Unreachable):
        app.device.upload()
    world.sql("DELETE FROM app.users WHERE id = $1", KEYS[0])
    app.device.hydrate()

    app.device.sync()

    assert app.device.connection.execute("SELECT * FROM users").fetchall() == []
    assert app.device.status().pending == 0


def test_an_app_that_writes_uuids_in_capitals_keeps_its_form(world: World) -> None:
    phone, laptop = world.app("phone"), world.app("laptop")
    key = "AD3CBB3E-0000-4000-8000-00000000000F"
    phone.device.connection.execute("INSERT INTO users VALUES (?, 'one')", (key,))
    phone.device.sync()
    laptop.device.sync()
    laptop.device.connection.execute("UPDATE users SET name = 'two'")
    laptop.device.sync()
    phone.device.sync()
    assert phone.device.connection.execute("SELECT * FROM users").fetchall() == [(key, "two")]
    phone.device.connection.execute("DELETE FROM users WHERE id = ?", (key,))
    phone.device.sync()
    laptop.device.sync()
    for app in (phone, laptop):
        assert app.device.connection.execute("SELECT * FROM users").fetchall() == []
    assert world.db.rows("SELECT * FROM app.users", user="ada") == []


def test_a_blob_where_none_is_declared_is_set_aside(world: World) -> None:
    app = world.app("phone")
    execute = app.device.connection.execute
    execute("INSERT INTO users VALUES (?, x'00ff')", (KEYS[0],))
    execute("INSERT INTO users VALUES (x'00ff', 'a key')")
    execute("INSERT INTO users VALUES (?, 'plain')", (KEYS[1],))

    assert app.device.sync().upload.applied == 1

    held = {change.reason for change in app.device.pending() if change.is_quarantined}
    assert held == {"blob_in_text", "invalid_key"}
    execute("UPDATE users SET name = 'text' WHERE id = ?", (KEYS[0],))
    app.device.sync()
    expected = [(KEYS[0], "text"), (KEYS[1], "plain")]
    assert world.db.rows("SELECT id, name FROM app.users ORDER BY id", user="ada") == expected


@pytest.mark.parametrize("step", ["upload", "download", "hydrate"])
def test_killed_between_any_two_statements(world: World, step: str) -> None:
    """Both sides write, the app is killed at its n-th SQL statement, for every n; then it goes on."""
    app = world.app("phone", download_limit=1)
    app.device.sync()
    for statement in itertools.count(1):
        mine, theirs = ([str(uuid.uuid4()) for _ in range(count)] for count in (1, 2))
        for key in theirs:
            world.insert(key)
        app.device.connection.executemany("INSERT INTO users VALUES (?, 'mine')", [[key] for key in mine])
        app.kill_at(statement)
        with suppress(Killed):
            getattr(app.device, step)()
        is_whole = not app.is_dead
        app.restart()
        app.device.upload()
        app.device.download()
        here = app.device.connection.execute("SELECT id, name FROM users").fetchall()
        assert sorted(here) == sorted(world.db.rows("SELECT id, name FROM app.users", user="ada"))
        assert {*mine, *theirs} <= {key for key, _ in here}
        if is_whole:
            break
        world.db.change("DELETE FROM app.users", user="ada")
        app.device.download()
    assert statement > 10


def test_no_orphan_stays_when_an_upload_was_cut_off(world: World) -> None:
    """A conflict brings a row before its parent, and the app ends anywhere after it."""
    app = world.app("phone")
    world.insert(KEYS[1])
    world.sql("INSERT INTO app.posts VALUES ($1, 'theirs', $2)", KEYS[0], KEYS[1])
    app.device.download()
    for statement in itertools.count(1):
        key = str(uuid.uuid4())
        world.insert(key)
        world.sql("UPDATE app.posts SET author = $1", key)
        app.device.connection.execute("UPDATE posts SET title = ?", (key,))
        app.kill_at(statement)
        with suppress(Killed):
            app.device.upload()
        is_whole = not app.is_dead
        app.restart()
        app.device.upload()
        assert app.device.connection.execute("PRAGMA foreign_key_check").fetchall() == []
        app.device.download()
        assert app.device.connection.execute("SELECT author FROM posts").fetchall() == [(key,)]
        if is_whole:
            break
    assert statement > 10


@pytest.mark.parametrize("step", ["upload", "download"])
def test_no_orphan_stays_when_a_download_was_cut_off(world: World, step: str) -> None:
    """The file refuses a row, its child comes with the next page, and the app ends anywhere."""
    app = world.app("phone", download_limit=1)
    app.device.connection.execute("CREATE UNIQUE INDEX one_of_a_name ON users (name)")
    world.insert(KEYS[0])
    app.device.sync()
    for statement in itertools.count(1):
        parent, child = str(uuid.uuid4()), str(uuid.uuid4())
        world.insert(parent)
        world.sql("INSERT INTO app.posts VALUES ($1, 'a post', $2)", child, parent)
        app.kill_at(statement)
        with suppress(Killed):
            app.device.download()
        is_whole = not app.is_dead
        app.restart()
        getattr(app.device, step)()
        assert app.device.connection.execute("PRAGMA foreign_key_check").fetchall() == []
        world.sql("UPDATE app.users SET name = id WHERE id = $1", parent)
        app.device.sync()
        assert app.device.connection.execute("SELECT id, author FROM posts").fetchall() == [(child, parent)]
        if is_whole:
            break
        world.sql("DELETE FROM app.posts WHERE id = $1", child)
        app.device.download()
    assert statement > 10
