"""REFERENCES over SQL: no row ever points at a parent that isn't there, in whichever tier the rows lie.

RESTRICT, CASCADE and SET NULL; within the owner for USER tables; from USER to SHARED.
"""

from concurrent.futures import ThreadPoolExecutor

import pytest

from upwell.testing.wire import Site, Wire


@pytest.fixture(params=["hot", "cold"])
def family(request: pytest.FixtureRequest, site: Site, namespace: str) -> str:
    """Parents 1 and 2; of 1 one child by each rule, of 2 none. Run with all rows hot, and all rows cold."""
    site.root.run(
        f"CREATE USER TABLE {namespace}.parent (id INT PRIMARY KEY, v TEXT);"
        f"INSERT INTO {namespace}.parent VALUES (1, 'a'), (2, 'b')"
    )
    for rule in ("restrict", "cascade", "set null"):
        child = f"{namespace}.{rule.replace(' ', '_')}"
        site.root.run(
            f"CREATE USER TABLE {child} (id INT PRIMARY KEY, p INT REFERENCES {namespace}.parent (id)"
            f" ON DELETE {rule.upper()})"
        )
    if request.param == "cold":
        site.flush(f"{namespace}.parent")
    return namespace


def _flush(site: Site, request: pytest.FixtureRequest, space: str, *tables: str) -> None:
    if request.node.callspec.params["family"] == "cold":
        for table in tables:
            site.flush(f"{space}.{table}")


def test_a_child_needs_its_parent(site: Site, family: str) -> None:
    root = site.root
    for text in (
        f"INSERT INTO {family}.restrict VALUES (1, 9)",
        f"INSERT INTO {family}.restrict VALUES (1, 1), (2, 9)",
        f"INSERT INTO {family}.restrict SELECT 1, 9",
    ):
        message = root.sql(text).refused(400, "SQL_EXECUTION_ERROR")
        assert "Constraint violation" in message
        assert f"{family}.parent" in message
        assert "9" in message
    assert root.run(f"SELECT * FROM {family}.restrict").rows == []
    root.run(f"INSERT INTO {family}.restrict VALUES (1, 1), (2, NULL)")
    for text in (
        f"UPDATE {family}.restrict SET p = 9 WHERE id = 1",
        f"UPDATE {family}.restrict SET p = 9",
        f"UPDATE {family}.restrict SET p = p + 8 WHERE p IS NOT NULL",
    ):
        assert "Constraint violation" in root.sql(text).refused(400, "SQL_EXECUTION_ERROR")
    assert root.run(f"SELECT id, p FROM {family}.restrict").rows == [[1, 1], [2, None]]
    assert root.run(f"UPDATE {family}.restrict SET p = 2").count == 2


def test_restrict_keeps_the_parent(site: Site, family: str, request: pytest.FixtureRequest) -> None:
    root = site.root
    root.run(f"INSERT INTO {family}.restrict VALUES (1, 1)")
    _flush(site, request, family, "restrict")
    for text in (
        f"DELETE FROM {family}.parent WHERE id = 1",
        f"DELETE FROM {family}.parent WHERE v = 'a'",
        f"DELETE FROM {family}.parent",
        f"UPDATE {family}.parent SET id = 5 WHERE id = 1",
    ):
        message = root.sql(text).refused(400, "SQL_EXECUTION_ERROR")
        assert "Constraint violation" in message
        assert f"{family}.restrict" in message
    assert root.run(f"SELECT id FROM {family}.parent").rows == [[1], [2]]
    assert root.run(f"DELETE FROM {family}.parent WHERE id = 2").count == 1
    root.run(f"DELETE FROM {family}.restrict")
    assert root.run(f"DELETE FROM {family}.parent").count == 1


def test_cascade_takes_the_children_along(site: Site, family: str, request: pytest.FixtureRequest) -> None:
    root = site.root
    root.run(
        f"CREATE USER TABLE {family}.grandchild (id INT PRIMARY KEY, "
        f" c INT REFERENCES {family}.cascade (id) ON DELETE CASCADE)"
    )
    root.run(f"INSERT INTO {family}.cascade VALUES (1, 1), (2, 1), (3, 2), (4, NULL)")
    root.run(f"INSERT INTO {family}.grandchild VALUES (10, 1), (11, 1), (12, 2), (13, 3)")
    _flush(site, request, family, "cascade", "grandchild")
    assert root.run(f"DELETE FROM {family}.parent WHERE id = 1").message == "Deleted 1 row(s)"
    assert root.run(f"SELECT id FROM {family}.cascade").rows == [[3], [4]]
    assert root.run(f"SELECT id FROM {family}.grandchild").rows == [[13]]
    question = (
        "SELECT table_name, key FROM system.changes "
        f"WHERE operation = 'DELETE' AND table_name LIKE '{family}.%'"
    )
    deleted = sorted(map(tuple, root.run(question).rows))
    assert deleted == [
        (f"{family}.cascade", "1"), (f"{family}.cascade", "2"), (f"{family}.grandchild", "10"),
        (f"{family}.grandchild", "11"), (f"{family}.grandchild", "12"), (f"{family}.parent", "1"),
    ]  # fmt: skip


