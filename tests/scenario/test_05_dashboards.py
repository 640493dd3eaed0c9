"""Scenario 05, dashboards: everybody's own activity joined with reference rows that only some may write,
whatever lies hot or cold, and while columns come.
"""

import pytest

from upwell.testing.wire import Site, Wire

PLANS = [[1, "Free", 0.0], [2, "Pro", 9.99], [3, "Enterprise", 99.99]]
PER_PLAN = (
    "SELECT p.id, p.name, count(a.id) AS n FROM {ns}.plans AS p "
    "LEFT JOIN {ns}.activity AS a ON a.plan_id = p.id GROUP BY p.id, p.name ORDER BY p.id"
)
DETAILS = (
    "SELECT a.id, p.name, a.action FROM {ns}.activity AS a JOIN {ns}.plans AS p ON p.id = a.plan_id "
    "ORDER BY a.id"
)


@pytest.fixture
def people(site: Site, namespace: str) -> tuple[Wire, Wire]:
    """Two users with five rows of activity each, beside three plans of everybody's."""
    site.root.run(
        f"CREATE SHARED TABLE {namespace}.plans (id BIGINT PRIMARY KEY, name TEXT NOT NULL,"
        " price DOUBLE NOT NULL, features TEXT) WITH (ACCESS_LEVEL = 'PUBLIC')"
    )
    site.root.run(
        f"CREATE USER TABLE {namespace}.activity (id BIGINT PRIMARY KEY, plan_id BIGINT NOT NULL,"
        " action TEXT NOT NULL, timestamp TIMESTAMP DEFAULT CURRENT_TIMESTAMP)"
    )
    values = ", ".join(f"({number}, '{name}', {price})" for number, name, price in PLANS)
    site.root.run(f"INSERT INTO {namespace}.plans (id, name, price) VALUES {values}")
    first, second = site.account()[1], site.account()[1]
    for wire, ids, plan in ((first, range(1, 6), 2), (second, range(101, 106), 1)):
        values = ", ".join(f"({number}, {plan}, 'act {number}')" for number in ids)
        wire.run(f"INSERT INTO {namespace}.activity (id, plan_id, action) VALUES {values}")
    return first, second


def test_a_dashboard_joins_ones_own_rows_with_everybodys(
    site: Site, namespace: str, people: tuple[Wire, Wire]
) -> None:
    first, second = people

    def check() -> None:
        for wire, ids, name, counts in (
            (first, range(1, 6), "Pro", ("0", "5", "0")),
            (second, range(101, 106), "Free", ("5", "0", "0")),
        ):
            assert wire.run(DETAILS.format(ns=namespace)).rows == [[str(n), name, f"act {n}"] for n in ids]
            assert wire.run(PER_PLAN.format(ns=namespace)).rows == [
                [str(plan[0]), plan[1], count] for plan, count in zip(PLANS, counts, strict=True)
            ]
        assert site.root.run(f"SELECT * FROM {namespace}.activity").rows == []

    check()
    site.flush(f"{namespace}.plans")
    check()
    site.flush(f"{namespace}.activity")
    check()
    site.root.run(f"ALTER TABLE {namespace}.activity ADD COLUMN device_type TEXT")
    check()
    first.run(
        f"INSERT INTO {namespace}.activity (id, plan_id, action, device_type) VALUES (1000, 2, 'x', 'mobile')"
    )
    question = f"SELECT id, device_type FROM {namespace}.activity ORDER BY id"
    for _ in ("mixed", "cold"):
        assert first.run(question).rows == [[str(n), None] for n in range(1, 6)] + [["1000", "mobile"]]
        assert first.run(f"SELECT id FROM {namespace}.activity WHERE device_type IS NOT NULL").rows == [
            ["1000"]
        ]
        assert second.run(question).rows == [[str(n), None] for n in range(101, 106)]
        site.flush(f"{namespace}.activity")


def test_the_reference_is_the_administrators_to_write(
    site: Site, namespace: str, people: tuple[Wire, Wire]
) -> None:
    first, _ = people
    plans = f"{namespace}.plans"
    for forbidden in (
        f"INSERT INTO {plans} (id, name, price) VALUES (99, 'Mine', 0)",
        f"UPDATE {plans} SET price = 0",
        f"DELETE FROM {plans} WHERE id = 3",
        f"ALTER TABLE {plans} ADD COLUMN mine TEXT",
        f"DROP TABLE {plans}",
    ):
        first.sql(forbidden).refused(403, "PERMISSION_DENIED")
    assert first.run(f"SELECT id, name, price FROM {plans} ORDER BY id").rows == [
        [str(number), name, price] for number, name, price in PLANS
    ]
    service = site.account("service")[1]
    assert service.run(f"UPDATE {plans} SET features = 'all' WHERE id = 3").count == 1
    assert first.run(f"SELECT features FROM {plans} WHERE id = 3").rows == [["all"]]


def test_events_keep_their_values_while_the_table_evolves(site: Site, namespace: str, alice: Wire) -> None:
    """Two generations of flushed rows and two alterations: one SELECT has rows of three versions."""
    table = f"{namespace}.events"
    site.root.run(f"CREATE USER TABLE {table} (id INT PRIMARY KEY, kind TEXT, amount INT)")
    alice.run(f"INSERT INTO {table} VALUES (1, 'a', 10), (2, 'b', 20)")
    site.flush(table)
    site.root.run(f"ALTER TABLE {table} ADD COLUMN metadata JSON DEFAULT '{{}}'")
    alice.run(f"INSERT INTO {table} VALUES (3, 'c', 30, '{{\"v\": 2}}')")
    site.flush(table)
    site.root.run(f"ALTER TABLE {table} DROP COLUMN kind")
    site.root.run(f"ALTER TABLE {table} RENAME COLUMN amount TO cents")
    site.root.run(f"ALTER TABLE {table} MODIFY COLUMN cents BIGINT")
    alice.run(f"INSERT INTO {table} VALUES (4, 5000000000, NULL)")
    expected = [[1, "10", "{}"], [2, "20", "{}"], [3, "30", '{"v": 2}'], [4, "5000000000", None]]
    for _ in ("mixed", "cold"):
        assert alice.run(f"SELECT id, cents, metadata FROM {table} ORDER BY id").rows == expected
        assert alice.run(f"SELECT SUM(cents) FROM {table} WHERE metadata IS NOT NULL").rows == [["60"]]
        for sql in (f"INSERT INTO {table} (id, kind) VALUES (9, 'x')", f"SELECT kind FROM {table}"):
            assert "kind" in site.root.sql(sql).refused(400, "SQL_EXECUTION_ERROR")
        site.flush(table)
    versions = site.root.run(
        f"SELECT schema_version, is_latest FROM system.schemas WHERE namespace_id = '{namespace}' ORDER BY 1"
    ).rows
    assert versions == [[1, False], [2, False], [3, False], [4, False], [5, True]]
