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