def test_a_cascade_that_meets_restrict_deletes_nothing(
    site: Site, family: str, request: pytest.FixtureRequest
) -> None:
    root = site.root
    root.run(
        f"CREATE USER TABLE {family}.grandchild (id INT PRIMARY KEY, c INT REFERENCES {family}.cascade (id))"
    )
    root.run(
        f"INSERT INTO {family}.cascade VALUES (1, 1), (2, 1); INSERT INTO {family}.grandchild VALUES (10, 2)"
    )
    _flush(site, request, family, "cascade", "grandchild")
    root.sql(f"DELETE FROM {family}.parent WHERE id = 1").refused(400, "SQL_EXECUTION_ERROR")
    assert root.run(f"SELECT COUNT(*) FROM {family}.cascade").cell == "2"
    assert root.run(f"SELECT COUNT(*) FROM {family}.parent").cell == "2"


def test_set_null_lets_the_children_go(site: Site, family: str, request: pytest.FixtureRequest) -> None:
    root = site.root
    root.run(f"INSERT INTO {family}.set_null VALUES (1, 1), (2, 1), (3, 2)")
    _flush(site, request, family, "set_null")
    assert root.run(f"DELETE FROM {family}.parent WHERE id = 1").count == 1
    assert root.run(f"SELECT id, p FROM {family}.set_null").rows == [[1, None], [2, None], [3, 2]]
    assert root.run(f"DELETE FROM {family}.parent WHERE v = 'b'").count == 1
    assert root.run(f"SELECT COUNT(p) FROM {family}.set_null").cell == "0"


def test_set_null_needs_a_column_that_takes_null(root: Wire, namespace: str) -> None:
    root.run(f"CREATE TABLE {namespace}.p (id INT PRIMARY KEY)")
    parent = f"p INT NOT NULL REFERENCES {namespace}.p ON DELETE SET NULL"
    text = f"CREATE TABLE {namespace}.c (id INT PRIMARY KEY, {parent})"
    assert "nullable" in root.sql(text).refused(400, "INVALID_SQL")


def test_a_table_may_reference_itself(site: Site, namespace: str) -> None:
    table, root = f"{namespace}.node", site.root
    root.run(
        f"CREATE USER TABLE {table} (id INT PRIMARY KEY, up INT REFERENCES {table} (id) ON DELETE CASCADE)"
    )
    assert root.run(f"INSERT INTO {table} VALUES (1, NULL), (2, 1), (3, 2), (4, 3), (5, 5)").count == 5
    root.sql(f"INSERT INTO {table} VALUES (6, 7)").refused(400, "SQL_EXECUTION_ERROR")
    root.sql(f"INSERT INTO {table} VALUES (6, 7), (7, 77)").refused(400, "SQL_EXECUTION_ERROR")
    assert root.run(f"INSERT INTO {table} VALUES (8, 9), (9, 8)").count == 2
    site.flush(table)
    assert root.run(f"DELETE FROM {table} WHERE id = 2").count >= 1
    assert root.run(f"SELECT id FROM {table}").rows == [[1], [5], [8], [9]]
    root.run(f"DELETE FROM {table} WHERE id = 8")
    assert root.run(f"SELECT id FROM {table}").rows == [[1], [5]]


def test_a_whole_tree_may_go_at_once_under_restrict(root: Wire, namespace: str) -> None:
    table = f"{namespace}.node"
    root.run(f"CREATE USER TABLE {table} (id INT PRIMARY KEY, up INT REFERENCES {table} (id))")
    root.run(f"INSERT INTO {table} VALUES (1, NULL), (2, 1), (3, 2)")
    root.sql(f"DELETE FROM {table} WHERE id = 1").refused(400, "SQL_EXECUTION_ERROR")
    assert root.run(f"DELETE FROM {table}").count == 3


def test_references_stay_within_the_owner(site: Site, namespace: str) -> None:
    parent, child = f"{namespace}.p", f"{namespace}.c"
    (_, ada), (_, bob) = site.account(), site.account()
    site.root.run(
        f"CREATE USER TABLE {parent} (id INT PRIMARY KEY);"
        f"CREATE USER TABLE {child} (id INT PRIMARY KEY, p INT NOT NULL REFERENCES {parent} (id))"
    )
    ada.run(f"INSERT INTO {parent} VALUES (1)")
    bob.sql(f"INSERT INTO {child} VALUES (1, 1)").refused(400, "SQL_EXECUTION_ERROR")
    ada.run(f"INSERT INTO {child} VALUES (1, 1)")
    bob.run(f"INSERT INTO {parent} VALUES (1)")
    # Ada's child doesn't hold Bob's parent.
    assert bob.run(f"DELETE FROM {parent} WHERE id = 1").count == 1
    ada.sql(f"DELETE FROM {parent} WHERE id = 1").refused(400, "SQL_EXECUTION_ERROR")


