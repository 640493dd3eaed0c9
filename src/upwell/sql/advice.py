"""Advice: what to write here instead of what other databases understand.

Law: advice is added to a refusal and never makes one; the first that fits is given, by the text of the
statement or by the words of the refusal. It is looked for in the event loop: each pattern in a pass or two
(`(?>…)` never looks for another place of what it found).
"""

import re
from difflib import get_close_matches

from upwell.errors import InvalidSql
from upwell.sql.lex import tokenize

CHARS_MAX = 4_000
"""What is behind so many characters isn't looked at."""
_STARTS = (
    "SELECT", "INSERT", "UPDATE", "DELETE", "CREATE", "ALTER", "DROP", "DESCRIBE", "EXPLAIN", "EXECUTE",
    "BEGIN", "COMMIT", "ROLLBACK", "STORAGE", "CLUSTER", "BACKUP", "RESTORE",
)  # fmt: skip
_NAMED = r"[\w.\"]+(?: \. [\w\"]+)?"
_CONFLICT = "say INSERT … ON CONFLICT (key) DO NOTHING, or DO UPDATE SET c = excluded.c"
_CHOSEN = "choose the rows by a subquery: WHERE id IN (SELECT id FROM … ORDER BY … LIMIT n)"
_ACCOUNT = "CREATE USER name WITH PASSWORD '…' ROLE user"
_PARAMETERS = "parameters are written $1, $2, …, and their values sent as params"
_BY_STATEMENT = [
    (
        r"(CREATE|DROP|SHOW) (DATABASES?|SCHEMAS?)\b",
        "databases and schemas are namespaces here: CREATE NAMESPACE",
    ),
    (r"TRUNCATE\b", "DELETE FROM t without WHERE removes all rows"),
    (r"(REPLACE|UPSERT|MERGE)\b|INSERT (IGNORE|OR)\b|INSERT .* ON (DUPLICATE|CONFLICT ON)\b", _CONFLICT),
    (rf"INSERT (INTO )?{_NAMED} SET\b", "INSERT INTO t (columns) VALUES (…)"),
    (rf"INSERT (INTO )?{_NAMED} (\(.*\) )?VALUE\b", "the word is VALUES"),
    (
        r"(CREATE|DROP|SHOW) (UNIQUE )?(INDEX|INDEXES|KEYS)\b",
        "there are no indexes to make: rows are found by key, files by their statistics",
    ),
    (
        r"(GRANT|REVOKE)\b|CREATE ROLE\b",
        "rights come from an account's role and the ACCESS_LEVEL of SHARED tables",
    ),
    (
        r"ALTER TABLE .* ROW LEVEL\b|CREATE POLICY\b",
        "in a USER table everybody has rows of their own, and sees no others",
    ),
    (r"(UPDATE|DELETE) .* (LIMIT|ORDER BY)\b", _CHOSEN),
    (r"UPDATE .* FROM\b|UPDATE [^=]* , ", "one table changes: SET c = (SELECT …) WHERE id IN (SELECT …)"),
    (r"UPDATE .* SET \(", "assign one column after the other: SET a = 1, b = 2"),
    (r"DELETE .* USING\b", "choose the rows by a subquery: WHERE id IN (SELECT …)"),
    (r"DELETE (?!FROM\b)", "DELETE FROM t WHERE …"),
    (
        r"CREATE (TEMP|TEMPORARY|UNLOGGED)\b",
        "rows that expire are kept in a STREAM table; WITH names a query",
    ),
    (
        rf"CREATE (\w+ )?TABLE {_NAMED} (AS|LIKE)\b",
        "CREATE TABLE names its columns; fill it with INSERT INTO t SELECT …",
    ),
    (
        r"CREATE .*\bAUTOINCREMENT\b",
        "BIGINT PRIMARY KEY AUTO_INCREMENT numbers by itself, which is DEFAULT SNOWFLAKE_ID()",
    ),
    (r"CREATE .*\b(GEN_RANDOM_UUID|UUID_GENERATE_V\d|UUID) \( \)", "DEFAULT UUID_V7() makes UUIDs"),
    (r"CREATE .* ON UPDATE (NOW|CURRENT_TIMESTAMP)\b", "say it in the UPDATE: SET changed = NOW()"),
    (r"CREATE .*(\[ \]|\bARRAY\b)", "a list is kept as JSON"),
    (r"CREATE .*\b(TINYINT|MEDIUMINT)\b", "SMALLINT and INT are the small ones"),
    (
        r"CREATE TABLE .*\b(ENUM|TINYTEXT|MEDIUMTEXT|LONGTEXT|NVARCHAR|NTEXT|CLOB|CITEXT|INET)\b",
        "TEXT holds it",
    ),
    (r"CREATE .*\bMONEY\b", "DECIMAL(19,4) holds it"),
    (
        r"CREATE .*\b(DATETIME2|SMALLDATETIME|INTERVAL)\b",
        "TIMESTAMP and DATETIME are moments; an interval is kept as BIGINT or TEXT",
    ),
    (
        r"CREATE TABLE .*\b(?<!PRIMARY )(INDEX|KEY) (\w+ )?\(",
        "there are no indexes to make; the PRIMARY KEY is one",
    ),
    (
        r"CREATE .*(\) ENGINE|\bCOMMENT '|\bCOLLATE\b|\bPARTITION BY\b|\bSTORED\b)",
        "leave it out: options are in WITH (…), see docs/sql.md",
    ),
    (r"CREATE USER (?!TABLE\b)", _ACCOUNT),
    (
        r"CREATE (TYPE|SEQUENCE|EXTENSION|FUNCTION|PROCEDURE|TRIGGER)\b",
        "what there is: NAMESPACE, TABLE, VIEW, STORAGE, USER",
    ),
    (r"DROP TABLE .* CASCADE", "leave CASCADE out, and drop first what refers to the table"),
    (r"DROP (TABLE|VIEW) .* ,", "one a statement; several statements go with ; between them"),
    (r"ALTER TABLE IF EXISTS\b", "leave IF EXISTS out; DESCRIBE TABLE says whether there is one"),
    (r"ALTER TABLE .* CHANGE\b", "RENAME COLUMN a TO b, and MODIFY COLUMN b type"),
    (
        r"ALTER TABLE (?>.*? ADD ).*\b(AFTER|FIRST)\b",
        "a new column is the last one; SELECT names them in the order you like",
    ),
    (r"ALTER TABLE .* ADD COLUMN \(", "one column a statement: ADD COLUMN c type"),
    (
        r"ALTER TABLE (?>.*? TYPE ).* USING\b",
        "a type can only be widened; ADD a column and UPDATE it instead",
    ),
    (
        r"SHOW CREATE\b|PRAGMA\b|\\ ",
        "DESCRIBE TABLE namespace.table shows the columns, SHOW TABLES the tables",
    ),
    (
        r"SHOW PROCESSLIST\b|KILL (QUERY|CONNECTION)\b",
        "system.live and system.jobs list what runs; KILL LIVE QUERY, KILL JOB",
    ),
    (
        r"SET\b",
        "requests share nothing: USE namespace, or namespace_id; the server's settings are in its file, "
        "SHOW ALL lists them",
    ),
    (r"(SAVEPOINT|RELEASE)\b|ROLLBACK TO\b", "a transaction is rolled back as a whole"),
    (
        r"(BEGIN|START|COMMIT)\b",
        "BEGIN, COMMIT and ROLLBACK take nothing else: each transaction sees one snapshot",
    ),
    (r"LOCK\b", "who changes a row that somebody else changed meanwhile gets Conflict; there are no locks"),
    (
        r"(COPY|LOAD)\b",
        "rows go up as `rows` of an INSERT … VALUES ($1, …), and come down by Accept: text/csv",
    ),
    (r"(LISTEN|NOTIFY|SUBSCRIBE(?! TO))\b", "live queries go over the WebSocket /v1/ws, see docs/live.md"),
    (r"PREPARE\b|EXECUTE (?!AS\b)", _PARAMETERS),
    (r"EXECUTE\b", "EXECUTE AS USER 'name' (statement)"),
    (
        r"(VACUUM|ANALYZE|OPTIMIZE)\b",
        "the server does it by itself; STORAGE COMPACT TABLE namespace.table merges files now",
    ),
    (r"(STORAGE )?FLUSH\b", "STORAGE FLUSH TABLE namespace.table, or STORAGE FLUSH ALL IN namespace"),
    (r"TABLE\b", "SELECT * FROM t"),
    (r"SELECT .* LIMIT \w+ ,", "LIMIT n OFFSET m"),
    (r"SELECT .*\* (EXCEPT|EXCLUDE) \(|SELECT .*\* EXCLUDE\b", "name the columns in place of *"),
    (r".*= (\?|% S|: \w|@ \w|\{)", _PARAMETERS),
]
_BY_REFUSAL = [
    (
        r"Composite PRIMARY KEY",
        "make one TEXT key of both, 'a:b', and keep the parts as columns beside it",
    ),
    (r"not implemented: TOP", "LIMIT n"),
    (r"not implemented: FETCH", "LIMIT n OFFSET m"),
    (r"PGAbs|Placeholder '|Parameter count mismatch: expected 0 ", _PARAMETERS),
    (
        r"not support logical expression Exists",
        "a column says (SELECT COUNT(*) FROM … WHERE …) > 0; WHERE takes EXISTS",
    ),
    (
        r"not support logical expression ScalarSubquery",
        "as a column a subquery reads the row around it by = only, and not within SUM(…): JOIN instead",
    ),
    (
        r"not support logical expression InSubquery",
        "WHERE takes x IN (SELECT …); within SUM(…) and the like say EXISTS in a subquery of FROM",
    ),
    (r"duplicate unqualified field name", "SUM(x) and SUM(x::type) are one name to it; write SUM(x + 0)"),
    (r"Unsupported ast node.*RLike", "c ~ 'pattern' matches a regular expression"),
    (r"unique expression names", "two columns of the query are the same; name one of them: 1 AS a, 1 AS b"),
    (r"Unsupported SQL type UUID", "UUIDs are compared and stored as text: CAST(x AS TEXT)"),
    (r"Unsupported SQL type JSONB?", "JSON is read from text: x -> 'key', json_get_str(x, 'key')"),
    (
        r"'coalesce' .*got (Timestamp|Date)",
        "a text beside a moment is written TIMESTAMP '2026-01-31 12:00:00', beside a date DATE '2026-01-31'",
    ),
    (
        r"subquery can only be used in Projection",
        "name it in the list, and order by its name: SELECT …, EXISTS (…) AS e … ORDER BY e",
    ),
    (
        r"Cannot coerce arithmetic expression .*Decimal128.*Utf8|Utf8.* Decimal128",
        "CAST(text AS DECIMAL(p,s))",
    ),
    (r"escape_char other than the backslash", "ESCAPE follows a literal pattern: LIKE '10!%' ESCAPE '!'"),
    (r"not implemented: Query (DELETE|INSERT|UPDATE)", "send it as a statement of its own, with RETURNING"),
    (r"function '(getdate|curdate|sysdate)'", "NOW() and CURRENT_DATE tell the time"),
    (r"function 'unix_timestamp'", "date_part('epoch', NOW())"),
    (r"function 'str_to_date'", "to_timestamp(text, format) or CAST(text AS DATE)"),
    (r"function 'group_concat'", "string_agg(c, ',')"),
    (r"function 'isnull'", "c IS NULL, or coalesce(c, other)"),
    (r"function 'last_insert_id'", "INSERT … RETURNING id"),
    (r"function '(gen_random_uuid|uuid_generate_v4)'", "uuid() or UUID_V7()"),
    (
        r"not found: \w+\.(generate_series|range)\b",
        "FROM (SELECT unnest(generate_series(1, 9)) AS n) AS numbers",
    ),
    (
        r"not found: (default\.|pg_catalog\.)?(dual|sqlite_master|pg_\w+)",
        "SELECT 1 needs no FROM; tables are listed by information_schema.tables",
    ),
]
_STATEMENTS = [(re.compile(pattern, re.DOTALL), advice) for pattern, advice in _BY_STATEMENT]
_REFUSALS = [(re.compile(pattern, re.DOTALL), advice) for pattern, advice in _BY_REFUSAL]
_DUMPED = re.compile(
    r"(Unsupported ast node in sqltorel: \w+|not support logical expression (?:Exists|\w+Subquery))\b.*",
    re.DOTALL,
)
_FIELD = re.compile(r"No field named (?:\w+\.)*\"?(\w+)\"?")
_UNSUPPORTED = re.compile(r"Unsupported statement type: (\w+)")


