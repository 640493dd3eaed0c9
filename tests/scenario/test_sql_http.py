"""`POST /v1/api/sql`: requests, results, batches, parameters and the connection itself.

Written from the reference contract, sections 1.3, 1.4, 3.1–3.6, not from the code.
"""

import json
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from upwell.testing.wire import SQL, Site, Wire, quoted


@pytest.fixture
def todo(site: Site, namespace: str) -> str:
    """A USER table with three rows of root."""
    name = f"{namespace}.todo"
    site.root.run(f"CREATE USER TABLE {name} (id BIGINT PRIMARY KEY, title TEXT NOT NULL, done BOOLEAN)")
    site.root.run(f"INSERT INTO {name} VALUES (3, 'c', NULL), (1, 'a', TRUE), (2, 'b', FALSE)")
    return name


def test_a_select_answers_schema_rows_count_and_user(root: Wire, todo: str) -> None:
    answer = root.run(f"SELECT id, title, done FROM {todo} ORDER BY id")
    body = answer.json
    assert set(body) == {"status", "results", "took", "error"}
    assert body["error"] is None
    assert isinstance(body["took"], float)
    assert round(body["took"], 3) == body["took"]
    assert answer.headers["content-type"].startswith("application/json")
    assert body["results"] == [
        {
            "schema": [
                {"name": "id", "data_type": "BigInt", "index": 0, "flags": ["nn", "pk", "uq"]},
                {"name": "title", "data_type": "Text", "index": 1, "flags": ["nn"]},
                {"name": "done", "data_type": "Boolean", "index": 2},
            ],
            "rows": [["1", "a", True], ["2", "b", False], ["3", "c", None]],
            "row_count": 3,
            "as_user": "root",
        }
    ]


def test_a_read_by_key_answers_like_any_other_select(root: Wire, todo: str) -> None:
    by_key = root.run(f"SELECT id, title, done FROM {todo} WHERE id = 2").json
    by_scan = root.run(f"SELECT id, title, done FROM {todo} WHERE id + 0 = 2").json
    assert by_key["results"] == by_scan["results"]
    assert by_key["error"] is None
    assert by_key["results"][0]["rows"] == [["2", "b", False]]


def test_a_select_star_shows_the_system_columns_last(root: Wire, todo: str) -> None:
    for where in ("", " WHERE id = 1"):
        answer = root.run(f"SELECT * FROM {todo}{where}")
        assert answer.columns == [
            ("id", "BigInt"),
            ("title", "Text"),
            ("done", "Boolean"),
            ("_seq", "BigInt"),
            ("_deleted", "Boolean"),
        ]
        assert all(isinstance(row[3], str) and int(row[3]) > 0 and row[4] is False for row in answer.rows)


@pytest.mark.parametrize("where", ["id = 99", "title = 'nobody'"])
def test_no_rows_still_have_a_schema(root: Wire, todo: str, where: str) -> None:
    result = root.run(f"SELECT id, title FROM {todo} WHERE {where}").result
    assert [column["name"] for column in result["schema"]] == ["id", "title"]
    assert result["rows"] == []
    assert result["row_count"] == 0


def test_results_without_rows_have_a_message_only(root: Wire, todo: str) -> None:
    body = root.run(f"INSERT INTO {todo} VALUES (4, 'd', TRUE), (5, 'e', TRUE)").json
    assert body["results"] == [{"row_count": 2, "message": "Inserted 2 row(s)", "as_user": "root"}]
    assert "error" not in body
    assert root.run(f"UPDATE {todo} SET title = 'x' WHERE id IN (4, 5)").message == "Updated 2 row(s)"
    assert root.run(f"UPDATE {todo} SET title = 'x' WHERE id = 99").message == "Updated 0 row(s)"
    assert root.run(f"DELETE FROM {todo} WHERE id IN (4, 5)").message == "Deleted 2 row(s)"
    assert root.run(f"DELETE FROM {todo} WHERE id = 4").count == 0


def test_an_assignment_that_changes_nothing_counts_zero(root: Wire, todo: str) -> None:
    seq = root.run(f"SELECT _seq FROM {todo} WHERE id = 1").cell
    assert root.run(f"UPDATE {todo} SET title = 'a' WHERE id = 1").count == 0
    assert root.run(f"UPDATE {todo} SET title = title").count == 0
    assert root.run(f"SELECT _seq FROM {todo} WHERE id = 1").cell == seq


