"""The device's SQLite file: its `_sync_` tables, its identity, its counters and its transactions.

Law: one user and one source per file; the counter of change ids is stored in the transaction that uses it;
server rows are written with `apply_mode` = 1, which only this transaction sees.
"""

import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from operator import methodcaller
from pathlib import Path
from typing import NamedTuple

from upwell.device.failures import FileRefused, NotSignedIn, PendingChanges
from upwell.protocol.sync import INT64_MAX

NOW = "strftime('%Y-%m-%dT%H:%M:%fZ', 'now')"
NEXT_CHANGE_ID = "(SELECT next_change_id FROM _sync_client_info LIMIT 1)"
LOCK_WAIT_S_MAX = 10.0
WAL_BYTES_MAX = 64 << 20

# No checkpoints; commits that don't wait for the disk (1: NORMAL); 8 MB of pages, so that a transaction fits.
_LOADING = {"wal_autocheckpoint": 0, "synchronous": 1, "cache_size": -8000}

_TABLES = f"""
CREATE TABLE IF NOT EXISTS _sync_client_info (
    user_id TEXT PRIMARY KEY,
    source_id TEXT NOT NULL,
    next_change_id INTEGER NOT NULL DEFAULT 1,
    last_server_seq_seen INTEGER NOT NULL DEFAULT 0,
    apply_mode INTEGER NOT NULL DEFAULT 0,
    current_window_until INTEGER NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS _sync_row_meta (
    table_name TEXT NOT NULL,
    pk_uuid TEXT NOT NULL,
    server_version INTEGER NOT NULL DEFAULT 0,
    deleted INTEGER NOT NULL DEFAULT 0,
    updated_at TEXT NOT NULL DEFAULT ({NOW}),
    hydration INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (table_name, pk_uuid)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS _sync_pending (
    table_name TEXT NOT NULL,
    pk_uuid TEXT NOT NULL,
    op TEXT NOT NULL CHECK (op IN ('INSERT', 'UPDATE', 'DELETE')),
    base_version INTEGER NOT NULL,
    payload TEXT,
    change_id INTEGER,
    queued_at TEXT NOT NULL DEFAULT ({NOW}),
    base_payload TEXT,
    attempts INTEGER NOT NULL DEFAULT 0,
    quarantined INTEGER NOT NULL DEFAULT 0,
    reason TEXT,
    detail TEXT,
    PRIMARY KEY (table_name, pk_uuid));
CREATE INDEX IF NOT EXISTS _sync_pending_order
    ON _sync_pending (quarantined, attempts, table_name, (op = 'DELETE'), change_id);
CREATE INDEX IF NOT EXISTS _sync_pending_unnumbered ON _sync_pending (change_id) WHERE change_id IS NULL;
CREATE TABLE IF NOT EXISTS _sync_outbox (
    position INTEGER PRIMARY KEY,
    table_name TEXT NOT NULL,
    pk_uuid TEXT NOT NULL,
    op TEXT NOT NULL,
    base_version INTEGER NOT NULL,
    payload TEXT,
    wire_payload TEXT,
    change_id INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS _sync_withheld (
    table_name TEXT NOT NULL,
    pk_uuid TEXT NOT NULL,
    server_version INTEGER NOT NULL,
    payload TEXT,
    reason TEXT NOT NULL,
    PRIMARY KEY (table_name, pk_uuid)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS _sync_extra (
    table_name TEXT NOT NULL,
    pk_uuid TEXT NOT NULL,
    payload TEXT NOT NULL,
    PRIMARY KEY (table_name, pk_uuid)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS _sync_conflicts (
    id INTEGER PRIMARY KEY,
    table_name TEXT NOT NULL,
    pk_uuid TEXT NOT NULL,
    base_payload TEXT,
    local_payload TEXT,
    server_payload TEXT,
    server_version INTEGER NOT NULL,
    decision TEXT NOT NULL,
    decided_at TEXT NOT NULL DEFAULT ({NOW}));
CREATE TABLE IF NOT EXISTS _sync_state (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""

_ROW_TABLES = ("_sync_row_meta", "_sync_pending", "_sync_outbox", "_sync_withheld", "_sync_extra")


class Reading(NamedTuple):
    """How far the server has been read, and by what.

    An answer counts where this is as it was when its question was asked: otherwise another process, which may
    sync the same file, was faster.
    """

    cursor: int
    stream: str | None
    hydration: int
    phase: str | None
    hydration_cursor: str

    @property
    def is_hydrating(self) -> bool:
        """Whether the file is being filled: with live rows, or with the log since."""
        return self.phase in ("rows", "log")


@dataclass(frozen=True, slots=True)
class Identity:
    """Who the file belongs to; `user` is empty before the first sign-in."""

    user: str
    source: str
    is_source_forced: bool


class SyncFile:
    """The file with the connection that syncs it; the app writes through its own connection."""

    def __init__(self, connection: sqlite3.Connection, new_source: Callable[[], str]) -> None:
        self.connection = connection
        self._new_source = new_source
        self._signed_in: Identity | None = None

    @classmethod
    def open(cls, path: str, source: str | None, new_source: Callable[[], str]) -> "SyncFile":
        """Open or create; raise `FileRefused` when the file can't be used or belongs to another source."""
        file = cls(connect(path, has_foreign_keys=False), new_source)
        try:
            file._prepare(source)
        except sqlite3.DatabaseError as cause:
            file.connection.close()
            raise _refused(path, cause) from cause
        except BaseException:
            file.connection.close()
            raise
        return file

    def _prepare(self, source: str | None) -> None:
        with self.transaction():
            for statement in _TABLES.split(";\n"):
                if statement.strip():
                    self.connection.execute(statement)
            if self.connection.execute("SELECT 1 FROM _sync_client_info").fetchone() is None:
                self._identify(source)
            self.connection.execute("UPDATE _sync_client_info SET apply_mode = 0")
        identity = self.identity()
        if source is not None and source != identity.source:
            raise FileRefused(
                f"the file belongs to source {identity.source!r}, not {source!r}: use another file"
            )

    def _identify(self, source: str | None) -> None:
        self.connection.execute(
            "INSERT INTO _sync_client_info (user_id, source_id) VALUES ('', ?)",
            (source or self._new_source(),),
        )
        self.put("source_forced", "1" if source else "")

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """One write transaction, rolled back when the block raises."""
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            yield self.connection
            self.connection.execute("COMMIT")
        except BaseException:
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")
            raise

    @contextmanager
    def applying(self) -> Iterator[sqlite3.Connection]:
        """A transaction in which no trigger captures, of the file of whom has signed in."""
        with self.transaction() as connection:
            self.require_owner()
            connection.execute("UPDATE _sync_client_info SET apply_mode = 1")
            yield connection
            connection.execute("UPDATE _sync_client_info SET apply_mode = 0")

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Many large transactions follow: the disk is waited for at the end, not after each.

        A power cut in between takes back the newest of them, whole. `checkpoint_if_large` bounds the
        write-ahead log.
        """
        before = {name: self._number(f"PRAGMA {name}") for name in _LOADING}
        self._set(_LOADING)
        try:
            yield
        finally:
            self._set(before)
            self._checkpoint()

    def checkpoint_if_large(self) -> None:
        """Move the write-ahead log into the database if it is large; between transactions."""
        log = Path(f"{self._path()}-wal")
        if log.exists() and log.stat().st_size > WAL_BYTES_MAX:
            self._checkpoint()

    def _checkpoint(self) -> None:
        # While the app reads, the log can't be cut: nobody waits for that, a later checkpoint does it.
        self.connection.execute("PRAGMA busy_timeout = 0")
        self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        self.connection.execute(f"PRAGMA busy_timeout = {int(LOCK_WAIT_S_MAX * 1000)}")

    def _set(self, pragmas: Mapping[str, int]) -> None:
        for name, value in pragmas.items():
            self.connection.execute(f"PRAGMA {name} = {value}")

    def _path(self) -> str:
        return str(self.connection.execute("PRAGMA database_list").fetchone()[2])

    def identity(self) -> Identity:
        """Read user and source."""
        user, source = self.connection.execute("SELECT user_id, source_id FROM _sync_client_info").fetchone()
        return Identity(user, source, bool(self.find("source_forced")))

    def claim(self, user: str) -> None:
        """Make the file `user`'s; raise `FileRefused` when it is another's."""
        owner = self.identity().user
        if owner not in ("", user):
            raise FileRefused(
                f"the file belongs to user {owner!r}: upload its changes and wipe() it, or open another file"
            )
        with self.transaction() as connection:
            connection.execute("UPDATE _sync_client_info SET user_id = ?", (user,))
            self._signed_in = self.identity()

    @property
    def is_others(self) -> bool:
        """True when the file is no longer of whom has signed in: it was wiped, maybe by another process."""
        return self._signed_in is not None and self._signed_in != self.identity()

    def require_owner(self) -> None:
        """Raise `NotSignedIn` when the file is no longer of whom has signed in."""
        if self.is_others:
            raise NotSignedIn("the file was wiped meanwhile, it may be another user's: sign in again")

    def find(self, key: str) -> str | None:
        """Find a value of the sync state."""
        found = self.connection.execute("SELECT value FROM _sync_state WHERE key = ?", (key,)).fetchone()
        return None if found is None else str(found[0])

    def put(self, key: str, value: str) -> None:
        """Store a value of the sync state, in the caller's transaction."""
        self.connection.execute("INSERT OR REPLACE INTO _sync_state VALUES (?, ?)", (key, value))

    def reading(self) -> Reading:
        """Tell how far the server has been read."""
        return Reading(
            self.cursor(),
            self.find("stream"),
            int(self.find("hydration") or 0),
            self.find("hydration_phase"),
            self.find("hydration_cursor") or "",
        )

    def cursor(self) -> int:
        """The last entry of the server's log that is stored here."""
        return self._number("SELECT last_server_seq_seen FROM _sync_client_info")

    def set_cursor(self, cursor: int) -> None:
        """Move the cursor, in the transaction that stores what it covers."""
        self.connection.execute("UPDATE _sync_client_info SET last_server_seq_seen = ?", (cursor,))

    def head(self) -> int:
        """The newest entry of the server's log that this file has heard of."""
        return self._number("SELECT current_window_until FROM _sync_client_info")

    def note_head(self, head: int) -> None:
        """Note how far the server's log goes; it never goes back (but in `forget_server`)."""
        self.connection.execute(
            "UPDATE _sync_client_info SET current_window_until = max(current_window_until, ?)", (head,)
        )

    def next_change_id(self) -> int:
        """The id that the next change will get."""
        return self._number("SELECT next_change_id FROM _sync_client_info")

    def record_conflict(
        self,
        row: tuple[str, str],
        payloads: tuple[str | None, str | None, str | None],
        version: int,
        decision: str,
    ) -> None:
        """Keep (base, local, server) of a decision, captured forms, readable in `_sync_conflicts`."""
        self.connection.execute(
            "INSERT INTO _sync_conflicts (table_name, pk_uuid, base_payload, local_payload, server_payload,"
            " server_version, decision) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (*row, *payloads, version, decision),
        )

    def take_change_id(self) -> int:
        """Use up one change id, in the caller's transaction."""
        taken = min(self.next_change_id(), INT64_MAX)
        self._set_next_change_id(taken + 1)
        return taken

    def learn_change_id(self, least: int) -> None:
        """Ids below `least` are known to the server: pending changes that have one get a fresh one.

        Not what was sent under its id, and refused: that may have been on the way back, and is known by it.
        """
        least = min(least, INT64_MAX)
        fresh = max(least, self.next_change_id())
        if least > 1:
            rows = self.connection.execute(
                "SELECT rowid FROM _sync_pending WHERE change_id < ? AND change_id > ? ORDER BY change_id",
                (least, self._sent_until()),
            ).fetchall()
            self.connection.executemany(
                "UPDATE _sync_pending SET change_id = ? WHERE rowid = ?",
                [(min(fresh + index, INT64_MAX), rowid) for index, (rowid,) in enumerate(rows)],
            )
            fresh += len(rows)
        self._set_next_change_id(fresh)

    def note_sent(self, change_id: int) -> None:
        """Note that changes were sent under ids up to this one, in the caller's transaction."""
        if change_id > self._sent_until():
            self.put("sent_until", str(change_id))

    def _sent_until(self) -> int:
        return int(self.find("sent_until") or 0)

    def _set_next_change_id(self, number: int) -> None:
        # The largest one is never sent: who has it has none left.
        self.connection.execute("UPDATE _sync_client_info SET next_change_id = ?", (min(number, INT64_MAX),))

    def pending_count(self) -> int:
        """How many rows wait for upload, quarantined ones included."""
        return self._number("SELECT count(*) FROM _sync_pending")

    def count(self, condition: str, table: str) -> int:
        """Count the rows of a `_sync_` table."""
        return self._number(f"SELECT count(*) FROM {table} WHERE {condition}")

    def forget_server(self) -> None:
        """The server's history is another one: versions, cursor and what was sent mean nothing any more."""
        # The version that a row had there is kept, as a negative number, until the new history shows the row.
        self.connection.execute(
            "UPDATE _sync_row_meta SET server_version = 0,"
            " hydration = CASE WHEN server_version > 0 THEN -server_version ELSE min(hydration, 0) END"
        )
        self.connection.execute("UPDATE _sync_pending SET base_version = 0, attempts = 0")
        self.connection.execute("DELETE FROM _sync_outbox")
        self.connection.execute("DELETE FROM _sync_withheld")
        self.connection.execute("UPDATE _sync_client_info SET current_window_until = 0")
        self.restart_hydration()

    def forget_table(self, wire: str) -> None:
        """The server has the table anew: versions mean nothing any more, in the caller's transaction."""
        self.connection.execute(
            "UPDATE _sync_row_meta SET server_version = 0, hydration = 0 WHERE table_name = ?", (wire,)
        )
        self.connection.execute(
            "UPDATE _sync_pending SET base_version = 0, base_payload = NULL, attempts = 0, quarantined = 0,"
            " reason = NULL, detail = NULL, op = CASE op WHEN 'UPDATE' THEN 'INSERT' ELSE op END"
            " WHERE table_name = ?",
            (wire,),
        )
        self.connection.execute("DELETE FROM _sync_withheld WHERE table_name = ?", (wire,))

    def restart_hydration(self) -> None:
        """Begin again: everything is read from the server before the next upload or download."""
        self.put("hydrated", "")
        self.put("must_hydrate", "1")
        self.put("hydration_phase", "")
        self.set_cursor(0)

    def wipe(self, tables: list[str]) -> None:
        """Empty the given (quoted) tables and forget the user; `PendingChanges` if an edit would be lost."""
        with self.applying() as connection:
            if self.pending_count():
                raise PendingChanges(
                    f"{self.pending_count()} changes were not uploaded: upload them before wiping"
                )
            for table in (*tables, *_ROW_TABLES, "_sync_conflicts"):
                connection.execute(f"DELETE FROM {table}")
            identity = self.identity()
            source = identity.source if identity.is_source_forced else self._new_source()
            connection.execute(
                "UPDATE _sync_client_info SET user_id = '', source_id = ?, next_change_id = 1,"
                " current_window_until = 0",
                (source,),
            )
            self.restart_hydration()
            for key in ("stream", "sent_until", "oversized"):
                self.put(key, "")

    def _number(self, query: str) -> int:
        return int(self.connection.execute(query).fetchone()[0])


