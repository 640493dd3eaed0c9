"""SUBSCRIBE TO as a statement, and SET: what they answer, to whom, and that the answer can be used as it is.

Written from the reference contract, sections 3.1 and 3.11.
"""

import re

import pytest

from upwell.testing.wait import wait_until
from upwell.testing.websocket import Socket
from upwell.testing.wire import Site, Wire

UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}"


@pytest.fixture(scope="module")
def app(site: Site) -> str:
    """A namespace with a table for everybody and one for administrators."""
    name = site.namespace()
    site.root.run(
        f"CREATE USER TABLE {name}.todo (id INT PRIMARY KEY, done BOOLEAN);"
        f"CREATE SHARED TABLE {name}.secret (id INT PRIMARY KEY) WITH (ACCESS_LEVEL = 'DBA')"
    )
    return name


def _told(socket: Socket, subscription: object) -> dict[str, object]:
    socket.say(type="subscribe", subscription=subscription)
    return socket.message()


@pytest.mark.parametrize("role", ["user", "service", "dba", "system"])
def test_the_answer_is_what_a_socket_takes(site: Site, app: str, role: str) -> None:
    _, wire = site.account(role)
    wire.run(f"INSERT INTO {app}.todo VALUES (1, TRUE), (2, FALSE), (3, FALSE)")
    answer = wire.run(f"SUBSCRIBE TO {app}.todo WHERE NOT done OPTIONS (last_rows=10, batch_size=50)")
    assert [name for name, _ in answer.columns] == ["status", "ws_url", "subscription", "message"]
    ((status, url, subscription, message),) = answer.rows
    assert (status, url) == ("active", f"ws://127.0.0.1:{wire.port}/v1/ws")
    assert "ws_url" in message
    assert re.fullmatch(f"sub-{app}-todo-{UUID}", subscription["id"])
    assert subscription["sql"] == f"SELECT * FROM {app}.todo WHERE NOT done"
    assert subscription["options"] == {"last_rows": 10, "batch_size": 50}
    with Socket(wire.port, wire.token) as socket:
        assert _told(socket, subscription)["type"] == "subscription_ack"
        assert [row["id"] for row in socket.message()["rows"]] == [2, 3]


def test_without_options_only_changes_come(site: Site, app: str) -> None:
    _, wire = site.account()
    wire.run(f"INSERT INTO {app}.todo VALUES (1, TRUE)")
    subscription = wire.run(f"SUBSCRIBE TO SELECT id FROM {app}.todo").rows[0][2]
    assert set(subscription) == {"id", "sql"}
    with Socket(wire.port, wire.token) as socket:
        assert _told(socket, subscription)["type"] == "subscription_ack"
        wire.run(f"INSERT INTO {app}.todo VALUES (2, TRUE)")
        assert [row["id"] for row in socket.message()["rows"]] == [2]


REFUSED = [
    ("dba", "SELECT id FROM {app}.todo ORDER BY id", ""),
    ("dba", "SELECT id FROM todo", ""),
    ("dba", "SELECT id, nothing FROM {app}.todo", ""),
    ("dba", "SELECT id FROM {app}.todo WHERE nothing(id) = 1", ""),
    ("dba", "SELECT id FROM {app}.nothing", ""),
    ("service", "SELECT id FROM {app}.secret", ""),
    ("service", "SELECT * FROM system.users", ""),
    ("user", "SELECT id FROM {app}.todo", "last_rows=10, batch_size=5"),
    ("user", "SELECT id FROM {app}.todo", "from=1"),
    ("dba", "SELECT * FROM system.users", "last_rows=1"),
]
PLACE = re.compile(r" at Line: \d+, Column: \d+")


@pytest.mark.parametrize(("role", "sql", "options"), REFUSED)
def test_what_a_live_query_refuses_is_refused_in_its_words(
    site: Site, app: str, role: str, sql: str, options: str
) -> None:
    _, wire = site.account(role)
    text = sql.format(app=app)
    answer = wire.sql(f"SUBSCRIBE TO {text}" + (f" OPTIONS ({options})" if options else ""))
    assert answer.status in (400, 403)
    asked = {name: int(number) for name, number in re.findall(r"(\w+)=(\d+)", options)}
    with Socket(wire.port, wire.token) as socket:
        told = _told(socket, {"id": "s", "sql": text, "options": asked})
    assert told["type"] == "error"
    assert (answer.status == 403) == (told["code"] == "UNAUTHORIZED")
    if "made anew" in str(told["message"]):  # whether there is another table isn't told to a user over HTTP
        assert answer.json["error"]["message"] == "SQL statement failed"
    else:
        said = answer.json["error"]["message"].removeprefix("Statement 1 failed: ")
        # The socket's words have a prefix by the kind of error (reference contract, section 2.4).
        assert PLACE.sub("", said) == PLACE.sub("", str(told["message"]).removeprefix("Not found: "))


def test_it_is_no_part_of_a_transaction(site: Site, app: str) -> None:
    refused = site.root.sql(f"BEGIN; SUBSCRIBE TO {app}.todo; COMMIT").refused(400, "SQL_EXECUTION_ERROR")
    assert "a transaction takes SELECT" in refused
    refused = site.root.sql(f"SUBSCRIBE TO {app}.todo WHERE id = $1", 1).refused(400, "SQL_EXECUTION_ERROR")
    assert "Parameters not supported for SUBSCRIBE TO statements" in refused


def test_sockets_and_live_queries_are_counted(site: Site, app: str) -> None:
    def counts() -> list[int]:
        stats = dict(site.root.run("SELECT metric_name, metric_value FROM system.stats").rows)
        names = ("active_connections", "active_subscriptions")
        return [int(stats[name + of]) for name in names for of in ("", "_peak")]

    wait_until(lambda: counts()[::2] == [0, 0], timeout_s=20, what="earlier sockets are gone")
    peaks = counts()[1::2]
    _, wire = site.account()
    with Socket(wire.port, wire.token) as socket, Socket(wire.port, wire.token):
        assert _told(socket, {"id": "s", "sql": f"SELECT id FROM {app}.todo"})["type"] == "subscription_ack"
        assert counts() == [2, max(2, peaks[0]), 1, max(1, peaks[1])]
    wait_until(lambda: counts()[::2] == [0, 0], timeout_s=20, what="these are gone")
    assert counts()[1::2] == [max(2, peaks[0]), max(1, peaks[1])]


@pytest.mark.parametrize(
    "sql", ["SET x = 1", "SET datafusion.execution.batch_size TO 5", "SET TIME ZONE 'UTC'"]
)
def test_only_administrators_hear_why_set_has_no_effect(site: Site, alice: Wire, sql: str) -> None:
    refusal = "Admin privileges (DBA or System role) required for SET statements"
    assert refusal in alice.sql(sql).refused(403, "PERMISSION_DENIED")
    assert refusal in alice.sql(f"SELECT 1; {sql}").refused(403, "PERMISSION_DENIED")
    text = site.root.sql(sql).refused(400, "INVALID_SQL")
    assert "would have no effect. Instead: requests share nothing" in text
    assert text.count("Instead") == 1
    _, dba = site.account("dba")
    assert "USE namespace, or namespace_id" in dba.sql(sql).refused(400, "INVALID_SQL")