def test_a_batch_sums_its_changes_at_the_end(root: Wire, todo: str) -> None:
    results = root.run(
        f"INSERT INTO {todo} VALUES (10, 'j', NULL); SELECT COUNT(*) FROM {todo};"
        f"DELETE FROM {todo} WHERE id = 1; INSERT INTO {todo} VALUES (11, 'k', NULL), (12, 'l', NULL);"
        f"UPDATE {todo} SET done = TRUE WHERE id = 10; SELECT id FROM {todo} ORDER BY id;"
    ).results
    assert [result.get("rows") or result["message"] for result in results] == [
        [["4"]],
        [["2"], ["3"], ["10"], ["11"], ["12"]],
        "Inserted 3 row(s)",
        "Updated 1 row(s)",
        "Deleted 1 row(s)",
    ]
    assert [result["row_count"] for result in results] == [1, 5, 3, 1, 1]


def test_a_batch_of_changes_that_hit_nothing_has_no_results(root: Wire, todo: str) -> None:
    batch = f"UPDATE {todo} SET done = TRUE WHERE id = 77; DELETE FROM {todo} WHERE id = 77"
    assert root.run(batch).results == []


def test_definitions_of_a_batch_answer_in_order(root: Wire, namespace: str) -> None:
    answer = root.run(
        f"CREATE TABLE {namespace}.t (id INT PRIMARY KEY); INSERT INTO {namespace}.t VALUES (1);"
        f"SELECT id FROM {namespace}.t; CREATE TABLE IF NOT EXISTS {namespace}.t (id INT PRIMARY KEY)"
    )
    created, selected, existing, inserted = answer.results
    assert created["message"].endswith(f"shared table {namespace}.t created successfully")
    assert selected["rows"] == [[1]]
    assert "already exists" in existing["message"]
    assert inserted["message"] == "Inserted 1 row(s)"


def test_a_failing_statement_stops_the_batch_and_earlier_ones_stay(root: Wire, todo: str) -> None:
    message = root.sql(
        f"INSERT INTO {todo} VALUES (20, 'x', NULL); INSERT INTO {todo} VALUES (20, 'y', NULL);"
        f"INSERT INTO {todo} VALUES (21, 'z', NULL)"
    ).refused(400, "SQL_EXECUTION_ERROR")
    expected = (
        "Statement 2 failed: Already exists: Primary key violation: value '20' already exists in column 'id'"
    )
    assert message == expected
    assert root.run(f"SELECT id, title FROM {todo} WHERE id >= 20 ORDER BY id").rows == [["20", "x"]]


@pytest.mark.parametrize("last", ["SELEC 1", "CREATE TABLE t (id NOTYPE PRIMARY KEY)", "INSERT INTO"])
def test_a_syntax_error_anywhere_runs_nothing(root: Wire, todo: str, last: str) -> None:
    answer = root.sql(f"INSERT INTO {todo} VALUES (30, 'x', NULL); {last}")
    assert answer.status == 400
    assert answer.json["error"]["code"] in ("INVALID_SQL", "BATCH_PARSE_ERROR")
    assert root.run(f"SELECT COUNT(*) FROM {todo} WHERE id = 30").cell == "0"


def test_a_role_violation_anywhere_runs_nothing(site: Site, namespace: str, alice: Wire) -> None:
    site.root.run(f"CREATE USER TABLE {namespace}.t (id INT PRIMARY KEY)")
    answer = alice.sql(f"INSERT INTO {namespace}.t VALUES (1); CREATE NAMESPACE {namespace}_x")
    answer.refused(403, "PERMISSION_DENIED")
    assert alice.run(f"SELECT COUNT(*) FROM {namespace}.t").cell == "0"


@pytest.mark.parametrize(
    "text", ["", "   \n", ";", " ; ; ", "-- nothing", "/* nothing */", "/* a */ -- b\n ;"]
)
def test_empty_sql(root: Wire, text: str) -> None:
    assert root.sql(text).refused(400, "EMPTY_SQL") == "No SQL statements provided"


