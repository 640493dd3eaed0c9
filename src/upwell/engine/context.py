"""Contexts of the query engine: one for each plan, with its dialect, its limits and our functions.

Law: a context knows nothing but what it is told, and may run nothing but queries. One that is lent again has
forgotten all tables; it only remembers what the footers of files say, which saves 0.1 ms a file.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

from datafusion import RuntimeEnvBuilder, SessionConfig, SessionContext, SQLOptions, udf
from datafusion.catalog import Catalog

from upwell.engine import checked, json_value, typed_text
from upwell.engine.refusal import CATALOG, QUERY_BYTES_MAX

IDLE_MAX = 4
"""So many contexts wait for their next query, each with footers of so many bytes:"""
FOOTER_BYTES_MAX = "8M"

_FUNCTIONS = {
    prefix: [
        (name, udf(call, list(arguments), result, "immutable", name))
        for name, arguments, result, call in made
    ]
    for prefix, made in (
        ("json_", json_value.FUNCTIONS),
        ("checked_", checked.FUNCTIONS),
        ("typed_", typed_text.FUNCTIONS),
    )
}
"""Ours, by what the names of each kind begin with."""
# It drops an empty branch of a union, and then takes columns of the other for those of another table.
_FAULTY_RULES = ("propagate_empty_relation",)
ONLY_QUERIES = SQLOptions().with_allow_ddl(False).with_allow_dml(False).with_allow_statements(False)


class Contexts:
    """Contexts to be lent. Thread-safe."""

    def __init__(self) -> None:
        self._idle: list[tuple[str, SessionContext]] = []
        self._lock = Lock()

    @contextmanager
    def lent(self, namespace: str, text: str) -> Iterator[SessionContext]:
        """Yield a context as `context_of` makes it, for a query that is over at the end.

        One whose query fails, or is stopped, isn't lent again: its work may still hold memory.
        """
        context = self._take(namespace)
        if context is None:
            context = context_of(namespace)
            # Who looks for a file looks into the directory: it may have been made anew.
            context.sql("SET datafusion.runtime.list_files_cache_limit = '0K'")
            context.sql(f"SET datafusion.runtime.metadata_cache_limit = '{FOOTER_BYTES_MAX}'")
        _register(context, text)
        yield context
        context.register_catalog_provider(CATALOG, Catalog.memory_catalog())
        with self._lock:
            self._idle.append((namespace, context))
            del self._idle[:-IDLE_MAX]

    def _take(self, namespace: str) -> SessionContext | None:
        with self._lock:
            for at in reversed(range(len(self._idle))):
                if self._idle[at][0] == namespace:
                    return self._idle.pop(at)[1]
        return None


def context_of(namespace: str, text: str = "") -> SessionContext:
    """Return a context whose names without a namespace are of `namespace`, with what `text` calls."""
    # Contexts are cheap (56 µs) and are never shared: two queries would see each other's tables.
    config = (
        SessionConfig()
        .with_target_partitions(1)
        .with_create_default_catalog_and_schema(False)
        .with_default_catalog_and_schema(CATALOG, namespace)
        .set("datafusion.sql_parser.dialect", "PostgreSQL")
        # It refuses plans in which it knows less of NULLs after optimizing them than before.
        .set("datafusion.execution.skip_physical_aggregate_schema_check", "true")
    )
    # What sorts, joins and groups may hold; sorts and groups go on in temporary files beyond it.
    runtime = RuntimeEnvBuilder().with_disk_manager_os().with_fair_spill_pool(QUERY_BYTES_MAX)
    context = SessionContext(config, runtime)
    for rule in _FAULTY_RULES:
        context.remove_optimizer_rule(rule)
    _register(context, text)
    return context


def _register(context: SessionContext, text: str) -> None:
    """Let a context know our functions that the text calls."""
    for prefix, functions in _FUNCTIONS.items():
        if prefix in text:
            for name, function in functions:
                if name in text:
                    context.register_udf(function)
