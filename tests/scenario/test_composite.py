"""FOREIGN KEYs of several columns: a child never disagrees with its parent, in whichever tier the rows lie,
whoever writes them.
"""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from upwell.testing.sync_world import World, delete, key, upsert
from upwell.testing.wire import Site, Wire

A, B, C, D = (key(number) for number in range(1, 5))
TABLES = (
    "teams (id UUID PRIMARY KEY, org TEXT, name TEXT)",
    "people (id UUID PRIMARY KEY, org TEXT, team UUID, boss UUID,"
    " FOREIGN KEY (org, team) REFERENCES {ns}.teams (org, id),"
    " FOREIGN KEY (boss, org) REFERENCES {ns}.people (id, org))",
)


@pytest.fixture(params=["hot", "cold"])
def family(request: pytest.FixtureRequest, site: Site, namespace: str) -> str:
    """Parents 1 of x, 2 of y and 3 of nobody, hot or cold, and a child table by each rule."""
    root = site.root
    root.run(f"CREATE USER TABLE {namespace}.parent (id INT PRIMARY KEY, org TEXT, note TEXT)")
    root.run(f"INSERT INTO {namespace}.parent VALUES (1, 'x', 'a'), (2, 'y', 'b'), (3, NULL, 'c')")
    for rule in ("restrict", "cascade", "set null"):
        child = f"{namespace}.{rule.replace(' ', '_')}"
        root.run(
            f"CREATE USER TABLE {child} (id INT PRIMARY KEY, org TEXT, p INT,"
            f" FOREIGN KEY (org, p) REFERENCES {namespace}.parent (org, id) ON DELETE {rule.upper()})"
        )
    if request.param == "cold":
        site.flush(f"{namespace}.parent")
    return namespace


def refused(wire: Wire, text: str) -> str:
    message = wire.sql(text).refused(400, "SQL_EXECUTION_ERROR")
    assert "Constraint violation" in message
    return message


def test_a_child_agrees_with_its_parent_or_has_a_null(site: Site, family: str) -> None:
    root = site.root
    for values in ("(1, 'x', 9)", "(1, 'y', 1)", "(1, 'z', 3)", "(1, 'x', 1), (2, 'x', 2)"):
        message = refused(root, f"INSERT INTO {family}.restrict VALUES {values}")
        assert "foreign key 'p, org'" in message
        assert f"{family}.parent" in message
    rows = "(1, 'x', 1), (2, 'y', 2), (3, NULL, 9), (4, 'z', NULL), (5, NULL, NULL), (6, NULL, 1)"
    root.run(f"INSERT INTO {family}.restrict VALUES {rows}")
    for change in ("org = 'y' WHERE id = 1", "p = 2 WHERE id = 1", "p = 1", "org = 'x' WHERE id = 3"):
        refused(root, f"UPDATE {family}.restrict SET {change}")
    assert root.run(f"UPDATE {family}.restrict SET org = 'y', p = 2 WHERE id = 1").count == 1
    assert root.run(f"UPDATE {family}.restrict SET org = NULL WHERE id = 2").count == 1
    assert root.run(f"UPDATE {family}.restrict SET org = 'x' WHERE id = 6").count == 1
    assert root.run(f"SELECT id, org, p FROM {family}.restrict").rows == [
        [1, "y", 2], [2, None, 2], [3, None, 9], [4, "z", None], [5, None, None], [6, "x", 1],
    ]  # fmt: skip


