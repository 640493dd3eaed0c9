"""The catalog as rows: namespaces, storages, tables and columns in `system.*` and `information_schema`.

Law: a column keeps its ordinal for ever, so that those of dropped ones are gaps. Every schema version of a
table is a row of `system.schemas`; exactly one of them is the latest.
"""

from collections.abc import Iterator, Mapping, Sequence

import msgspec

from upwell.engine.catalog import Namespace, Table, TableKind, load_versions
from upwell.engine.named_query import NamedQuery
from upwell.engine.view import View
from upwell.session.fleet import Layout, Rows
from upwell.session.policy import Principal
from upwell.types import Column, SqlType, Value, type_text, wire_type

CATALOG = "kalam"
"""What clients filter by (contract, 3.13)."""
_TEXT, _BIG, _INT, _BOOL, _TIME, _JSON = (
    SqlType.TEXT, SqlType.BIGINT, SqlType.INT, SqlType.BOOLEAN, SqlType.TIMESTAMP, SqlType.JSON,
)  # fmt: skip
NAMESPACES: Layout = [
    ("namespace_id", _TEXT), ("name", _TEXT), ("created_at", _TIME), ("options", _JSON),
    ("table_count", _INT),
]  # fmt: skip
SCHEMAS: Layout = [
    ("table_id", _TEXT), ("table_name", _TEXT), ("namespace_id", _TEXT), ("table_type", _TEXT),
    ("created_at", _TIME), ("schema_version", _INT), ("columns", _JSON), ("table_comment", _TEXT),
    ("updated_at", _TIME), ("options", _JSON), ("access_level", _TEXT), ("is_latest", _BOOL),
    ("storage_id", _TEXT), ("use_user_storage", _BOOL),
]  # fmt: skip
TABLES: Layout = [
    ("namespace_id", _TEXT), ("table_name", _TEXT), ("table_type", _TEXT), ("storage_id", _TEXT),
    ("version", _BIG), ("options", _TEXT), ("comment", _TEXT), ("updated_at", _TIME),
    ("created_at", _TIME),
]  # fmt: skip
COLUMNS: Layout = [
    ("namespace_id", _TEXT), ("table_name", _TEXT), ("version", _BIG), ("column_id", _BIG),
    ("column_name", _TEXT), ("comment", _TEXT), ("data_type", _TEXT), ("default_value", _TEXT),
    ("ordinal", _BIG), ("nullable", _BOOL), ("primary_key", _BOOL), ("primary_key_pos", _BIG),
]  # fmt: skip
DESCRIBE: Layout = [
    ("column_name", _TEXT), ("ordinal_position", _INT), ("column_id", _BIG), ("data_type", _TEXT),
    ("is_nullable", _BOOL), ("is_primary_key", _BOOL), ("column_default", _TEXT),
    ("column_comment", _TEXT), ("schema_version", _INT),
    ("namespace_id", _TEXT), ("table_name", _TEXT), ("is_latest", _BOOL),
]  # fmt: skip
INFORMATION_SCHEMATA: Layout = [
    ("catalog_name", _TEXT), ("schema_name", _TEXT), ("schema_owner", _TEXT),
    ("default_character_set_catalog", _TEXT), ("default_character_set_schema", _TEXT),
    ("default_character_set_name", _TEXT), ("sql_path", _TEXT),
]  # fmt: skip
INFORMATION_TABLES: Layout = [
    ("table_catalog", _TEXT), ("table_schema", _TEXT), ("table_name", _TEXT), ("table_type", _TEXT),
]  # fmt: skip
INFORMATION_COLUMNS: Layout = [
    ("table_catalog", _TEXT), ("table_schema", _TEXT), ("table_name", _TEXT), ("column_name", _TEXT),
    ("ordinal_position", _BIG), ("column_default", _TEXT), ("is_nullable", _TEXT), ("data_type", _TEXT),
]  # fmt: skip
INFORMATION_VIEWS: Layout = [
    ("table_catalog", _TEXT), ("table_schema", _TEXT), ("table_name", _TEXT), ("definition", _TEXT),
]  # fmt: skip

STORAGES: Layout = [
    ("storage_id", _TEXT), ("storage_name", _TEXT), ("description", _TEXT), ("storage_type", _TEXT),
    ("base_directory", _TEXT), ("credentials", _JSON), ("config_json", _JSON),
    ("shared_tables_template", _TEXT), ("user_tables_template", _TEXT), ("created_at", _TIME),
    ("updated_at", _TIME),
]  # fmt: skip

SystemLayouts = Mapping[tuple[str, str], Layout]
"""(namespace, name) of each system table → its columns."""


def namespaces(view: View) -> Rows:
    spaces = sorted(view.catalog.namespaces.values(), key=lambda space: space.name)
    return [_namespace(view, space) for space in spaces]


def storages(view: View) -> Rows:
    """All storages; of their credentials only which there are."""
    return [
        (
            s.id, s.name, s.description, s.type.value, s.base,
            _json_or_none(dict.fromkeys(s.credentials, "***")),
            _json_or_none(s.config), s.shared_template, s.user_template, s.created_at_us, s.updated_at_us,
        )
        for s in sorted(view.catalog.storages.values(), key=lambda storage: storage.id)
    ]  # fmt: skip


def schemas(view: View) -> Rows:
    """All versions of all tables, each table's newest last."""
    return [
        _schema(table, is_latest=table.version == newest.version)
        for newest in _sorted(view)
        for table in _versions(view, newest)
    ]


