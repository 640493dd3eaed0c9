"""The SQLite file of the stock client: its three tables, its triggers, its codecs. See `stock`.

Law: as the contract describes them, weaknesses included: nothing here is to be repaired.
"""

import base64
import binascii
import json
import sqlite3
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

Json = dict[str, Any]

EXACT_INTEGER_BELOW = 1e21  # Go's encoder writes larger doubles with an exponent
NOW = "strftime('%Y-%m-%dT%H:%M:%fZ', 'now')"
METADATA = f"""
CREATE TABLE IF NOT EXISTS _sync_client_info (
    user_id TEXT PRIMARY KEY, source_id TEXT NOT NULL, next_change_id INTEGER NOT NULL DEFAULT 1,
    last_server_seq_seen INTEGER NOT NULL DEFAULT 0, apply_mode INTEGER NOT NULL DEFAULT 0,
    current_window_until INTEGER NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS _sync_row_meta (
    table_name TEXT NOT NULL, pk_uuid TEXT NOT NULL, server_version INTEGER NOT NULL DEFAULT 0,
    deleted INTEGER NOT NULL DEFAULT 0, updated_at TEXT NOT NULL DEFAULT ({NOW}),
    PRIMARY KEY (table_name, pk_uuid));
CREATE TABLE IF NOT EXISTS _sync_pending (
    table_name TEXT NOT NULL, pk_uuid TEXT NOT NULL,
    op TEXT NOT NULL CHECK (op IN ('INSERT', 'UPDATE', 'DELETE')),
    base_version INTEGER NOT NULL, payload TEXT, change_id INTEGER, queued_at TEXT NOT NULL DEFAULT ({NOW}),
    PRIMARY KEY (table_name, pk_uuid));
"""
TRIGGERS = """
CREATE TRIGGER IF NOT EXISTS trg_{t}_ai AFTER INSERT ON {t} WHEN {capturing} BEGIN
    INSERT OR IGNORE INTO _sync_row_meta (table_name, pk_uuid) VALUES ('{t}', {new});
    UPDATE _sync_row_meta SET deleted = 0, updated_at = {now} WHERE table_name = '{t}' AND pk_uuid = {new};
    INSERT INTO _sync_pending (table_name, pk_uuid, op, base_version, payload, change_id)
        SELECT '{t}', {new}, 'INSERT', 0, {payload}, {next_id} WHERE NOT {is_pending_new};
    UPDATE _sync_pending SET op = 'INSERT', base_version = {version_new}, payload = {payload},
        queued_at = {now} WHERE table_name = '{t}' AND pk_uuid = {new};
    {count};
END;
CREATE TRIGGER IF NOT EXISTS trg_{t}_au AFTER UPDATE ON {t} WHEN {capturing} BEGIN
    INSERT OR IGNORE INTO _sync_row_meta (table_name, pk_uuid) VALUES ('{t}', {new});
    UPDATE _sync_row_meta SET deleted = 0, updated_at = {now} WHERE table_name = '{t}' AND pk_uuid = {new};
    INSERT INTO _sync_pending (table_name, pk_uuid, op, base_version, payload, change_id)
        SELECT '{t}', {new}, 'UPDATE', {version_new}, {payload}, {next_id} WHERE NOT {is_pending_new};
    UPDATE _sync_pending SET op = iif(op = 'INSERT', op, 'UPDATE'),
        base_version = iif(op = 'INSERT', base_version, {version_new}), payload = {payload}, queued_at = {now}
        WHERE table_name = '{t}' AND pk_uuid = {new};
    {count};
END;
CREATE TRIGGER IF NOT EXISTS trg_{t}_ad AFTER DELETE ON {t} WHEN {capturing} BEGIN
    INSERT OR IGNORE INTO _sync_row_meta (table_name, pk_uuid) VALUES ('{t}', {old});
    INSERT INTO _sync_pending (table_name, pk_uuid, op, base_version, payload, change_id)
        SELECT '{t}', {old}, 'DELETE', {version_old}, NULL, {next_id} WHERE NOT {is_pending_old};
    UPDATE _sync_pending SET op = 'DELETE', base_version = {version_old}, payload = NULL, queued_at = {now}
        WHERE table_name = '{t}' AND pk_uuid = {old} AND op <> 'INSERT';
    {count};
    DELETE FROM _sync_pending WHERE table_name = '{t}' AND pk_uuid = {old} AND op = 'INSERT';
    UPDATE _sync_row_meta SET deleted = 1, updated_at = {now} WHERE table_name = '{t}' AND pk_uuid = {old};
    DELETE FROM _sync_row_meta WHERE table_name = '{t}' AND pk_uuid = {old} AND server_version = 0
        AND NOT {is_pending_old};
END;
"""
# Not where a deletion only cancels what was never sent.
COUNT = (
    "UPDATE _sync_client_info SET next_change_id = next_change_id + 1"
    " WHERE changes() > 0 AND last_insert_rowid() > 0"
)


