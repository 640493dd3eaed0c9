"""Promise: a query's rows come as Arrow, NDJSON or CSV as well, any number of them in bounded memory.

What fails before the first byte is an ordinary error; what fails later cuts the connection, so that nobody
takes a part for the whole.
"""

import asyncio
import csv
import http.client
import io
import json
from contextlib import closing
from pathlib import Path

import pyarrow as pa
import pytest

from upwell import __version__
from upwell.client import ConnectionLost, ServerError, connect, connect_async
from upwell.testing import ServerProcess
from upwell.testing.wire import SQL, TIMEOUT_S, Site, Wire

ARROW, NDJSON, CSV = "application/vnd.apache.arrow.stream", "application/x-ndjson", "text/csv"
RESIDENT_MB_MAX = 400
COLUMNS = (
    "id INT PRIMARY KEY, big BIGINT, name TEXT, real DOUBLE, flag BOOLEAN, at TIMESTAMP, raw BYTES, doc JSON"
)
ROWS = (
    "(1, 9223372036854775807, 'a \"b\", c', 1.5, TRUE, '2026-01-02T03:04:05.678901Z', '\\x00ff', "
    "'{\"a\": 1}'), (2, NULL, '', NULL, FALSE, NULL, NULL, NULL), "
    "(3, -1, 'line\nbreak – 日本', -0.0, NULL, NULL, NULL, NULL)"
)
SELECT = "SELECT id, big, name, real, flag, at, raw, doc FROM t"


@pytest.fixture(params=["hot", "cold"])
def filled(site: Site, namespace: str, request: pytest.FixtureRequest) -> str:
    site.root.run(f"CREATE TABLE {namespace}.t ({COLUMNS})")
    site.root.run(f"INSERT INTO {namespace}.t VALUES {ROWS}")
    if request.param == "cold":
        site.flush(f"{namespace}.t")
    return namespace


@pytest.fixture(scope="module")
def series(site: Site) -> str:
    return million(site)


def million(site: Site) -> str:
    """Return FROM a million rows with the values 0 … 999,999."""
    name = f"{site.namespace()}.d"
    site.root.run(f"CREATE TABLE {name} (id INT PRIMARY KEY)")
    site.root.run(f"INSERT INTO {name} VALUES {', '.join(f'({number})' for number in range(1_000))}")
    return f"FROM (SELECT a.id * 1000 + b.id AS value FROM {name} a CROSS JOIN {name} b)"


def ask(wire: Wire, accept: str, sql: str, namespace: str = "default", **more: object) -> tuple[str, bytes]:
    body = {"sql": sql, "namespace_id": namespace, **more}
    answer = wire.call("POST", SQL, body, headers={"Accept": accept})
    assert answer.status == 200, answer.body
    return answer.headers["content-type"], answer.body


def test_columns_may_have_one_name_in_every_form(root: Wire, filled: str) -> None:
    sql = "SELECT id, big, id, version() FROM t WHERE id = 3"
    names = ["id", "big", "id", "version()"]
    answer = json.loads(root.call("POST", SQL, {"sql": sql, "namespace_id": filled}).body)["results"][0]
    assert [column["name"] for column in answer["schema"]] == names
    assert answer["rows"] == [[3, "-1", 3, f"Upwell {__version__}"]]
    table = pa.ipc.open_stream(ask(root, ARROW, sql, filled)[1]).read_all()
    assert (table.schema.names, table.column(2).to_pylist()) == (names, [3])
    head, row = csv.reader(io.StringIO(ask(root, CSV, sql, filled)[1].decode()))
    assert (head, row[:3]) == (names, ["3", "-1", "3"])


def test_arrow_has_the_columns_and_their_types(root: Wire, filled: str) -> None:
    kind, body = ask(root, ARROW, SELECT, filled)
    assert kind == ARROW
    table = pa.ipc.open_stream(body).read_all()
    assert [str(each) for each in table.schema.types] == [
        "int32", "int64", "string", "double", "bool", "timestamp[us]", "binary", "string",
    ]  # fmt: skip
    first, second, third = table.to_pylist()
    assert (first["id"], first["big"], first["name"]) == (1, 2**63 - 1, 'a "b", c')
    assert first["at"].isoformat() == "2026-01-02T03:04:05.678901"
    assert (first["raw"], json.loads(first["doc"])) == (b"\x00\xff", {"a": 1})
    assert second == dict.fromkeys(table.schema.names) | {"id": 2, "name": "", "flag": False}
    assert (third["name"], repr(third["real"])) == ("line\nbreak – 日本", "-0.0")


