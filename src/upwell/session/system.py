"""System tables: what the server knows about itself, as tables.

Law: they are computed from one View for one principal (but where the devices are and what live queries run,
which is newer than any View); only administrators read them, except for `system.changes`, `system.live` and
the tables of `session/fleet.py` (where everybody sees their own log, live queries and devices),
`system.namespaces` (the first thing that a stock command line asks), `information_schema`, and what SHOW and
DESCRIBE ask.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
import pyarrow as pa

from upwell.engine.catalog import Catalog
from upwell.engine.view import View
from upwell.engine.write import shown
from upwell.errors import TableNotFound
from upwell.feeds.live import LiveFeed
from upwell.feeds.registry import Registry
from upwell.ids import snowflake_ms
from upwell.session import tables
from upwell.session.fleet import FLEET, FLEET_LAYOUTS, Layout, Rows
from upwell.session.jobs import JOB_NODES, JOBS, job_nodes, jobs
from upwell.session.live import LIVE_QUERIES, live_queries
from upwell.session.people import AUDIT_LOG, USERS, audit_log, users
from upwell.session.policy import Principal, require_admin
from upwell.session.server import ENGINE_SETTINGS, SERVER_LAYOUTS
from upwell.session.transaction import Transactions
from upwell.storage.arrow import array, system_field
from upwell.storage.hot import Change
from upwell.types import Column, SqlType, Value, to_json, user_owner

SYSTEM = "system"
INFORMATION = "information_schema"
LIVE = (SYSTEM, "live")
TRANSACTIONS = (SYSTEM, "transactions")
SETTINGS = (INFORMATION, "df_settings")
LOG_PAGE = 5_000

_TEXT, _BIG, _INT, _BOOL, _TIME, _JSON = (
    SqlType.TEXT, SqlType.BIGINT, SqlType.INT, SqlType.BOOLEAN, SqlType.TIMESTAMP, SqlType.JSON,
)  # fmt: skip


def system_table(
    namespace: str,
    name: str,
    view: View,
    principal: Principal,
    registry: Registry,
    feed: LiveFeed,
    *,
    is_open: bool,
) -> pa.Table:
    """Return a system table's rows; raise `PermissionDenied` or `TableNotFound`."""
    fleet = FLEET.get(name) if namespace == SYSTEM else None
    if fleet is not None:
        return made(*fleet(view, principal, registry))
    if (namespace, name) == LIVE:
        return made(*live_queries(principal, feed))
    found = _TABLES.get((namespace, name))
    if found is None:
        raise TableNotFound(f"{namespace}.{name}")
    if namespace == SYSTEM and not found.is_own and not is_open and name != "namespaces":
        require_admin(principal, f"system.{name}")
    return made(found.layout, found.rows(view, principal))


def transactions_table(principal: Principal, transactions: Transactions) -> pa.Table:
    """Return the transactions that are open now, that of the query included."""
    require_admin(principal, "system.transactions")
    rows: list[Sequence[Value]] = []
    for each in transactions:
        places = each.write.places
        state = "open_write" if places else "open_read"
        origin = "sql_batch" if each.is_explicit else "atomic_request"
        tables = {table for table, _, _ in places}
        rows.append(
            (each.id, each.owner, origin, state, each.age_ms, each.idle_ms, len(places), each.size_bytes,
             len(tables), each.view.seq)
        )  # fmt: skip
    return made(_TRANSACTIONS, rows)


def is_system(namespace: str) -> bool:
    return namespace in (SYSTEM, INFORMATION)


def key_columns(namespace: str, name: str) -> int | None:
    """Return how many of a system table's first columns tell one row from another; None: it takes all."""
    return _KEY_COLUMNS.get((namespace, name))


def is_stored(namespace: str, name: str) -> bool:
    """Whether the rows of a system table change by commits only."""
    return (namespace, name) in _TABLES


def made(layout: Layout, rows: Rows) -> pa.Table:
    """Return rows as the table that a query reads."""
    columns = zip(*rows, strict=True) if rows else [()] * len(layout)
    fields = [system_field(name, sql_type, nullable=True) for name, sql_type in layout]
    arrays = [array(list(cells), kind) for cells, (_, kind) in zip(columns, layout, strict=True)]
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields))


def _changes(view: View, principal: Principal) -> Rows:
    owner = user_owner(principal.user)
    rows: list[Sequence[Value]] = []
    after = 0
    while page := view.hot.read_owner_log(owner, after, None, LOG_PAGE):
        rows += [_change_row(change, view.catalog) for change in page if change.table in view.catalog.by_id]
        after = page[-1].counter
    return rows