def tables(view: View) -> Rows:
    return [
        (
            table.namespace, table.name, table.kind.value, table.storage, table.version,
            _json(table_options(table)), None, table.updated_at_us or table.created_at_us,
            table.created_at_us,
        )
        for table in _sorted(view)
    ]  # fmt: skip


def columns(view: View) -> Rows:
    return [
        (
            table.namespace, table.name, table.version, column.id, column.name, None, type_text(column),
            default_text(column), column.id, column.nullable, column.primary_key,
            0 if column.primary_key else None,
        )
        for table in _sorted(view)
        for column in table.columns
    ]  # fmt: skip


def described(view: View, system: SystemLayouts) -> Rows:
    """The columns of all tables at all versions, oldest version first, and those of system tables."""
    rows: list[Sequence[Value]] = [
        (
            column.name, column.id, column.id, type_text(column), column.nullable, column.primary_key,
            default_text(column), None, table.version, table.namespace, table.name,
            table.version == newest.version,
        )
        for newest in _sorted(view)
        for table in _versions(view, newest)
        for column in table.columns
    ]  # fmt: skip
    rows += [
        (
            column.name, column.id, column.id, type_text(column), True, False, None, None, 1,
            query.namespace, query.name, True,
        )
        for query in _queries(view)
        for column in query.columns
    ]  # fmt: skip
    for (namespace, name), layout in sorted(system.items()):
        for number, (column_name, kind) in enumerate(layout, 1):
            rows.append(
                (column_name, number, number, kind.name, True, False, None, None, 1, namespace, name, True)
            )
    return rows


def information_schemata(view: View, system: SystemLayouts) -> Rows:
    names = sorted({*view.catalog.namespaces, *(namespace for namespace, _ in system)})
    return [(CATALOG, name, None, None, None, None, None) for name in names]


def information_tables(view: View, system: SystemLayouts) -> Rows:
    rows: list[Sequence[Value]] = [
        (CATALOG, table.namespace, table.name, "BASE TABLE") for table in _sorted(view)
    ]
    rows += [(CATALOG, query.namespace, query.name, "VIEW") for query in _queries(view)]
    return rows + [(CATALOG, namespace, name, "VIEW") for namespace, name in sorted(system)]


def information_views(view: View, principal: Principal) -> Rows:
    """All views; what is in their text is for administrators."""
    return [
        (CATALOG, query.namespace, query.name, query.text if principal.is_admin else None)
        for query in _queries(view)
    ]


def information_columns(view: View, system: SystemLayouts) -> Rows:
    named: list[Table | NamedQuery] = [*_sorted(view), *_queries(view)]
    rows: list[Sequence[Value]] = [
        (
            CATALOG, table.namespace, table.name, column.name, column.id, default_text(column),
            "YES" if column.nullable else "NO", type_text(column),
        )
        for table in named
        for column in table.columns
    ]  # fmt: skip
    for (namespace, name), layout in sorted(system.items()):
        for number, (column_name, kind) in enumerate(layout, 1):
            rows.append((CATALOG, namespace, name, column_name, number, None, "YES", kind.name))
    return rows


def table_options(table: Table) -> dict[str, str]:
    """Return the options of a table as CREATE TABLE takes them."""
    options = {"TYPE": table.kind.value.upper(), "STORAGE_ID": table.storage}
    options |= {key.upper(): value for key, value in table.options.items()}
    if table.kind is TableKind.SHARED:
        options["ACCESS_LEVEL"] = table.access.value
    if table.synced:
        options["SYNC"] = "true"
    return options


def default_text(column: Column) -> str | None:
    if column.default is None:
        return None
    return f"{column.default.function}()" if column.default.function else str(column.default.value)


def _namespace(view: View, space: Namespace) -> Sequence[Value]:
    options = _json(dict(space.options)) if space.options else None
    return space.name, space.name, space.created_at_us, options, len(view.catalog.in_namespace(space.name))


def _versions(view: View, newest: Table) -> Iterator[Table]:
    # A table with one version has no older ones to look for.
    if newest.version > 1:
        yield from load_versions(view.hot, newest.id)
    yield newest


def _schema(table: Table, *, is_latest: bool) -> Sequence[Value]:
    name = f"{table.namespace}:{table.name}"
    return (
        name if is_latest else f"{name}:{table.version}", table.name, table.namespace, table.kind.value,
        table.created_at_us, table.version, _json([_column(column) for column in table.columns]), None,
        table.updated_at_us or table.created_at_us, _json(table_options(table)),
        table.access.value if table.kind is TableKind.SHARED else None, is_latest, table.storage,
        table.options.get("use_user_storage", "").upper() == "TRUE",
    )  # fmt: skip


def _column(column: Column) -> dict[str, object]:
    return {
        "column_id": column.id,
        "column_name": column.name,
        "ordinal_position": column.id,
        "data_type": wire_type(column.type, column.precision, column.scale),
        "is_nullable": column.nullable,
        "is_primary_key": column.primary_key,
        "default_value": default_text(column),
    }


def _json_or_none(values: Mapping[str, str]) -> str | None:
    return msgspec.json.encode(values).decode() if values else None


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _queries(view: View) -> list[NamedQuery]:
    return sorted(view.catalog.queries.values(), key=lambda query: query.full_name)


def _sorted(view: View) -> list[Table]:
    return sorted(view.catalog.tables.values(), key=lambda table: table.full_name)
