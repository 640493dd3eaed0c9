"""Pages of a download as a stock client stores them, over an `Embedded`.

Law: each page is a transaction with foreign keys on, and rows are replaced.
"""

import sqlite3
from collections.abc import Mapping
from typing import Any

import msgspec

from upwell.clock import ManualClock
from upwell.feeds.download import Downloads
from upwell.feeds.stock import StockDownloads
from upwell.protocol.sync import DownloadResponse
from upwell.testing.embedded import RETENTION_S, Embedded

USER = "ann"
TABLES = {
    "folders": "id TEXT PRIMARY KEY, parent TEXT REFERENCES folders (id)",
    "users": "id TEXT PRIMARY KEY, name TEXT NOT NULL",
    "posts": "id TEXT PRIMARY KEY, author TEXT REFERENCES users (id), folder TEXT REFERENCES folders (id)",
}


def create_tables(db: Embedded, *, on_delete: str = "RESTRICT", tables: Mapping[str, str] = TABLES) -> None:
    """Create the phone's tables on the server; the phone's own references only restrict."""
    db.run("CREATE NAMESPACE app")
    for name, columns in tables.items():
        text = columns.replace("REFERENCES ", "REFERENCES app.").replace(
            "(id)", f"(id) ON DELETE {on_delete}"
        )
        db.run(f"CREATE TABLE app.{name} ({text}) WITH (TYPE='USER', SYNC=TRUE)")


class Phone:
    """A file in memory and the loop of a stock client: fetch, store, until there is no more.

    `seen` has what was written, in order.
    """

    def __init__(
        self,
        db: Embedded,
        limit: int,
        source: str = "phone",
        *,
        include_self: bool = True,
        tables: Mapping[str, str] = TABLES,
    ) -> None:
        self.db, self.limit, self.source, self.include_self = db, limit, source, include_self
        self.tables = tables
        self.cursor = 0
        self.seen: list[tuple[str, str]] = []
        self.file = sqlite3.connect(":memory:", isolation_level=None)
        self.file.execute("PRAGMA foreign_keys = ON")
        for name, columns in tables.items():
            self.file.execute(f"CREATE TABLE {name} ({columns})")

    def fetch(self, after: int | None = None, *, until: int = 0) -> DownloadResponse:
        """Ask for the page behind the cursor, or behind another number."""
        committer, rows = self.db.committer, self.db.rows_by_key
        downloads = StockDownloads(committer, rows, Downloads(committer, stream_id="s"), self.db.registry)
        after = self.cursor if after is None else after
        self.db.registry.note(USER, self.source, after)
        return downloads.download(
            USER,
            self.source,
            after=after,
            until=until,
            limit=self.limit,
            schema="app",
            include_self=self.include_self,
        )

    def store(self, page: DownloadResponse) -> None:
        """Write a page in one transaction; its references have to be whole then."""
        self.file.execute("BEGIN")
        self.file.execute("PRAGMA defer_foreign_keys = ON")
        for change in page.changes:
            is_deleted = change.op == "DELETE"
            self.apply(change.table, change.pk, None if is_deleted else bytes(change.payload).decode())
            if not is_deleted:
                self.seen.append((change.table, change.pk))
        self.file.execute("COMMIT")
        self.cursor = max(self.cursor, page.next_after)

    def apply(self, table: str, pk: str, payload: str | None) -> None:
        """Write one row; None deletes it."""
        if payload is None:
            self.file.execute(f"DELETE FROM {table} WHERE id = ?", (pk,))
            return
        row: dict[str, Any] = msgspec.json.decode(payload)
        marks = ", ".join("?" * len(row))
        self.file.execute(
            f"INSERT OR REPLACE INTO {table} ({', '.join(row)}) VALUES ({marks})", tuple(row.values())
        )

    def read(self) -> None:
        """Read to the end."""
        while True:
            page = self.fetch()
            self.store(page)
            if not page.has_more:
                return

    def rows(self) -> list[list[tuple[Any, ...]]]:
        """Return the rows of all tables."""
        return [self.file.execute(f"SELECT * FROM {name} ORDER BY id").fetchall() for name in self.tables]


def server_rows(db: Embedded, tables: Mapping[str, str] = TABLES) -> list[list[tuple[Any, ...]]]:
    """Return what `Phone.rows` should be in the end."""
    return [
        db.rows(f"SELECT {columns_of(columns)} FROM app.{name} ORDER BY id", user=USER)
        for name, columns in tables.items()
    ]


def columns_of(columns: str) -> str:
    """Return the names of a table's columns from their definitions."""
    return ", ".join(column.split()[0] for column in columns.split(", "))


def trim(db: Embedded, clock: ManualClock) -> None:
    """Let all that is in the log by now leave it."""
    clock.advance(RETENTION_S + 1)
    db.trim.run()