class Undecodable(Exception):
    """Text for a BLOB column that is neither a UUID, base64 nor hex."""


@dataclass(frozen=True)
class Shape:
    """What the client knows of a table: its key, and which columns are BLOBs."""

    name: str
    key: str
    columns: tuple[str, ...]
    blobs: frozenset[str]

    @property
    def is_blob_key(self) -> bool:
        return self.key in self.blobs

    def wire_pk(self, pk: str) -> str:
        """A dashed UUID for a BLOB key, else the key as it is."""
        return str(uuid.UUID(pk)) if self.is_blob_key else pk

    def local_pk(self, pk: str) -> str:
        """The form in which `_sync_pending` and `_sync_row_meta` have a key of the wire."""
        return uuid.UUID(pk).hex if self.is_blob_key else pk

    def bound_pk(self, pk: str) -> str | bytes:
        """The local form as the table's own column has it."""
        return bytes.fromhex(pk) if self.is_blob_key else pk

    def to_wire(self, name: str, value: Any) -> Any:
        """A value of a captured payload, in which BLOBs are hex, as it is sent."""
        if name not in self.blobs or not isinstance(value, str):
            return value
        return self.wire_pk(value) if name == self.key else base64.b64encode(bytes.fromhex(value)).decode()

    def from_wire(self, name: str, value: Any) -> Any:
        """The value to bind: numbers are doubles; text for a BLOB is whatever it looks like first."""
        if isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if name.lower() not in self.blobs or not isinstance(value, str):
            return value
        for decode in (_uuid_bytes, _exact_base64, bytes.fromhex):
            try:
                return decode(value)
            except ValueError:
                continue
        raise Undecodable(f"column {name!r} can't hold {value!r}")


@dataclass(frozen=True)
class Pending:
    """A row of `_sync_pending`."""

    table: str
    pk: str
    op: str
    base_version: int
    payload: str | None
    change_id: int | None


