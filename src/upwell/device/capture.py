"""Capture: three triggers per table turn what the app writes into one pending change per row.

Laws: a row the server never acknowledged stays INSERT under updates, and its deletion keeps a DELETE with a
fresh change id; a deletion is never cancelled, only turned into an INSERT by a new row; a new primary key is
DELETE of the old row and INSERT of the new one; `base_version` is what the server last acknowledged, whatever
the app does (also INSERT OR REPLACE). A DELETE carries the OLD row.
"""

import sqlite3
from collections.abc import Sequence

from upwell.device.apply import RETURNED
from upwell.device.codec import row_from_capture
from upwell.device.failures import TableRefused
from upwell.device.file import NEXT_CHANGE_ID, NOW, SyncFile
from upwell.device.schema import (
    Row,
    Tables,
    TableShape,
    key_expression,
    literal,
    payload_expression,
    quoted,
    read_shape,
)

TABLE_GONE = "table_gone"

_BUMP = "UPDATE _sync_client_info SET next_change_id = next_change_id + 1"
_REFRESHED = (
    "payload = excluded.payload, queued_at = excluded.queued_at,"
    " attempts = 0, quarantined = 0, reason = NULL, detail = NULL"
)


class Capture:
    """Keeps the triggers in step with the tables, and remembers in the file which those are."""

    def __init__(self, file: SyncFile) -> None:
        self._file = file
        self._schema_version = -1
        self.tables = Tables(())

    def register(self, names: Sequence[str]) -> None:
        """Capture `names` too; rows that are already there are queued."""
        with self._file.applying() as connection:
            known = self._known()
            wanted = known | {name.lower() for name in names}
            tables = Tables(read_shape(connection, name) for name in sorted(wanted))
            is_behind = [self._install(shape) for shape in tables]
            self._file.put("tables", "\n".join(sorted(wanted)))
            if any(is_behind) or (wanted - known and self._file.cursor()):
                # The log went by while the table wasn't here.
                self._file.restart_hydration()
            schema_version = self._read_schema_version()
        self.tables = tables
        self._schema_version = schema_version

    def refresh(self) -> bool:
        """Rebuild what a change of the app's schema made stale; True if there was one."""
        if self._read_schema_version() == self._schema_version:
            return False
        self.register(())
        return True

    def sweep(self) -> None:
        """Queue rows that went away without firing a trigger: OR REPLACE on another unique column."""
        for shape in self.tables:
            if shape.has_other_unique:
                with self._file.applying() as connection:
                    # A table that was dropped just now has deleted nothing.
                    if self._read_schema_version() == self._schema_version:
                        queue_vanished(connection, shape)

    def _known(self) -> set[str]:
        """Tables registered before; one that the app has dropped or renamed since is forgotten."""
        connection = self._file.connection
        names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        present = {str(name).lower() for (name,) in names}
        known = set((self._file.find("tables") or "").split("\n")) - {""}
        for gone in known - present:
            _let_go(connection, gone)
        return known & present

    def _read_schema_version(self) -> int:
        return int(self._file.connection.execute("PRAGMA schema_version").fetchone()[0])

    def _install(self, shape: TableShape) -> bool:
        """Make the triggers what they should be; True if the server has rows that the table lost."""
        connection = self._file.connection
        wanted = triggers(shape)
        found = _installed(connection, shape)
        if {name: found.get(name) for name in wanted} == wanted and _are_last(connection, shape, wanted):
            return False
        if connection.execute(
            f"SELECT 1 FROM {quoted(shape.name)} WHERE {quoted(shape.primary_key.name)} IS NULL"
        ).fetchone():
            raise TableRefused(f"table {shape.name!r} has rows without a key: give them one")
        for name, text in wanted.items():
            connection.execute(f"DROP TRIGGER IF EXISTS {quoted(name)}")
            connection.execute(text)
        is_behind = not found.keys() & wanted.keys() and _take_back(connection, shape)
        _requeue_payloads(connection, shape)
        queue_unknown(connection, shape)
        return is_behind


def _installed(connection: sqlite3.Connection, shape: TableShape) -> dict[str, str]:
    found = connection.execute(
        "SELECT name, sql FROM sqlite_master WHERE type = 'trigger' AND tbl_name = ?", (shape.name,)
    )
    return dict(found.fetchall())


def _are_last(connection: sqlite3.Connection, shape: TableShape, wanted: dict[str, str]) -> bool:
    # The newest trigger fires first: before one of the app writes to the same row again.
    rows = connection.execute(
        "SELECT name FROM sqlite_master WHERE type = 'trigger' AND tbl_name = ? ORDER BY rowid DESC LIMIT ?",
        (shape.name, len(wanted)),
    )
    return {name for (name,) in rows} == wanted.keys()


