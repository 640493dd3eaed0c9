"""Capture: three triggers per table turn what the app writes into one pending change per row.

Laws: a row the server never acknowledged stays INSERT under updates, and its deletion keeps a DELETE with a
fresh change id; a deletion is never cancelled, only turned into an INSERT by a new row; a new primary key is
DELETE of the old row and INSERT of the new one; `base_version` is what the server last acknowledged, whatever
the app does (also INSERT OR REPLACE). A DELETE carries the OLD row.
"""

import sqlite3
from collections.abc import Sequence

from upwell.device.file import NEXT_CHANGE_ID, NOW, SyncFile
from upwell.device.schema import (
    Tables,
    TableShape,
    key_expression,
    literal,
    payload_expression,
    quoted,
    read_shape,
)

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
            for shape in tables:
                self._install(shape)
            self._file.put("tables", "\n".join(sorted(wanted)))
            if wanted - known and self._file.cursor():
                # The log went by while the table wasn't here.
                self._file.restart_hydration()
        self.tables = tables
        self._schema_version = self._read_schema_version()

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
                    queue_vanished(connection, shape)

    def _known(self) -> set[str]:
        """Tables registered before; one that the app has dropped since is forgotten."""
        connection = self._file.connection
        present = {
            str(row[0])
            for row in connection.execute("SELECT lower(name) FROM sqlite_master WHERE type = 'table'")
        }
        known = set((self._file.find("tables") or "").split("\n")) - {""}
        for gone in known - present:
            connection.execute("DELETE FROM _sync_outbox WHERE table_name = ?", (gone,))
        return known & present

    def _read_schema_version(self) -> int:
        return int(self._file.connection.execute("PRAGMA schema_version").fetchone()[0])

    def _install(self, shape: TableShape) -> None:
        connection = self._file.connection
        stale = False
        for name, text in triggers(shape).items():
            found = connection.execute(
                "SELECT sql FROM sqlite_master WHERE type = 'trigger' AND name = ?", (name,)
            ).fetchone()
            if found is None or found[0] != text:
                connection.execute(f"DROP TRIGGER IF EXISTS {quoted(name)}")
                connection.execute(text)
                stale = True
        if stale:
            _requeue_payloads(connection, shape)
            queue_unknown(connection, shape)


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


def _from_meta(shape: TableShape, key: str, condition: str) -> str:
    return (
        "FROM (SELECT 1) LEFT JOIN _sync_row_meta AS meta"
        f" ON meta.table_name = {literal(shape.wire)} AND meta.pk_uuid = {key}\nWHERE {condition}\n"
    )


def _queue_row(shape: TableShape, old_row: str) -> list[str]:
    key, table = key_expression(shape, "NEW"), literal(shape.wire)
    is_synced = "meta.server_version > 0 AND meta.deleted = 0"
    queue = (
        _INTO_PENDING + f"SELECT {table}, {key}, CASE WHEN {is_synced} THEN 'UPDATE' ELSE 'INSERT' END,\n"
        f"COALESCE(meta.server_version, 0), {payload_expression(shape, 'NEW')}, {NEXT_CHANGE_ID}, {NOW},\n"
        f"CASE WHEN {is_synced} THEN {old_row} END\n"
        + _from_meta(shape, key, "true")
        + "ON CONFLICT (table_name, pk_uuid) DO UPDATE SET\n"
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
        + _from_meta(shape, key, condition)
        + "ON CONFLICT (table_name, pk_uuid) DO UPDATE SET op = 'DELETE',\n"
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
        _INTO_PENDING + f"SELECT {table}, {key}, 'INSERT', 0, {payload_expression(shape, 'present')},"
        f" {NEXT_CHANGE_ID} + row_number() OVER () - 1, {NOW}, NULL {missing}"
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
