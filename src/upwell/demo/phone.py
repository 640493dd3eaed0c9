"""The app on a device: its own SQLite tables, written with plain SQL, synced by the device SDK.

Law: the app knows nothing of the sync; what it sent and got is recorded on the way, at the transport.
"""

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import msgspec

from upwell.demo.expected import NAMESPACE, TABLES, Cells, Expected, Row, device_cells, table_of
from upwell.device import Device, HttpTransport, Request, Response, Transport, Unreachable
from upwell.protocol import sync

UPLOAD_LIMIT = 200
ANSWER_S_MAX = 20.0
_SCHEMA = """
CREATE TABLE users (
    id TEXT PRIMARY KEY, name TEXT NOT NULL, email TEXT NOT NULL,
    created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL);
CREATE TABLE posts (
    id TEXT PRIMARY KEY, title TEXT NOT NULL, content TEXT NOT NULL,
    author_id TEXT NOT NULL REFERENCES users(id),
    created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL);
"""


@dataclass(frozen=True, slots=True)
class Upload:
    """One upload request as it went over the wire, and the answer that the server gave."""

    request: Request
    changes: list[dict[str, Any]]
    statuses: list[sync.Status]

    @property
    def body(self) -> bytes:
        return self.request.body or b""


@dataclass
class Wire:
    """A device's way to the server: real HTTP, recorded, on which one answer can be lost.

    `in_flight` is called once, when the server has done its work and its answer is on the way. `pages` are
    the rows of each page of a hydration, `sizes` the changes of each upload (of all wires that share it).
    """

    url: str = ""
    in_flight: Callable[[], object] | None = None
    is_losing: bool = False
    uploads: list[Upload] = field(default_factory=list)
    pages: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    _client: httpx.Client = field(default_factory=lambda: httpx.Client(timeout=ANSWER_S_MAX))
    _inner: Transport | None = None

    def dial(self, url: str) -> Transport:
        """Connect to the server at `url`."""
        self.url, self._inner = url, HttpTransport(url, self._client)
        return self

    def send(self, request: Request) -> Response:
        """Send a request, record it, and return the answer unless it is to be lost."""
        assert self._inner is not None, "the device signs in before it sends"
        response = self._inner.send(request)
        self._record(request, response)
        if request.path == sync.UPLOAD_PATH and response.status == 200:
            self._disturb()
        return response

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _record(self, request: Request, response: Response) -> None:
        if response.status != 200:
            return
        if request.path == sync.UPLOAD_PATH:
            changes = msgspec.json.decode(request.body or b"", type=dict[str, Any])["changes"]
            answer = sync.decode_upload_response(response.body)
            self.uploads.append(Upload(request, changes, answer.statuses))
            self.sizes.append(len(changes))
        elif request.path == sync.HYDRATE_PATH:
            page = sync.decode_hydrate_response(response.body)
            self.pages.append(sum(len(table.rows) for table in page.tables))

    def _disturb(self) -> None:
        action, self.in_flight = self.in_flight, None
        if action is not None:
            action()
        if self.is_losing:
            self.is_losing = False
            raise Unreachable("the answer was lost on the way (by the demo, on purpose)")


class App:
    """One installation of the app: its SQLite file and its device; `run` is all that the app does."""

    def __init__(self, path: Path, expected: Expected, *, source: str | None = None) -> None:
        self.path = path
        self.wire = Wire()
        self.edit_count = 0
        self._expected = expected
        _create_tables(path)
        self.device = Device.open(
            path,
            schema=NAMESPACE,
            tables=TABLES,
            source=source,
            upload_limit=UPLOAD_LIMIT,
            dial=self.wire.dial,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.device.close()

    def run(self, sql: str, *parameters: object) -> list[Cells]:
        """Run SQL as the app does, on its own connection."""
        return self.device.connection.execute(sql, parameters).fetchall()

    def insert(self, row: Row) -> None:
        """Create a row."""
        cells = device_cells(row)
        self.run(f"INSERT INTO {table_of(row)} VALUES ({', '.join('?' * len(cells))})", *cells)
        self._expected.put(row)
        self.edit_count += 1

    def update(self, row: Row) -> None:
        """Write the columns of a row that may change."""
        if table_of(row) == "users":
            pairs = ("name", "email", "updated_at")
        else:
            pairs = ("title", "content", "updated_at")
        assignments = ", ".join(f"{name} = ?" for name in pairs)
        values = [getattr(row, name) for name in pairs]
        self.run(f"UPDATE {table_of(row)} SET {assignments} WHERE id = ?", *values, row.id)
        self._expected.put(row)
        self.edit_count += 1

    def delete(self, row: Row) -> None:
        """Delete a row."""
        self.run(f"DELETE FROM {table_of(row)} WHERE id = ?", row.id)
        self._expected.delete(row)
        self.edit_count += 1

    def contents(self) -> dict[str, list[Cells]]:
        """Return all rows of all tables, by id."""
        return {table: self.run(f"SELECT * FROM {table} ORDER BY id") for table in TABLES}

    def meta(self) -> dict[str, tuple[int, int]]:
        """Return (server version, is deleted) of each row that the sync knows, by id."""
        rows = self.run("SELECT pk_uuid, server_version, deleted FROM _sync_row_meta")
        return {key: (version, deleted) for key, version, deleted in rows}


def _create_tables(path: Path) -> None:
    assert not path.exists(), f"{path} exists: an installation starts with a file of its own"
    connection = sqlite3.connect(path)
    connection.executescript(_SCHEMA)
    connection.close()
