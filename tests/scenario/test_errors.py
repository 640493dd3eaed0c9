"""What is wrong is said clearly: status, code and message; no traceback, nothing half-applied.

Written from the reference contract, sections 1.3, 1.4, 3.2–3.9, and scenarios E1–E10, Q10.
"""

import re

import pytest

from upwell.testing.wire import SQL, Site, Wire

INVALID_SQL = "INVALID_SQL"
FAILED = "SQL_EXECUTION_ERROR"


@pytest.fixture(scope="module")
def things(site: Site) -> str:
    """A namespace with a USER table `t` of every type, with one row, and a SHARED table `s`."""
    space = site.namespace()
    site.root.run(
        f"CREATE USER TABLE {space}.t (id BIGINT PRIMARY KEY, v TEXT NOT NULL, d DOUBLE, i INT, s SMALLINT,"
        "b BOOLEAN, ts TIMESTAMP, u UUID, j JSON);"
        f"INSERT INTO {space}.t (id, v) VALUES (1, 'one');"
        f"CREATE SHARED TABLE {space}.s (id BIGINT PRIMARY KEY) WITH (ACCESS_LEVEL = 'PUBLIC')"
    )
    return space


def _in(space: str, text: str) -> str:
    """Return `text` with the namespace in place of the word N."""
    return re.sub(r"\bN\b", space, text)


def _state(site: Site, space: str) -> list[list[object]]:
    return site.root.run(f"SELECT * FROM {space}.t ORDER BY id").rows