def _let_go(connection: sqlite3.Connection, table: str) -> None:
    for suffix in ("ai", "au", "ad"):
        # A renamed table has taken them along.
        connection.execute(f"DROP TRIGGER IF EXISTS {quoted(f'trg_{table}_{suffix}')}")
    connection.execute("DELETE FROM _sync_outbox WHERE table_name = ?", (table,))
    connection.execute(
        "UPDATE _sync_pending SET quarantined = 1, reason = ?, detail = ? WHERE table_name = ?",
        (TABLE_GONE, "the app has dropped or renamed the table", table),
    )


def _take_back(connection: sqlite3.Connection, shape: TableShape) -> bool:
    """The app has made the table anew: what it had is no deletion, unsent edits go in again.

    Returns whether rows have to be fetched from the server again.
    """
    connection.execute(
        "UPDATE _sync_pending SET quarantined = 0, attempts = 0, reason = NULL, detail = NULL"
        " WHERE table_name = ? AND reason = ?",
        (shape.wire, TABLE_GONE),
    )
    absent = (
        f"pk_uuid NOT IN (SELECT {key_expression(shape, 'present')} FROM {quoted(shape.name)} AS present)"
    )
    unsent = connection.execute(
        f"SELECT payload FROM _sync_pending WHERE table_name = ? AND op <> 'DELETE' AND {absent}",
        (shape.wire,),
    ).fetchall()
    for (payload,) in unsent:
        _put_back(connection, shape, row_from_capture(shape, payload) or {})
    lost = connection.execute(
        "DELETE FROM _sync_row_meta"
        f" WHERE table_name = ? AND deleted = 0 AND server_version > 0 AND {absent}",
        (shape.wire,),
    )
    return lost.rowcount > 0


def _put_back(connection: sqlite3.Connection, shape: TableShape, row: Row) -> None:
    # The new table may refuse the old row, which then goes to the server and no further.
    connection.execute(
        f"INSERT OR IGNORE INTO {quoted(shape.name)} ({', '.join(map(quoted, row))})"
        f" VALUES ({', '.join('?' * len(row))})",
        tuple(row.values()),
    )


def triggers(shape: TableShape) -> dict[str, str]:
    """The three triggers of a table: name → CREATE TRIGGER."""
    same_key = f"{key_expression(shape, 'OLD')} IS {key_expression(shape, 'NEW')}"
    old_row = f"CASE WHEN {same_key} THEN {payload_expression(shape, 'OLD')} END"
    bodies = {
        "ai": ("INSERT", _queue_row(shape, "NULL")),
        "au": ("UPDATE", _queue_deletion(shape, f"NOT ({same_key})") + _queue_row(shape, old_row)),
        "ad": ("DELETE", _queue_deletion(shape, "true")),
    }
    return {
        f"trg_{shape.wire}_{suffix}": _trigger(shape, f"trg_{shape.wire}_{suffix}", event, body)
        for suffix, (event, body) in bodies.items()
    }


def _trigger(shape: TableShape, name: str, event: str, body: list[str]) -> str:
    return (
        f"CREATE TRIGGER {quoted(name)} AFTER {event} ON {quoted(shape.name)}\n"
        "WHEN COALESCE((SELECT apply_mode FROM _sync_client_info LIMIT 1), 0) = 0\n"
        "BEGIN\n" + "".join(f"{statement};\n" for statement in body) + "END"
    )


_INTO_PENDING = (
    "INSERT INTO _sync_pending"
    " (table_name, pk_uuid, op, base_version, payload, change_id, queued_at, base_payload)\n"
)


def _with_meta(shape: TableShape, key: str) -> str:
    table = literal(shape.wire)
    return f"LEFT JOIN _sync_row_meta AS meta ON meta.table_name = {table} AND meta.pk_uuid = {key}"


def _queue_row(shape: TableShape, old_row: str) -> list[str]:
    key, table, name = key_expression(shape, "NEW"), literal(shape.wire), quoted(shape.primary_key.name)
    is_synced = "meta.server_version > 0 AND meta.deleted = 0"
    # The row as it is now, because a trigger of the app may have written to it since.
    queue = (
        _INTO_PENDING + f"SELECT {table}, {key}, CASE WHEN {is_synced} THEN 'UPDATE' ELSE 'INSERT' END,\n"
        f"COALESCE(meta.server_version, 0), {payload_expression(shape, 'present')},\n"
        f"{NEXT_CHANGE_ID}, {NOW}, CASE WHEN {is_synced} THEN {old_row} END\n"
        f"FROM {quoted(shape.name)} AS present {_with_meta(shape, key)}\nWHERE present.{name} = NEW.{name}\n"
        "ON CONFLICT (table_name, pk_uuid) DO UPDATE SET\n"
        "op = CASE op WHEN 'DELETE' THEN 'INSERT' ELSE op END,\n"
        "change_id = CASE WHEN op = 'DELETE' AND base_version = 0 THEN excluded.change_id"
        " ELSE change_id END,\n" + _REFRESHED
    )
    return [queue, _mark(f"VALUES ({table}, {key}, 0)", is_deleted=False), _BUMP]


