"""Apply: server rows in, without capturing them and without losing anything of the device.

Laws: versions only grow; a row with a pending change isn't touched, the server's waits in `_sync_withheld`;
rows are updated in place, absent columns stay, unknown ones are kept in `_sync_extra`; a row that the table
can't hold waits aside instead of stopping the rest; after a pass every reference has its parent.
"""

import enum
import sqlite3

from msgspec import Raw

from upwell.device.codec import (
    JsonObject,
    Undecodable,
    captured,
    decode_object,
    encode_json,
    key_from_wire,
    key_value,
    payload_to_wire,
    row_from_wire,
)
from upwell.device.file import NEXT_CHANGE_ID, SyncFile
from upwell.device.schema import (
    Reference,
    Row,
    Tables,
    TableShape,
    key_expression,
    quoted,
)
from upwell.protocol.sync import DownloadChange, is_null

PENDING = "pending"
PARENT_MISSING = "parent missing"


class Outcome(enum.Enum):
    """What became of a server row."""

    APPLIED = "applied"
    KNOWN = "known"
    WITHHELD = "withheld"
    FOREIGN = "foreign"


class Applier:
    """Writes server rows, inside the caller's `applying` transaction."""

    def __init__(self, file: SyncFile) -> None:
        self._file = file
        self._connection = file.connection

    def receive(self, tables: Tables, change: DownloadChange, hydration: int) -> Outcome:
        """Apply one change of a download or hydration page."""
        shape = tables.find(change.table)
        if shape is None:
            return Outcome.FOREIGN
        row = (shape.wire, key_from_wire(shape, change.pk))
        known, was_hydration = self.meta(row)
        if change.server_version <= known:
            if was_hydration < hydration:
                self._connection.execute(
                    "UPDATE _sync_row_meta SET hydration = ? WHERE table_name = ? AND pk_uuid = ?",
                    (hydration, *row),
                )
            return Outcome.KNOWN
        payload = None if change.op == "DELETE" or is_null(change.payload) else _text(change.payload)
        if self._is_pending(row):
            self._withhold(row, change.server_version, payload, PENDING)
            return Outcome.WITHHELD
        return self.write(tables, row, change.server_version, payload, hydration)

    def write(
        self, tables: Tables, row: tuple[str, str], version: int, payload: str | None, hydration: int = 0
    ) -> Outcome:
        """Make the row what the server has: `payload` in wire form, None for deleted."""
        shape = tables.get(row[0])
        if payload is None:
            if self._is_needed_by_unsent(tables, shape, row[1]):
                self._revive(shape, row, version)
                return Outcome.WITHHELD
            self._delete(shape, row)
        else:
            try:
                self._upsert(shape, row, payload)
            except (sqlite3.IntegrityError, OverflowError, Undecodable) as cause:
                self._withhold(row, version, payload, str(cause))
                return Outcome.WITHHELD
        self.set_meta(row, version, is_deleted=payload is None, hydration=hydration)
        return Outcome.APPLIED

    def meta(self, row: tuple[str, str]) -> tuple[int, int]:
        """(version, number of the hydration that last saw the row); zeros if it is unknown."""
        found = self._connection.execute(
            "SELECT server_version, hydration FROM _sync_row_meta WHERE table_name = ? AND pk_uuid = ?", row
        ).fetchone()
        return (0, 0) if found is None else (found[0], found[1])

    def set_meta(self, row: tuple[str, str], version: int, *, is_deleted: bool, hydration: int = 0) -> None:
        """Note what the server has; the version never goes down."""
        self._connection.execute(
            "INSERT INTO _sync_row_meta (table_name, pk_uuid, server_version, deleted, hydration)"
            " VALUES (?, ?, ?, ?, ?) ON CONFLICT (table_name, pk_uuid) DO UPDATE SET"
            " server_version = max(server_version, excluded.server_version), deleted = excluded.deleted,"
            " hydration = max(hydration, excluded.hydration), updated_at = excluded.updated_at",
            (*row, version, is_deleted, hydration),
        )

    def settle_withheld(self, tables: Tables) -> int:
        """Apply what waits aside and may go in now; return how many rows went in."""
        waiting = self._connection.execute(
            "SELECT table_name, pk_uuid, server_version, payload FROM _sync_withheld AS w WHERE NOT EXISTS"
            " (SELECT 1 FROM _sync_pending AS p WHERE p.table_name = w.table_name AND p.pk_uuid = w.pk_uuid)"
        ).fetchall()
        applied = 0
        for table, key, version, payload in waiting:
            row = (table, key)
            if tables.find(table) is None:
                continue
            self._connection.execute("DELETE FROM _sync_withheld WHERE table_name = ? AND pk_uuid = ?", row)
            if version > self.meta(row)[0]:
                applied += self.write(tables, row, version, payload) is Outcome.APPLIED
        return applied

    def set_orphans_aside(self, tables: Tables) -> int:
        """Move rows whose parent isn't here into `_sync_withheld`, until none is left; return how many."""
        moved = 0
        while found := {
            (s.wire, key): s for s in tables for r in s.references for key in self._orphans(s, r)
        }:
            for (_, key), shape in found.items():
                self._set_aside(shape, key)
            moved += len(found)
        return moved

    def drop_unseen(self, tables: Tables, hydration: int) -> int:
        """After a hydration: delete acknowledged rows that the server doesn't have any more."""
        gone = self._connection.execute(
            "SELECT table_name, pk_uuid, server_version FROM _sync_row_meta AS m"
            " WHERE server_version > 0 AND deleted = 0 AND hydration < ?"
            " AND NOT EXISTS (SELECT 1 FROM _sync_pending AS p"
            " WHERE p.table_name = m.table_name AND p.pk_uuid = m.pk_uuid)"
            " AND NOT EXISTS (SELECT 1 FROM _sync_withheld AS w"
            " WHERE w.table_name = m.table_name AND w.pk_uuid = m.pk_uuid)",
            (hydration,),
        ).fetchall()
        registered = [entry for entry in gone if tables.find(entry[0])]
        for table, key, version in registered:
            self.write(tables, (table, key), version, None, hydration)
        return len(registered)

    def adopt_extra(self, tables: Tables) -> None:
        """Columns that the app has added since: fill them with what was kept aside."""
        rows = self._connection.execute("SELECT table_name, pk_uuid, payload FROM _sync_extra").fetchall()
        for table, key, payload in rows:
            shape = tables.find(table)
            if shape is not None and any(shape.column(wire.lower()) for wire in decode_object(payload)):
                self._upsert(shape, (table, key), payload)

    def overlay(self, tables: Tables, row: tuple[str, str], values: Row | None) -> None:
        """Write what a conflict was merged to over the server's row; None deletes it."""
        shape = tables.get(row[0])
        if values is None:
            self._delete(shape, row)
        else:
            values = {**values, shape.primary_key.name: key_value(shape, row[1])}
            if not self._update(shape, values):
                self._insert(shape, values)

    def _upsert(self, shape: TableShape, row: tuple[str, str], payload: str) -> None:
        values, extra = row_from_wire(shape, row[1], payload)
        if len(values) < len(shape.columns) and self._update(shape, values):
            pass
        else:
            self._insert(shape, values)
        self._keep_extra(row, extra)

    def _update(self, shape: TableShape, values: Row) -> bool:
        # In place, because an insert would fail on absent NOT NULL columns before it met the row.
        names = [name for name in values if name != shape.primary_key.name]
        changes = ", ".join(f"{quoted(name)} = ?" for name in names or [shape.primary_key.name])
        key = values[shape.primary_key.name]
        parameters = [values[name] for name in names] or [key]
        done = self._connection.execute(
            f"UPDATE {quoted(shape.name)} SET {changes} WHERE {quoted(shape.primary_key.name)} = ?",
            (*parameters, key),
        )
        return done.rowcount > 0

    def _insert(self, shape: TableShape, values: Row) -> None:
        key = quoted(shape.primary_key.name)
        names = [quoted(name) for name in values]
        changes = ", ".join(f"{name} = excluded.{name}" for name in names if name != key)
        self._connection.execute(
            f"INSERT INTO {quoted(shape.name)} ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"
            f" ON CONFLICT ({key}) DO " + (f"UPDATE SET {changes}" if changes else "NOTHING"),
            tuple(values.values()),
        )

    def _delete(self, shape: TableShape, row: tuple[str, str]) -> None:
        self._connection.execute(
            f"DELETE FROM {quoted(shape.name)} WHERE {quoted(shape.primary_key.name)} = ?",
            (key_value(shape, row[1]),),
        )
        self._keep_extra(row, {})

    def _keep_extra(self, row: tuple[str, str], extra: JsonObject) -> None:
        if extra:
            kept = (*row, encode_json(extra).decode())
            self._connection.execute("INSERT OR REPLACE INTO _sync_extra VALUES (?, ?, ?)", kept)
        else:
            self._connection.execute("DELETE FROM _sync_extra WHERE table_name = ? AND pk_uuid = ?", row)

    def _is_pending(self, row: tuple[str, str]) -> bool:
        found = self._connection.execute(
            "SELECT 1 FROM _sync_pending WHERE table_name = ? AND pk_uuid = ?", row
        )
        return found.fetchone() is not None

    def _withhold(self, row: tuple[str, str], version: int, payload: str | None, reason: str) -> None:
        self._connection.execute(
            "INSERT INTO _sync_withheld VALUES (?, ?, ?, ?, ?)"
            " ON CONFLICT (table_name, pk_uuid) DO UPDATE SET server_version = excluded.server_version,"
            " payload = excluded.payload, reason = excluded.reason"
            " WHERE excluded.server_version >= server_version",
            (*row, version, payload, reason),
        )

    def _is_needed_by_unsent(self, tables: Tables, parent: TableShape, key: str) -> bool:
        return any(
            self._connection.execute(
                f"SELECT 1 FROM {quoted(child.name)} AS child JOIN {quoted(parent.name)} AS parent"
                f" ON {_matches(reference)} JOIN _sync_pending AS p"
                f" ON p.table_name = ? AND p.pk_uuid = {key_expression(child, 'child')} AND p.op <> 'DELETE'"
                f" WHERE parent.{quoted(parent.primary_key.name)} = ?"
                " AND NOT (p.table_name = ? AND p.pk_uuid = ?)",
                (child.wire, key_value(parent, key), parent.wire, key),
            ).fetchone()
            for child, reference in tables.references_to(parent.wire)
        )

    def _revive(self, shape: TableShape, row: tuple[str, str], version: int) -> None:
        # The server deleted a row that an unsent row of this device refers to: the unsent edit wins.
        self.set_meta(row, version, is_deleted=False)
        payload = captured(self._connection, shape, row[1])
        self._connection.execute(
            "INSERT INTO _sync_pending (table_name, pk_uuid, op, base_version, payload, change_id)"
            f" VALUES (?, ?, 'INSERT', ?, ?, {NEXT_CHANGE_ID})"
            " ON CONFLICT (table_name, pk_uuid) DO UPDATE SET op = 'INSERT',"
            " base_version = excluded.base_version, payload = excluded.payload, base_payload = NULL,"
            " change_id = excluded.change_id",
            (*row, version, payload),
        )
        self._file.take_change_id()

    def _orphans(self, shape: TableShape, reference: Reference) -> list[str]:
        present = " AND ".join(f"child.{quoted(name)} IS NOT NULL" for name in reference.columns)
        key = key_expression(shape, "child")
        rows = self._connection.execute(
            f"SELECT {key} FROM {quoted(shape.name)} AS child WHERE {present}"
            f" AND NOT EXISTS (SELECT 1 FROM {quoted(reference.parent)} AS parent"
            f" WHERE {_matches(reference)})"
            f" AND {key} NOT IN (SELECT pk_uuid FROM _sync_pending WHERE table_name = ?)",
            (shape.wire,),
        )
        return [row[0] for row in rows]

    def _set_aside(self, shape: TableShape, key: str) -> None:
        row = (shape.wire, key)
        payload = captured(self._connection, shape, key)
        assert payload is not None, "an orphan was just read"
        wire = payload_to_wire(shape, payload, self._extra_of(row)).decode()
        self._withhold(row, self.meta(row)[0], wire, PARENT_MISSING)
        self._delete(shape, row)
        self._connection.execute("DELETE FROM _sync_row_meta WHERE table_name = ? AND pk_uuid = ?", row)

    def _extra_of(self, row: tuple[str, str]) -> JsonObject:
        found = self._connection.execute(
            "SELECT payload FROM _sync_extra WHERE table_name = ? AND pk_uuid = ?", row
        ).fetchone()
        return {} if found is None else decode_object(found[0])


def _matches(reference: Reference) -> str:
    pairs = zip(reference.parent_columns, reference.columns, strict=True)
    return " AND ".join(f"parent.{quoted(to)} = child.{quoted(column)}" for to, column in pairs)


def _text(payload: Raw) -> str:
    return bytes(payload).decode()