def test_what_children_refer_to_stays(site: Site, family: str) -> None:
    root = site.root
    root.run(f"INSERT INTO {family}.restrict VALUES (1, 'x', 1), (2, NULL, 2)")
    site.flush(f"{family}.restrict")
    message = refused(root, f"UPDATE {family}.parent SET org = 'z' WHERE id = 1")
    assert f"the values (org) of row '1' of {family}.parent are still referenced" in message
    refused(root, f"UPDATE {family}.parent SET org = NULL")
    refused(root, f"DELETE FROM {family}.parent WHERE id = 1")
    refused(root, f"UPDATE {family}.parent SET id = 10 WHERE id = 1")
    # Its other columns may change, and so may all of a parent whose children have a NULL.
    assert root.run(f"UPDATE {family}.parent SET note = 'n', org = org").count == 3
    assert root.run(f"UPDATE {family}.parent SET org = 'z' WHERE id = 2").count == 1
    assert root.run(f"DELETE FROM {family}.parent WHERE id = 2").count == 1
    assert root.run(f"UPDATE {family}.restrict SET p = NULL WHERE id = 1").count == 1
    assert root.run(f"UPDATE {family}.parent SET org = 'z' WHERE id = 1").count == 1
    assert root.run(f"DELETE FROM {family}.parent").count == 2


def test_children_follow_or_let_go(site: Site, family: str) -> None:
    root = site.root
    for child in ("cascade", "set_null"):
        root.run(f"INSERT INTO {family}.{child} VALUES (1, 'x', 1), (2, 'y', 2), (3, NULL, 1)")
        site.flush(f"{family}.{child}")
    assert root.run(f"DELETE FROM {family}.parent WHERE id = 1").count == 1
    assert root.run(f"SELECT id, org, p FROM {family}.cascade").rows == [[2, "y", 2], [3, None, 1]]
    expected = [[1, None, None], [2, "y", 2], [3, None, 1]]
    assert root.run(f"SELECT id, org, p FROM {family}.set_null").rows == expected


def test_rows_of_one_statement_refer_to_each_other(site: Site, namespace: str) -> None:
    root, table = site.root, f"{namespace}.t"
    root.run(
        f"CREATE SHARED TABLE {table} (id INT PRIMARY KEY, org TEXT, up INT,"
        f" FOREIGN KEY (up, org) REFERENCES {table} (id, org))"
    )
    refused(root, f"INSERT INTO {table} VALUES (1, 'x', 2), (2, 'y', NULL)")
    refused(root, f"INSERT INTO {table} VALUES (2, 'y', NULL), (1, 'x', 2)")
    root.run(f"INSERT INTO {table} VALUES (1, 'x', 2), (2, 'x', NULL), (3, 'y', 3)")
    refused(root, f"UPDATE {table} SET org = 'z' WHERE id = 2")
    assert root.run(f"UPDATE {table} SET org = 'z' WHERE id = 3").count == 1
    assert root.run(f"DELETE FROM {table}").count == 3


def test_declarations_that_could_not_be_kept_are_refused(site: Site, namespace: str) -> None:
    site.root.run(f"CREATE USER TABLE {namespace}.p (id INT PRIMARY KEY, a INT, b TEXT)")
    for rest, said in (
        ("(x, y) REFERENCES p (a, b)", "leaves out its primary key 'id'"),
        ("(x, y) REFERENCES p", "names those of p"),
        ("(x, y) REFERENCES p (id)", "pairs each of its columns"),
        ("(x, x) REFERENCES p (id, a)", "pairs each of its columns"),
        ("(x, y) REFERENCES p (id, a)", "column 'y' (TEXT) cannot reference"),
        ("(x, y) REFERENCES p (id, c)", "has no column 'c'"),
        ("(x, z) REFERENCES p (id, b)", "key column 'z' is not a column"),
        ("(x, n) REFERENCES p (id, a) ON DELETE SET NULL", "needs column 'n' to be nullable"),
    ):
        columns = f"id INT PRIMARY KEY, x INT, y TEXT, n INT NOT NULL, FOREIGN KEY {rest}"
        answer = site.root.sql(f"CREATE USER TABLE c ({columns})", namespace=namespace)
        assert said in answer.refused(400, "INVALID_SQL")
    site.root.run(
        "CREATE USER TABLE c (id INT PRIMARY KEY, x INT, y TEXT, FOREIGN KEY (y, x) REFERENCES p (b, id))",
        namespace=namespace,
    )
    refused_drop = site.root.sql(f"DROP TABLE {namespace}.p").refused(400, "SQL_EXECUTION_ERROR")
    assert "is referenced by" in refused_drop