def _queue_deletion(shape: TableShape, condition: str) -> list[str]:
    key, table = key_expression(shape, "OLD"), literal(shape.wire)
    old_row = payload_expression(shape, "OLD")
    queue = (
        _INTO_PENDING + f"SELECT {table}, {key}, 'DELETE', COALESCE(meta.server_version, 0), {old_row},\n"
        f"{NEXT_CHANGE_ID}, {NOW}, CASE WHEN meta.server_version > 0 THEN {old_row} END\n"
        f"FROM (SELECT 1) {_with_meta(shape, key)}\nWHERE {condition}\n"
        "ON CONFLICT (table_name, pk_uuid) DO UPDATE SET op = 'DELETE',\n"
        "change_id = CASE WHEN op <> 'DELETE' AND base_version = 0 THEN excluded.change_id"
        " ELSE change_id END,\n" + _REFRESHED
    )
    mark = _mark(f"SELECT {table}, {key}, 1 WHERE {condition}", is_deleted=True)
    return [queue, mark, f"{_BUMP} WHERE {condition}"]


def _mark(values: str, *, is_deleted: bool) -> str:
    return (
        f"INSERT INTO _sync_row_meta (table_name, pk_uuid, deleted) {values}\n"
        f"ON CONFLICT (table_name, pk_uuid) DO UPDATE SET deleted = {int(is_deleted)}, updated_at = {NOW}"
    )


def queue_unknown(connection: sqlite3.Connection, shape: TableShape) -> None:
    """Queue as INSERT every row that the server never acknowledged and that isn't pending."""
    key, table = key_expression(shape, "present"), literal(shape.wire)
    missing = (
        f"FROM {quoted(shape.name)} AS present\n"
        f"WHERE {key} NOT IN (SELECT pk_uuid FROM _sync_pending WHERE table_name = {table})\n"
        f"AND {key} NOT IN (SELECT pk_uuid FROM _sync_row_meta"
        f" WHERE table_name = {table} AND server_version > 0)"
    )
    count = connection.execute(f"SELECT count(*) {missing}").fetchone()[0]
    connection.execute(
        _INTO_PENDING.replace("base_payload", "reason")
        + f"SELECT {table}, {key}, 'INSERT', 0, {payload_expression(shape, 'present')},"
        f" {NEXT_CHANGE_ID} + row_number() OVER () - 1, {NOW}, (SELECT '{RETURNED}' FROM _sync_row_meta"
        f" WHERE table_name = {table} AND pk_uuid = {key} AND hydration < 0) {missing}"
    )
    connection.execute(
        f"INSERT INTO _sync_row_meta (table_name, pk_uuid) SELECT table_name, pk_uuid FROM _sync_pending"
        f" WHERE table_name = {table} ON CONFLICT (table_name, pk_uuid) DO NOTHING"
    )
    connection.execute("UPDATE _sync_client_info SET next_change_id = next_change_id + ?", (count,))


def queue_vanished(connection: sqlite3.Connection, shape: TableShape) -> None:
    """Queue as DELETE every live row of the metadata that isn't in the table any more."""
    vanished = connection.execute(
        "SELECT pk_uuid FROM _sync_row_meta WHERE table_name = ? AND deleted = 0 AND pk_uuid NOT IN"
        f" (SELECT {key_expression(shape, 'present')} FROM {quoted(shape.name)} AS present)",
        (shape.wire,),
    ).fetchall()
    for (key,) in vanished:
        connection.execute(
            _INTO_PENDING
            + f"SELECT table_name, pk_uuid, 'DELETE', server_version, NULL, {NEXT_CHANGE_ID}, {NOW},"
            " NULL FROM _sync_row_meta WHERE table_name = ? AND pk_uuid = ?\n"
            "ON CONFLICT (table_name, pk_uuid) DO UPDATE SET op = 'DELETE', change_id = excluded.change_id,"
            " queued_at = excluded.queued_at, attempts = 0, quarantined = 0, reason = NULL, detail = NULL",
            (shape.wire, key),
        )
        connection.execute(
            "UPDATE _sync_row_meta SET deleted = 1 WHERE table_name = ? AND pk_uuid = ?", (shape.wire, key)
        )
        connection.execute(_BUMP)


def _requeue_payloads(connection: sqlite3.Connection, shape: TableShape) -> None:
    # Changes queued under the old triggers lack what was written to columns of the new shape.
    connection.execute(
        f"UPDATE _sync_pending SET payload = {payload_expression(shape, 'present')}"
        f" FROM {quoted(shape.name)} AS present WHERE table_name = ? AND op <> 'DELETE'"
        f" AND pk_uuid = {key_expression(shape, 'present')}",
        (shape.wire,),
    )
