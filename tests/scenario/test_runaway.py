"""Statements that never end or give too much are answered in time, and harm nobody else."""

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from upwell.client import Client, ServerError, connect
from upwell.testing import ServerProcess
from upwell.testing.wait import wait_until
from upwell.testing.wire import SQL, Site, Wire

ROWS = 3_000
ENDLESS = "SELECT sum(a.id * b.id * c.id) FROM app.n a, app.n b, app.n c"
HUGE = "SELECT a.id AS a, b.id AS b, a.id AS c, b.id AS d, a.id AS e FROM app.n a, app.n b"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path / "data", env={"UPWELL_STATEMENT_TIMEOUT_S": "3"}) as server:
        yield server


@pytest.fixture
def client(server: ServerProcess) -> Iterator[Client]:
    with connect(server.url, user="root", password=server.root_password) as client:
        client.execute("CREATE NAMESPACE app")
        client.execute("CREATE USER TABLE app.n (id BIGINT PRIMARY KEY, n INT)")
        client.execute("INSERT INTO app.n (id) VALUES " + ", ".join(f"({n})" for n in range(ROWS)))
        yield client


def test_an_endless_statement_ends_alone(server: ServerProcess, client: Client) -> None:
    for statement in (ENDLESS, f"UPDATE app.n SET n = 1 WHERE id = ({ENDLESS})"):
        with pytest.raises(ServerError, match="Handler execution timeout: exceeded 3s"):
            client.execute(statement)
        counts = client.query("SELECT count(*) AS rows, count(n) AS changed FROM app.n")
        assert counts == [{"rows": ROWS, "changed": 0}]
    assert server.terminate(timeout_s=20) == 0, (
        "what still burns a thread doesn't keep the server from ending"
    )


RECURSION = "WITH RECURSIVE r AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM r) SELECT COUNT(*) FROM r"


def test_a_query_ends_with_its_client(tmp_path: Path) -> None:
    update = f"UPDATE n.t SET v = 1 WHERE id IN ({RECURSION})"
    with ServerProcess(tmp_path / "patient", env={"UPWELL_STATEMENT_TIMEOUT_S": "600"}) as server:
        site = Site(server)
        site.root.run("CREATE NAMESPACE n; CREATE USER TABLE n.t (id BIGINT PRIMARY KEY, v INT)")
        site.root.run("INSERT INTO n.t (id) VALUES (1)")
        for accept, sql in (("application/json", RECURSION), ("text/csv", RECURSION), ("*/*", update)):
            with Wire(server.port, site.root.token) as wire:
                wire.send(SQL, {"sql": sql}, headers={"Accept": accept})
                wait_until(lambda: not _idles(server), timeout_s=20, what="the query to run")
            wait_until(lambda: _idles(server), timeout_s=20, what="nobody to work for who has gone")
        assert site.root.run("SELECT id, v FROM n.t").rows == [["1", None]]
        # Who has sent more ahead isn't listened to. Each slot for queries is taken; then one has to be free.
        for is_later in (False, True):
            with ExitStack() as stack:
                for _ in range(max(1, (os.cpu_count() or 1) - 1)):
                    sent = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
                    sent.sendall(_request(site.root.token, RECURSION))
                    if is_later:
                        wait_until(lambda: not _idles(server), timeout_s=20, what="the query to run")
                    sent.sendall(2 * _request(site.root.token, RECURSION))
                wait_until(lambda: not _idles(server), timeout_s=20, what="the queries to run")
            assert site.root.run("SELECT COUNT(*) + 1 FROM n.t a, n.t b").cell == "2"
        site.close()


def _request(token: str | None, sql: str) -> bytes:
    body = json.dumps({"sql": sql}).encode()
    head = f"POST {SQL} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nContent-Length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


def _idles(server: ServerProcess) -> bool:
    began, cpu_s = time.monotonic(), _cpu_s(server)
    while time.monotonic() < began + 0.3:
        pass
    return _cpu_s(server) - cpu_s < 0.03


def _cpu_s(server: ServerProcess) -> float:
    fields = Path(f"/proc/{server.pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_result_too_large_is_refused(client: Client) -> None:
    with pytest.raises(ServerError, match="the result is larger than 64 MiB; narrow it with WHERE or LIMIT"):
        client.execute(HUGE)
    assert client.query(f"SELECT count(*) AS c FROM ({HUGE})") == [{"c": ROWS * ROWS}]


def test_a_query_that_needs_too_much_memory_is_refused(client: Client) -> None:
    rows = "SELECT repeat('x', 1000) || a.id || '-' || b.id AS s FROM app.n a, app.n b"
    with pytest.raises(ServerError, match=r"needs more than 1024 MiB of memory|exceeded 3s"):
        client.execute(f"SELECT count(*) FROM ({rows}) l JOIN ({rows}) r ON l.s = r.s")
    assert client.query("SELECT 1 AS one") == [{"one": 1}]