def test_a_race_never_leaves_a_child_that_disagrees(site: Site, namespace: str) -> None:
    site.root.run(
        f"CREATE SHARED TABLE {namespace}.p (id INT PRIMARY KEY, org INT);"
        f"CREATE SHARED TABLE {namespace}.c (id INT PRIMARY KEY, p INT, org INT,"
        f" FOREIGN KEY (p, org) REFERENCES {namespace}.p (id, org));"
        f"INSERT INTO {namespace}.p VALUES {', '.join(f'({n}, 0)' for n in range(30))}"
    )
    wires = [site.wire(site.root.token) for _ in range(2)]
    started = threading.Barrier(2)

    def run(wire: Wire, texts: list[str]) -> list[bool]:
        started.wait()
        return [wire.sql(text).status == 200 for text in texts]

    with ThreadPoolExecutor(2) as pool:
        moved = pool.submit(
            run, wires[0], [f"UPDATE {namespace}.p SET org = 1 WHERE id = {n}" for n in range(30)]
        )
        born = pool.submit(
            run, wires[1], [f"INSERT INTO {namespace}.c VALUES ({n}, {n}, 0)" for n in range(29, -1, -1)]
        )
        assert [a != b for a, b in zip(moved.result(), born.result()[::-1], strict=True)] == [True] * 30
    join = f"{namespace}.c c JOIN {namespace}.p p ON c.p = p.id"
    assert site.root.run(f"SELECT COUNT(*) FROM {join} WHERE c.org <> p.org").cell == "0"


# --- devices


@pytest.fixture(scope="module")
def world(site: Site) -> Iterator[World]:
    """A namespace with synced tables."""
    with World(site.server, tables=TABLES) as world:
        yield world


def test_a_phone_learns_which_parent_is_missing(world: World) -> None:
    phone = world.handset()
    phone.put(upsert(1, "teams", A, org="x"))
    for number, columns in enumerate(({"org": "x", "team": B}, {"org": "y", "team": A}), 2):
        (status,) = phone.upload(upsert(number, "people", C, **columns))
        assert status["invalid"]["reason"] == "fk_missing"
        assert status["invalid"]["details"] == {"missing": [f"{world.ns}.teams:{columns['team']}"]}
    assert phone.put(upsert(4, "people", C, org="x", team=A)) == [1]
    (status,) = phone.upload(upsert(5, "teams", A, 1, org="y"))
    assert (status["status"], status["invalid"]["reason"]) == ("invalid", "has_children")
    assert phone.put(upsert(6, "teams", A, 1, org="x", name="n")) == [2]


def test_rows_of_one_upload_change_together(world: World) -> None:
    phone = world.handset()
    phone.put(
        upsert(1, "people", B, org="x", team=A, boss=C),
        upsert(2, "people", C, org="x", team=A, boss=B),
        upsert(3, "teams", A, org="x"),
    )
    moves = [
        upsert(4, "teams", A, 1, org="y"),
        upsert(5, "people", B, 1, org="y", team=A, boss=C),
        upsert(6, "people", C, 1, org="y", team=A, boss=B),
    ]
    # One that stays behind holds all back.
    assert {status["status"] for status in phone.upload(*moves[:2])} == {"invalid"}
    late = upsert(7, "people", C, 1, org="x", team=A, boss=None)
    assert [status["status"] for status in phone.upload(*moves[:2], late)][:2] == ["invalid"] * 2
    moves[2]["server_version"] = 2
    assert phone.put(*moves) == [2, 2, 3]
    found = [change["payload"] for change in phone.log()][-3:]
    assert {row["org"] for row in found} == {"y"}
    phone.put(delete(8, "people", B, 2), delete(9, "people", C, 3), delete(10, "teams", A, 2))
