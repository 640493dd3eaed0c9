"""Views: a query with a name, which each reads with their own rights and rows, in both tiers."""

from pathlib import Path

import pytest

from upwell.testing import ServerProcess
from upwell.testing.wire import Site, Wire


@pytest.fixture(scope="module")
def space(site: Site) -> str:
    """Orders of each user, plans for all, prices for administrators, and views of them."""
    name = site.namespace()
    for text in (
        "CREATE USER TABLE n.orders (id INT PRIMARY KEY, plan INT, price DECIMAL(10,2))",
        "CREATE SHARED TABLE n.plans (id INT PRIMARY KEY, name TEXT) WITH (ACCESS_LEVEL = 'PUBLIC')",
        "CREATE SHARED TABLE n.costs (id INT PRIMARY KEY, cost INT) WITH (ACCESS_LEVEL = 'DBA')",
        "INSERT INTO n.plans VALUES (1, 'Free'), (2, 'Pro')",
        "INSERT INTO n.costs VALUES (1, 1234567)",
        "CREATE VIEW n.costly AS SELECT p.name, c.cost FROM n.plans p JOIN n.costs c ON c.id = p.id",
    ):
        site.root.run(text.replace("n.", f"{name}."))
    site.root.run(
        "CREATE VIEW bought AS SELECT o.id, p.name AS plan, o.price, CURRENT_USER() AS buyer "
        "FROM orders o JOIN plans p ON p.id = o.plan",
        namespace=name,
    )
    return name


def _buyer(site: Site, space: str, *rows: str) -> tuple[str, Wire]:
    name, wire = site.account()
    wire.run(f"INSERT INTO {space}.orders VALUES {', '.join(rows)}")
    return name, wire


def test_everybody_reads_their_own_rows_in_both_tiers(site: Site, space: str) -> None:
    ann, annas = _buyer(site, space, "(1, 2, 33.30)", "(2, 1, 5)")
    site.flush(f"{space}.orders")
    bob, bobs = _buyer(site, space, "(1, 1, 7)")
    annas.run(f"UPDATE {space}.orders SET plan = 2 WHERE id = 2")
    text = f"SELECT * FROM {space}.bought ORDER BY id"
    assert annas.run(text).rows == [[1, "Pro", "33.30", ann], [2, "Pro", "5.00", ann]]
    assert bobs.run(text).rows == [[1, "Free", "7.00", bob]]
    assert site.root.run(text).rows == [], "an administrator has no orders"
    assert annas.run(text, namespace=space).columns == [
        ("id", "Int"), ("plan", "Text"), ("price", {"Decimal": {"precision": 10, "scale": 2}}),
        ("buyer", "Text"),
    ]  # fmt: skip
    assert annas.run(f"SELECT id FROM {space}.bought WHERE price = 33.30").rows == [[1]]
    both = f"SELECT COUNT(*) FROM {space}.bought a JOIN {space}.bought b ON a.plan = b.plan"
    assert annas.run(both).cell == "4"
    staged = f"BEGIN; INSERT INTO {space}.orders VALUES (3, 1, 1); {text}; ROLLBACK"
    assert [row[0] for row in annas.run(staged).results[1]["rows"]] == [1, 2, 3]
    changed = annas.run(
        f"UPDATE {space}.orders SET price = 0 WHERE id IN (SELECT id FROM {space}.bought WHERE price > 30)"
    )
    assert changed.count == 1
    site.root.sql(f"EXECUTE AS USER '{ann}' ({text})").refused(400, "SQL_EXECUTION_ERROR")


@pytest.mark.parametrize(
    "text",
    [
        "SELECT * FROM n.costly",
        "SELECT COUNT(*) FROM n.costly",
        "SELECT 1; SELECT cost FROM n.costly",
        "WITH c AS (SELECT * FROM n.costly) SELECT 1 FROM c",
        "SELECT 1 WHERE EXISTS (SELECT 1 FROM n.costly)",
        "SELECT name FROM n.plans UNION SELECT name FROM n.costly",
        "INSERT INTO n.orders SELECT cost, 1, 2 FROM n.costly WHERE cost < 0",
    ],
)
@pytest.mark.parametrize("role", ["user", "service"])
def test_a_view_opens_no_table(site: Site, space: str, role: str, text: str) -> None:
    text = text.replace("n.", f"{space}.")
    site.root.run(text)  # what the server remembers of it opens nothing
    wire = site.account(role)[1]
    answer = wire.sql(text)
    answer.refused(403, "PERMISSION_DENIED")
    assert "1234567" not in answer.body.decode()
    definition = wire.run(
        "SELECT definition FROM information_schema.views "
        f"WHERE table_schema = '{space}' AND table_name = 'costly'"
    )
    assert definition.rows == [[None]]


@pytest.mark.parametrize("role", ["user", "service"])
def test_only_administrators_make_and_drop_views(site: Site, space: str, role: str) -> None:
    _, wire = site.account(role)
    for text in (f"CREATE VIEW {space}.mine AS SELECT 1 AS x", f"DROP VIEW {space}.bought"):
        for asked in (text, f"SELECT 1; {text}"):
            assert "Admin privileges" in wire.sql(asked).refused(403, "PERMISSION_DENIED")


