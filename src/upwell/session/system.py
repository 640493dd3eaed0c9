"""System tables: what the server knows about itself, as tables.

Law: they are computed from one View for one principal (but where the devices are and what live queries run,
which is newer than any View); only administrators read them, except for `system.changes`, `system.live` and
the tables of `session/fleet.py` (where everybody sees their own log, live queries and devices),
`information_schema`, and what SHOW and DESCRIBE ask.
"""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pyarrow as pa

from upwell.engine.catalog import Catalog, Table
from upwell.engine.view import View
from upwell.engine.write import shown
from upwell.errors import TableNotFound
from upwell.feeds.live import LiveFeed
from upwell.feeds.registry import Registry
from upwell.ids import snowflake_ms
from upwell.session.fleet import FLEET, Layout
from upwell.session.jobs import job_nodes, jobs
from upwell.session.live import live_queries
from upwell.session.people import audit_log, users
from upwell.session.policy import Principal, require_admin
from upwell.session.transaction import Transactions
from upwell.storage.arrow import array, system_field
from upwell.storage.hot import Change
from upwell.types import Column, SqlType, Value, to_json, user_owner

SYSTEM = "system"
INFORMATION = "information_schema"
LIVE = (SYSTEM, "live")
TRANSACTIONS = (SYSTEM, "transactions")
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
        return _made(*fleet(view, principal, registry))
    if (namespace, name) == LIVE:
        return _made(*live_queries(principal, feed))
    build = _TABLES.get((namespace, name))
    if build is None:
        raise TableNotFound(f"{namespace}.{name}")
    if namespace == SYSTEM and name != "changes" and not is_open:
        require_admin(principal, f"system.{name}")
    return build(view, principal)


def transactions_table(principal: Principal, transactions: Transactions) -> pa.Table:
    """Return the transactions that are open now, that of the query included."""
    require_admin(principal, "system.transactions")
    layout = [
        ("transaction_id", _TEXT), ("owner_id", _TEXT), ("origin", _TEXT), ("state", _TEXT),
        ("age_ms", _BIG), ("idle_ms", _BIG), ("write_count", _BIG), ("write_bytes", _BIG),
        ("touched_tables_count", _BIG), ("snapshot_commit_seq", _BIG),
    ]  # fmt: skip
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
    return _made(layout, rows)


def is_system(namespace: str) -> bool:
    return namespace in (SYSTEM, INFORMATION)


def _made(layout: Layout, rows: list[Sequence[Value]]) -> pa.Table:
    columns = zip(*rows, strict=True) if rows else [()] * len(layout)
    fields = [system_field(name, sql_type, nullable=True) for name, sql_type in layout]
    arrays = [array(list(cells), kind) for cells, (_, kind) in zip(columns, layout, strict=True)]
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields))


def _changes(view: View, principal: Principal) -> pa.Table:
    layout = [
        ("seq", _BIG), ("table_name", _TEXT), ("key", _TEXT), ("operation", _TEXT), ("values", _JSON),
        ("version", _BIG), ("device", _TEXT), ("change_id", _BIG), ("changed_at", _TIME),
    ]  # fmt: skip
    owner = user_owner(principal.user)
    rows: list[Sequence[Value]] = []
    after = 0
    while page := view.hot.read_owner_log(owner, after, None, LOG_PAGE):
        rows += [_change_row(change, view.catalog) for change in page if change.table in view.catalog.by_id]
        after = page[-1].counter
    return _made(layout, rows)


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


def _namespaces(view: View, principal: Principal) -> pa.Table:
    layout = [
        ("namespace_id", _TEXT), ("name", _TEXT), ("created_at", _TIME), ("options", _JSON),
        ("table_count", _INT),
    ]  # fmt: skip
    spaces = sorted(view.catalog.namespaces.values(), key=lambda space: space.name)
    return _made(
        layout,
        [(s.name, s.name, s.created_at_us, None, len(view.catalog.in_namespace(s.name))) for s in spaces],
    )


