"""The app on a device: plain SQL on its own SQLite tables, each edit noted in the device's book as well.

Law: what the device must hold is known from the book alone; the SDK is only told what to exchange, and when.
"""

import sqlite3
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx

from upwell.demo.phone import Upload
from upwell.device import Device, Resolver, SyncReport, Unreachable, UploadReport, client_wins, server_wins
from upwell.simulate.model import Account, Book, Place, Policy, take_local, take_server
from upwell.simulate.table import BLOB_UUID, TABLES, Cells, Key, Row
from upwell.simulate.wire import Wire

UPLOAD_LIMIT = 200
DOWNLOAD_LIMIT = 1000
LOSSES_MAX = 1_000


@dataclass(frozen=True, slots=True)
class Rule:
    """How a device decides conflicts: for the SDK, and for its book."""

    resolver: Resolver
    policy: Policy


SERVER_WINS = Rule(server_wins, take_server)
CLIENT_WINS = Rule(client_wins, take_local)


def merging(policy: Policy) -> Rule:
    """The app's own decision from the local and the server's row."""
    return Rule(lambda conflict: policy(conflict.local, conflict.server), policy)


class App:
    """One installation. `source` is stored in the file; with `is_source_given` the app insists on it."""

    def __init__(
        self,
        path: Path,
        namespace: str,
        account: Account,
        client: httpx.Client,
        *,
        source: str,
        is_source_given: bool = False,
        limit: int = UPLOAD_LIMIT,
        download_limit: int = DOWNLOAD_LIMIT,
        rule: Rule = SERVER_WINS,
        seed: Callable[[sqlite3.Connection], object] = lambda _: None,
    ) -> None:
        self.path = path
        self.account = account
        self.book = Book(rule.policy)
        self.wire = Wire(client)
        self.edit_count = 0
        self._is_source_given = is_source_given
        self._open = partial(
            Device.open,
            path,
            schema=namespace,
            tables=tuple(TABLES),
            source=source if is_source_given else None,
            upload_limit=limit,
            download_limit=download_limit,
            resolver=rule.resolver,
            dial=self.wire.dial,
            new_source=lambda: source,
        )
        _create_tables(path, seed)
        self.device = self._open()

    def reopen(self) -> None:
        """The app is closed and started again."""
        self.device.close()
        self.device = self._open()

    def change_account(self, account: Account) -> None:
        """The file was wiped: it holds nothing, and is another user's from now on."""
        self.account = account
        self.book = Book(self.book.policy)

    def run(self, sql: str, *parameters: object) -> list[Cells]:
        """Run SQL as the app does, on its own connection."""
        return self.device.connection.execute(sql, parameters).fetchall()

    # --- edits, by SQL and in the book

    def insert(self, table: str, row: Row) -> None:
        """INSERT of a row."""
        cells = TABLES[table].device_cells(row)
        self.run(f"INSERT INTO {table} VALUES ({', '.join('?' * len(cells))})", *cells)
        self.book.put((table, row["id"]), row)
        self.edit_count += 1

    def update(self, table: str, key: Key, **changes: object) -> None:
        """UPDATE of some columns of a row."""
        assignments = ", ".join(f"{name} = ?" for name in changes)
        self.run(f"UPDATE {table} SET {assignments} WHERE id = ?", *changes.values(), key)
        self.book.put((table, key), self.book.rows[table, key] | changes)
        self.edit_count += 1

    def delete(self, table: str, key: Key) -> None:
        """DELETE of a row; SQLite deletes what cascades."""
        self.run(f"DELETE FROM {table} WHERE id = ?", key)
        self.book.delete((table, key))
        self.edit_count += 1

    # --- exchanges, by the SDK and in the book

    def upload(self) -> UploadReport:
        """Send what is pending."""
        report = self.device.upload()
        self._note_hydrated()
        self.book.upload(self.account)
        return report

    def download(self) -> None:
        """Fetch what others did."""
        self.device.download()
        self.book.download(self.account)

    def hydrate(self, page_rows: int) -> None:
        """Fetch everything."""
        self.device.hydrate(page_rows=page_rows)
        self.book.hydrate(self.account)

    def sync(self) -> SyncReport:
        """One round."""
        report = self.device.sync()
        self.book.sync(self.account)
        return report

    def upload_through(self, meanwhile: Callable[[], object] = lambda: None) -> int:
        """Upload again and again while answers get lost; `meanwhile` is called after each loss.

        What a request with a lost answer carried is on the server from then on. Returns how many were lost.
        """
        unanswered: dict[str, list[Place]] = {}
        for losses in range(LOSSES_MAX):
            first = len(self.wire.uploads)
            try:
                self.device.upload()
            except Unreachable:
                *answered, lost = self.wire.uploads[first:]
                self._note_answered(answered, unanswered)
                self._note_lost(lost, unanswered)
                meanwhile()
            else:
                self._note_answered(self.wire.uploads[first:], unanswered)
                return losses
        raise AssertionError(f"nothing got through in {LOSSES_MAX} uploads")

    def _note_hydrated(self) -> None:
        # An app that insists on its source reads what that source has done before it sends anything.
        if self._is_source_given and not self.book.is_hydrated:
            self.book.hydrate(self.account)

    def _note_lost(self, upload: Upload, unanswered: dict[str, list[Place]]) -> None:
        self._note_hydrated()
        # The outbox repeats an unanswered request as it was, whatever has been edited since.
        content = repr(upload.changes)
        if content not in unanswered:
            unanswered[content] = self.book.deliver(self.account, _places(upload))

    def _note_answered(self, uploads: list[Upload], unanswered: dict[str, list[Place]]) -> None:
        self._note_hydrated()
        for upload in uploads:
            # Of a repeated request only what the server didn't accept the first time is news.
            places = unanswered.pop(repr(upload.changes), None)
            self.book.upload(self.account, _places(upload) if places is None else places)

    # --- what the file holds

    def cells(self, table: str) -> list[Cells]:
        """All rows of a table, by id."""
        return self.run(f"SELECT * FROM {table} ORDER BY id")

    def meta(self) -> dict[tuple[str, str], tuple[int, int]]:
        """`_sync_row_meta`: table and key → (server version, deleted)."""
        rows = self.run("SELECT table_name, pk_uuid, server_version, deleted FROM _sync_row_meta")
        return {(table, key): (version, deleted) for table, key, version, deleted in rows}

    def pending_count(self) -> int:
        """Rows of `_sync_pending`."""
        count: int = self.run("SELECT count(*) FROM _sync_pending")[0][0]
        return count


def _places(upload: Upload) -> list[Place]:
    return [_place(str(change["table"]), str(change["pk"])) for change in upload.changes]


def _place(table: str, key: str) -> Place:
    return table, uuid.UUID(key).bytes if TABLES[table].key.kind is BLOB_UUID else key


def _create_tables(path: Path, seed: Callable[[sqlite3.Connection], object]) -> None:
    assert not path.exists(), f"{path} exists: an installation starts with a file of its own"
    connection = sqlite3.connect(path)
    for table in TABLES.values():
        connection.execute(table.sqlite_ddl())
    seed(connection)
    connection.commit()
    connection.close()