def test_comments_quotes_and_semicolons_are_understood(root: Wire, todo: str) -> None:
    answer = root.run(
        f"-- first ; comment\nINSERT INTO {todo} /* inner ; */ VALUES (40, 'a;b''c -- d', TRUE) ;;\n"
        f"SELECT title FROM {todo} WHERE id = 40; -- end"
    )
    assert answer.results[0]["rows"] == [["a;b'c -- d"]]


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"SELECT 1"',
        b"{}",
        b'{"sql": 1}',
        b'{"sql": null}',
        b'{"sql": "SELECT 1", "params": {}}',
        b'{"sql": "SELECT 1", "params": 1}',
        b'{"sql": "SELECT 1", "namespace_id": 5}',
        b'{"sql": "\xff\xfe"}',
        b'{"sql": "SELECT 1"} trailing',
        b'{"sql": "\\ud800"}',
        b"SELECT 1",
        b"\x00",
        b"[" * 5_000,
    ],
)
def test_bad_bodies(root: Wire, raw: bytes) -> None:
    answer = root.call("POST", SQL, raw=raw)
    assert answer.refused(400, "INVALID_INPUT").startswith("Invalid JSON payload: ")
    assert root.run("SELECT 1").cell == "1"


def test_a_form_is_told_that_it_carries_files(root: Wire) -> None:
    raw = b'--x\r\nContent-Disposition: form-data; name="sql"\r\n\r\nSELECT 1\r\n--x--\r\n'
    answer = root.call("POST", SQL, raw=raw, headers={"Content-Type": "multipart/form-data; boundary=x"})
    assert "send JSON" in answer.refused(400, "INVALID_INPUT")


def test_unknown_fields_are_ignored(root: Wire) -> None:
    assert root.call("POST", SQL, {"sql": "SELECT 1", "colour": "red", "params": None}).cell == "1"


def test_the_request_names_the_default_namespace(root: Wire, namespace: str) -> None:
    root.run("CREATE TABLE t (id INT PRIMARY KEY)", namespace=namespace)
    root.run("INSERT INTO t VALUES (7)", namespace=namespace)
    assert root.run(f"SELECT id FROM {namespace}.t").rows == [[7]]
    assert root.run("SELECT id FROM T", namespace=namespace.upper()).rows == [[7]]
    root.sql("SELECT id FROM t").refused(400, "SQL_EXECUTION_ERROR")
    answer = root.run(f"USE {namespace}; SELECT id FROM t; SELECT id FROM t WHERE id = 7")
    assert answer.results[0]["message"] == f"Namespace switched to '{namespace}'"
    assert [result["rows"] for result in answer.results[1:]] == [[[7]], [[7]]]
    root.sql("SELECT id FROM t").refused(400, "SQL_EXECUTION_ERROR")


def test_names_fold_to_lower_case(root: Wire, namespace: str) -> None:
    root.run(f"CREATE TABLE {namespace}.MiXed (Id INT PRIMARY KEY, FirstName TEXT)")
    root.run(f"INSERT INTO {namespace.upper()}.mixed (ID, firstNAME) VALUES (1, 'x')")
    assert root.run(f"SELECT ID, FIRSTNAME FROM {namespace}.MIXED").columns == [
        ("id", "Int"),
        ("firstname", "Text"),
    ]


def test_expressions_may_repeat_in_a_write(root: Wire, namespace: str) -> None:
    root.run(f"CREATE TABLE {namespace}.t (id INT PRIMARY KEY, a INT, b INT, c TEXT, d TEXT)")
    root.run(f"INSERT INTO {namespace}.t VALUES (abs(-1), abs(-1), abs(-1), repeat('x', 2), repeat('x', 2))")
    assert (
        root.run(f"UPDATE {namespace}.t SET a = id, b = id, c = upper('y'), d = upper('y') WHERE a < 5").count
        == 1
    )
    assert root.run(f"SELECT id, a, b, c, d FROM {namespace}.t").rows == [[1, 1, 1, "Y", "Y"]]
    assert root.run(f"UPDATE {namespace}.t SET a = b + 1, b = a + 10 WHERE c LIKE 'Y%'").count == 1
    assert root.run(f"SELECT a, b FROM {namespace}.t").rows == [[2, 11]]


# Parameters


