"""SQL as sqllogictest files, each run hot-only, cold-only, mixed and without shapes: neither the tier
nor what was seen before shows in an answer.

    statement ok                a statement that succeeds
    statement count N           a statement that changes N rows
    statement error PATTERN     a statement that fails with a message that matches PATTERN
    query                       a query; below ---- its rows in order, cells between ` | `,
                                NULL as NULL and an empty text as (empty); RETURNING makes a change a query

Records are separated by empty lines; `#` starts a comment. A file that begins with `# duckdb` says only
what DuckDB says as well: it is run there too, so that its rows are those of another engine.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import duckdb
import pytest

from upwell.client import Client, Result, ServerError, connect
from upwell.testing import ServerProcess, wait_until

FILES = sorted(Path(__file__).parent.glob("*.slt"))
_OF_USERS = re.compile("CREATE (USER|SHARED) TABLE")
_CHANGED = re.compile(r"(?:INSERT INTO|UPDATE|DELETE FROM)\s+(\w+)", re.IGNORECASE)


@dataclass(frozen=True)
class Record:
    """One record of a file: what is promised, the SQL, and the rows of a query."""

    line: int
    kind: str
    argument: str
    sql: str
    rows: list[str]


def parse(text: str) -> list[Record]:
    """Return the records of a file."""
    records = []
    line = 1
    for block in text.split("\n\n"):
        kept = [each for each in block.splitlines() if not each.startswith("#")]
        if any(kept):
            head, *body = [each for each in kept if each]
            kind, _, rest = head.partition(" ")
            word, _, argument = rest.partition(" ")
            sql, mark, rows = "\n".join(body).partition("\n----")
            assert kind == "statement" or mark, f"line {line}: a query needs its rows"
            records.append(
                Record(line, f"{kind} {word}".strip(), argument, sql, rows.strip("\n").splitlines())
            )
        line += block.count("\n") + 2
    return records


def shown(result: Result) -> list[str]:
    """Return the rows of a result as a file writes them."""
    return [" | ".join(_cell(cell) for cell in row) for row in result.rows]


def _cell(cell: object) -> str:
    match cell:
        case None:
            return "NULL"
        case bool():
            return str(cell).lower()
        case "":
            return "(empty)"
        case _:
            return str(cell)


def is_shared(file: Path) -> bool:
    return file.read_text().startswith("# duckdb\n")


class Tiers:
    """Flushes tables after none, every or every second of the statements that change them."""

    def __init__(self, client: Client, namespace: str, every: int) -> None:
        self._client = client
        self._namespace = namespace
        self._every = every
        self._changes = 0

    def changed(self, sql: str) -> None:
        table = _CHANGED.match(sql)
        if table is None or not self._every:
            return
        self._changes += 1
        if self._changes % self._every == 0:
            self._flush(table[1])

    def _flush(self, table: str) -> None:
        (result,) = self._client.execute(f"STORAGE FLUSH TABLE {self._namespace}.{table}").results
        message = result.message or ""
        if "Job ID: " in message:
            question = f"SELECT status FROM system.jobs WHERE job_id = '{message.split('Job ID: ')[1]}'"
            wait_until(
                lambda: self._status(question) == "completed", timeout_s=20, what=f"the flush of {table}"
            )

    def _status(self, question: str) -> str:
        status = self._client.execute(question).results[0].rows[0][0]
        assert status != "failed", question
        return str(status)


@pytest.mark.parametrize("file", [file for file in FILES if is_shared(file)], ids=lambda file: file.stem)
def test_duckdb_gives_the_same_answers(file: Path) -> None:
    with duckdb.connect() as other:
        for record in parse(file.read_text()):
            where = f"{file.name}:{record.line} (duckdb)\n{record.sql}"
            found = other.execute(_OF_USERS.sub("CREATE TABLE", record.sql)).fetchall()
            if record.kind == "query":
                assert [" | ".join(_cell(_as_here(cell)) for cell in row) for row in found] == record.rows, (
                    where
                )
            elif record.kind == "statement count":
                assert found == [(int(record.argument),)], where


def _as_here(cell: object) -> object:
    """Return a value of DuckDB's as our wire has it."""
    match cell:
        case datetime():
            return (cell - datetime(1970, 1, 1)) // timedelta(microseconds=1)
        case date():
            return (cell - date(1970, 1, 1)).days
        case Decimal():
            return format(cell, "f")
        case _:
            return cell


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One server for all files; each run has a namespace of its own."""
    with ServerProcess(tmp_path_factory.mktemp("slt") / "data", env={"UPWELL_BCRYPT_COST": "4"}) as server:
        yield server


@pytest.fixture(scope="module")
def unshaped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server that parses each text as it stands."""
    settings = {"UPWELL_BCRYPT_COST": "4", "UPWELL_SHAPE_CACHE": "false"}
    with ServerProcess(tmp_path_factory.mktemp("slt") / "data", env=settings) as server:
        yield server


@pytest.mark.parametrize(("mode", "every"), [("hot", 0), ("cold", 1), ("mixed", 2)])
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_file_gives_the_same_answers_in_every_tier(
    server: ServerProcess, file: Path, mode: str, every: int
) -> None:
    _run_file(server, file, mode, every)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_file_gives_the_same_answers_without_shapes(unshaped: ServerProcess, file: Path) -> None:
    _run_file(unshaped, file, "unshaped", 2)


def test_there_are_enough_queries() -> None:
    records = [record for file in FILES for record in parse(file.read_text())]
    assert sum(record.kind == "query" for record in records) >= 500


def _run_file(server: ServerProcess, file: Path, mode: str, every: int) -> None:
    namespace = f"{file.stem}_{mode}"
    with connect(server.url, user="root", password=server.root_password, namespace=namespace) as client:
        client.execute(f"CREATE NAMESPACE {namespace}")
        tiers = Tiers(client, namespace, every)
        for record in parse(file.read_text()):
            _run(client, tiers, record, f"{file.name}:{record.line} ({mode})")


def _run(client: Client, tiers: Tiers, record: Record, where: str) -> None:
    match record.kind:
        case "query":
            (result,) = client.execute(record.sql, raw=True).results
            assert shown(result) == record.rows, f"{where}\n{record.sql}"
            tiers.changed(record.sql)
        case "statement ok":
            client.execute(record.sql)
            tiers.changed(record.sql)
        case "statement count":
            (result,) = client.execute(record.sql, raw=True).results
            assert result.row_count == int(record.argument), f"{where}\n{record.sql}"
            tiers.changed(record.sql)
        case "statement error":
            with pytest.raises(ServerError, match=record.argument):
                client.execute(record.sql)
        case kind:
            raise AssertionError(f"{where}: unknown record {kind}")