def test_ndjson_has_a_json_object_a_row_with_cells_as_in_json(root: Wire, filled: str) -> None:
    kind, body = ask(root, NDJSON, SELECT, filled)
    assert kind == NDJSON
    first, second, third = (json.loads(line) for line in body.splitlines())
    plain = root.run(SELECT, namespace=filled)
    names = [name for name, _ in plain.columns]
    assert [list(row.values()) for row in (first, second, third)] == plain.rows
    assert list(first) == names
    assert (first["big"], first["at"], first["raw"]) == ("9223372036854775807", 1767323045678901, [0, 255])


def test_nothing_is_calculated_of_rows_that_are_left_out(root: Wire, filled: str) -> None:
    q = "10 / (id - 1) + length(name) + coalesce(length(doc), 0) AS q"
    _, body = ask(root, NDJSON, f"SELECT id, {q} FROM t WHERE id > 1", filled)
    assert [json.loads(line) for line in body.splitlines()] == [{"id": 2, "q": "10"}, {"id": 3, "q": "20"}]


def test_csv_tells_null_from_an_empty_text(root: Wire, filled: str) -> None:
    kind, body = ask(root, CSV, SELECT, filled)
    assert kind == CSV
    text = body.decode()
    head, *rows = csv.reader(io.StringIO(text))
    assert head == ["id", "big", "name", "real", "flag", "at", "raw", "doc"]
    assert rows[0][:4] == ["1", "9223372036854775807", 'a "b", c', "1.5"]
    assert rows[0][5:7] == ["2026-01-02 03:04:05.678901Z", "00ff"]
    assert rows[2][2] == "line\nbreak – 日本"
    assert text.splitlines()[2] == '2,,"",,false,,,', "nothing for NULL, quotes for an empty text"


def test_an_empty_result_has_its_columns(root: Wire, filled: str) -> None:
    nothing = f"{SELECT} WHERE id < 0"
    assert pa.ipc.open_stream(ask(root, ARROW, nothing, filled)[1]).read_all().schema.names[:2] == [
        "id",
        "big",
    ]
    assert ask(root, CSV, nothing, filled)[1] == b"id,big,name,real,flag,at,raw,doc\n"
    assert ask(root, NDJSON, nothing, filled)[1] == b""


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("text/csv", CSV),
        ("TEXT/CSV; charset=utf-8", CSV),
        ("application/json, text/csv", "application/json"),
        ("*/*, text/csv;q=0.5", "application/json"),
        ("text/csv;q=0.5, application/x-ndjson", NDJSON),
        ("text/csv;q=0, */*", "application/json"),
        ("text/html", "application/json"),
        ("text/csv;q=much", "application/json"),
    ],
)
def test_accept_decides(root: Wire, accept: str, kind: str) -> None:
    assert ask(root, accept, "SELECT 1 AS one")[0] == kind


def test_parameters_roles_and_names_are_as_in_json(site: Site, alice: Wire, namespace: str) -> None:
    site.root.run(f"CREATE USER TABLE {namespace}.mine (id INT PRIMARY KEY, n INT)")
    alice.run(f"INSERT INTO {namespace}.mine VALUES (1, 10), (2, 20)")
    site.root.run(f"INSERT INTO {namespace}.mine VALUES (1, 99)")
    sql = "SELECT n FROM mine WHERE n > $1 ORDER BY n DESC"
    assert ask(alice, CSV, sql, namespace, params=[5])[1] == b"n\n20\n10\n"
    refused = alice.call("POST", SQL, {"sql": "SELECT * FROM system.users"}, headers={"Accept": CSV})
    refused.refused(403, "PERMISSION_DENIED")
    refused = site.wire(None).call("POST", SQL, {"sql": "SELECT 1"}, headers={"Accept": CSV})
    assert refused.status == 401


@pytest.mark.parametrize("accept", [ARROW, NDJSON, CSV])
def test_what_fails_before_the_first_byte_is_an_ordinary_error(
    root: Wire, namespace: str, accept: str
) -> None:
    def refused(sql: str, code: str) -> str:
        answer = root.call("POST", SQL, {"sql": sql, "namespace_id": namespace}, headers={"Accept": accept})
        return answer.refused(400, code)

    root.run(f"CREATE TABLE {namespace}.t (id INT PRIMARY KEY)")
    assert "nothing" in refused("SELECT nothing FROM t", "SQL_EXECUTION_ERROR")
    assert "ivide" in refused("SELECT 1 / 0", "SQL_EXECUTION_ERROR")
    # What the query engine finds when it begins, before there is a batch.
    assert "Cannot cast" in refused("SELECT CAST('x' AS INT)", "SQL_EXECUTION_ERROR")
    assert "ntile" in refused("SELECT ntile(0) OVER () FROM t", "SQL_EXECUTION_ERROR").lower()
    assert "only a query" in refused("INSERT INTO t VALUES (1)", "INVALID_INPUT")
    assert "one statement" in refused("SELECT 1; SELECT 2", "INVALID_INPUT")
    assert root.run(f"SELECT COUNT(*) FROM {namespace}.t").cell == "0", "what is refused has no effect"


