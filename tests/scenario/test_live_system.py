"""Live queries of system tables: administrators follow what the server knows, nobody else does."""

from contextlib import ExitStack
from typing import Any

import pytest

import upwell.client
from upwell.client import LiveError
from upwell.testing.websocket import Socket, Watched
from upwell.testing.wire import Site, Wire


def test_jobs_are_followed_to_their_end(site: Site, namespace: str) -> None:
    table = f"{namespace}.notes"
    site.root.run(f"CREATE TABLE {table} (id BIGINT PRIMARY KEY) WITH (TYPE = 'USER')")
    site.root.run(f"INSERT INTO {table} VALUES (1)")
    sql = f"SELECT job_id, status FROM system.jobs WHERE parameters LIKE '%{table}%'"
    _, dba = site.account("dba")
    with ExitStack() as stack:
        sockets = [stack.enter_context(Socket(wire.port, wire.token)) for wire in (site.root, dba)]
        watched = [Watched(socket, sql, pk="job_id", options={}).snapshot() for socket in sockets]
        assert [each.rows for each in watched] == [{}, {}]
        site.flush(table)
        [[job, status]] = site.root.run(sql).rows
        assert status == "completed"
        for each in watched:
            while each.rows.get(job, {}).get("status") != "completed":
                assert each.change()[1] == job
            assert each.rows == {job: {"job_id": job, "status": "completed"}}


def test_rows_come_change_and_go(site: Site) -> None:
    with Socket(site.root.port, site.root.token) as socket:
        sql = "SELECT user_id, role FROM system.users WHERE user_id LIKE 'follow%' AND deleted_at IS NULL"
        watched = Watched(socket, sql, pk="user_id", options={}).snapshot()
        site.account(name="follow_me")
        assert watched.change() == ("insert", "follow_me")
        assert watched.rows["follow_me"]["role"] == "user"
        site.root.run("ALTER USER 'follow_me' SET ROLE service")
        assert watched.change() == ("update", "follow_me")
        (old,) = watched.last["old_values"]
        assert {name: old[name] for name in old if name != "_seq"} == {"user_id": "follow_me", "role": "user"}
        assert watched.rows["follow_me"]["role"] == "service"
        site.root.run("DROP USER 'follow_me'")
        assert watched.change() == ("delete", "follow_me")
        assert watched.rows == {}


def test_what_is_followed_is_listed_and_killed_as_any_other(site: Site, namespace: str) -> None:
    _, dba = site.account("dba")
    with Socket(dba.port, dba.token) as socket:
        watched = Watched(socket, "SELECT name FROM system.namespaces", id="spaces", pk="name", options={})
        assert namespace in watched.snapshot().rows
        [[live_id, table]] = dba.run(
            "SELECT live_id, table_name FROM system.live WHERE subscription_id = 'spaces'"
        ).rows
        assert table == "namespaces"
        other = site.namespace()
        assert watched.change() == ("insert", other)
        site.root.run(f"KILL LIVE QUERY '{live_id}'")
        assert watched.error()[0] == "SUBSCRIPTION_KILLED"
        Watched(socket, "SELECT * FROM system.live", id="live", pk="live_id", options={}).snapshot()
        socket.say(type="unsubscribe", subscription_id="live")


def _refused(wire: Wire, sql: str, **options: Any) -> tuple[str, str]:
    with Socket(wire.port, wire.token) as socket:
        socket.say(type="subscribe", subscription={"id": "s", "sql": sql, "options": options})
        error = socket.message("error")
        return error["code"], error["message"]


@pytest.mark.parametrize("role", ["user", "service"])
@pytest.mark.parametrize("name", ["system.jobs", "system.live", "SYSTEM.users", "information_schema.tables"])
def test_nobody_else_follows_them(site: Site, role: str, name: str) -> None:
    _, wire = site.account(role)
    code, message = _refused(wire, f"SELECT * FROM {name}")
    assert code == "UNAUTHORIZED"
    assert f"Cannot subscribe to system table '{name.lower()}'" in message


def test_what_they_cannot_do_is_said(site: Site) -> None:
    root = site.root
    assert _refused(root, "SELECT * FROM system.nope")[0] == "NOT_FOUND"
    code, message = _refused(root, "SELECT nope FROM system.jobs")
    assert code == "UNSUPPORTED"
    assert "column 'nope' does not exist in system.jobs at Line: 1, Column: 8" in message
    assert _refused(root, "SELECT * FROM system.jobs WHERE nope = 1")[0] == "SUBSCRIPTION_FAILED"
    assert _refused(root, "SELECT * FROM system.jobs", last_rows=1)[0] == "UNSUPPORTED"
    assert _refused(root, "SELECT * FROM system.jobs", **{"from": 5})[0] == "HISTORY_PRUNED"
    assert _refused(root, "SELECT count(*) FROM system.jobs")[0] == "INVALID_SQL"


def test_the_client_keeps_a_table_of_them(site: Site, namespace: str) -> None:
    with upwell.client.connect(site.server.url, token=site.root.token) as client:
        sql = (
            f"SELECT namespace_id, table_name, version FROM system.tables WHERE namespace_id = '{namespace}'"
        )
        with client.live_table(sql) as tables:
            assert tables.rows() == []
            site.root.run(f"CREATE TABLE {namespace}.t (id INT PRIMARY KEY) WITH (TYPE = 'USER')")
            tables.wait(lambda rows: [row["version"] for row in rows] == [1], timeout_s=20)
            site.root.run(f"ALTER TABLE {namespace}.t ADD COLUMN more TEXT")
            tables.wait(lambda rows: [row["version"] for row in rows] == [2], timeout_s=20)
            site.root.run(f"DROP TABLE {namespace}.t")
            tables.wait(lambda rows: rows == [], timeout_s=20)
        with pytest.raises(LiveError, match="no history to resume from"):
            client.live(sql, from_seq=7).snapshot()
