"""Transactions, many rows and acting for others, over HTTP and through both clients.

Written from the reference contract, sections 1.4 and 3.7, the catalogue (Q11–Q15, L13), and docs/sql.md.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from upwell.client import Client, ServerError, connect, connect_async
from upwell.testing.wire import SQL, Site, Wire


@pytest.fixture
def item(site: Site, namespace: str) -> str:
    """A USER table."""
    site.root.run(f"CREATE USER TABLE {namespace}.item (id INT PRIMARY KEY, n INT, s TEXT)")
    return f"{namespace}.item"


@pytest.fixture
def client(site: Site, namespace: str) -> Iterator[Client]:
    server = site.server
    with connect(server.url, user="root", password=server.root_password, namespace=namespace) as client:
        yield client


def post(wire: Wire, **body: object) -> Any:
    return wire.call("POST", SQL, body)


def ids(wire: Wire, item: str) -> list[int]:
    return [row[0] for row in wire.run(f"SELECT id FROM {item} ORDER BY id").rows]


def test_a_batch_answers_its_messages_first_and_then_the_sums(root: Wire, item: str) -> None:
    answer = root.run(
        f"BEGIN; INSERT INTO {item} (id) VALUES (1); INSERT INTO {item} (id) VALUES (2);"
        f"UPDATE {item} SET n = 1 WHERE id = 1; COMMIT;"
    )
    assert [(result["message"].split(" (")[0], result["row_count"]) for result in answer.results] == [
        ("Transaction started", 0),
        ("Transaction committed", 0),
        ("Inserted 2 row(s)", 2),
        ("Updated 1 row(s)", 1),
    ]


def test_a_failure_names_its_statement_and_leaves_nothing(root: Wire, item: str) -> None:
    insert = f"INSERT INTO {item} (id) VALUES"
    answer = root.sql(f"BEGIN; {insert} (1); {insert} (2); {insert} (1); COMMIT")
    assert answer.refused(400, "SQL_EXECUTION_ERROR").startswith(
        "Statement 4 failed: Already exists: Primary key"
    )
    assert ids(root, item) == []
    answer = root.sql(f"BEGIN; {insert} (1)")
    text = "Request completed with an open explicit transaction; rolled back automatically"
    assert answer.refused(400, "SQL_EXECUTION_ERROR") == text
    assert ids(root, item) == []


def test_rolled_back_transactions_make_no_events(client: Client, item: str) -> None:
    with client.live(f"SELECT id FROM {item}") as live:
        assert live.snapshot() == []
        with pytest.raises(ServerError):
            client.execute(
                f"BEGIN; INSERT INTO {item} (id) VALUES (1); INSERT INTO {item} (id) VALUES (1); COMMIT"
            )
        client.execute(f"BEGIN; INSERT INTO {item} (id) VALUES (2); ROLLBACK")
        client.execute(f"BEGIN; INSERT INTO {item} (id) VALUES (3), (4); UPDATE {item} SET n = 1; COMMIT")
        changes = [live.receive(30) for _ in range(2)]
        assert [(change.kind, change.row["id"]) for change in changes if change] == [
            ("insert", 3),
            ("insert", 4),
        ]


def test_statements_have_parameters_and_results_of_their_own(root: Wire, item: str) -> None:
    insert = f"INSERT INTO {item} (id, s) VALUES ($1, $2)"
    answer = post(
        root,
        statements=[
            {"sql": insert, "params": [1, "a;b"]},
            {"sql": insert + ";", "rows": [[2, "b"], [3, None]]},
            {"sql": f"SELECT id, s FROM {item} WHERE id <= $1 ORDER BY id", "params": [2]},
            {"sql": f"DELETE FROM {item} WHERE s IS NULL -- gone"},
        ],
        atomic=True,
    )
    assert [result.get("rows", result.get("message")) for result in answer.results] == [
        "Inserted 1 row(s)",
        "Inserted 2 row(s)",
        [[1, "a;b"], [2, "b"]],
        "Deleted 1 row(s)",
    ]
    assert ids(root, item) == [1, 2]


def test_atomic_statements_are_all_or_none_and_others_stop_at_the_first_failure(
    root: Wire, item: str
) -> None:
    statements = [{"sql": f"INSERT INTO {item} (id) VALUES ($1)", "params": [key]} for key in (1, 2, 1)]
    for atomic, left in ((True, []), (False, [1, 2])):
        message = post(root, statements=statements, atomic=atomic).refused(400, "SQL_EXECUTION_ERROR")
        assert message.startswith("Statement 3 failed: Already exists")
        assert ids(root, item) == left


@pytest.mark.parametrize(
    ("body", "code", "part"),
    [
        ({"statements": [{"sql": "SELECT 1; SELECT 2"}]}, "INVALID_INPUT", "one statement"),
        ({"statements": [{"sql": ""}]}, "INVALID_INPUT", "one statement"),
        ({"statements": []}, "EMPTY_SQL", "No SQL"),
        ({"statements": [{"sql": "SELECT 1"}], "sql": "SELECT 1"}, "INVALID_INPUT", "either"),
        ({"sql": "SELECT 1", "atomic": True}, "INVALID_INPUT", "BEGIN"),
        ({"sql": "SELECT 1", "rows": [[1]]}, "SQL_EXECUTION_ERROR", "INSERT, UPDATE or DELETE"),
        ({"sql": "DELETE FROM {} WHERE id = $1", "rows": [[1], [1, 2]]}, "SQL_EXECUTION_ERROR", "row 2"),
        ({"sql": "INSERT INTO {} (id) VALUES ($1)", "rows": [[[1]]]}, "INVALID_PARAMETER", "Array"),
        ({"sql": "INSERT INTO {} (id) VALUES ($1)", "rows": [[1]], "params": [1]}, "INVALID_INPUT", "either"),
        ({"sql": "INSERT INTO {} (id) VALUES ($1)", "rows": 3}, "INVALID_INPUT", "Invalid JSON payload"),
        ({"rows": [[1]]}, "INVALID_INPUT", "missing required field `sql`"),
    ],
)  # fmt: skip
def test_bodies_that_say_two_things_or_none(
    root: Wire, item: str, body: dict[str, Any], code: str, part: str
) -> None:
    if isinstance(body.get("sql"), str):
        body = {**body, "sql": body["sql"].format(item)}
    assert part in post(root, **body).refused(400, code)
    assert ids(root, item) == []


def test_many_rows_are_one_statement(client: Client, item: str) -> None:
    insert = f"INSERT INTO {item} (id, n, s) VALUES ($1, $2 * 2, LOWER($3))"
    assert (
        client.executemany(
            insert, [(key, key, f"S{key}" if key % 2 else None) for key in range(1000)]
        ).row_count
        == 1000
    )
    assert client.executemany(insert, []).row_count == 0
    with pytest.raises(ServerError, match="already exists"):
        client.executemany(insert, [(2000, 1, "x"), (3, 1, "x")])
    assert client.execute(f"SELECT COUNT(*), SUM(n), MAX(s) FROM {item}").rows == ((1000, 999_000, "s999"),)
    updated = client.executemany(
        f"UPDATE {item} SET n = $2 WHERE id = $1", [(1, 0), (1, 5), (9999, 1), (2, 4)]
    )
    assert updated.row_count == 2  # the last sets what is there
    assert (
        client.executemany(f"DELETE FROM {item} WHERE n > $1", [(1990,), (1000,), (1000,)]).row_count == 499
    )
    assert client.query(f"SELECT n FROM {item} WHERE id = 1") == [{"n": 5}]


def test_a_transaction_of_the_client_is_sent_when_its_block_ends(client: Client, item: str) -> None:
    with client.transaction() as t:
        t.execute(f"INSERT INTO {item} (id, n) VALUES ($1, $2)", [1, 10])
        t.executemany(f"INSERT INTO {item} (id) VALUES ($1)", [(2,), (3,)])
        seen = t.execute(f"SELECT COUNT(*) AS n FROM {item}")
        with pytest.raises(RuntimeError, match="not committed"):
            print(seen.result)
        assert client.query(f"SELECT COUNT(*) AS n FROM {item}") == [{"n": 0}]
    assert seen.result.dicts() == [{"n": 3}]
    assert [result.row_count for result in t.results] == [1, 2, 1]
    with contextlib.suppress(KeyError), client.transaction() as t:
        t.execute(f"DELETE FROM {item}")
        raise KeyError
    with pytest.raises(ServerError, match="Statement 2 failed"):
        delete_and_divide(client, item)
    with client.transaction():
        pass
    assert client.query(f"SELECT COUNT(*) AS n FROM {item}") == [{"n": 3}]


def delete_and_divide(client: Client, item: str) -> None:
    with client.transaction() as t:
        t.execute(f"DELETE FROM {item}")
        t.execute("SELECT 1 / 0")


def test_a_client_acts_for_a_user(site: Site, client: Client, item: str) -> None:
    name, own = site.account(name="o'hara 7")
    acting = client.as_user(name)
    assert acting.execute(f"INSERT INTO {item} (id, s) VALUES ($1, $2); -- one", [1, name]).as_user == name
    acting.executemany(f"INSERT INTO {item} (id) VALUES ($1)", [(2,), (3,)])
    with acting.transaction() as t:
        t.execute(f"DELETE FROM {item} WHERE id = 3")
        count = t.execute(f"SELECT COUNT(*) AS n FROM {item}")
    assert count.result.dicts() == [{"n": 2}]
    assert ids(own, item) == [1, 2]
    assert client.query(f"SELECT * FROM {item}") == []
    with pytest.raises(ValueError, match="sign in as the user"):
        acting.live(f"SELECT * FROM {item}")


async def test_the_asynchronous_client_does_the_same(site: Site, namespace: str, item: str) -> None:
    server = site.server
    async with connect_async(
        server.url, user="root", password=server.root_password, namespace=namespace
    ) as client:
        assert (await client.executemany("INSERT INTO item (id) VALUES ($1)", [(1,), (2,)])).row_count == 2
        async with client.transaction() as t:
            t.execute("DELETE FROM item WHERE id = $1", [1])
            left = t.execute("SELECT id FROM item")
        assert left.result.rows == ((2,),)
        with contextlib.suppress(KeyError):
            async with client.transaction() as t:
                t.execute("DELETE FROM item")
                raise KeyError
        assert await client.as_user("nobody").query("SELECT id FROM item") == []
        assert await client.query("SELECT id FROM item") == [{"id": 2}]