def test_what_a_view_is_made_of_stays(site: Site, namespace: str, root: Wire) -> None:
    root.run(f"CREATE SHARED TABLE {namespace}.t (id INT PRIMARY KEY, a INT, b TEXT)")
    root.run(f"INSERT INTO {namespace}.t VALUES (1, 2, 'x')")
    root.run(f"CREATE VIEW {namespace}.some AS SELECT id, a FROM {namespace}.t")
    root.run(f"CREATE VIEW {namespace}.every AS SELECT * FROM {namespace}.t WHERE a > 0")
    root.run(f"CREATE VIEW {namespace}.counted (a, n) AS SELECT a, COUNT(*) FROM {namespace}.some GROUP BY a")
    for text, told in (
        ("DROP TABLE n.t", "every"),
        ("DROP VIEW n.some", "counted"),
        ("ALTER TABLE n.t DROP COLUMN a", "every"),
        ("ALTER TABLE n.t RENAME COLUMN b TO c", "every"),
        ("ALTER TABLE n.t MODIFY COLUMN a BIGINT", "every"),
        ("CREATE OR REPLACE VIEW n.some AS SELECT a AS id FROM n.counted", "counted"),
    ):
        message = root.sql(text.replace("n.", f"{namespace}.")).refused(400, "SQL_EXECUTION_ERROR")
        assert f"view {namespace}.{told}" in message, text
    root.run(f"ALTER TABLE {namespace}.t ADD COLUMN c INT DEFAULT 9")
    every = root.run(f"SELECT * FROM {namespace}.every")
    assert [name for name, _ in every.columns] == ["id", "a", "b", "_seq", "_deleted"], "as it was made"
    assert every.rows[0][:3] == [1, 2, "x"]
    root.run(f"CREATE OR REPLACE VIEW {namespace}.some AS SELECT id, a + a AS a FROM {namespace}.t")
    assert root.run(f"SELECT * FROM {namespace}.counted").rows == [[4, "1"]]
    root.run(f"DROP VIEW {namespace}.counted; DROP VIEW {namespace}.some; DROP VIEW {namespace}.every")
    root.run(f"DROP TABLE {namespace}.t")


def test_a_view_means_what_it_meant_when_it_was_made(site: Site, namespace: str, root: Wire) -> None:
    for text in (
        "CREATE SHARED TABLE n.t (id INT PRIMARY KEY, a INT)",
        "CREATE SHARED TABLE n.u (id INT PRIMARY KEY, b INT)",
        "INSERT INTO n.t VALUES (1, 2)",
        "INSERT INTO n.u VALUES (1, 3)",
        "CREATE VIEW n.both AS SELECT * FROM n.t UNION ALL SELECT * FROM n.u",
        "CREATE VIEW n.joined AS SELECT id, x.b FROM n.t NATURAL JOIN (SELECT id, b FROM n.u) AS x",
        "CREATE VIEW n.wide (id, a, s, d, twice) AS SELECT *, a * 2 FROM n.t",
        "CREATE VIEW n.either AS SELECT a, b FROM n.t JOIN n.u ON t.id = u.id",
        "CREATE VIEW n.thin AS SELECT id FROM n.t",
        "CREATE VIEW n.over AS SELECT * FROM n.thin NATURAL JOIN n.u",
    ):
        root.run(text.replace("n.", f"{namespace}."))
    asked = {
        "SELECT id, a FROM n.both ORDER BY a": [[1, 2], [1, 3]],
        "SELECT * FROM n.joined": [[1, 3]],
        "SELECT id, a, twice FROM n.wide": [[1, 2, "4"]],
        "SELECT * FROM n.either": [[2, 3]],
        "SELECT id, b FROM n.over": [[1, 3]],
    }
    for text, rows in asked.items():
        assert root.run(text.replace("n.", f"{namespace}.")).rows == rows, text
    root.run(f"ALTER TABLE {namespace}.t ADD COLUMN b INT DEFAULT 7")
    root.run(f"CREATE OR REPLACE VIEW {namespace}.thin AS SELECT id, b FROM {namespace}.t")
    for _ in ("hot", "cold"):
        for text, rows in asked.items():
            assert root.run(text.replace("n.", f"{namespace}.")).rows == rows, text
        site.flush(f"{namespace}.t")
    refused = root.sql(f"ALTER TABLE {namespace}.u DROP COLUMN b").refused(400, "SQL_EXECUTION_ERROR")
    assert f"view {namespace}.both" in refused