class StockFile:
    """One SQLite file with one connection, which app and client share."""

    def __init__(self, path: Path, ddl: str, tables: Sequence[str]) -> None:
        self.db = sqlite3.connect(path, isolation_level=None)
        self.db.executescript(f"PRAGMA journal_mode = WAL; PRAGMA foreign_keys = ON; {ddl}; {METADATA}")
        self.run("UPDATE _sync_client_info SET apply_mode = 0")
        self.shapes = {name: self._shape(name) for name in tables}
        for shape in self.shapes.values():
            self.db.executescript(_triggers(shape))

    def run(self, sql: str, *parameters: object) -> list[Any]:
        """Run one statement."""
        return self.db.execute(sql, parameters).fetchall()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing of what is run inside."""
        self.run("BEGIN IMMEDIATE")
        try:
            yield
            self.run("COMMIT")
        except BaseException:
            self.run("ROLLBACK")
            raise

    def info(self, column: str) -> int:
        """A number of the client's row, whoever's it is."""
        rows = self.run(f"SELECT {column} FROM _sync_client_info LIMIT 1")
        assert rows, "sign in first"
        return int(rows[0][0])

    def pending(self, limit: int = -1) -> list[Pending]:
        """What waits, in the order in which it will be sent."""
        columns = "table_name, pk_uuid, op, base_version, payload, change_id"
        order = "ORDER BY queued_at LIMIT ?"
        return [Pending(*row) for row in self.run(f"SELECT {columns} FROM _sync_pending {order}", limit)]

    def drop(self, table: str, pk: str) -> None:
        """Forget what waits for a row."""
        self.run("DELETE FROM _sync_pending WHERE table_name = ? AND pk_uuid = ?", table, pk)

    def meta(self, table: str, pk: str) -> tuple[int, bool]:
        """(server version, is deleted) of a row; (0, False) for an unknown one."""
        where = "table_name = ? AND pk_uuid = ?"
        rows = self.run(f"SELECT server_version, deleted FROM _sync_row_meta WHERE {where}", table, pk)
        return (rows[0][0], bool(rows[0][1])) if rows else (0, False)

    def set_meta(self, table: str, pk: str, version: int, *, is_deleted: bool) -> None:
        """Remember what the server has."""
        columns = "table_name, pk_uuid, server_version, deleted"
        insert = f"INSERT OR REPLACE INTO _sync_row_meta ({columns}) VALUES (?, ?, ?, ?)"
        self.run(insert, table, pk, version, int(is_deleted))

    def row(self, shape: Shape, pk: str) -> Json | None:
        """The live row in the form of a captured payload."""
        select = f'SELECT {_payload(shape, "t")} FROM "{shape.name}" AS t WHERE "{shape.key}" = ?'
        rows = self.run(select, shape.bound_pk(pk))
        return decode_row(rows[0][0]) if rows else None

    def replace(self, shape: Shape, payload: Mapping[str, Any]) -> None:
        """Write a payload of the wire: every key is a column, and the row is replaced."""
        names = ", ".join(f'"{name.lower()}"' for name in payload)
        marks = ", ".join("?" * len(payload))
        values = [shape.from_wire(name, value) for name, value in payload.items()]
        self.run(f'INSERT OR REPLACE INTO "{shape.name}" ({names}) VALUES ({marks})', *values)

    def delete(self, shape: Shape, pk: str) -> None:
        """Delete a row of the app."""
        self.run(f'DELETE FROM "{shape.name}" WHERE "{shape.key}" = ?', shape.bound_pk(pk))

    def _shape(self, table: str) -> Shape:
        columns = self.run(f'PRAGMA table_info("{table}")')
        (key,) = [name.lower() for _, name, _, _, _, place in columns if place] or ["id"]
        blobs = frozenset(name.lower() for _, name, kind, *_ in columns if "blob" in kind.lower())
        return Shape(table, key, tuple(column[1].lower() for column in columns), blobs)


def decode_row(text: str) -> Json:
    """Read a payload as Go does into a map: every number is a double."""
    found: Json = json.loads(text, parse_int=float)
    return found


def encode(value: object) -> str:
    """Write JSON as Go does from a map: keys in order, doubles in their shortest form."""
    return json.dumps(_go_numbers(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _go_numbers(value: Any) -> Any:
    match value:
        case dict():
            return {name: _go_numbers(item) for name, item in value.items()}
        case list():
            return [_go_numbers(item) for item in value]
        case float() if value.is_integer() and abs(value) < EXACT_INTEGER_BELOW:
            return int(Decimal(repr(value)))
        case _:
            return value


def _triggers(shape: Shape) -> str:
    key = "lower(hex({}.{}))" if shape.is_blob_key else "{}.{}"
    new, old = (key.format(row, shape.key) for row in ("NEW", "OLD"))
    of_row = f"table_name = '{shape.name}' AND pk_uuid = "
    pending = f"EXISTS (SELECT 1 FROM _sync_pending WHERE {of_row}{{}})"
    version = f"(SELECT server_version FROM _sync_row_meta WHERE {of_row}{{}})"
    return TRIGGERS.format(
        t=shape.name,
        new=new,
        old=old,
        is_pending_new=pending.format(new),
        is_pending_old=pending.format(old),
        version_new=version.format(new),
        version_old=version.format(old),
        payload=_payload(shape, "NEW"),
        now=NOW,
        next_id="(SELECT next_change_id FROM _sync_client_info LIMIT 1)",
        count=COUNT,
        capturing="COALESCE((SELECT apply_mode FROM _sync_client_info LIMIT 1), 0) = 0",
    )


def _payload(shape: Shape, row: str) -> str:
    values = (
        f"'{name}', " + (f'lower(hex({row}."{name}"))' if name in shape.blobs else f'{row}."{name}"')
        for name in shape.columns
    )
    return f"json_object({', '.join(values)})"


def _uuid_bytes(text: str) -> bytes:
    return uuid.UUID(text).bytes


def _exact_base64(text: str) -> bytes:
    found = base64.b64decode(text, validate=True)
    if base64.b64encode(found).decode() != text:
        raise binascii.Error("not canonical")
    return found
