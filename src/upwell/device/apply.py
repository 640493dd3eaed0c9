"""Apply: server rows in, without capturing them and without losing anything of the device.

Laws: versions only grow; a row with a pending change isn't touched, the server's waits in `_sync_withheld`;
rows are updated in place, absent columns stay, unknown ones are kept in `_sync_extra`; a row that the table
can't hold waits aside instead of stopping the rest; after a pass every reference has its parent.
"""

import enum
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from itertools import chain

from msgspec import Raw

from upwell.device.codec import (
    JsonObject,
    Undecodable,
    captured,
    decode_object,
    encode_json,
    is_uuid,
    key_from_wire,
    key_value,
    row_from_capture,
    row_from_wire,
    written_key,
)
from upwell.device.failures import FileRefused
from upwell.device.file import NEXT_CHANGE_ID, NOW, SyncFile
from upwell.device.schema import (
    Row,
    SqlValue,
    Tables,
    TableShape,
    key_expression,
    quoted,
)
from upwell.protocol.sync import DownloadChange, is_null

PENDING = "pending"
REVIVED = "revived"
"""Why a row is pending that the app didn't edit: the server deleted it, an unsent row refers to it."""
RETURNED = "returned"
"""Or: the server had it once, and came back from a backup without it, or with an older version."""

# Rows per statement: starting one costs more than a row, above all on a table with triggers.
STATEMENT_ROWS = 100