def advised(message: str, sql: str, *, is_grammar: bool) -> str:
    """Return a refusal with what to write instead. `is_grammar`: the text isn't SQL, or not ours."""
    advice = _advice(message, sql, is_grammar=is_grammar)
    message = _DUMPED.sub(r"\1", message)
    return message if advice is None or advice in message else f"{message.rstrip('.')}. Instead: {advice}"


def _advice(message: str, sql: str, *, is_grammar: bool) -> str | None:
    by_refusal = next((advice for pattern, advice in _REFUSALS if pattern.search(message)), None)
    if by_refusal is not None:
        return by_refusal
    field = _FIELD.search(message)
    if field is not None and f'"{field[1]}"' in sql.lower():
        return f"text stands in single quotes: '{field[1]}'; double quotes are for names"
    if not is_grammar:
        return None
    words = _words(sql)
    found = next((advice for pattern, advice in _STATEMENTS if pattern.match(words)), None)
    if found is _ACCOUNT and "expected" not in message:
        return None  # the form was right
    unknown = _UNSUPPORTED.search(message)
    if found is None and unknown is not None:
        close = get_close_matches(unknown[1], _STARTS, 1, 0.7)
        return close[0] if close and close[0] != unknown[1] else None
    return found


def _words(sql: str) -> str:
    """Return the statement's words with one space between them; of texts there is nothing but the quotes."""
    try:
        tokens = tokenize(sql[:CHARS_MAX])
    except InvalidSql:
        return ""
    return " ".join("''" if token.kind in ("string", "dollar") else token.text.upper() for token in tokens)