def _tables(view: View, principal: Principal) -> pa.Table:
    layout = [
        ("namespace_id", _TEXT), ("table_name", _TEXT), ("table_type", _TEXT), ("storage_id", _TEXT),
        ("version", _BIG), ("options", _JSON), ("comment", _TEXT), ("updated_at", _TIME),
        ("created_at", _TIME),
    ]  # fmt: skip
    return _made(
        layout,
        [
            (
                table.namespace, table.name, table.kind.value, "local", table.version,
                msgspec.json.encode(_options(table)).decode(), None, table.created_at_us, table.created_at_us,
            )
            for table in _sorted(view)
        ],
    )  # fmt: skip


def _options(table: Table) -> dict[str, str]:
    options = dict(table.options)
    if table.synced:
        options["SYNC"] = "true"
    return options


def _columns(view: View, principal: Principal) -> pa.Table:
    layout = [
        ("namespace_id", _TEXT), ("table_name", _TEXT), ("version", _BIG), ("column_id", _BIG),
        ("column_name", _TEXT), ("comment", _TEXT), ("data_type", _TEXT), ("default_value", _TEXT),
        ("ordinal", _BIG), ("nullable", _BOOL), ("primary_key", _BOOL), ("primary_key_pos", _BIG),
    ]  # fmt: skip
    rows: list[Sequence[Value]] = [
        (
            table.namespace, table.name, table.version, column.id, column.name, None, column.type.name,
            _default_text(column), ordinal, column.nullable, column.primary_key,
            0 if column.primary_key else None,
        )
        for table in _sorted(view)
        for ordinal, column in enumerate(table.columns, start=1)
    ]  # fmt: skip
    return _made(layout, rows)


def _default_text(column: Column) -> str | None:
    if column.default is None:
        return None
    return f"{column.default.function}()" if column.default.function else str(column.default.value)


def _users(view: View, principal: Principal) -> pa.Table:
    return _made(*users(view))


def _audit_log(view: View, principal: Principal) -> pa.Table:
    return _made(*audit_log(view))


def _information_tables(view: View, principal: Principal) -> pa.Table:
    layout = [
        ("table_catalog", _TEXT), ("table_schema", _TEXT), ("table_name", _TEXT), ("table_type", _TEXT),
    ]  # fmt: skip
    rows: list[Sequence[Value]] = [("upwell", t.namespace, t.name, "BASE TABLE") for t in _sorted(view)]
    views = sorted([*_TABLES, LIVE, TRANSACTIONS, *((SYSTEM, name) for name in FLEET)])
    return _made(layout, rows + [("upwell", space, name, "VIEW") for space, name in views])


def _information_columns(view: View, principal: Principal) -> pa.Table:
    layout = [
        ("table_catalog", _TEXT), ("table_schema", _TEXT), ("table_name", _TEXT), ("column_name", _TEXT),
        ("ordinal_position", _BIG), ("column_default", _TEXT), ("is_nullable", _TEXT), ("data_type", _TEXT),
    ]  # fmt: skip
    rows: list[Sequence[Value]] = [
        (
            "upwell", table.namespace, table.name, column.name, ordinal, _default_text(column),
            "YES" if column.nullable else "NO", column.type.name,
        )
        for table in _sorted(view)
        for ordinal, column in enumerate(table.columns, start=1)
    ]  # fmt: skip
    return _made(layout, rows)


def _sorted(view: View) -> list[Table]:
    return sorted(view.catalog.tables.values(), key=lambda table: table.full_name)


_TABLES: dict[tuple[str, str], Callable[[View, Principal], Any]] = {
    (SYSTEM, "changes"): _changes,
    (SYSTEM, "jobs"): lambda view, principal: _made(*jobs(view, principal)),
    (SYSTEM, "job_nodes"): lambda view, principal: _made(*job_nodes(view, principal)),
    (SYSTEM, "namespaces"): _namespaces,
    (SYSTEM, "tables"): _tables,
    (SYSTEM, "columns"): _columns,
    (SYSTEM, "users"): _users,
    (SYSTEM, "audit_log"): _audit_log,
    (INFORMATION, "tables"): _information_tables,
    (INFORMATION, "columns"): _information_columns,
}