@pytest.mark.parametrize(
    ("text", "code", "part"),
    [
        # No statement, or none that is supported
        ("SELEC 1", INVALID_SQL, "Unsupported statement type: SELEC"),
        ("SELECT", INVALID_SQL, "Expected: an expression"),
        ("SELECT 1 FROM", INVALID_SQL, "Expected: identifier"),
        ("SELECT (1", INVALID_SQL, "Expected: )"),
        ("SELECT 'open", "BATCH_PARSE_ERROR,INVALID_SQL", "Unterminated,unterminated"),
        ("SELECT 1 /* open", "BATCH_PARSE_ERROR,INVALID_SQL", "comment"),
        ("INSERT INTO N.t VALUES", INVALID_SQL, "expected"),
        ("UPDATE N.t SET", INVALID_SQL, "expected"),
        ("DELETE N.t", INVALID_SQL, "expected FROM"),
        ("EXPLAIN DROP TABLE N.t", INVALID_SQL, "expected a query after EXPLAIN"),
        ("SAVEPOINT a", INVALID_SQL, "Unsupported statement type: SAVEPOINT"),
        ("ALTER TABLE N.t TRUNCATE x", INVALID_SQL, "Unsupported statement type: ALTER TABLE … TRUNCATE"),
        ("CREATE TOPIC N.x", INVALID_SQL, "Unsupported statement type: CREATE TOPIC"),
        ("CREATE TRIGGER N.x AS SELECT 1", INVALID_SQL, "Unsupported statement type: CREATE TRIGGER"),
        ("COPY N.t TO '/tmp/x'", INVALID_SQL, "Unsupported statement type: COPY"),
        ("CREATE EXTERNAL TABLE x STORED AS CSV LOCATION '/etc/passwd'", INVALID_SQL, "CREATE EXTERNAL"),
        ("SELECT * INTO N.x FROM N.t", INVALID_SQL, "can only read"),
        # What the query engine would pass over
        ("SELECT id FROM N.t FOR UPDATE", INVALID_SQL, "FOR UPDATE at Line: 1"),
        ("SELECT id FROM (SELECT id FROM N.t FOR SHARE) AS x", INVALID_SQL, "FOR SHARE at Line: 1"),
        ("INSERT INTO N.t (id, v) SELECT id, v FROM N.t TABLESAMPLE SYSTEM (1)", INVALID_SQL, "TABLESAMPLE"),
        ("SELECT id FROM N.t SAMPLE 0.1", INVALID_SQL, "SAMPLE"),
        ("SELECT id FROM N.t CONNECT BY id = 1", INVALID_SQL, "WITH RECURSIVE"),
        ("SELECT id FROM N.t WITH ORDINALITY", INVALID_SQL, "row_number()"),
        ("SELECT id FROM N.t FOR JSON AUTO", INVALID_SQL, "FOR JSON"),
        ("INSERT INTO N.t (id, v) VALUES (5, 'x') RETURNING (SELECT 1)", INVALID_SQL, "no subqueries"),
        ("INSERT INTO N.t (id, v) VALUES (5, 'x') ON CONFLICT DO SOMETHING", INVALID_SQL, "expected UPDATE"),
        # Definitions
        ("CREATE NAMESPACE system", FAILED, "reserved"),
        ("CREATE NAMESPACE INFORMATION_SCHEMA", FAILED, "reserved"),
        ("CREATE NAMESPACE invalid-name", INVALID_SQL, "expected"),
        ("CREATE NAMESPACE 123invalid", INVALID_SQL, "expected"),
        ("CREATE NAMESPACE N", FAILED, "Already exists: Namespace 'N' already exists"),
        ("DROP NAMESPACE nowhere", FAILED, "Not found: Namespace 'nowhere' not found"),
        ("USE nowhere", FAILED, "nowhere"),
        (
            "CREATE TABLE nowhere.t (id INT PRIMARY KEY)",
            FAILED,
            "Namespace 'nowhere' does not exist. Create it first with CREATE NAMESPACE nowhere",
        ),
        ("CREATE TABLE N.t (id INT PRIMARY KEY)", FAILED, "Already exists: Table N.t already exists"),
        ("CREATE USER TABLE N.x (id INT)", INVALID_SQL, "User tables require a PRIMARY KEY column"),
        ("CREATE SHARED TABLE N.x (id INT)", INVALID_SQL, "Shared tables require a PRIMARY KEY column"),
        ("CREATE TABLE N.x (a INT, b INT, PRIMARY KEY (a, b))", INVALID_SQL, "Composite PRIMARY KEYs"),
        ("CREATE TABLE N.x (id INT PRIMARY KEY, ID TEXT)", INVALID_SQL, "Duplicate column name 'id'"),
        (
            "CREATE TABLE N.x (id INT PRIMARY KEY, _seq INT)",
            INVALID_SQL,
            "'_seq' is reserved for system columns",
        ),
        ("CREATE TABLE N.x (id INT PRIMARY KEY, _deleted INT)", INVALID_SQL, "'_deleted' is reserved"),
        ("CREATE TABLE N.x (id NOTYPE PRIMARY KEY)", INVALID_SQL, "NOTYPE"),
        (
            "CREATE TABLE N.x (id INT PRIMARY KEY, f FILE)",
            INVALID_SQL,
            "FILE of column 'f' is not supported yet",
        ),
        ("CREATE TABLE N.x (id INT PRIMARY KEY, f EMBEDDING(3))", INVALID_SQL, "not supported yet"),
        ("CREATE TABLE N.x (id INT PRIMARY KEY, f DECIMAL(39, 2))", INVALID_SQL, "DECIMAL(39,2)"),
        ("CREATE STREAM TABLE N.x (id INT PRIMARY KEY)", INVALID_SQL, "specify 'TTL_SECONDS'"),
        (
            "CREATE TABLE N.x (id INT PRIMARY KEY) WITH (COLOUR = 'red')",
            INVALID_SQL,
            "Unknown table option 'COLOUR'",
        ),
        (
            "CREATE USER TABLE N.x (id INT PRIMARY KEY) WITH (TYPE = 'SHARED')",
            INVALID_SQL,
            "Conflicting table type",
        ),
        ("CREATE USER TABLE N.x (id INT PRIMARY KEY) WITH (ACCESS_LEVEL = 'PUBLIC')", INVALID_SQL, "SHARED"),
        (
            "CREATE TABLE N.x (id INT PRIMARY KEY) WITH (TTL_SECONDS = 5)",
            INVALID_SQL,
            "only supported for STREAM",
        ),
        (
            "CREATE TABLE N.x (id INT PRIMARY KEY) WITH (STORAGE_ID = 'x')",
            INVALID_SQL,
            "Storage 'x' does not exist",
        ),
        ("CREATE TABLE N.x (id INT PRIMARY KEY, a INT DEFAULT 'x')", INVALID_SQL, "DEFAULT"),
        ("CREATE TABLE N.x (id INT PRIMARY KEY, p INT REFERENCES N.nope (id))", FAILED, "N.nope"),
        ("CREATE USER u1 WITH PASSWORD 'x'", INVALID_SQL, "ROLE"),
        ("CREATE USER u1 WITH PASSWORD 'x' ROLE emperor", INVALID_SQL, "emperor"),
        (
            "CREATE USER root WITH PASSWORD 'x' ROLE user",
            FAILED,
            "Already exists: User 'root' already exists",
        ),
        ("DROP TABLE N.nope", FAILED, "Not found: Table 'nope' not found in namespace 'N'"),
        ("DROP TABLE system.users", FAILED, "system.users"),
        ("CREATE TABLE system.x (id INT PRIMARY KEY)", FAILED, "Cannot create system table 'system.x'"),
        ("INSERT INTO system.users VALUES (1)", FAILED, "Cannot insert system table 'system.users'"),
        ("DELETE FROM system.users", FAILED, "Cannot delete system table 'system.users'"),
        ("STORAGE FLUSH TABLE N.nope", FAILED, "N.nope"),
        ("STORAGE FLUSH TABLE t", INVALID_SQL, "qualified"),
        # Names
        ("SELECT * FROM N.nope", FAILED, "Table not found: N.nope"),
        ("SELECT * FROM nowhere.t", FAILED, "Table not found: nowhere.t"),
        ("SELECT * FROM t", FAILED, "Table not found: default.t"),
        ("SELECT * FROM system.nope", FAILED, "Table not found: system.nope"),
        ("SELECT * FROM '/etc/passwd'", FAILED, "Table not found"),
        ("SELECT nope FROM N.t", FAILED, "nope"),
        ("SELECT nope", FAILED, "nope"),
        ("SELECT nope FROM N.t WHERE id = 1", FAILED, "nope"),
        ("SELECT id FROM N.t WHERE nope = 1", FAILED, "nope"),
        ("SELECT id FROM N.t ORDER BY nope", FAILED, "nope"),
        ("SELECT nope(1)", FAILED, "nope"),
        ("INSERT INTO N.nope VALUES (1)", FAILED, "Table not found: N.nope"),
        ("INSERT INTO N.t (id, nope) VALUES (5, 1)", FAILED, "column 'nope' does not exist"),
        ("UPDATE N.t SET nope = 1", FAILED, "column 'nope' does not exist"),
        ("UPDATE N.t SET v = nope WHERE id = 1", FAILED, "nope"),
        ("DELETE FROM N.t WHERE nope = 1", FAILED, "nope"),
        # Values
        (
            "INSERT INTO N.t (id, v) VALUES (1, 'again')",
            FAILED,
            "Primary key violation: value '1' already exists",
        ),
        ("INSERT INTO N.t (id, v) VALUES (5, 'a'), (5, 'b')", FAILED, "appears multiple times"),
        ("INSERT INTO N.t (id, v) VALUES (5, 'a'), (1, 'b')", FAILED, "Primary key violation"),
        ("INSERT INTO N.t (id, v) VALUES (5, NULL)", FAILED, "NOT NULL constraint violation: column 'v'"),
        ("INSERT INTO N.t (id) VALUES (5)", FAILED, "NOT NULL constraint violation: column 'v'"),
        ("INSERT INTO N.t (v) VALUES ('x')", FAILED, "'id' cannot be NULL"),
        ("INSERT INTO N.t VALUES (5, 'x')", FAILED, "9 columns"),
        ("INSERT INTO N.t (id, v) VALUES (5, 'x', 1)", FAILED, "2 columns"),
        ("INSERT INTO N.t (id, v, v) VALUES (5, 'x', 'x')", FAILED, "'v' is named more than once"),
        ("INSERT INTO N.t (id, v, _seq) VALUES (5, 'x', 1)", FAILED, "System column violation"),
        ("UPDATE N.t SET _deleted = TRUE", FAILED, "System column violation"),
        ("UPDATE N.t SET v = NULL", FAILED, "NOT NULL constraint violation: column 'v'"),
        ("UPDATE N.t SET id = NULL", FAILED, "'id' cannot be NULL"),
        ("INSERT INTO N.t (id, v) VALUES ('abc', 'x')", FAILED, "column 'id' (BIGINT) cannot hold 'abc'"),
        ("INSERT INTO N.t (id, v) VALUES (1.5, 'x')", FAILED, "column 'id' (BIGINT) cannot hold 1.5"),
        ("INSERT INTO N.t (id, v) VALUES (9223372036854775808, 'x')", FAILED, "out of range"),
        ("INSERT INTO N.t (id, v, i) VALUES (5, 'x', 2147483648)", FAILED, "out of range"),
        ("INSERT INTO N.t (id, v, s) VALUES (5, 'x', -32769)", FAILED, "out of range"),
        ("INSERT INTO N.t (id, v, b) VALUES (5, 'x', 'perhaps')", FAILED, "column 'b' (BOOLEAN)"),
        ("INSERT INTO N.t (id, v, ts) VALUES (5, 'x', 'yesterday')", FAILED, "column 'ts' (TIMESTAMP)"),
        ("INSERT INTO N.t (id, v, ts) VALUES (5, 'x', '2024-02-30')", FAILED, "column 'ts' (TIMESTAMP)"),
        ("INSERT INTO N.t (id, v, u) VALUES (5, 'x', 'no-uuid')", FAILED, "column 'u' (UUID)"),
        ("INSERT INTO N.t (id, v, j) VALUES (5, 'x', '{bad')", FAILED, "column 'j' (JSON)"),
        ("INSERT INTO N.t (id, v, j) VALUES (5, 'x', '')", FAILED, "column 'j' (JSON)"),
        ("INSERT INTO N.t (id, v, d) VALUES (5, 'x', 'NaN')", FAILED, "column 'd' (DOUBLE)"),
        ("INSERT INTO N.t (id, v, d) VALUES (5, 'x', 1e999)", FAILED, "column 'd' (DOUBLE)"),
        ("INSERT INTO N.t (id, v, d) SELECT 5, 'x', 'Infinity'::DOUBLE", FAILED, "column 'd' (DOUBLE)"),
        ("INSERT INTO N.t (id, v) SELECT 5", FAILED + "," + INVALID_SQL, "2 columns"),
        ("INSERT INTO N.t (id, v) SELECT 1, 'x'", FAILED, "Primary key violation"),
        ("SELECT * FROM N.t WHERE id = 'abc'", FAILED, "abc"),
        # Evaluation
        ("SELECT 1 / 0", FAILED, "Divide by zero"),
        ("SELECT id / 0 FROM N.t", FAILED, "Divide by zero"),
        ("UPDATE N.t SET i = 1 / 0", FAILED, "ivi"),
        ("UPDATE N.t SET i = 2147483647 + 1", FAILED, "out of range"),
        ("SELECT CAST('x' AS INT)", FAILED, "Cannot cast string 'x'"),
        ("SELECT CAST(v AS INT) FROM N.t", FAILED, "Cannot cast string 'one'"),
        ("SELECT regexp_replace('x', '(', '')", FAILED, "unclosed group"),
        ("SELECT id FROM N.t LIMIT -1", FAILED, "LIMIT must be >= 0"),
        ("SELECT id, COUNT(*) FROM N.t", FAILED, "GROUP BY"),
        ("SELECT 1 UNION SELECT 1, 2", FAILED, "columns"),
        ("SELECT (SELECT id FROM (VALUES (1), (2)) AS x (id))", FAILED, "more than one row,one row"),
        # What JSON can't hold
        ("SELECT 'NaN'::DOUBLE", FAILED, "NaN or infinity"),
        ("SELECT 1.0 / 0.0", FAILED, "NaN or infinity"),
        ("SELECT d FROM (VALUES (1.0), (-1.0 / 0.0)) AS x (d)", FAILED, "column 'd' has NaN or infinity"),
        # Rights of the impersonated
        ("EXECUTE AS USER 'x' (SELECT 1; SELECT 2)", "INVALID_INPUT", "single SQL statement"),
        ("EXECUTE AS USER 'x' (CREATE NAMESPACE y)", INVALID_SQL, "EXECUTE AS USER takes"),
        ("EXECUTE AS USER 'x' (SELECT * FROM N.s)", FAILED, "not allowed on SHARED tables (table 'N.s')"),
        (
            "EXECUTE AS USER 'x' (INSERT INTO N.s VALUES (1))",
            FAILED,
            "not allowed on SHARED tables (table 'N.s')",
        ),
        ("EXECUTE AS USER 'x' (SELECT 1", INVALID_SQL + ",BATCH_PARSE_ERROR", "expected,unmatched"),
    ],
)
def test_each_fault_has_its_code_and_says_what_is_wrong(
    site: Site, things: str, text: str, code: str, part: str
) -> None:
    before = _state(site, things)
    answer = site.root.sql(_in(things, text))
    found = answer.json["error"]["code"]
    assert found in code.split(","), answer.body
    message = answer.refused(400, found)
    wanted = _in(things, part)
    assert any(each in message for each in (wanted, *wanted.split(","))), message
    assert "\n" not in message
    assert _state(site, things) == before


