"""Groups: pending changes that refer to each other, directly or by way of others.

Law: what stands in a circle of references is in one group, so that it can come, or go, together.
"""

from collections.abc import Callable, Iterable, Iterator, Set
from typing import TypeAlias

from upwell.device.codec import row_from_capture
from upwell.device.file import SyncFile
from upwell.device.outbox import RowKey
from upwell.device.schema import Row, Tables

Group: TypeAlias = set[RowKey]
GroupsOf: TypeAlias = Callable[[Set[RowKey]], list[Group]]


def groups_of(file: SyncFile, tables: Tables, rows: Set[RowKey]) -> list[Group]:
    """Return the groups of more than one row among `rows`; those of unknown content are one, too."""
    contents = dict(_contents(file, tables, rows))
    groups = {row: {row} for row in rows}
    for first, second in _edges(tables, contents):
        _join(groups, first, second)
    unknown = [row for row in rows if not contents.get(row)]
    for row in unknown[1:]:
        _join(groups, unknown[0], row)
    distinct = {id(group): group for group in groups.values()}
    return [group for group in distinct.values() if len(group) > 1]


def apart_from(file: SyncFile, tables: Tables, rows: set[RowKey], others: set[RowKey]) -> set[RowKey]:
    """Return those of some pending rows that no reference connects with any of the others."""
    if not others:
        return rows
    return rows.difference(*(group for group in groups_of(file, tables, rows | others) if group & others))


def _contents(file: SyncFile, tables: Tables, rows: Set[RowKey]) -> Iterator[tuple[RowKey, list[Row]]]:
    """Yield what each row is now and what it was when the server had it last, as far as that is known."""
    found = file.connection.execute("SELECT table_name, pk_uuid, payload, base_payload FROM _sync_pending")
    for table, key, *payloads in found:
        shape = tables.find(table)
        if shape is not None and (table, key) in rows:
            states = (row_from_capture(shape, payload) for payload in payloads)
            yield (table, key), [state for state in states if state is not None]


def _edges(tables: Tables, contents: dict[RowKey, list[Row]]) -> Iterator[tuple[RowKey, RowKey]]:
    for parent in tables:
        for child, reference in tables.references_to(parent.wire):
            parents = {
                values: row for row, values in _values(contents, parent.wire, reference.parent_columns)
            }
            for row, values in _values(contents, child.wire, reference.columns):
                if values in parents:
                    yield row, parents[values]


def _values(
    contents: dict[RowKey, list[Row]], table: str, columns: Iterable[str]
) -> Iterator[tuple[RowKey, tuple[object, ...]]]:
    for row, states in contents.items():
        if row[0] == table:
            for state in states:
                yield row, tuple(state.get(column) for column in columns)


def _join(groups: dict[RowKey, Group], first: RowKey, second: RowKey) -> None:
    small, large = sorted((groups[first], groups[second]), key=len)
    if small is not large:
        large |= small
        groups.update(dict.fromkeys(small, large))