def test_parameters_bind_in_every_kind_of_statement(root: Wire, todo: str) -> None:
    assert root.run(f"INSERT INTO {todo} VALUES ($1, $2, $3)", 50, "it's", True).count == 1
    assert root.run(f"INSERT INTO {todo} (title, id) VALUES ($2, $1), ($2, $3)", 51, "two", 52).count == 2
    assert root.run(f"SELECT title FROM {todo} WHERE id = $1", 50).cell == "it's"
    assert root.run(f"SELECT title FROM {todo} WHERE title = $1 AND id > $2", "it's", 1).cell == "it's"
    assert root.run(f"UPDATE {todo} SET title = $1, done = $2 WHERE id = $3", "new", None, 50).count == 1
    assert root.run(f"SELECT title, done FROM {todo} WHERE id = 50").rows == [["new", None]]
    assert root.run(f"DELETE FROM {todo} WHERE id IN ($1, $2, $3)", 50, 51, 52).count == 3


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        (42, "42"),
        (-9223372036854775808, "-9223372036854775808"),
        (1.5, 1.5),
        ("x'y", "x'y"),
        (True, True),
        (False, False),
        (None, None),
        ("", ""),
        ("ünï😀", "ünï😀"),
        ("a\nb\tc\\d", "a\nb\tc\\d"),
        ("$1", "$1"),
        (1e300, 1e300),
    ],
)
def test_a_parameter_comes_back_as_it_went(root: Wire, value: object, cell: object) -> None:
    assert root.run("SELECT $1", value).cell == cell
    assert root.run("SELECT $1 AS x FROM (SELECT 1) AS t", value).cell == cell


def test_parameter_text_is_never_sql(root: Wire, todo: str) -> None:
    evil = f"'; DELETE FROM {todo}; --"
    assert root.run(f"SELECT COUNT(*) FROM {todo} WHERE title = $1", evil).cell == "0"
    root.run(f"INSERT INTO {todo} VALUES (60, $1, NULL)", evil)
    assert root.run(f"SELECT title FROM {todo} WHERE id = 60").cell == evil
    assert root.run(f"SELECT COUNT(*) FROM {todo}").cell == "4"


@pytest.mark.parametrize(("value", "kind"), [([1], "Array"), ({"a": 1}, "Object")])
def test_parameters_are_scalars(root: Wire, value: object, kind: str) -> None:
    message = root.sql("SELECT $1, $2", 1, value).refused(400, "INVALID_PARAMETER")
    assert message == f"Parameter $2 invalid: {kind} parameters not yet supported"


def test_parameters_go_with_one_statement(root: Wire) -> None:
    root.sql("SELECT $1; SELECT 2", 1).refused(400, "PARAMS_WITH_BATCH")


def test_at_most_50_parameters(root: Wire) -> None:
    names = ", ".join(f"${number}" for number in range(1, 51))
    assert root.run(f"SELECT {names}", *range(50)).rows == [[str(number) for number in range(50)]]
    message = root.sql(f"SELECT {names}, $51", *range(51)).refused(400, "SQL_EXECUTION_ERROR")
    assert "Parameter count exceeded: maximum 50 parameters allowed, got 51" in message


def test_a_parameter_has_at_most_512_kib(root: Wire) -> None:
    assert root.run("SELECT length($1)", "x" * 524_288).cell in ("524288", 524_288)
    assert "maximum 524288 bytes" in root.sql("SELECT length($1)", "x" * 600_000).refused(
        400, "SQL_EXECUTION_ERROR"
    )


@pytest.mark.parametrize("params", [[], [1], [1, 2, 3]])
def test_the_count_of_parameters_must_fit(root: Wire, todo: str, params: list[object]) -> None:
    for text in (
        "SELECT $1, $2",
        f"INSERT INTO {todo} VALUES ($1, $2, NULL)",
        f"SELECT * FROM {todo} WHERE id = $1 AND title = $2",
    ):
        message = root.sql(text, *params).refused(400, "SQL_EXECUTION_ERROR")
        assert f"Parameter count mismatch: expected 2 parameters, got {len(params)}" in message


def test_definitions_take_no_parameters(root: Wire, namespace: str) -> None:
    message = root.sql(f"CREATE TABLE {namespace}.t (id INT PRIMARY KEY)", 1).refused(
        400, "SQL_EXECUTION_ERROR"
    )
    assert "Parameters not supported for" in message


