"""Sources: what a name in a query stands for.

Law: a source is told by who asks; the query engine only reads it.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import TypeAlias

import pyarrow as pa

from upwell.engine.catalog import Table
from upwell.engine.named_query import NamedQuery, quoted
from upwell.engine.stage import Staged
from upwell.storage.arrow import DELETED, SEQ, table_schema
from upwell.types import Owner

_SYSTEM_COLUMNS = frozenset({SEQ, DELETED})
TABLE_FUNCTIONS = frozenset({"generate_series", "range"})
"""What FROM may call: the query engine asks for a table of that name first."""
OWNER = "_owner"
OWNER_FIELD = pa.field(OWNER, pa.string(), nullable=False)


@dataclass(frozen=True, slots=True)
class Source:
    """What a name in a query stands for: the rows of a table that belong to `owner`.

    In a transaction also what it has `staged` there; such a source is read by nobody else. Of rows that
    expire those with a `_seq` below `alive_from` are left out, and of columns those that are `unseen`.
    """

    table: Table
    owner: Owner
    staged: Staged | None = None
    alive_from: int = 0
    unseen: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Everybody:
    """The rows of a USER table that belong to all its users; the column OWNER says to whom.

    Of rows that expire those with a `_seq` below `alive_from` are left out.
    """

    table: Table
    alive_from: int = 0


@dataclass(frozen=True, slots=True)
class Derived:
    """The rows of a named query, as who asks may read them.

    `text` is ready for the query engine, `resolve` tells what the names in it stand for.
    """

    query: NamedQuery
    text: str
    resolve: "Resolve"


AnySource: TypeAlias = Source | Everybody | Derived | pa.Table
Resolve = Callable[[str, str], AnySource]
"""(namespace, name) → rows; raises TableNotFound or PermissionDenied."""


def schema_of(source: Source | Everybody | pa.Table) -> pa.Schema:
    """Return the columns that a query sees."""
    if isinstance(source, pa.Table):
        return source.schema
    schema = table_schema(source.table.columns, physical=False)
    if isinstance(source, Everybody):
        return schema.append(OWNER_FIELD)
    return (
        pa.schema([field for field in schema if field.name not in source.unseen]) if source.unseen else schema
    )


def without_later(source: AnySource, seen: Collection[str]) -> AnySource:
    """Return a source without the columns that aren't among `seen`."""
    if isinstance(source, pa.Table):
        return source.select([name for name in source.column_names if name in seen])
    if isinstance(source, Derived):
        names = [column.name for column in source.query.columns]
        chosen = ", ".join(quoted(name) for name in names if name in seen)
        text = f"SELECT {chosen} FROM (\n{source.text}\n) AS {quoted(source.query.name)}"
        return source if set(names) <= set(seen) else replace(source, text=text)
    if isinstance(source, Source):
        later = frozenset(column.name for column in source.table.columns).difference(seen)
        return replace(source, unseen=later)
    return source


def declared_columns(source: AnySource) -> list[str] | None:
    """Return the columns without `_seq` and `_deleted`; None if there are none of these.

    A named query has them of its own if its text names them, and not by a star.
    """
    match source:
        case Source(table) | Everybody(table):
            return [column.name for column in table.columns]
        case Derived(query):
            came = _SYSTEM_COLUMNS - query.words
            names = [column.name for column in query.columns]
            return [name for name in names if name not in came] if came.intersection(names) else None
        case _:
            return None


def names_of(source: AnySource) -> list[str]:
    """Return the names of the columns that a query sees."""
    if isinstance(source, Derived):
        return [column.name for column in source.query.columns]
    return list(schema_of(source).names)