def test_json_objects_need_names_of_their_own(root: Wire) -> None:
    sql = "SELECT a.x, b.x FROM (SELECT 1 AS x) a, (SELECT 2 AS x) b"
    answer = root.call("POST", SQL, {"sql": sql}, headers={"Accept": NDJSON})
    assert "AS" in answer.refused(400, "SQL_EXECUTION_ERROR")
    assert ask(root, CSV, sql)[1] == b"x,x\n1,2\n"


@pytest.mark.parametrize("accept", [ARROW, NDJSON, CSV])
def test_what_fails_later_cuts_the_connection(root: Wire, series: str, accept: str) -> None:
    sql = f"SELECT value, repeat('x', 100) AS pad, 1 / (500500 - value) AS n {series}"
    with pytest.raises(http.client.IncompleteRead):
        root.call("POST", SQL, {"sql": sql}, headers={"Accept": accept})
    assert root.run("SELECT 1").cell in (1, "1"), "the next request has a connection of its own"


def test_a_reader_that_rests_holds_nobody_up(site: Site, root: Wire, series: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", site.server.port, timeout=TIMEOUT_S)
    sql = f"SELECT value, repeat('x', 1000) AS pad {series}"
    headers = {"Authorization": f"Bearer {root.token}", "Accept": CSV, "Content-Type": "application/json"}
    connection.request("POST", SQL, json.dumps({"sql": sql}), headers)
    answer = connection.getresponse()
    assert answer.read(9) == b"value,pad"
    for number in range(20):
        assert root.run(f"SELECT COUNT(*) {series} WHERE value < {number}").cell == str(number)
    connection.close()


def test_a_million_rows_need_little_memory(tmp_path: Path) -> None:
    """Read to the end, while the server, which has done nothing else, holds no more than a piece of it."""
    with ServerProcess(tmp_path / "data") as server, closing(Site(server)) as site:
        sql = f"SELECT value, repeat('x', 300) AS pad {million(site)}"
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=TIMEOUT_S)
        headers = {"Authorization": f"Bearer {site.root.token}", "Accept": ARROW}
        connection.request(
            "POST", SQL, json.dumps({"sql": sql}), headers | {"Content-Type": "application/json"}
        )
        rows, total, highest = 0, 0, 0.0
        for batch in pa.ipc.open_stream(connection.getresponse()):
            rows, total = rows + batch.num_rows, total + sum(batch.column(0).to_pylist())
            highest = max(highest, _resident_mb(server.pid))
        connection.close()
    assert (rows, total) == (1_000_000, 499_999_500_000)
    assert highest < RESIDENT_MB_MAX


def test_json_has_a_limit_and_says_what_to_do(root: Wire, series: str) -> None:
    sql = f"SELECT value, repeat('x', 1000) AS pad {series}"
    message = root.sql(sql).refused(400, "SQL_EXECUTION_ERROR")
    assert "larger than 64 MiB" in message
    assert ARROW in message


def _resident_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmRSS"))


def test_a_client_reads_rows_as_they_arrive(site: Site, filled: str) -> None:
    with connect(site.server.url, token=site.root.token, namespace=filled) as client:
        streamed = list(client.rows(f"{SELECT} WHERE id < $1 ORDER BY id", [3]))
        assert streamed == client.query(f"{SELECT} WHERE id < $1 ORDER BY id", [3])
        assert streamed[0]["big"] == 2**63 - 1
        assert streamed[0]["raw"] == b"\x00\xff"
        assert [row["big"] for row in client.rows(SELECT, raw=True)] == ["9223372036854775807", None, "-1"]
        assert client.arrow(SELECT).column("id").to_pylist() == [1, 2, 3]
        with pytest.raises(ServerError, match="nothing"):
            list(client.rows("SELECT nothing FROM t"))


def test_an_asynchronous_client_does_too(site: Site, filled: str) -> None:
    async def read() -> None:
        async with connect_async(site.server.url, token=site.root.token, namespace=filled) as client:
            rows = [row async for row in client.rows(f"{SELECT} ORDER BY id")]
            assert rows == await client.query(f"{SELECT} ORDER BY id")
            assert (await client.arrow(SELECT)).num_rows == 3
            with pytest.raises(ServerError, match="only a query"):
                await client.arrow("DELETE FROM t")

    asyncio.run(read())


def test_a_client_takes_no_part_for_the_whole(site: Site, series: str) -> None:
    sql = f"SELECT value, repeat('x', 100) AS pad, 1 / (500500 - value) AS n {series}"
    with connect(site.server.url, user="root", password=site.server.root_password) as client:
        rows = client.rows(sql)
        assert next(rows)["pad"] == "x" * 100
        with pytest.raises(ConnectionLost):
            list(rows)
        with pytest.raises(ConnectionLost):
            client.arrow(sql)
