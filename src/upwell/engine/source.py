"""Sources: what a name in a query stands for.

Law: a source is told by who asks; the query engine only reads it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import pyarrow as pa

from upwell.engine.catalog import Table
from upwell.engine.named_query import NamedQuery
from upwell.engine.stage import Staged
from upwell.storage.arrow import table_schema
from upwell.types import Owner

OWNER = "_owner"
OWNER_FIELD = pa.field(OWNER, pa.string(), nullable=False)


@dataclass(frozen=True, slots=True)
class Source:
    """What a name in a query stands for: the rows of a table that belong to `owner`.

    In a transaction also what it has `staged` there; such a source is read by nobody else. Of rows that
    expire those with a `_seq` below `alive_from` are left out.
    """

    table: Table
    owner: Owner
    staged: Staged | None = None
    alive_from: int = 0


@dataclass(frozen=True, slots=True)
class Everybody:
    """The rows of a USER table that belong to all its users; the column OWNER says to whom.

    Of rows that expire those with a `_seq` below `alive_from` are left out.
    """

    table: Table
    alive_from: int = 0


@dataclass(frozen=True, slots=True)
class Derived:
    """The rows of a named query, as who asks may read them; `text` is ready for the query engine."""

    query: NamedQuery
    text: str


AnySource: TypeAlias = Source | Everybody | Derived | pa.Table
Resolve = Callable[[str, str], AnySource]
"""(namespace, name) → rows; raises TableNotFound or PermissionDenied."""


def schema_of(source: Source | Everybody | pa.Table) -> pa.Schema:
    """Return the columns that a query sees."""
    if isinstance(source, pa.Table):
        return source.schema
    schema = table_schema(source.table.columns, physical=False)
    return schema.append(OWNER_FIELD) if isinstance(source, Everybody) else schema
