"""Load: a page of live rows into the app's table, many rows a statement.

Law: the file ends up exactly as if `Applier.receive` had got the rows one by one. Where one statement for
all can't keep that (a pending change, a value that the table can't hold), they do go one by one.
"""

import sqlite3
from collections.abc import Collection, Iterator, Sequence
from itertools import groupby
from typing import TypeAlias

from upwell.device.apply import Applier
from upwell.device.codec import (
    Json,
    JsonObject,
    Undecodable,
    encode_json,
    key_value,
    keys_from_wire,
    row_from_wire,
    values_from_wire,
)
from upwell.device.failures import AnswerRefused
from upwell.device.file import SyncFile
from upwell.device.schema import SqlValue, Tables, TableShape
from upwell.protocol.sync import TablePage

_Batch: TypeAlias = tuple[tuple[str, ...], Sequence[Sequence[SqlValue]], dict[str, JsonObject]]
"""Column names, rows of their values, and by key what the table has no column for."""


class Loader:
    """Writes pages of live rows, inside the caller's `applying` transaction."""

    def __init__(self, file: SyncFile, applier: Applier) -> None:
        self._connection = file.connection
        self._applier = applier

    def load(self, tables: Tables, page: TablePage, hydration: int) -> None:
        """Apply the rows of a page that `check_page` found well-formed."""
        shape = tables.find(page.table)
        if shape is None or not page.rows:
            return
        keys = self._keys(shape, page)
        self._connection.execute("SAVEPOINT page")
        try:
            alone = self._load_together(shape, page, keys, hydration)
        except (sqlite3.IntegrityError, OverflowError, Undecodable):
            self._connection.execute("ROLLBACK TO page")
            alone = range(len(keys))
        self._connection.execute("RELEASE page")
        for index in alone:
            row, payload = (shape.wire, keys[index]), _payload(page, index)
            self._applier.receive_row(tables, row, page.versions[index], payload, hydration)

    def _keys(self, shape: TableShape, page: TablePage) -> Sequence[str]:
        keys = list(keys_from_wire(shape, [row[0] for row in page.rows]))
        for index, payload in page.exact.items():
            keys[index] = self._applier.local_key(shape, page.rows[index][0], bytes(payload).decode())
        return keys

    def _load_together(
        self, shape: TableShape, page: TablePage, keys: Sequence[str], hydration: int
    ) -> Collection[int]:
        """Apply the rows that need no look at each; return the indexes of the others."""
        present = set(keys)
        if len(present) < len(keys):
            return range(len(keys))
        alone = self._not_fresh(shape, page, keys, present)
        fresh = [index for index in range(len(keys)) if index not in alone] if alone else range(len(keys))
        stale_extras = self._among("_sync_extra", shape, present)
        if stale_extras:
            stale_extras.intersection_update(keys[i] for i in fresh)
        for names, rows, extras in _batches(shape, page, keys, fresh):
            self._applier.upsert_rows(shape, names, rows)
            self._applier.keep_extras(shape, extras)
            stale_extras -= extras.keys()
        self._applier.drop_extras(shape, stale_extras)
        self._applier.set_live(shape, [keys[i] for i in fresh], [page.versions[i] for i in fresh], hydration)
        return sorted(alone)

    def _not_fresh(
        self, shape: TableShape, page: TablePage, keys: Sequence[str], present: set[str]
    ) -> set[int]:
        """Return the indexes of rows that are no news here, have a pending change or were lost once."""
        known = dict(self._among_with("_sync_row_meta", "server_version", shape, present))
        pending = self._among("_sync_pending", shape, present)
        if not known and not pending:
            return set()
        return {
            index
            for index, key in enumerate(keys)
            if key in pending or page.versions[index] <= known.get(key, 0) or known.get(key) == 0
        }

    def _among(self, table: str, shape: TableShape, keys: set[str]) -> set[str]:
        return {key for key, _ in self._among_with(table, "NULL", shape, keys)}

    def _among_with(
        self, table: str, column: str, shape: TableShape, keys: set[str]
    ) -> Iterator[tuple[str, int]]:
        # By range, because a page's keys lie together and a fresh file has nothing between them.
        found = self._connection.execute(
            f"SELECT pk_uuid, {column} FROM {table} WHERE table_name = ? AND pk_uuid BETWEEN ? AND ?",
            (shape.wire, min(keys), max(keys)),
        )
        return (entry for entry in found if entry[0] in keys)


def check_page(page: TablePage) -> None:
    """Raise `AnswerRefused` if the page isn't what the protocol says."""
    sizes = set(map(len, page.rows))
    is_whole = len(page.versions) == len(page.rows) and all(0 < size <= len(page.columns) for size in sizes)
    has_exact = all(0 <= index < len(page.rows) for index in page.exact)
    if not is_whole or not has_exact or not {type(row[0]) for row in page.rows} <= {str}:
        raise AnswerRefused(f"a page of table {page.table!r} has rows that don't fit its columns or versions")


def _payload(page: TablePage, index: int) -> str:
    if (exact := page.exact.get(index)) is not None:
        return bytes(exact).decode()
    return encode_json(dict(zip(page.columns, page.rows[index], strict=False))).decode()


def _batches(
    shape: TableShape, page: TablePage, keys: Sequence[str], fresh: Sequence[int]
) -> Iterator[_Batch]:
    plain = [index for index in fresh if index not in page.exact] if page.exact else fresh
    start = 0
    for length, run in groupby([page.rows[index] for index in plain], len):
        rows = list(run)
        run_keys = [keys[index] for index in plain[start : start + len(rows)]]
        start += len(rows)
        yield _batch(shape, page.columns[:length], run_keys, rows)
    if page.exact:
        yield from _exact_batches(shape, page, keys, fresh)


def _batch(
    shape: TableShape, columns: Sequence[str], keys: Sequence[str], rows: Sequence[Sequence[Json]]
) -> _Batch:
    values: dict[str, Sequence[SqlValue]] = {}
    unknown: dict[str, Sequence[Json]] = {}
    for wire, column_values in zip(columns, zip(*rows, strict=True), strict=True):
        column = shape.column(wire.lower())
        if column is None:
            unknown[wire] = column_values
        elif column is not shape.primary_key:
            values[column.name] = values_from_wire(column, column_values)
    values[shape.primary_key.name] = [key_value(shape, key) for key in keys]
    members = zip(*unknown.values(), strict=True)
    extras = {key: dict(zip(unknown, m, strict=True)) for key, m in zip(keys, members, strict=False)}
    return tuple(values), list(zip(*values.values(), strict=True)), extras


def _exact_batches(
    shape: TableShape, page: TablePage, keys: Sequence[str], fresh: Sequence[int]
) -> Iterator[_Batch]:
    batches: dict[tuple[str, ...], tuple[list[Sequence[SqlValue]], dict[str, JsonObject]]] = {}
    for index in fresh:
        if (payload := page.exact.get(index)) is not None:
            row, extra = row_from_wire(shape, keys[index], bytes(payload))
            rows, extras = batches.setdefault(tuple(row), ([], {}))
            rows.append(tuple(row.values()))
            if extra:
                extras[keys[index]] = extra
    for names, (rows, extras) in batches.items():
        yield names, rows, extras
