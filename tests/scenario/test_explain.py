"""Promise: EXPLAIN shows administrators a query's plan, and nobody where files are or what others have."""

import re

import pytest

from upwell.testing.wire import Site, Wire

FORMS = ("EXPLAIN", "EXPLAIN VERBOSE", "EXPLAIN ANALYZE", "EXPLAIN ANALYZE VERBOSE")


@pytest.fixture(scope="module")
def table(site: Site) -> str:
    """A USER table with rows of two users in both tiers."""
    name = f"{site.namespace()}.t"
    site.root.run(f"CREATE USER TABLE {name} (id INT PRIMARY KEY, secret TEXT)")
    user, wire = site.account()
    for key, tier in ((1, "cold"), (2, "hot")):
        site.root.run(f"INSERT INTO {name} VALUES ({key}, 'roots own {tier}')")
        wire.run(f"INSERT INTO {name} VALUES ({key}, 'of {user} {tier}')")
        if tier == "cold":
            site.flush(name)
    return name


@pytest.mark.parametrize("form", FORMS)
def test_an_administrator_sees_the_plan_without_paths_and_others(site: Site, table: str, form: str) -> None:
    answer = site.root.run(f"{form} SELECT secret FROM {table} WHERE id > 0 ORDER BY secret")
    assert [name for name, _ in answer.columns] == ["plan_type", "plan"]
    plan = "\n".join(row[1] for row in answer.rows)
    assert "SortExec" in plan
    assert ".parquet" in plan
    assert not re.search(r"/[^/ ]*[a-z]", plan), plan
    assert "of user" not in plan


def test_the_hot_and_the_cold_part_are_named_and_pruning_is_seen(site: Site) -> None:
    """Two segments of which a predicate needs one, a superseded row, and two rows that are hot."""
    name = f"{site.namespace()}.t"
    site.root.run(f"CREATE TABLE {name} (id INT PRIMARY KEY, n INT) WITH (TYPE = 'SHARED')")
    for start in (0, 100):
        site.root.run(
            f"INSERT INTO {name} VALUES " + ", ".join(f"({start + n}, {start + n})" for n in range(9))
        )
        site.flush(name)
    site.root.run(f"UPDATE {name} SET n = 1 WHERE id = 100")
    site.root.run(f"INSERT INTO {name} VALUES (200, 1)")
    answer = site.root.run(f"EXPLAIN ANALYZE SELECT COUNT(*) FROM {name} WHERE id > 50 AND id < 105")
    plan = dict(answer.rows)
    told = f"{name}: hot 2 row(s), cold 18 row(s) in 2 segment(s) of manifest 2, 1 of them superseded"
    assert plan["tiers"] == told
    assert re.search(
        r"(files_ranges_pruned_statistics|row_groups_pruned_statistics)=2 total . 1 matched",
        plan["Plan with Metrics"],
    )


def test_it_is_for_administrators(site: Site, table: str) -> None:
    for role in ("user", "service"):
        _, wire = site.account(role)
        for text in (f"EXPLAIN SELECT * FROM {table}", f"SELECT 1; EXPLAIN SELECT * FROM {table}"):
            message = wire.sql(text).refused(403, "PERMISSION_DENIED")
            assert "Admin privileges (DBA or System role) required for EXPLAIN statements" in message
    _, dba = site.account("dba")
    assert dba.run(f"EXPLAIN SELECT * FROM {table}").rows


@pytest.mark.parametrize(
    "text",
    [
        "EXPLAIN",
        "EXPLAIN EXPLAIN SELECT 1",
        "EXPLAIN INSERT INTO T VALUES (9, '')",
        "EXPLAIN ANALYZE DELETE FROM T",
    ],
)
def test_only_queries_are_explained(root: Wire, table: str, text: str) -> None:
    root.sql(text.replace("T", table) if " T" in text else text).refused(400, "INVALID_SQL")
    assert root.run(f"SELECT COUNT(*) FROM {table}").cell == "2"


def test_json_and_parameters_are_explained_too(root: Wire, table: str) -> None:
    assert root.run(f"EXPLAIN SELECT secret->'a' FROM {table} WHERE id = $1", 1).rows
    assert "nothing" in root.sql(f"EXPLAIN SELECT nothing FROM {table}").refused(400, "SQL_EXECUTION_ERROR")