@pytest.mark.parametrize("text", ["SELECT $0", "SELECT $-1", "SELECT $99999999999999999999", "SELECT $x"])
def test_odd_placeholders_are_refused(root: Wire, text: str) -> None:
    assert root.sql(text, 1).status == 400


# Sizes


def test_sql_has_at_most_1_mib(root: Wire) -> None:
    def of_size(size: int) -> str:
        return "SELECT " + quoted("x" * (size - 9))

    assert len(root.run(of_size(1_048_576)).cell) == 1_048_567
    message = root.sql(of_size(1_048_577)).refused(400, "INVALID_SQL")
    assert "SQL query too long: 1048577 bytes (maximum 1048576 bytes)" in message
    root.sql("SELECT " + quoted("é" * 600_000)).refused(400, "INVALID_SQL")


def test_a_body_has_at_most_10_mib(site: Site) -> None:
    wire = site.wire(site.root.token)
    raw = b'{"sql": "SELECT 1"' + b" " * (10 * 1024 * 1024) + b"}"
    wire.call("POST", SQL, raw=raw).refused(413, "INVALID_INPUT")


def test_long_statements_work(root: Wire, todo: str) -> None:
    numbers = ", ".join(map(str, range(1, 20_001)))
    assert root.run(f"SELECT COUNT(*) FROM {todo} WHERE id IN ({numbers})").cell == "3"
    rows = ", ".join(f"({number}, 't{number}', TRUE)" for number in range(1_000, 6_000))
    assert root.run(f"INSERT INTO {todo} VALUES {rows}").message == "Inserted 5000 row(s)"
    assert len(root.run(f"SELECT * FROM {todo}").rows) == 5_003
    assert root.run(f"DELETE FROM {todo} WHERE id >= 1000").count == 5_000


def test_there_is_no_silent_limit_and_key_order_without_order_by(root: Wire, namespace: str) -> None:
    root.run(f"CREATE USER TABLE {namespace}.t (id INT PRIMARY KEY, v INT)")
    order = [(number * 7) % 2_003 for number in range(2_003)]
    root.run(f"INSERT INTO {namespace}.t VALUES " + ", ".join(f"({n}, {-n})" for n in order))
    assert root.run(f"SELECT id FROM {namespace}.t").rows == [[n] for n in range(2_003)]
    assert root.run(f"SELECT * FROM {namespace}.t LIMIT 100").rows[99][:2] == [99, -99]
    assert root.run(f"SELECT v FROM {namespace}.t LIMIT 3 OFFSET 5").rows == [[-5], [-6], [-7]]
    assert root.run(f"SELECT v FROM {namespace}.t WHERE id > 2000").rows == [[-2001], [-2002]]


# The connection


def test_a_connection_stays_usable_after_every_kind_of_error(root: Wire, todo: str) -> None:
    def fail(wire: Wire) -> list[int]:
        return [
            wire.sql("SELEC").status,
            wire.sql("SELECT * FROM nowhere.nothing").status,
            wire.call("POST", SQL, raw=b"{").status,
            wire.call("GET", SQL).status,
            wire.call("POST", "/nowhere", {}).status,
            wire.sql(f"INSERT INTO {todo} VALUES (1, 'a', NULL)").status,
            wire.call("POST", SQL, {"sql": "SELECT 1"}, authorization="Bearer forged").status,
        ]

    with Wire(root.port, root.token) as wire:
        wire.run("SELECT 1")
        socket_before = wire._connection.sock
        assert fail(wire) == [400, 400, 400, 405, 404, 400, 401]
        assert wire.run("SELECT 1").cell == "1"
        assert wire._connection.sock is socket_before


