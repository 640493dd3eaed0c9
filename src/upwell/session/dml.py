"""DML: what INSERT, UPDATE and DELETE do to rows, staged into one `Write`.

Law: a statement is evaluated on one state and staged as a whole; whatever is wrong with one row stops
the statement before anything is applied. `Foreign` says that only the query engine can evaluate it.
"""

from collections.abc import Container, Sequence
from functools import lru_cache
from typing import Protocol

import pyarrow as pa

from upwell.engine.catalog import Table
from upwell.engine.defaults import Defaults
from upwell.engine.expression import (
    Compiled,
    Context,
    Literal,
    Node,
    Parameter,
    compile_scalar,
    find_key,
)
from upwell.engine.payload import text_without
from upwell.engine.result import result_rows
from upwell.engine.write import Write
from upwell.errors import ConstraintViolation, InvalidOperation, InvalidSql
from upwell.sql.clause import excluded_name
from upwell.sql.statements import Delete, DirectRead, Insert, OnConflict, Scalar, Update
from upwell.storage.arrow import row_batch
from upwell.types import Column, Default, Key, Owner, Row, Value

_NUMBERS_ITSELF = Default("SNOWFLAKE_ID")
"""AUTO_INCREMENT, however it is said."""


class Inquiry(Protocol):
    """What an evaluation may ask about the state it is done on, what it has staged included."""

    def rows(
        self, text: str, values: Sequence[Value], given: pa.Table | None, *, is_stored: bool = True
    ) -> pa.Table:
        """Return the rows of a query text with `$n`; `given` is what the only table in it stands for.

        `is_stored`: an integer that doesn't fit is an error, not what is left of it.
        Raises `Foreign` where the query engine may not be used.
        """
        ...

    def find_keys(self, read: DirectRead, values: Sequence[Value]) -> list[Key] | None:
        """Return the keys of the rows that meet a condition; None if only a query can tell."""
        ...


class Foreign(Exception):
    """The statement needs the query engine, and so a worker thread."""