def test_admins_see_the_text_that_failed_and_others_do_not(site: Site, alice: Wire) -> None:
    text = "SELECT nope"
    assert site.root.sql(text).json["error"]["details"] == text
    assert "details" not in alice.sql(text).json["error"]
    _, service = site.account("service")
    assert "details" not in service.sql(text).json["error"]


def test_errors_never_show_directories_of_the_server(site: Site, things: str) -> None:
    site.flush(f"{things}.t")
    for text in ("SELECT nope FROM N.t", "SELECT CAST(v AS INT) FROM N.t", "SELECT * FROM N.t WHERE d = 'x'"):
        answer = site.root.sql(_in(things, text))
        assert answer.status == 400
        assert str(site.server.data_dir.parent) not in answer.body.decode()
        assert "parquet" not in answer.body.decode()


@pytest.mark.parametrize(
    "text",
    [
        "SELECT " + "(" * 5_000 + "1" + ")" * 5_000,
        "SELECT " + " AND ".join(["TRUE"] * 100_000),
        "SELECT " + "+".join(["1"] * 100_000),
        "SELECT * FROM (VALUES (1)) AS t (x) WHERE " + " OR ".join(["x = 1"] * 20_000),
        "SELECT 1" + "::INT" * 50_000,
        "SELECT 1" + " IS NULL" * 50_000,
        "SELECT " + "NOT " * 50_000 + "TRUE",
        "SELECT " + "- " * 50_000 + "1",
        "SELECT " + "abs(" * 5_000 + "1" + ")" * 5_000,
        "SELECT " + "CASE WHEN TRUE THEN " * 5_000 + "1" + " END" * 5_000,
        "SELECT CASE WHEN TRUE THEN 1 END" + " + CASE WHEN TRUE THEN 1 END" * 20_000,
        "SELECT f(1, 2 + 3)" + " || f(1)" * 20_000,
        " UNION ALL ".join(["SELECT 1"] * 20_000),
        " EXCEPT ".join(["SELECT 1"] * 5_000),
        "SELECT " + "(SELECT " * 1_000 + "1" + ")" * 1_000,
        "SELECT 1 FROM (SELECT 1 AS x) AS a "
        + " ".join(f"CROSS JOIN (SELECT 1) AS b{n}" for n in range(2_000)),
        "WITH c0 AS (SELECT 1 AS x)"
        + "".join(f", c{n} AS (SELECT x FROM c{n - 1})" for n in range(1, 9_000)),
    ],
    ids=lambda text: text[:40],
)
def test_no_nesting_can_end_the_server(site: Site, text: str) -> None:
    answer = site.root.sql(text)
    assert answer.status == 400
    answer.refused(400, answer.json["error"]["code"])
    assert site.root.run("SELECT 1").cell == "1"


