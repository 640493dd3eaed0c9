"""ALTER TABLE … ADD COLUMN on a real server: rows in every tier, writers and live queries that go on
meanwhile, restarts, and devices that don't know the column.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import upwell.client
from upwell.client import LiveTable, ServerError
from upwell.testing import ServerProcess
from upwell.testing.sync_world import World, applied, key, upsert
from upwell.testing.wire import Site, Wire

StartServer = Callable[..., ServerProcess]
SQLITE = "CREATE TABLE notes (id TEXT PRIMARY KEY, body TEXT);"
A, B, C, D, E = (key(number) for number in range(1, 6))


@pytest.fixture
def world(site: Site) -> Iterator[World]:
    """A namespace with one synced table of two columns."""
    with World(site.server, tables=("notes (id TEXT PRIMARY KEY, body TEXT)",)) as world:
        yield world


# --- the statement


def test_the_statement_and_what_it_says(site: Site, namespace: str) -> None:
    table = f"{namespace}.t"
    site.root.run(f"CREATE USER TABLE {table} (id INT PRIMARY KEY)")
    message = site.root.run(f"ALTER TABLE {table} ADD COLUMN note TEXT").message
    assert message == f"Table {table} altered successfully: ADD COLUMN note TEXT (version 2)"
    message = site.root.run(f"ALTER USER TABLE {table} ADD size BIGINT NOT NULL DEFAULT 7").message
    assert message == f"Table {table} altered successfully: ADD COLUMN size BIGINT (version 3)"
    message = site.root.run(f"ALTER TABLE {table} ADD COLUMN IF NOT EXISTS size BIGINT").message
    assert message == f"Table {table} unchanged: ADD COLUMN size BIGINT (version 3 - no changes needed)"
    described = site.root.run(f"DESCRIBE TABLE {table}").rows
    names = ("column_name", "ordinal_position", "column_id", "data_type", "is_nullable", "column_default")
    at = [site.root.run(f"DESCRIBE TABLE {table}").columns.index((n, t)) for n, t in _described(names)]
    assert [[row[index] for index in at] for row in described] == [
        ["id", 1, "1", "INT", False, None],
        ["note", 2, "2", "TEXT", True, None],
        ["size", 3, "3", "BIGINT", False, "7"],
    ]
    assert {row[-1] for row in described} == {3}


def _described(names: tuple[str, ...]) -> list[tuple[str, str]]:
    types = {"ordinal_position": "Int", "column_id": "BigInt", "is_nullable": "Boolean"}
    return [(name, types.get(name, "Text")) for name in names]


@pytest.mark.parametrize(
    ("rest", "code", "said"),
    [
        ("ADD COLUMN id INT", "SQL_EXECUTION_ERROR", "Column 'id' already exists"),
        ("ADD x INT NOT NULL", "SQL_EXECUTION_ERROR", "cannot be NOT NULL"),
        ("ADD x INT NOT NULL DEFAULT NULL", "SQL_EXECUTION_ERROR", "give the new column a DEFAULT"),
        ("ADD x BIGSERIAL", "INVALID_SQL", "must be a literal"),
        ("ADD x INT PRIMARY KEY", "INVALID_SQL", "PRIMARY KEY"),
        ("ADD x INT REFERENCES t (id)", "INVALID_SQL", "REFERENCES"),
        ("ADD x INT DEFAULT 'a'", "INVALID_SQL", "DEFAULT does not fit"),
        ("ADD _seq INT", "INVALID_SQL", "reserved"),
        ("DROP COLUMN id", "SQL_EXECUTION_ERROR", "it is the PRIMARY KEY"),
        ("DROP COLUMN x", "SQL_EXECUTION_ERROR", "Column 'x' does not exist"),
        (
            "DROP COLUMN _seq",
            "SQL_EXECUTION_ERROR",
            "Cannot drop column '_seq': system column",
        ),
        ("RENAME COLUMN x TO y", "SQL_EXECUTION_ERROR", "Column 'x' does not exist"),
        ("RENAME TO y", "INVALID_SQL", "a table keeps its name"),
        ("MODIFY COLUMN id SMALLINT", "SQL_EXECUTION_ERROR", "a type can only be widened"),
        ("MODIFY COLUMN id BIGINT", "SQL_EXECUTION_ERROR", "is the PRIMARY KEY and keeps its type"),
        ("ALTER COLUMN id DROP NOT NULL", "SQL_EXECUTION_ERROR", "PRIMARY KEY and cannot be nullable"),
        ("ALTER COLUMN id SET DEFAULT 'a'", "SQL_EXECUTION_ERROR", "DEFAULT does not fit"),
        ("SET ACCESS LEVEL PUBLIC", "SQL_EXECUTION_ERROR", "ACCESS LEVEL can only be set on SHARED tables"),
    ],
)
def test_what_is_refused_is_refused_by_name(
    site: Site, namespace: str, rest: str, code: str, said: str
) -> None:
    site.root.run(f"USE {namespace}; CREATE USER TABLE t (id INT PRIMARY KEY); INSERT INTO t VALUES (1)")
    assert said in site.root.sql(f"ALTER TABLE {namespace}.t {rest}").refused(400, code)
    assert len(site.root.run(f"DESCRIBE TABLE {namespace}.t").rows) == 1


def test_who_may_alter(site: Site, namespace: str, alice: Wire) -> None:
    """Role user may alter USER tables, but not ask whether others have NULL there."""
    service = site.account("service")[1]
    site.root.run(f"CREATE USER TABLE {namespace}.t (id INT PRIMARY KEY, n INT)")
    site.root.run(f"CREATE SHARED TABLE {namespace}.s (id INT PRIMARY KEY, n INT)")
    for rest in (
        "ADD x INT",
        "ADD y INT NOT NULL DEFAULT 1",
        "RENAME n TO m",
        "RENAME m TO n",
        "MODIFY n BIGINT",
        "ALTER n SET DEFAULT 1",
        "ALTER n DROP DEFAULT",
        "ALTER y DROP NOT NULL",
        "DROP y",
    ):
        alice.run(f"ALTER TABLE {namespace}.t {rest}")
    for rest in ("ADD z INT NOT NULL", "ALTER n SET NOT NULL", "MODIFY n BIGINT NOT NULL"):
        denied = alice.sql(f"ALTER TABLE {namespace}.t {rest}").refused(403, "PERMISSION_DENIED")
        assert "Insufficient privileges to alter table" in denied
    for rest in ("ADD x INT", "SET ACCESS LEVEL public"):
        alice.sql(f"ALTER TABLE {namespace}.s {rest}").refused(403, "PERMISSION_DENIED")
        service.run(f"ALTER TABLE {namespace}.s {rest}")
    service.run(f"ALTER TABLE {namespace}.t DROP COLUMN x")
    assert alice.run(f"DESCRIBE TABLE {namespace}.t").rows[-1][0] == "n"
    assert "not found" in site.root.sql(f"ALTER TABLE {namespace}.u ADD x INT").refused(
        400, "SQL_EXECUTION_ERROR"
    )


# --- tiers


def test_every_segment_reads_what_its_rows_began_with(start_server: StartServer) -> None:
    """Segments of three schemas and hot rows of each; the same again after a restart, and by key."""
    server = start_server()
    site = Site(server)
    site.root.run("CREATE NAMESPACE n; CREATE USER TABLE n.t (id INT PRIMARY KEY, v TEXT)")
    site.root.run("INSERT INTO n.t VALUES (1, 'a'), (2, 'b')")
    site.flush("n.t")
    site.root.run("ALTER TABLE n.t ADD x UUID DEFAULT '00000000-0000-4000-8000-000000000001'")
    site.root.run("INSERT INTO n.t (id, v, x) VALUES (3, 'c', NULL); INSERT INTO n.t (id) VALUES (4)")
    site.flush("n.t")
    site.root.run("INSERT INTO n.t (id) VALUES (5); UPDATE n.t SET v = 'B' WHERE id = 2")
    site.root.run("ALTER TABLE n.t ADD y BYTES DEFAULT '0a0b'")
    site.root.run("INSERT INTO n.t (id, y) VALUES (6, NULL); UPDATE n.t SET x = NULL WHERE id = 4")
    one, bytes_ = "00000000-0000-4000-8000-000000000001", [10, 11]
    expected = [
        [1, "a", one, bytes_], [2, "B", one, bytes_], [3, "c", None, bytes_],
        [4, None, None, bytes_], [5, None, one, bytes_], [6, None, one, None],
    ]  # fmt: skip

    def check(root: Wire) -> None:
        answer = root.run("SELECT id, v, x, y FROM n.t")
        assert answer.rows == expected
        assert answer.columns == [("id", "Int"), ("v", "Text"), ("x", "Uuid"), ("y", "Bytes")]
        for row in expected:
            assert root.run(f"SELECT id, v, x, y FROM n.t WHERE id = {row[0]}").rows == [row]
        assert root.run(f"SELECT COUNT(*) FROM n.t WHERE x = '{one}' AND y IS NOT NULL").cell == "3"

    check(site.root)
    site.close()
    server.restart()
    site = Site(server)
    check(site.root)
    site.flush("n.t")
    check(site.root)
    assert site.root.run("UPDATE n.t SET x = x, v = 'all' WHERE y IS NOT NULL").count == 5
    assert site.root.run("SELECT COUNT(x), COUNT(y) FROM n.t WHERE v = 'all'").rows == [["3", "5"]]
    assert site.root.run("DELETE FROM n.t WHERE y IS NOT NULL").count == 5
    assert site.root.run("SELECT id FROM n.t").rows == [[6]]
    site.close()


def test_writers_go_on_meanwhile(site: Site, namespace: str) -> None:
    """No INSERT or UPDATE that runs while columns come fails, and none is lost."""
    table, columns, rows = f"{namespace}.t", 8, 40
    site.root.run(f"CREATE SHARED TABLE {table} (id INT PRIMARY KEY, n INT)")
    wires = [site.wire(site.root.token) for _ in range(3)]
    started = threading.Barrier(len(wires) + 1)

    def write(number: int) -> None:
        started.wait()
        for row in range(rows):
            at = number * rows + row
            wires[number].run(f"INSERT INTO {table} (id, n) VALUES ({at}, 0)")
            assert wires[number].run(f"UPDATE {table} SET n = n + 1 WHERE id = {at}").count == 1
            assert wires[number].run(f"UPDATE {table} SET n = n + 1 WHERE n >= 0 AND id = {at}").count == 1

    with ThreadPoolExecutor(len(wires)) as pool:
        writers = [pool.submit(write, number) for number in range(len(wires))]
        started.wait()
        for number in range(columns):
            site.root.run(f"ALTER TABLE {table} ADD c{number} INT DEFAULT {number}")
        for writer in writers:
            writer.result()
    sums = ", ".join(f"MIN(c{number}), MAX(c{number})" for number in range(columns))
    bounds = [str(number) for number in range(columns) for _ in range(2)]
    found = site.root.run(f"SELECT COUNT(*), SUM(n), {sums} FROM {table}").rows[0]
    assert [str(cell) for cell in found] == [str(len(wires) * rows), str(2 * len(wires) * rows), *bounds]


# --- live queries


def test_a_live_query_goes_on_with_the_new_column(site: Site, namespace: str) -> None:
    table = f"{namespace}.t"
    site.root.run(
        f"CREATE USER TABLE {table} (id INT PRIMARY KEY, v TEXT); INSERT INTO {table} VALUES (1, 'a')"
    )
    with upwell.client.connect(site.server.url, user="root", password=site.server.root_password) as client:
        everything: LiveTable = LiveTable(["id"])
        chosen: LiveTable = LiveTable(["id"])
        queries = (f"SELECT * FROM {table}", f"SELECT id, v FROM {table} WHERE v <> 'hidden'")
        with client.live(queries[0]) as stars, client.live(queries[1], view=True) as views:
            feeds = [(iter(stars), everything), (iter(views), chosen)]

            def meet() -> None:
                """Fold changes until each table is what its SELECT says."""
                for (feed, folded), query in zip(feeds, queries, strict=True):
                    rows = client.query(query)
                    expected = {row["id"]: {n: row[n] for n in row if n[0] != "_"} for row in rows}
                    while folded.rows != expected:
                        folded.apply(next(feed))

            meet()
            site.root.run(f"UPDATE {table} SET v = 'b'; ALTER TABLE {table} ADD size INT DEFAULT 7")
            site.root.run(f"INSERT INTO {table} (id, v, size) VALUES (2, 'b', 20), (3, 'hidden', NULL)")
            site.root.run(f"UPDATE {table} SET v = 'c' WHERE id = 1")
            meet()
            assert {row["id"]: row.get("size") for row in everything.rows.values()} == {1: 7, 2: 20, 3: None}
            assert all("size" not in row for row in chosen.rows.values())
            site.root.run(
                f"DELETE FROM {table} WHERE size = 7; UPDATE {table} SET size = 1, v = 'd' WHERE id = 3"
            )
            meet()


# --- devices


def test_a_device_of_the_older_schema_goes_on(world: World) -> None:
    user = world.user()
    phone = world.handset(user)
    phone.put(upsert(1, "notes", A, body="a"), upsert(2, "notes", B, body="b"))
    world.sql(user, f"INSERT INTO {{ns}}.notes VALUES ('{C}', 'c')")
    world.flush("notes")
    phone.put(upsert(3, "notes", D, body="d"))
    world.sql(user, f"INSERT INTO {{ns}}.notes VALUES ('{E}', 'e')")
    world.root.execute(f"ALTER TABLE {world.ns}.notes ADD colour TEXT DEFAULT 'red'")
    plain = {pk: {"id": pk, "body": body} for pk, body in zip((A, B, C, D, E), "abcde", strict=True)}
    assert phone.live("notes") == plain
    assert [change["payload"] for change in phone.log()] == [plain[pk] for pk in (A, B, C, D, E)]

    # What it uploads leaves the column alone, and what it inserts has the default.
    phone.put(upsert(4, "notes", A, 1, body="a2"), upsert(5, "notes", "new", body="n"))
    world.sql(user, f"UPDATE {{ns}}.notes SET body = 'c2' WHERE id = '{C}'")
    world.sql(user, "UPDATE {ns}.notes SET body = 'e2' WHERE body = 'e'")
    world.sql(user, "INSERT INTO {ns}.notes (id, body) VALUES ('sql', 's')")
    colours = world.sql(user, "SELECT id, colour FROM {ns}.notes WHERE colour = 'red'")
    assert {row["id"] for row in colours} == {A, B, C, D, E, "new", "sql"}
    plain |= {pk: {"id": pk, "body": body} for pk, body in ((A, "a2"), (C, "c2"), (E, "e2"), ("new", "n"))}
    plain["sql"] = {"id": "sql", "body": "s"}
    assert phone.live("notes") == plain
    world.flush("notes")
    assert phone.live("notes") == plain

    # Once somebody writes the column, it is in the payload, and stays there.
    world.sql(user, f"UPDATE {{ns}}.notes SET colour = 'blue' WHERE id IN ('{A}', '{C}')")
    phone.put(upsert(6, "notes", B, 1, body="b", colour=None))
    world.sql(user, "INSERT INTO {ns}.notes (id, body, colour) VALUES ('full', 'f', 'red')")
    plain[A]["colour"] = plain[C]["colour"] = "blue"
    plain[B]["colour"] = None
    plain["full"] = {"id": "full", "body": "f", "colour": "red"}
    assert phone.live("notes") == plain
    assert phone.upload(upsert(7, "notes", A, 3, body="a3")) == [applied(7, 4)]
    plain[A]["body"] = "a3"
    world.flush("notes")
    assert phone.live("notes") == plain
    assert world.sql(user, f"SELECT colour FROM {{ns}}.notes WHERE id = '{A}'") == [{"colour": "blue"}]
    newest = {change["pk"]: change["payload"] for change in phone.log()}
    assert newest == plain


def test_a_conflict_shows_the_row_as_its_device_knows_it(world: World) -> None:
    user = world.user()
    phone, tablet = world.handset(user), world.handset(user, "tablet")
    phone.put(upsert(1, "notes", A, body="a"))
    world.sql(user, f"UPDATE {{ns}}.notes SET body = 'sql' WHERE id = '{A}'")
    world.root.execute(f"ALTER TABLE {world.ns}.notes ADD colour TEXT")
    for _ in ("hot", "cold"):
        (status,) = tablet.upload(upsert(1, "notes", A, 1, body="t"))
        assert status["status"] == "conflict"
        assert status["server_row"]["payload"] == {"id": A, "body": "sql"}
        world.flush("notes")


def test_an_app_that_learns_the_column_finds_what_was_kept_for_it(world: World, tmp_path: Path) -> None:
    user = world.user()
    old, new = (
        world.phone(tmp_path, user, source, schema=SQLITE, tables=["notes"]) for source in ("old", "new")
    )
    old.run("INSERT INTO notes VALUES ('1', 'a'), ('2', 'b')")
    old.device.sync()
    new.device.sync()
    world.root.execute(f"ALTER TABLE {world.ns}.notes ADD colour TEXT DEFAULT 'red'")
    world.sql(user, "UPDATE {ns}.notes SET colour = 'blue' WHERE id = '1'")
    new.run("ALTER TABLE notes ADD COLUMN colour TEXT DEFAULT 'red'")
    new.device.sync()
    assert new.run("SELECT * FROM notes ORDER BY id") == [("1", "a", "blue"), ("2", "b", "red")]
    old.device.sync()
    old.run("UPDATE notes SET body = body || '!'")
    new.run("INSERT INTO notes VALUES ('3', 'c', 'green')")
    for phone in (old, new, old):
        phone.device.sync()
    assert old.run("SELECT * FROM notes ORDER BY id") == [("1", "a!"), ("2", "b!"), ("3", "c")]
    expected = [("1", "a!", "blue"), ("2", "b!", "red"), ("3", "c", "green")]
    assert new.run("SELECT * FROM notes ORDER BY id") == expected
    found = world.sql(user, "SELECT id, body, colour FROM {ns}.notes ORDER BY id")
    assert [tuple(row.values()) for row in found] == expected

    # The old app is updated, and what had been kept aside appears.
    old.run("ALTER TABLE notes ADD COLUMN colour TEXT DEFAULT 'red'")
    old.device.sync()
    assert old.run("SELECT * FROM notes ORDER BY id") == expected
    restored = world.phone(tmp_path, user, "again", schema=SQLITE, tables=["notes"], name="again")
    restored.device.sync()
    assert restored.run("SELECT * FROM notes ORDER BY id") == [row[:2] for row in expected]
    for phone in (old, new, restored):
        phone.check()


def test_the_log_shows_rows_as_they_were(world: World) -> None:
    name, alice = world.account()
    world.handset(name).put(upsert(1, "notes", A, body="a"))
    world.root.execute(f"ALTER TABLE {world.ns}.notes ADD colour TEXT DEFAULT 'red'")
    alice.run(f"UPDATE {world.ns}.notes SET colour = 'blue'")
    shown = alice.run('SELECT "values" FROM system.changes ORDER BY seq').rows
    assert shown == [[f'{{"id":"{A}","body":"a"}}'], [f'{{"id":"{A}","body":"a","colour":"blue"}}']]


def test_devices_go_on_uploading_meanwhile(world: World) -> None:
    user, rows, columns = world.user(), 60, 6
    phone = world.handset(user)
    with ThreadPoolExecutor(1) as pool:
        uploads = pool.submit(
            lambda: [phone.put(upsert(n, "notes", str(n), body="b", c0=n)) for n in range(1, rows + 1)]
        )
        for number in range(columns):
            world.root.execute(f"ALTER TABLE {world.ns}.notes ADD c{number} INT DEFAULT -{number}")
        assert uploads.result() == [[1]] * rows
    bounds = ", ".join(
        f"MIN(c{number}) AS a{number}, MAX(c{number}) AS b{number}" for number in range(1, columns)
    )
    (found,) = world.sql(user, f"SELECT COUNT(*) AS n, {bounds} FROM {{ns}}.notes")
    assert [int(cell) for cell in found.values()] == [rows, *(-n for n in range(1, columns) for _ in "ab")]
    # What was uploaded before there was a column is only in the payload; later it is in the column, too.
    held = world.sql(user, "SELECT id, c0 FROM {ns}.notes")
    assert all(row["c0"] in (0, int(row["id"])) for row in held)
    assert {row["payload"]["c0"] for row in phone.log()} == set(range(1, rows + 1))


def test_a_device_that_still_has_a_dropped_column_goes_on(world: World) -> None:
    """The column is gone for SQL; what devices write under its name stays in their payloads."""
    user = world.user()
    phone = world.handset(user)
    world.root.execute(f"ALTER TABLE {world.ns}.notes ADD colour TEXT")
    phone.put(upsert(1, "notes", A, body="a", colour="red"), upsert(2, "notes", B, body="b"))
    world.flush("notes")
    phone.put(upsert(3, "notes", C, body="c", colour="blue"))
    world.root.execute(f"ALTER TABLE {world.ns}.notes DROP COLUMN colour")
    assert phone.upload(upsert(4, "notes", B, 1, body="b2", colour="green")) == [applied(4, 2)]
    phone.put(upsert(5, "notes", D, body="d", colour="gold"))
    for _ in ("hot", "cold"):
        found = world.sql(user, "SELECT * FROM {ns}.notes ORDER BY body")
        assert [(row["id"], row["body"], "colour" in row) for row in found] == [
            (A, "a", False), (B, "b2", False), (C, "c", False), (D, "d", False),
        ]  # fmt: skip
        live = phone.live("notes")
        assert live[B] == {"id": B, "body": "b2", "colour": "green"}
        assert live[D] == {"id": D, "body": "d", "colour": "gold"}
        assert [live[pk]["body"] for pk in (A, C)] == ["a", "c"]
        world.flush("notes")
    with pytest.raises(ServerError, match="devices may still have values of that name"):
        world.root.execute(f"ALTER TABLE {world.ns}.notes ADD colour TEXT")
    with pytest.raises(ServerError, match="devices know its columns by their names"):
        world.root.execute(f"ALTER TABLE {world.ns}.notes RENAME COLUMN body TO content")


def test_devices_write_days_times_and_exact_numbers(site: Site) -> None:
    """Payloads have ISO 8601 and texts; what SQL changes comes in the same form."""
    tables = (
        "visits (id TEXT PRIMARY KEY, day DATE, hour TIME, at DATETIME, cost DECIMAL(8,2), share FLOAT)",
    )
    with World(site.server, tables=tables) as world:
        user = world.user()
        phone = world.handset(user)
        row = {
            "day": "2026-11-22", "hour": "08:30:00.000000", "at": "2026-11-22T08:30:00.000000Z",
            "cost": "12.50", "share": 0.5,
        }  # fmt: skip
        phone.put(upsert(1, "visits", A, **row), upsert(2, "visits", B, **dict.fromkeys(row)))
        number = world.sql(user, "SELECT day, hour, at, cost, share FROM {ns}.visits WHERE cost = 12.5")
        assert len(number) == 1
        for _ in ("hot", "cold"):
            assert phone.live("visits") == {
                A: {"id": A, **row},
                B: {"id": B, **dict.fromkeys(row)},
            }
            world.flush("visits")
        world.sql(user, "UPDATE {ns}.visits SET cost = cost + 1, day = '2027-01-01' WHERE share = 0.5")
        assert phone.live("visits")[A] == {"id": A, **row, "cost": "13.50", "day": "2027-01-01"}
        (status,) = phone.upload(upsert(3, "visits", C, day="never"))
        assert status["status"] == "invalid"