class Evaluation:
    """Stages one statement for `owner`."""

    def __init__(
        self,
        write: Write,
        owner: Owner,
        context: Context,
        defaults: Defaults,
        inquiry: Inquiry,
    ) -> None:
        self._write = write
        self._owner = owner
        self._values: Sequence[Value] = ()
        self.returned: list[Row] = []
        """The rows that came, changed or went, as RETURNING shows them."""
        self._context = context
        self._defaults = defaults
        self._inquiry = inquiry

    def insert(self, statement: Insert, values_each: Sequence[Sequence[Value]]) -> int:
        """Stage the rows of an INSERT, once for each list of values; returns how many come or change."""
        table = statement.table
        given = set(statement.columns)
        if statement.conflict is None:
            rows = self._rows(statement, values_each)
            self._insert_rows(table, rows, given)
            self.returned += rows
            return len(rows)
        count = 0
        for values in values_each:
            rows = self._rows(statement, [values])
            fresh, there = self._parted(table, rows, statement.conflict)
            self._insert_rows(table, fresh, given)
            self.returned += fresh
            count += len(fresh) + self._settle_conflicts(table, there, statement.conflict)
        return count

    def _rows(self, statement: Insert, values_each: Sequence[Sequence[Value]]) -> list[Row]:
        """Return the rows that an INSERT says, with defaults where it says nothing."""
        table = statement.table
        width = len(table.columns)
        named = [(index, table.binders[index]) for index in statement.columns]
        given = set(statement.columns)
        defaulted = [
            (index, column)
            for index, column in enumerate(table.columns)
            if index not in given and column.default is not None
        ]
        rows: list[Row] = []
        for self._values in values_each:
            for cells in self._inserted(statement):
                row: Row = [None] * width
                for (index, bind), value in zip(named, cells, strict=True):
                    row[index] = bind(value)
                for index, column in defaulted:
                    row[index] = self._default(column)
                rows.append(row)
        return rows

    def _insert_rows(self, table: Table, rows: Sequence[Row], given: Container[int]) -> None:
        if any(reference.parent == table.id for reference in table.references):
            # References are judged by the end of the statement: a child may stand before its parent.
            self._write.promise(table, self._owner, [row[table.key_index] for row in rows])
        # Devices without a column that was added later keep going: it isn't in payloads until it is named.
        unnamed = [index for index, each in enumerate(table.columns) if each.added and index not in given]
        for row in rows:
            uploaded = text_without(table, row, unnamed) if table.synced and unnamed else None
            key = None if table.has_key else self._defaults.next_id()
            self._write.insert(table, self._owner, row, uploaded=uploaded, key=key)

    def _parted(
        self, table: Table, rows: Sequence[Row], conflict: OnConflict
    ) -> tuple[list[Row], list[tuple[Row, Row]]]:
        """Return the rows whose key is new, and of the others (the row that is there, the one that came)."""
        fresh: list[Row] = []
        there: list[tuple[Row, Row]] = []
        met: set[Value] = set()
        for row in rows:
            key = row[table.key_index]
            version = None if key is None else self._write.find_live(table, self._owner, key)
            if key is not None and key in met:
                if conflict.assignments:
                    raise ConstraintViolation(
                        f"ON CONFLICT DO UPDATE would change row '{key!r}' twice; give each key once"
                    )
            elif version is None or version.row is None:
                fresh.append(row)
            else:
                there.append((version.row, row))
            met.add(key)
        return fresh, there

    def _settle_conflicts(self, table: Table, there: Sequence[tuple[Row, Row]], conflict: OnConflict) -> int:
        """Update rows as DO UPDATE says; returns how many really change."""
        if not conflict.assignments or not there:
            return 0
        if conflict.is_foreign:
            settings = self._foreign_settings(table, there, conflict)
        else:
            settings = [self._settings(old, new, conflict) for old, new in there]
        changed = 0
        for (before, _), cells in zip(there, settings, strict=True):
            if cells is None:
                continue
            row = list(before)
            for (index, _), value in zip(conflict.assignments, cells, strict=True):
                row[index] = table.binders[index](value)
            key = _known_key(before[table.key_index])
            changed += self._stage_update(table, key, before, row)
        return changed

    def _settings(self, old: Row, new: Row, conflict: OnConflict) -> Sequence[Value] | None:
        row = [*old, *new]
        if conflict.where is not None and self._value(conflict.where.node, row) is not True:
            return None
        return [self._value(scalar.node, row) for _, scalar in conflict.assignments]

    def _foreign_settings(
        self, table: Table, there: Sequence[tuple[Row, Row]], conflict: OnConflict
    ) -> list[Sequence[Value] | None]:
        texts = [scalar.text for _, scalar in conflict.assignments]
        condition = "TRUE" if conflict.where is None else conflict.where.text
        # Beside the key no aggregate of all rows can stand.
        columns = [f'"{table.columns[table.key_index].name}"', *_named([condition, *texts])]
        text = f'SELECT {", ".join(columns)} FROM "{table.namespace}"."{table.name}"'
        found = self._inquiry.rows(text, self._values, conflicts_table(table, there))
        return [cells[2:] if cells[1] is True else None for cells in result_rows(found)]

    def update(self, statement: Update, values_each: Sequence[Sequence[Value]]) -> int:
        """Stage an UPDATE, once for each list of values; returns how many rows really change."""
        changed = 0
        is_foreign = any(scalar.node is None for _, scalar in statement.assignments)
        for self._values in values_each:
            if is_foreign or (statement.key is None and statement.matching is None):
                changed += self._update_by_query(statement)
            elif statement.key is None:
                changed += sum(self._update_at(statement, key) for key in self._matching_keys(statement))
            else:
                key = self._key(statement.table, statement.key)
                changed += 0 if key is None else self._update_at(statement, key)
        return changed

    def delete(self, statement: Delete, values_each: Sequence[Sequence[Value]]) -> int:
        """Stage a DELETE, once for each list of values; returns how many rows go."""
        return sum(self._delete(statement) for self._values in values_each)

    def _delete(self, statement: Delete) -> int:
        table = statement.table
        if statement.key is not None and statement.key.node is not None:
            key = self._key(table, statement.key)
            found = None if key is None else self._write.find_live(table, self._owner, key)
            keys = [] if key is None or found is None else [key]
        else:
            keys = self._matching_keys(statement)
            if not table.has_key:
                keys = self._write.keys_at(table, self._owner, frozenset(keys))
        if statement.returning is not None:
            versions = [self._write.find_live(table, self._owner, key) for key in keys]
            self.returned += [version.row for version in versions if version is not None and version.row]
        if keys:
            self._write.delete(table, self._owner, keys)
        return len(keys)

    def _default(self, column: Column) -> Value:
        return self._defaults.value(column, user=self._context.user, now_us=self._context.now_us)

    def _inserted(self, statement: Insert) -> list[Sequence[Value]]:
        if statement.query is not None:
            found = self._inquiry.rows(statement.query, self._values, None)
            if found.num_columns != len(statement.columns):
                raise InvalidSql(
                    f"INSERT has {len(statement.columns)} columns but its query gives {found.num_columns}"
                )
            return list(result_rows(found))
        if statement.is_plain:
            width = len(statement.columns)
            return [self._values[at : at + width] for at in range(0, len(statement.rows) * width, width)]
        return [self._inserted_row(scalars) for scalars in statement.rows]

    def _inserted_row(self, scalars: Sequence[Scalar]) -> Sequence[Value]:
        cells: list[Value] = []
        for scalar in scalars:
            node = scalar.node
            if type(node) is Parameter:  # what most are
                cells.append(self._values[node.index])
            elif node is None:
                return self._query("SELECT " + ", ".join(_named([scalar.text for scalar in scalars])))[0]
            else:
                cells.append(self._value(node, []))
        return cells

    def _matching_keys(self, statement: Update | Delete) -> list[Key]:
        if statement.matching is not None:
            keys = self._inquiry.find_keys(statement.matching, self._values)
            if keys is not None:
                return keys
        rows = self._query(_matching(statement.table, statement.where, []))
        return [_known_key(row[0]) for row in rows]

    def _update_at(self, statement: Update, key: Key) -> int:
        version = self._write.find_live(statement.table, self._owner, key)
        if version is None or version.row is None:
            return 0
        row = list(version.row)
        for index, scalar in statement.assignments:
            row[index] = statement.table.binders[index](self._value(scalar.node, version.row))
        return self._stage_update(statement.table, key, version.row, row)

    def _update_by_query(self, statement: Update) -> int:
        table = statement.table
        where = statement.where
        if where is None and statement.key is not None:
            where = f'"{table.columns[table.key_index].name}" = ({statement.key.text})'
        # What has a tree is evaluated by it, so that an integer that doesn't fit is an error.
        texts = [scalar.text for _, scalar in statement.assignments if scalar.node is None]
        changed = 0
        for found in self._query(_matching(table, where, texts)):
            key = _known_key(found[0])
            version = self._write.find_live(table, self._owner, key)
            assert version is not None, "the query read the very state that is written"
            assert version.row is not None, "a live version has a row"
            row, cells = list(version.row), iter(found[1:])
            for index, scalar in statement.assignments:
                value = next(cells) if scalar.node is None else self._value(scalar.node, version.row)
                row[index] = table.binders[index](value)
            changed += self._stage_update(table, key, version.row, row)
        return changed

    def _stage_update(self, table: Table, key: Key, before: Row, after: Row) -> int:
        self.returned.append(after)
        # Where rows expire, one that is written again lives from then on, whatever it says.
        is_same = after == before and all(type(a) is type(b) for a, b in zip(after, before, strict=True))
        if is_same and not table.is_ephemeral:
            return 0
        column = table.columns[table.key_index]
        if column.default == _NUMBERS_ITSELF and after[table.key_index] != key:
            raise InvalidOperation(
                f"column '{column.name}' numbers the rows by itself: such a primary key cannot be modified; "
                "INSERT the row under another key, and DELETE this one"
            )
        self._write.update(table, self._owner, key, after)
        return 1

    def _key(self, table: Table, scalar: Scalar) -> Key | None:
        return find_key(self._value(scalar.node, []), table.columns[table.key_index])

    def _value(self, node: Node | None, row: Row) -> Value:
        return evaluate(node, row, self._values, self._context)

    def _query(self, text: str) -> list[tuple[Value, ...]]:
        return list(result_rows(self._inquiry.rows(text, self._values, None)))