@pytest.mark.parametrize(
    "text",
    [
        "INSERT INTO N.t (id, v, d) VALUES (9, 'x', " + "(" * 5_000 + "1" + ")" * 5_000 + ")",
        "INSERT INTO N.t (id, v, d) VALUES (9, 'x', " + "1+" * 50_000 + "1)",
        "UPDATE N.t SET d = " + "-(" * 3_000 + "1" + ")" * 3_000,
        "UPDATE N.t SET d = 1 WHERE " + "NOT " * 20_000 + "TRUE",
        "DELETE FROM N.t WHERE " + " OR ".join(["id = 99"] * 20_000),
    ],
    ids=lambda text: text[:60],
)
def test_no_nesting_in_a_write_can_end_the_server(site: Site, things: str, text: str) -> None:
    before = _state(site, things)
    answer = site.root.sql(_in(things, text))
    answer.refused(400, answer.json["error"]["code"])
    assert _state(site, things) == before


def test_reasonable_nesting_works(root: Wire) -> None:
    assert root.run("SELECT " + "(" * 20 + "1" + ")" * 20).cell == "1"
    assert root.run("SELECT " + "+".join(["1"] * 200) + " AS s").cell == "200"
    chain = " OR ".join(f"x = {n}" for n in range(900))
    assert root.run(f"SELECT COUNT(*) FROM (VALUES (1), (899), (900)) AS t (x) WHERE {chain}").cell == "2"
    assert root.run(" UNION ALL ".join(f"SELECT {n} AS n" for n in range(100))).count == 100
    cases = " ".join(f"WHEN x = {n} THEN {n * 2}" for n in range(2_000))
    assert root.run(f"SELECT CASE {cases} END AS c FROM (VALUES (1999)) AS t (x)").cell == "3998"