def _exchange(port: int, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(request)
        answer = b""
        while chunk := connection.recv(65_536):
            answer += chunk
        return answer


def test_a_chunked_body_is_read(root: Wire) -> None:
    body = json.dumps({"sql": "SELECT 'chunks'"}).encode()
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:5], body[5:6], body[6:]))
    head = (
        f"POST {SQL} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {root.token}\r\n"
        "Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    ).encode()
    answer = _exchange(root.port, head + chunks + b"0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200")
    assert b'"rows":[["chunks"]]' in answer


def test_a_chunked_body_is_bounded_too(root: Wire) -> None:
    head = (
        f"POST {SQL} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {root.token}\r\n"
        "Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    ).encode()
    chunk = b"%x\r\n%s\r\n" % (1 << 20, b" " * (1 << 20))
    with socket.create_connection(("127.0.0.1", root.port), timeout=30) as connection:
        connection.sendall(head)
        try:
            for _ in range(12):
                connection.sendall(chunk)
        except OSError:
            pass  # refused while we were still sending
        assert connection.recv(65_536).startswith(b"HTTP/1.1 413")


def test_a_request_without_a_body_is_refused_as_one(root: Wire) -> None:
    head = (
        f"POST {SQL} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {root.token}\r\nConnection: close\r\n\r\n"
    )
    answer = _exchange(root.port, head.encode())
    assert answer.startswith(b"HTTP/1.1 400")
    assert b'"code":"INVALID_INPUT"' in answer


@pytest.mark.parametrize(
    "request_line", [b"\x00\x01\x02", b"GET", b"POST /v1/api/sql HTTP/9.9\r\n\r\n", b"\r\n\r\n\r\nx"]
)
def test_noise_on_the_socket_harms_nobody(root: Wire, request_line: bytes) -> None:
    with socket.create_connection(("127.0.0.1", root.port), timeout=30) as connection:
        connection.sendall(request_line)
    assert root.run("SELECT 1").cell == "1"


def test_a_client_that_leaves_in_the_middle_harms_nobody(root: Wire, todo: str) -> None:
    head = (
        f"POST {SQL} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {root.token}\r\n"
        "Content-Length: 500\r\n\r\n{"
    )
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", root.port), timeout=30) as connection:
            connection.sendall(head.encode())
    assert root.run(f"SELECT COUNT(*) FROM {todo}").cell == "3"


def test_pipelined_requests_are_answered_in_order(root: Wire) -> None:
    def request(number: int, closing: str) -> bytes:
        body = json.dumps({"sql": f"SELECT 'answer {number}'"}).encode()
        head = (
            f"POST {SQL} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {root.token}\r\n"
            f"Connection: {closing}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body

    requests = [request(number, "keep-alive") for number in range(9)] + [request(9, "close")]
    answer = _exchange(root.port, b"".join(requests)).decode()
    positions = [answer.index(f"answer {number}") for number in range(10)]
    assert positions == sorted(positions)


# Many at once


def test_thirty_parallel_clients_lose_and_double_nothing(site: Site, namespace: str) -> None:
    table = f"{namespace}.t"
    site.root.run(f"CREATE SHARED TABLE {table} (id INT PRIMARY KEY, client INT, n INT)")
    site.root.run(f"INSERT INTO {table} VALUES (0, -1, 0)")

    def work(client: int) -> list[int]:
        with Wire(site.server.port, site.root.token) as wire:
            done = [
                wire.run(f"INSERT INTO {table} VALUES ({client * 100 + n}, {client}, {n})").count
                for n in range(1, 11)
            ]
            done += [wire.run(f"UPDATE {table} SET n = n + 1 WHERE id = 0").count for _ in range(10)]
            mine = wire.run(f"SELECT COUNT(*), SUM(n) FROM {table} WHERE client = {client}").rows
            assert mine == [["10", "55"]]
            assert wire.sql(f"INSERT INTO {table} VALUES (0, {client}, 0)").status == 400
            return done

    with ThreadPoolExecutor(30) as threads:
        for done in threads.map(work, range(30)):
            assert done == [1] * 20
    assert site.root.run(f"SELECT n FROM {table} WHERE id = 0").cell == 300
    assert site.root.run(f"SELECT COUNT(*) FROM {table}").cell == "301"


def test_of_two_equal_inserts_one_wins(site: Site, namespace: str) -> None:
    table = f"{namespace}.t"
    site.root.run(f"CREATE SHARED TABLE {table} (id INT PRIMARY KEY, client INT)")

    def race(client: int) -> list[int]:
        with Wire(site.server.port, site.root.token) as wire:
            return [wire.sql(f"INSERT INTO {table} VALUES ({n}, {client})").status for n in range(20)]

    with ThreadPoolExecutor(10) as threads:
        statuses = list(threads.map(race, range(10)))
    for column in zip(*statuses, strict=True):
        assert sorted(column) == [200] + [400] * 9
    assert site.root.run(f"SELECT COUNT(*) FROM {table}").cell == "20"