_MERGE_META = (
    " ON CONFLICT (table_name, pk_uuid) DO UPDATE SET"
    " server_version = max(server_version, excluded.server_version), deleted = excluded.deleted,"
    " hydration = max(hydration, excluded.hydration), updated_at = excluded.updated_at"
)


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
        """Apply one change of a download page."""
        shape = tables.find(change.table)
        if shape is None:
            return Outcome.FOREIGN
        payload = None if change.op == "DELETE" or is_null(change.payload) else _text(change.payload)
        row = (shape.wire, self.local_key(shape, change.pk, payload))
        return self.receive_row(tables, row, change.server_version, payload, hydration)

    def local_key(self, shape: TableShape, wire_key: str, payload: str | None) -> str:
        """Return a row's key here: an app's own form of a UUID stays, the wire has dashed lower case."""
        if shape.primary_key.is_blob:
            return key_from_wire(shape, wire_key)
        if payload is not None:
            return written_key(shape, wire_key, payload)
        if self.meta((shape.wire, wire_key))[0] or not is_uuid(wire_key):
            return wire_key
        found = self._connection.execute(
            "SELECT pk_uuid FROM _sync_row_meta"
            " WHERE table_name = ? AND lower(replace(pk_uuid, '-', '')) = ?",
            (shape.wire, wire_key.replace("-", "")),
        ).fetchone()
        return wire_key if found is None else str(found[0])

    def receive_row(
        self, tables: Tables, row: tuple[str, str], version: int, payload: str | None, hydration: int
    ) -> Outcome:
        """Apply a version of a row, unless it is known already or a local change waits."""
        known, was_hydration = self.meta(row)
        if version <= known:
            if was_hydration < hydration:
                self._connection.execute(
                    "UPDATE _sync_row_meta SET hydration = ? WHERE table_name = ? AND pk_uuid = ?",
                    (hydration, *row),
                )
            return Outcome.KNOWN
        if self._is_pending(row):
            self.withhold(row, version, payload, PENDING)
            return Outcome.WITHHELD
        if version < -was_hydration and self._give_back(tables, row, payload):
            self.withhold(row, version, payload, PENDING)
            return Outcome.WITHHELD
        return self.write(tables, row, version, payload, hydration)

    def _give_back(self, tables: Tables, row: tuple[str, str], payload: str | None) -> bool:
        """Queue what a lost history had of a row, for the app's rule decides; False if it is no news."""
        shape = tables.get(row[0])
        local = captured(self._connection, shape, row[1])
        try:
            found = None if payload is None else row_from_wire(shape, row[1], payload)[0]
        except Undecodable:
            return False
        if row_from_capture(shape, local) == found:
            return False
        self._connection.execute(
            "INSERT INTO _sync_pending (table_name, pk_uuid, op, base_version, payload, reason, change_id)"
            f" VALUES (?, ?, ?, 0, ?, ?, {NEXT_CHANGE_ID})",
            (*row, "DELETE" if local is None else "INSERT", local, RETURNED),
        )
        self._file.take_change_id()
        return True

    def write(
        self, tables: Tables, row: tuple[str, str], version: int, payload: str | None, hydration: int = 0
    ) -> Outcome:
        """Make the row what the server has: `payload` in wire form, None for deleted."""
        shape = tables.get(row[0])
        if payload is None:
            if self._is_needed_by_unsent(tables, shape, row[1]):
                self._revive(shape, row, version)
                return Outcome.WITHHELD
            self.delete(shape, row)
        else:
            try:
                self._upsert(shape, row, payload)
            except (sqlite3.IntegrityError, OverflowError, Undecodable) as cause:
                self._refuse_rolled_back(shape, cause)
                self.withhold(row, version, payload, str(cause))
                return Outcome.WITHHELD
        self.set_meta(row, version, is_deleted=payload is None, hydration=hydration)
        return Outcome.APPLIED

    def _refuse_rolled_back(self, shape: TableShape, cause: Exception) -> None:
        """Stop when a trigger of the app has ended the transaction that stores the answer."""
        if not self._connection.in_transaction:
            raise FileRefused(
                f"a trigger on table {shape.name!r} rolled the sync back ({cause}): let it RAISE(ABORT),"
                " or not fire while (SELECT apply_mode FROM _sync_client_info) = 1"
            ) from cause

    def meta(self, row: tuple[str, str]) -> tuple[int, int]:
        """(version, number of the hydration that last saw the row); zeros if it is unknown.

        A row of a lost history has the version that it had there instead of that number: negative.
        """
        found = self._connection.execute(
            "SELECT server_version, hydration FROM _sync_row_meta WHERE table_name = ? AND pk_uuid = ?", row
        ).fetchone()
        return (0, 0) if found is None else (found[0], found[1])

    def set_meta(self, row: tuple[str, str], version: int, *, is_deleted: bool, hydration: int = 0) -> None:
        """Note what the server has; the version never goes down."""
        self._connection.execute(
            "INSERT INTO _sync_row_meta (table_name, pk_uuid, server_version, deleted, hydration)"
            " VALUES (?, ?, ?, ?, ?)" + _MERGE_META,
            (*row, version, is_deleted, hydration),
        )

    def set_live(
        self, shape: TableShape, keys: Sequence[str], versions: Sequence[int], hydration: int
    ) -> None:
        """Note that the server has these live rows of a table."""
        now = self._connection.execute(f"SELECT {NOW}").fetchone()[0]
        for start in range(0, len(keys), STATEMENT_ROWS):
            some = keys[start : start + STATEMENT_ROWS]
            pairs = zip(some, versions[start : start + STATEMENT_ROWS], strict=True)
            self._connection.execute(
                _live_statement(len(some)), (shape.wire, hydration, now, *chain.from_iterable(pairs))
            )

    def upsert_rows(
        self, shape: TableShape, columns: Sequence[str], rows: Sequence[Sequence[SqlValue]]
    ) -> None:
        """Write many rows (rows × columns) that nothing speaks against; raise what the table refuses."""
        values_max = self._connection.getlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER)
        step = max(1, min(STATEMENT_ROWS, values_max // len(columns)))
        for start in range(0, len(rows), step):
            some = rows[start : start + step]
            self._connection.execute(
                _upsert_statement(shape, columns, row_count=len(some)), tuple(chain.from_iterable(some))
            )

    def keep_extras(self, shape: TableShape, extras: Mapping[str, JsonObject]) -> None:
        """Keep aside what a table has no column for, by key."""
        self._connection.executemany(
            "INSERT OR REPLACE INTO _sync_extra VALUES (?, ?, ?)",
            [(shape.wire, key, encode_json(extra).decode()) for key, extra in extras.items()],
        )

    def drop_extras(self, shape: TableShape, keys: Iterable[str]) -> None:
        """Forget what was kept aside of these rows of a table."""
        self._connection.executemany(
            "DELETE FROM _sync_extra WHERE table_name = ? AND pk_uuid = ?",
            [(shape.wire, key) for key in keys],
        )

    def await_deletion(self, row: tuple[str, str], version: int) -> None:
        """The server has deleted the row as `version`: to be settled with all that waits."""
        if version > self.meta(row)[0]:
            self.withhold(row, version, None, PENDING)

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

    def has_unknown(self, shape: TableShape) -> bool:
        """Tell whether the table has a row that the server never acknowledged."""
        found = self._connection.execute(
            f"SELECT EXISTS (SELECT 1 FROM {quoted(shape.name)} AS present WHERE NOT EXISTS"
            " (SELECT 1 FROM _sync_row_meta AS m WHERE m.table_name = ? AND m.server_version > 0"
            f" AND m.pk_uuid = {key_expression(shape, 'present')}))",
            (shape.wire,),
        )
        return bool(found.fetchone()[0])

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
            self.delete(shape, row)
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
        if extra:
            self.keep_extras(shape, {row[1]: extra})
        else:
            self.drop_extras(shape, [row[1]])

    def _update(self, shape: TableShape, values: Row) -> bool:
        # In place, because an insert would fail on absent NOT NULL columns before it met the row.
        names = [name for name in values if name != shape.primary_key.name]
        changes = ", ".join(f"{quoted(name)} = ?" for name in names or [shape.primary_key.name])
        key = values[shape.primary_key.name]
        parameters = [values[name] for name in names] or [key]
        done = self._connection.execute(
            f"UPDATE OR ABORT {quoted(shape.name)} SET {changes} WHERE {quoted(shape.primary_key.name)} = ?",
            (*parameters, key),
        )
        return done.rowcount > 0

    def _insert(self, shape: TableShape, values: Row) -> None:
        self._connection.execute(_upsert_statement(shape, values), tuple(values.values()))

    def delete(self, shape: TableShape, row: tuple[str, str]) -> None:
        """Take a row out of its table."""
        self._connection.execute(
            f"DELETE FROM {quoted(shape.name)} WHERE {quoted(shape.primary_key.name)} = ?",
            (key_value(shape, row[1]),),
        )
        self.drop_extras(shape, [row[1]])

    def _is_pending(self, row: tuple[str, str]) -> bool:
        found = self._connection.execute(
            "SELECT 1 FROM _sync_pending WHERE table_name = ? AND pk_uuid = ?", row
        )
        return found.fetchone() is not None

    def withhold(self, row: tuple[str, str], version: int, payload: str | None, reason: str) -> None:
        """Keep a version of a row aside until it may go in."""
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
                f" ON {reference.join} JOIN _sync_pending AS p"
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
            "INSERT INTO _sync_pending (table_name, pk_uuid, op, base_version, payload, reason, change_id)"
            f" VALUES (?, ?, 'INSERT', ?, ?, ?, {NEXT_CHANGE_ID})"
            " ON CONFLICT (table_name, pk_uuid) DO UPDATE SET op = 'INSERT',"
            " base_version = excluded.base_version, payload = excluded.payload, base_payload = NULL,"
            " change_id = excluded.change_id",
            (*row, version, payload, REVIVED),
        )
        self._file.take_change_id()


def _upsert_statement(shape: TableShape, columns: Iterable[str], row_count: int = 1) -> str:
    """SQL that writes rows, given the values of `columns` (with the key), in place where they are there."""
    key = quoted(shape.primary_key.name)
    names = [quoted(name) for name in columns]
    changes = ", ".join(f"{name} = excluded.{name}" for name in names if name != key)
    rows = ", ".join([f"({', '.join('?' * len(names))})"] * row_count)
    return (
        f"INSERT OR ABORT INTO {quoted(shape.name)} ({', '.join(names)}) VALUES {rows}"
        f" ON CONFLICT ({key}) DO " + (f"UPDATE SET {changes}" if changes else "NOTHING")
    )


@cache
def _live_statement(row_count: int) -> str:
    rows = (f"(?1, ?{4 + 2 * index}, ?{5 + 2 * index}, 0, ?2, ?3)" for index in range(row_count))
    return (
        "INSERT INTO _sync_row_meta (table_name, pk_uuid, server_version, deleted, hydration, updated_at)"
        f" VALUES {', '.join(rows)}{_MERGE_META}"
    )


def _text(payload: Raw) -> str:
    return bytes(payload).decode()