def test_text_of_any_kind_comes_back(root: Wire, namespace: str) -> None:
    root.run(f"CREATE TABLE {namespace}.t (id INT PRIMARY KEY, v TEXT)")
    texts = [
        "a\x00b",
        "\x00",
        "\x7f\x1b[31m",
        "\u2028\ufeff\uffff",
        "\U0010ffff",
        "'\"\\$1;--/*",
        "x" * 100_000,
    ]
    for number, text in enumerate(texts):
        root.run(f"INSERT INTO {namespace}.t VALUES ($1, $2)", number, text)
        literal = text.replace("'", "''")
        root.run(f"INSERT INTO {namespace}.t VALUES ({number + 100}, '{literal}')")
    stored = [row[0] for row in root.run(f"SELECT v FROM {namespace}.t ORDER BY id").rows]
    assert stored == texts * 2
    assert root.run(f"SELECT id FROM {namespace}.t WHERE v = $1 ORDER BY id", "a\x00b").rows == [[0], [100]]


def test_lone_surrogates_are_refused(root: Wire, namespace: str) -> None:
    root.run(f"CREATE TABLE {namespace}.t (id INT PRIMARY KEY, v TEXT)")
    for raw in (
        b'{"sql": "SELECT \'\\ud800\'"}',
        b'{"sql": "SELECT $1", "params": ["\\udfff"]}',
        b'{"sql": "SELECT 1", "namespace_id": "\\ud800"}',
    ):
        root.call("POST", SQL, raw=raw).refused(400, "INVALID_INPUT")
    root.sql(f"INSERT INTO {namespace}.t VALUES (1, E'\\ud800')").refused(400, FAILED)
    assert root.run(f"SELECT COUNT(*) FROM {namespace}.t").cell == "0"


