"""What the demo asks the server by SQL, with cells as the wire has them.

Law: every read says its order; a statement that is refused raises, nothing is tried twice.
"""

import json
import re
from dataclasses import dataclass
from typing import Any

from upwell.client import Client
from upwell.demo.expected import NAMESPACE, Cells, Expected, Row, columns, sql_cells, table_of
from upwell.testing import wait_until

JOB_S_MAX = 30.0
JOB_ENDED = frozenset({"completed", "skipped", "failed", "cancelled"})
_FLUSH_STARTED = r"Storage flush started for table '{table}'\. Job ID: (FL-[0-9a-f]{{12}})"


@dataclass(frozen=True, slots=True)
class Entry:
    """A row of `system.changes`; `values` is the row after the change, of a DELETE before it."""

    seq: int
    table: str
    key: str
    operation: str
    values: dict[str, Any]
    version: int
    device: str | None
    change_id: int | None


def read_rows(client: Client, table: str) -> list[Cells]:
    """Return all rows of a business table, by id."""
    return list(client.execute(select_all(table), raw=True).rows)


def select_all(table: str) -> str:
    """Return the SELECT of all declared columns, by id."""
    return f"SELECT {', '.join(columns(table))} FROM {NAMESPACE}.{table} ORDER BY id"


def read_log(client: Client, table: str | None = None) -> list[Entry]:
    """Return the user's own changes, oldest first, of one business table if named."""
    found = client.query("SELECT * FROM system.changes ORDER BY seq", raw=True)
    entries = [
        Entry(
            seq=int(row["seq"]),
            table=row["table_name"],
            key=row["key"],
            operation=row["operation"],
            values=json.loads(row["values"]),
            version=int(row["version"]),
            device=row["device"],
            change_id=None if row["change_id"] is None else int(row["change_id"]),
        )
        for row in found
    ]
    return [entry for entry in entries if table is None or entry.table == f"{NAMESPACE}.{table}"]


def read_count(client: Client, condition: str) -> int:
    """Return `SELECT COUNT(*) FROM <condition>`."""
    return int(client.execute(f"SELECT COUNT(*) AS n FROM {condition}", raw=True).rows[0][0])


class BackEnd:
    """A back end of the same user: writes by SQL over HTTP, and notes what it wrote."""

    def __init__(self, client: Client, expected: Expected) -> None:
        self._client = client
        self._expected = expected

    def insert(self, row: Row) -> str | None:
        """INSERT; return the server's message."""
        cells = sql_cells(row)
        places = ", ".join(f"${index}" for index in range(1, len(cells) + 1))
        result = self._client.execute(f"INSERT INTO {NAMESPACE}.{table_of(row)} VALUES ({places})", cells)
        self._expected.put(row)
        return result.message

    def update(self, row: Row) -> str | None:
        """UPDATE of a row's name or title, and its time."""
        table = table_of(row)
        column = "name" if table == "users" else "title"
        seconds = row.updated_at * 1_000_000
        result = self._client.execute(
            f"UPDATE {NAMESPACE}.{table} SET {column} = $1, updated_at = $2 WHERE id = $3",
            [getattr(row, column), seconds, row.id],
        )
        self._expected.put(row)
        return result.message

    def delete(self, row: Row) -> str | None:
        """DELETE by id."""
        result = self._client.execute(f"DELETE FROM {NAMESPACE}.{table_of(row)} WHERE id = $1", [row.id])
        self._expected.delete(row)
        return result.message


def flush(root: Client, table: str) -> tuple[str, str]:
    """Flush a business table, wait until its job has ended; return the job's status and message."""
    full = f"{NAMESPACE}.{table}"
    message = root.execute(f"STORAGE FLUSH TABLE {full}").message or ""
    started = re.fullmatch(_FLUSH_STARTED.format(table=re.escape(full)), message)
    if started is None:
        return "not started", message
    job = "SELECT status, message FROM system.jobs WHERE job_id = $1"

    def ended() -> Cells | None:
        rows = root.execute(job, [started.group(1)]).rows
        return rows[0] if rows and rows[0][0] in JOB_ENDED else None

    status, said = wait_until(ended, timeout_s=JOB_S_MAX, what=f"the flush of {full} to end") or ("", "")
    return str(status), str(said)