def connect(path: str, *, has_foreign_keys: bool) -> sqlite3.Connection:
    """Open a connection in autocommit, WAL; only `BEGIN` starts a transaction."""
    if path == ":memory:" or not path:
        raise FileRefused("a device needs a file: app and sync use a connection each")
    try:
        connection = sqlite3.connect(path, LOCK_WAIT_S_MAX, isolation_level=None, check_same_thread=False)
    except sqlite3.DatabaseError as cause:
        raise _refused(path, cause) from cause
    if not has_foreign_keys:
        # SQLite keeps any bytes as text: what is no UTF-8 must not stop the rest (the outbox sets it aside).
        connection.text_factory = methodcaller("decode", "utf-8", "replace")
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        # Server rows are written without foreign key actions: a cascade must not delete what the log keeps.
        connection.execute(f"PRAGMA foreign_keys = {'ON' if has_foreign_keys else 'OFF'}")
    except sqlite3.DatabaseError as cause:
        connection.close()
        raise _refused(path, cause) from cause
    return connection


def meet_triggers(connection: sqlite3.Connection) -> None:
    """Let a connection see the triggers that another one has made.

    SQLite looks whether its schema is stale when it reads; a write whose old trigger names a dropped column
    is refused before that, again and again.
    """
    connection.execute("SELECT count(*) FROM sqlite_master").fetchone()


def _refused(path: str, cause: sqlite3.DatabaseError) -> FileRefused:
    if not Path(path).absolute().parent.is_dir():
        return FileRefused(f"the file {path} can't be opened: its directory does not exist")
    return FileRefused(f"the file {path} can't be used as an SQLite database: {cause}")