@pytest.mark.parametrize("params", [b"[1e999]", b"[NaN]", b"[Infinity]", b"[99999999999999999999999999]"])
def test_numbers_that_are_none(root: Wire, params: bytes) -> None:
    answer = root.call("POST", SQL, raw=b'{"sql": "SELECT $1", "params": ' + params + b"}")
    if answer.status == 200:  # a whole number beyond 64 bits is a DOUBLE
        assert answer.cell == 1e26
    else:
        answer.refused(400, answer.json["error"]["code"])


def test_bad_namespaces_of_a_request(root: Wire) -> None:
    for name in ("", "no such", "a.b", "x" * 10_000, "'; DROP", "\x00", "system"):
        answer = root.sql("SELECT * FROM t", namespace=name)
        answer.refused(400, answer.json["error"]["code"])
        assert root.sql("SELECT 1", namespace=name).status in (200, 400)


# What ordinary roles are told, and where an error points


@pytest.mark.parametrize(
    ("text", "code", "public"),
    [
        ("SELECT * FROM N.nothing", "SQL_EXECUTION_ERROR", "SQL statement failed"),
        ("INSERT INTO N.nothing VALUES (1)", "SQL_EXECUTION_ERROR", "SQL statement failed"),
        ("ALTER TABLE N.nothing ADD COLUMN x INT", "SQL_EXECUTION_ERROR", "SQL statement failed"),
        ("SELECT 1 / 0", "SQL_EXECUTION_ERROR", "SQL statement failed"),
        ("SELECT nofunc(1)", "SQL_EXECUTION_ERROR", "SQL statement failed"),
        ("CREATE TABLE N.u (id NOTHING)", "INVALID_SQL", "SQL statement is invalid or not allowed"),
        ("FROBNICATE", "INVALID_SQL", "SQL statement is invalid or not allowed"),
    ],
)
def test_ordinary_roles_get_the_public_text(
    site: Site, namespace: str, alice: Wire, text: str, code: str, public: str
) -> None:
    text = text.replace("N.", f"{namespace}.")
    assert alice.sql(text).refused(400, code) == public
    assert site.account("service")[1].sql(text).refused(400, code) == public
    assert public not in site.root.sql(text).refused(400, code)