def _change_row(change: Change, catalog: Catalog) -> Sequence[Value]:
    table = catalog.by_id[change.table]
    row = change.after if change.after is not None else change.before
    values = None if row is None else _values_json(row, table.columns_at(change.schema))
    return (
        change.seq, table.full_name, shown(change.key), change.op, values, change.count,
        change.source, change.change_id, snowflake_ms(change.seq) * 1000,
    )  # fmt: skip


def _values_json(row: Sequence[Value], columns: Sequence[Column]) -> str:
    pairs = zip(columns, row, strict=False)
    return msgspec.json.encode({c.name: to_json(value, c.type) for c, value in pairs}).decode()


_CHANGES: Layout = [
    ("seq", _BIG), ("table_name", _TEXT), ("key", _TEXT), ("operation", _TEXT), ("values", _JSON),
    ("version", _BIG), ("device", _TEXT), ("change_id", _BIG), ("changed_at", _TIME),
]  # fmt: skip
_TRANSACTIONS: Layout = [
    ("transaction_id", _TEXT), ("owner_id", _TEXT), ("origin", _TEXT), ("state", _TEXT),
    ("age_ms", _BIG), ("idle_ms", _BIG), ("write_count", _BIG), ("write_bytes", _BIG),
    ("touched_tables_count", _BIG), ("snapshot_commit_seq", _BIG),
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class _SystemTable:
    """A table whose rows follow from a View and a principal; `is_own`: everybody reads, each their own."""

    layout: Layout
    rows: Callable[[View, Principal], Rows]
    is_own: bool = False


def _of_view(layout: Layout, rows: Callable[[View], Rows]) -> _SystemTable:
    return _SystemTable(layout, lambda view, principal: rows(view))


def _of_catalog(layout: Layout, rows: Callable[[View, tables.SystemLayouts], Rows]) -> _SystemTable:
    return _SystemTable(layout, lambda view, principal: rows(view, _LAYOUTS))


_TABLES: dict[tuple[str, str], _SystemTable] = {
    (SYSTEM, "changes"): _SystemTable(_CHANGES, _changes, is_own=True),
    (SYSTEM, "jobs"): _SystemTable(JOBS, lambda view, principal: jobs(view, principal)[1]),
    (SYSTEM, "job_nodes"): _SystemTable(JOB_NODES, lambda view, principal: job_nodes(view, principal)[1]),
    (SYSTEM, "users"): _of_view(USERS, lambda view: users(view)[1]),
    (SYSTEM, "audit_log"): _of_view(AUDIT_LOG, lambda view: audit_log(view)[1]),
    (SYSTEM, "namespaces"): _of_view(tables.NAMESPACES, tables.namespaces),
    (SYSTEM, "storages"): _of_view(tables.STORAGES, tables.storages),
    (SYSTEM, "schemas"): _of_view(tables.SCHEMAS, tables.schemas),
    (SYSTEM, "table_schemas"): _of_view(tables.SCHEMAS, tables.schemas),
    (SYSTEM, "tables"): _of_view(tables.TABLES, tables.tables),
    (SYSTEM, "columns"): _of_view(tables.COLUMNS, tables.columns),
    (SYSTEM, "describe"): _of_catalog(tables.DESCRIBE, tables.described),
    (INFORMATION, "schemata"): _of_catalog(tables.INFORMATION_SCHEMATA, tables.information_schemata),
    (INFORMATION, "tables"): _of_catalog(tables.INFORMATION_TABLES, tables.information_tables),
    (INFORMATION, "views"): _SystemTable(tables.INFORMATION_VIEWS, tables.information_views),
    (INFORMATION, "columns"): _of_catalog(tables.INFORMATION_COLUMNS, tables.information_columns),
}
_LAYOUTS: dict[tuple[str, str], Layout] = {
    **{name: table.layout for name, table in _TABLES.items()},
    LIVE: LIVE_QUERIES,
    TRANSACTIONS: _TRANSACTIONS,
    SETTINGS: ENGINE_SETTINGS,
    **{(SYSTEM, name): layout for name, layout in FLEET_LAYOUTS.items()},
    **{(SYSTEM, name): layout for name, layout in SERVER_LAYOUTS.items()},
}
_KEY_COLUMNS = {
    (SYSTEM, "jobs"): 1,
    (SYSTEM, "job_nodes"): 2,
    (SYSTEM, "users"): 1,
    (SYSTEM, "namespaces"): 1,
    (SYSTEM, "tables"): 2,
    (SYSTEM, "columns"): 4,
    (SYSTEM, "audit_log"): 1,
    (SYSTEM, "changes"): 1,
    (SYSTEM, "live"): 1,
    (SYSTEM, "transactions"): 1,
    (SYSTEM, "sync_devices"): 2,
}