def changed_table(table: Table, rows: Sequence[Row]) -> pa.Table:
    """Return rows of `table` as a table to query."""
    batch = row_batch(rows, [0] * len(rows), table.columns)
    return pa.Table.from_batches([batch]).select(range(len(table.columns)))


def conflicts_table(table: Table, there: Sequence[tuple[Row, Row]]) -> pa.Table:
    """Return rows that are there, and beside them those that were to be inserted, as a table to query."""
    found = changed_table(table, [old for old, _ in there])
    came = changed_table(table, [new for _, new in there])
    for column, array in zip(table.columns, came.columns, strict=True):
        found = found.append_column(excluded_name(column), array)
    return found


def evaluate(node: Node | None, row: Row, values: Sequence[Value], context: Context) -> Value:
    """Return the value of an expression; raise `Foreign` if only the query engine can tell."""
    match node:
        case Parameter(index):
            return values[index]
        case Literal(value):
            return value
        case None:
            raise Foreign
        case _:
            return _compiled(node)(row, values, context)


@lru_cache(maxsize=4096)
def _compiled(node: Node) -> Compiled:
    return compile_scalar(node)


def _matching(table: Table, where: str | None, scalars: Sequence[str]) -> str:
    key = f'"{table.columns[table.key_index].name}"' if table.has_key else '"_seq"'
    condition = f" WHERE {where}" if where else ""
    return f'SELECT {", ".join([key, *_named(scalars)])} FROM "{table.namespace}"."{table.name}"{condition}'


def _named(scalars: Sequence[str]) -> list[str]:
    """Return expressions with names of their own: the query engine refuses two that look the same."""
    return [f'({scalar}\n) AS "_{number}"' for number, scalar in enumerate(scalars)]


def _known_key(value: Value) -> Key:
    assert value is not None, "a primary key is never NULL"
    return value