def test_a_view_never_reads_itself(site: Site, namespace: str, root: Wire) -> None:
    root.run(f"CREATE VIEW {namespace}.v0 AS SELECT 1 AS x")
    for number in range(1, 8):
        root.run(f"CREATE VIEW {namespace}.v{number} AS SELECT x FROM {namespace}.v{number - 1}")
    assert root.run(f"SELECT * FROM {namespace}.v7").rows == [["1"]]
    told = root.sql(f"CREATE VIEW {namespace}.v8 AS SELECT x FROM {namespace}.v7").refused(
        400, "SQL_EXECUTION_ERROR"
    )
    assert "8 deep" in told
    circle = root.sql(f"CREATE OR REPLACE VIEW {namespace}.v0 AS SELECT x FROM {namespace}.v3")
    assert "would read itself" in circle.refused(400, "SQL_EXECUTION_ERROR")
    root.run(f"DROP NAMESPACE {namespace} CASCADE")
    root.sql(f"SELECT * FROM {namespace}.v0").refused(400, "SQL_EXECUTION_ERROR")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("CREATE VIEW n.v AS SELECT COUNT(*) FROM n.t", "column 1 of the view has no name"),
        ("CREATE VIEW n.v AS SELECT x.id, y.id FROM n.t x, n.t y", "two columns of the view are named 'id'"),
        ("CREATE VIEW n.v (a) AS SELECT 1, 2", "names 1 columns, but its query has 2"),
        ("CREATE VIEW n.v AS SELECT * FROM all_owners('n.t')", "audit log"),
        ("CREATE VIEW n.v AS SELECT * FROM n.nothing", "not found"),
        ("CREATE VIEW n.v AS DELETE FROM n.t", "expected a query after AS"),
        ("CREATE VIEW n.v AS SELECT * FROM n.t WHERE", ""),
        ("CREATE VIEW n.t AS SELECT 1 AS x", "already exists"),
        ("CREATE VIEW n.there AS SELECT 1 AS x", "CREATE OR REPLACE VIEW"),
        ("CREATE VIEW system.v AS SELECT 1 AS x", "system"),
        ("CREATE VIEW nowhere.v AS SELECT 1 AS x", "CREATE NAMESPACE nowhere"),
        ("CREATE TABLE n.there (id INT PRIMARY KEY)", "already exists"),
        ("INSERT INTO n.there VALUES (1)", "is a view"),
        ("UPDATE n.there SET x = 1", "is a view"),
        ("DELETE FROM n.there", "is a view"),
        ("ALTER TABLE n.there ADD COLUMN y INT", "is a view"),
        ("DROP TABLE n.there", "is a view"),
        ("STORAGE FLUSH TABLE n.there", "is a view"),
        ("DROP VIEW n.t", "is a table"),
        ("DROP VIEW n.nothing", "not found"),
        ("BEGIN; CREATE VIEW n.v AS SELECT 1 AS x; COMMIT", "transaction"),
    ],
)
def test_what_is_no_view(site: Site, namespace: str, root: Wire, text: str, told: str) -> None:
    root.run(f"CREATE USER TABLE {namespace}.t (id INT PRIMARY KEY)")
    root.run(f"CREATE VIEW {namespace}.there AS SELECT 1 AS x")
    answer = root.sql(text.replace("n.", f"{namespace}."))
    assert answer.status == 400, answer.body
    assert told in answer.json["error"]["message"]
    assert root.run(f"SELECT * FROM {namespace}.there").rows == [["1"]]


def test_views_are_listed(site: Site, space: str, root: Wire) -> None:
    listed = root.run(
        "SELECT table_name, table_type FROM information_schema.tables "
        f"WHERE table_schema = '{space}' ORDER BY table_name"
    )
    views = [name for name, kind in listed.rows if kind == "VIEW"]
    assert {"bought", "costly"} <= set(views)
    described = root.run(f"DESCRIBE TABLE {space}.bought").rows
    assert [(row[0], row[1], row[3]) for row in described] == [
        ("id", 1, "INT"), ("plan", 2, "TEXT"), ("price", 3, "DECIMAL(10,2)"), ("buyer", 4, "TEXT"),
    ]  # fmt: skip
    definition = root.run(
        "SELECT definition FROM information_schema.views "
        f"WHERE table_schema = '{space}' AND table_name = 'costly'"
    )
    assert definition.cell.startswith("SELECT p.name, c.cost FROM")
    kept = root.run(
        "SELECT COUNT(*) FROM system.audit_log WHERE action = 'CREATE_VIEW' AND target = $1",
        f"{space}.bought",
    )
    assert kept.cell == "1"


def test_views_come_back_after_a_kill(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "data", env={"UPWELL_BCRYPT_COST": "4"}) as server:
        site = Site(server)
        site.root.run("CREATE NAMESPACE n; CREATE USER TABLE n.t (id INT PRIMARY KEY, v TEXT)")
        site.root.run("INSERT INTO n.t VALUES (1, 'a'); CREATE VIEW n.v AS SELECT v FROM n.t")
        site.root.run("CREATE VIEW n.gone AS SELECT v FROM n.v; DROP VIEW n.gone")
        server.kill()
        server.start()
        assert site.root.run("SELECT * FROM n.v").rows == [["a"]]
        assert site.root.run("SELECT table_name FROM information_schema.views").rows == [["v"]]
        site.root.sql("DROP TABLE n.t").refused(400, "SQL_EXECUTION_ERROR")
        site.close()