@pytest.mark.parametrize(
    ("text", "code", "told"),
    [
        ("SELECT nope FROM N.t", "SQL_EXECUTION_ERROR", "No field named nope at Line: 1, Column: 8"),
        ("SELECT id,\n  nope\nFROM N.t", "SQL_EXECUTION_ERROR", "No field named nope at Line: 2, Column: 3"),
        ("SELECT a.nope FROM N.t a", "SQL_EXECUTION_ERROR", "No field named a.nope at Line: 1, Column: 10"),
        (
            "UPDATE N.t SET v = nope",
            "SQL_EXECUTION_ERROR",
            "column 'nope' does not exist in N.t at Line: 1, C",
        ),
        (
            "UPDATE N.t SET\nnope = 1",
            "SQL_EXECUTION_ERROR",
            "column 'nope' does not exist in N.t at Line: 2, Column: 1",
        ),
        ("SELECT * FORM N.t", "INVALID_SQL", "at Line: 1, Column: 15"),
        ("SELECT (id\n FROM N.t WHERE (1 ", "INVALID_SQL", "at Line: 2, Column: "),
        ("SELECT id FROM N.t\nWHERE  ", "INVALID_SQL", "found: EOF at Line: 2, Column: 6"),
        ("INSERT INTO N.t\nVALUE (1)", "INVALID_SQL", "found VALUE at Line: 2, Column: 1"),
        ("INSERT INTO N.t VALUES (1, 'a'), (1, 'b')", "SQL_EXECUTION_ERROR", "Primary key violation"),
        ("INSERT INTO N.t VALUES ('x', 'a')", "SQL_EXECUTION_ERROR", "cannot hold 'x'"),
        ("SELECT $1", "SQL_EXECUTION_ERROR", "Parameter count mismatch"),
    ],
)
def test_what_speaks_of_the_own_statement_is_told_and_points_at_the_place(
    site: Site, namespace: str, alice: Wire, text: str, code: str, told: str
) -> None:
    site.root.run(f"CREATE USER TABLE {namespace}.t (id INT PRIMARY KEY, v TEXT)")
    message = alice.sql(text.replace("N.", f"{namespace}.")).refused(400, code)
    assert told.replace("N.", f"{namespace}.") in message


def test_an_administrator_is_pointed_at_an_unknown_table(site: Site, namespace: str) -> None:
    message = site.root.sql(f"SELECT *\nFROM {namespace}.nothing").refused(400, "SQL_EXECUTION_ERROR")
    assert f"Table not found: {namespace}.nothing at Line: 2, Column: {7 + len(namespace)}" in message