@pytest.mark.parametrize("rule", ["RESTRICT", "CASCADE", "SET NULL"])
def test_private_rows_reference_shared_ones(site: Site, namespace: str, rule: str) -> None:
    plans, uses = f"{namespace}.plans", f"{namespace}.uses"
    site.root.run(
        f"CREATE SHARED TABLE {plans} (id INT PRIMARY KEY) WITH (ACCESS_LEVEL = 'PUBLIC');"
        f"CREATE USER TABLE {uses} (id INT PRIMARY KEY, plan INT REFERENCES {plans} (id) ON DELETE {rule});"
        f"INSERT INTO {plans} VALUES (1), (2), (3)"
    )
    users = [site.account()[1] for _ in range(3)]
    for number, wire in enumerate(users):
        wire.run(f"INSERT INTO {uses} VALUES (1, 1), (2, 2)")
        wire.sql(f"INSERT INTO {uses} VALUES (3, 9)").refused(400, "SQL_EXECUTION_ERROR")
        if number == 1:
            site.flush(uses)
    assert site.root.run(f"DELETE FROM {plans} WHERE id = 3").count == 1
    answer = site.root.sql(f"DELETE FROM {plans} WHERE id = 1")
    if rule == "RESTRICT":
        answer.refused(400, "SQL_EXECUTION_ERROR")
        expected = [[1, 1], [2, 2]]
    else:
        assert answer.count == 1
        expected = [[2, 2]] if rule == "CASCADE" else [[1, None], [2, 2]]
    for wire in users:
        assert wire.run(f"SELECT id, plan FROM {uses}").rows == expected


def test_what_cannot_be_referenced(root: Wire, namespace: str) -> None:
    root.run(
        f"CREATE USER TABLE {namespace}.u (id INT PRIMARY KEY, v INT);"
        f"CREATE SHARED TABLE {namespace}.s (id INT PRIMARY KEY)"
    )
    for text, part in (
        (
            f"CREATE SHARED TABLE {namespace}.x (id INT PRIMARY KEY, u INT REFERENCES {namespace}.u (id))",
            "cannot reference USER",
        ),
        (f"CREATE USER TABLE {namespace}.x (id INT PRIMARY KEY, u INT REFERENCES {namespace}.u (v))", "v"),
        (
            f"CREATE USER TABLE {namespace}.x (id INT PRIMARY KEY, u TEXT REFERENCES {namespace}.u (id))",
            "cannot reference",
        ),
        (
            f"CREATE USER TABLE {namespace}.x (id INT PRIMARY KEY, u INT REFERENCES {namespace}.nope (id))",
            "nope",
        ),
        (
            "CREATE USER TABLE default.x (id INT PRIMARY KEY, u INT REFERENCES system.users (id))",
            "system.users",
        ),
    ):
        answer = root.sql(text)
        assert part in answer.refused(400, answer.json["error"]["code"])
    assert (
        root.run(
            f"SELECT COUNT(*) FROM system.tables WHERE table_name = 'x' AND namespace_id = '{namespace}'"
        ).cell
        == "0"
    )


def test_a_referenced_table_stays(root: Wire, namespace: str) -> None:
    root.run(
        f"CREATE TABLE {namespace}.p (id INT PRIMARY KEY);"
        f"CREATE TABLE {namespace}.c (id INT PRIMARY KEY, p INT REFERENCES {namespace}.p)"
    )
    assert f"{namespace}.c" in root.sql(f"DROP TABLE {namespace}.p").refused(400, "SQL_EXECUTION_ERROR")
    root.run(f"DROP TABLE {namespace}.c; DROP TABLE {namespace}.p")


def test_a_child_and_the_deletion_of_its_parent_race(site: Site, namespace: str) -> None:
    """Whoever comes second fails: there is never a child without its parent."""
    parent, child = f"{namespace}.p", f"{namespace}.c"
    site.root.run(
        f"CREATE SHARED TABLE {parent} (id INT PRIMARY KEY);"
        f"CREATE SHARED TABLE {child} (id INT PRIMARY KEY, p INT NOT NULL REFERENCES {parent} (id));"
        f"INSERT INTO {parent} VALUES " + ", ".join(f"({n})" for n in range(60))
    )

    def insert(n: int) -> int:
        with Wire(site.server.port, site.root.token) as wire:
            return wire.sql(f"INSERT INTO {child} VALUES ({n}, {n})").status

    def delete(n: int) -> int:
        with Wire(site.server.port, site.root.token) as wire:
            return wire.sql(f"DELETE FROM {parent} WHERE id = {n}").status

    with ThreadPoolExecutor(8) as threads:
        inserted = [threads.submit(insert, n) for n in range(60)]
        deleted = [threads.submit(delete, n) for n in range(60)]
    for n in range(60):
        assert sorted((inserted[n].result(), deleted[n].result())) == [200, 400], n
    orphans = f"SELECT COUNT(*) FROM {child} c LEFT JOIN {parent} p ON p.id = c.p WHERE p.id IS NULL"
    assert site.root.run(orphans).cell == "0"
