"""The scout: what a query reads, and the columns of its result, before anything of it is run.

Law: a query is planned over empty tables, so that its text and the columns of what it names decide alone.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.dataset as dataset
from datafusion.catalog import Catalog as FusionCatalog
from datafusion.catalog import SchemaProvider
from datafusion.catalog import Table as FusionTable

from upwell.engine.context import ONLY_QUERIES, context_of
from upwell.engine.refusal import CATALOG, translated
from upwell.engine.source import TABLE_FUNCTIONS, Derived, Resolve, names_of, schema_of
from upwell.errors import InvalidSql, QueryFailure, UpwellError

NAMES_KEPT_MAX = 2_048
NAMES_KEPT_TEXT_CHARS_MAX = 16_384
_UNCHECKED = (
    "it can't be checked that the integers of this query fit into their types; "
    "cast them to DECIMAL(38, 0), or write it another way"
)
# Possessive and from a word's begin: a literal of a megabyte costs one pass, not one for each letter.
_BEFORE_A_DOT = re.compile(r"\b(\w++)\"?\s*+\.")
_NO_TABLE = re.compile(r"table '[^']*' not found")


class Scout:
    """Plans queries over nothing. Thread-safe; what a text reads is remembered by it."""

    def __init__(self) -> None:
        self._names: dict[tuple[str, str], _Names] = {}
        self._same: set[tuple[str, str, str, bool]] = set()

    def tables_in(self, text: str, namespace: str, resolve: Resolve) -> list[tuple[str, str]]:
        """Return the (namespace, name)s that a query reads; raise for what it may not or can't read.

        They follow from the text alone, so they are remembered by it; who runs it asks `resolve` again.
        """
        return self._names_of(text, namespace, resolve).tables

    def columns_in(self, text: str, namespace: str, resolve: Resolve) -> list[str]:
        """Return the names of a query's columns; raise as `tables_in` does."""
        known = self._names_of(text, namespace, resolve)
        if known.seen != [names_of(resolve(*place)) for place in known.tables]:
            # A star in it has other columns by now.
            self._names.pop((text, namespace), None)
            known = self._names_of(text, namespace, resolve)
        return known.columns

    def require_same(
        self, text: str, written: str, namespace: str, resolve: Resolve, *, is_stored: bool
    ) -> None:
        """Raise `QueryFailure` unless a query that is `written` in other words has columns of the same types.

        What `is_stored` gets the types of a table's columns anyhow.
        """
        place = text, written, namespace, is_stored
        if place in self._same:
            return
        plain = self.scouted(text, namespace, resolve, to_the_end=True)[1]
        try:
            columns = self.scouted(written, namespace, resolve, to_the_end=True)[1]
        except QueryFailure as failure:
            raise QueryFailure(f"{_UNCHECKED} ({failure})") from failure
        if not is_stored and columns.types != plain.types:
            raise QueryFailure(_UNCHECKED)
        if len(text) <= NAMES_KEPT_TEXT_CHARS_MAX:
            if len(self._same) >= NAMES_KEPT_MAX:
                self._same.clear()
            self._same.add(place)

    def _names_of(self, text: str, namespace: str, resolve: Resolve) -> "_Names":
        known = self._names.get((text, namespace))
        if known is not None:
            return known
        reads, schema = self.scouted(text, namespace, resolve)
        names = _Names(list(reads), [list(each.names) for each in reads.values()], schema.names)
        if len(text) <= NAMES_KEPT_TEXT_CHARS_MAX:
            if len(self._names) >= NAMES_KEPT_MAX:
                self._names.clear()
            self._names[text, namespace] = names
        return names

    def scouted(
        self, text: str, namespace: str, resolve: Resolve, *, to_the_end: bool = False
    ) -> tuple[Mapping[tuple[str, str], pa.Schema], pa.Schema]:
        """Return what a query reads with its columns, and those of the result; nothing of it is run.

        `to_the_end`: types of conditions are looked at only there.
        """
        known: dict[tuple[str, str], pa.Schema] = {}
        while True:
            tables = _EmptyTables(resolve, known)
            found = self._scouted(text, namespace, tables, to_the_end=to_the_end)
            if found is not None:
                return tables.seen, found
            # The engine can't plan one query while it plans another: those within go before.
            for place, inner in tables.derived.items():
                known[place] = self.scouted(inner.text, inner.query.home, inner.resolve)[1]

    @staticmethod
    def _scouted(
        text: str, namespace: str, tables: "_EmptyTables", *, to_the_end: bool = False
    ) -> pa.Schema | None:
        """Return the columns of a query's result; None: a named query in it has to tell its own first."""
        context = context_of(namespace, text)
        catalog = FusionCatalog.memory_catalog()
        context.register_catalog_provider(CATALOG, catalog)
        for name in _mentioned_namespaces(text, namespace):
            catalog.register_schema(name, _EmptySchema(name, tables))
        try:
            frame = context.sql_with_options(text, ONLY_QUERIES)
            schema = frame.schema()
            if to_the_end:
                schema = context.create_dataframe_from_logical_plan(frame.optimized_logical_plan()).schema()
        except BaseException as error:
            tables.raise_failure(str(error))
            if not tables.derived:
                raise translated(error) from error
            return None
        tables.raise_failure()
        return schema

    def refuse_bad_grammar(self, text: str) -> None:
        """Raise `InvalidSql` if `text` is no query, whatever its names stand for."""
        try:
            context_of("public").sql_with_options(text, ONLY_QUERIES)
        except BaseException as error:
            refusal = translated(error)
            if isinstance(refusal, InvalidSql):
                raise refusal from error
            if not isinstance(refusal, QueryFailure):
                raise


@dataclass(frozen=True, slots=True)
class _Names:
    """The tables that a query reads, the columns that they had, and those of its result."""

    tables: list[tuple[str, str]]
    seen: list[list[str]]
    columns: list[str]


class _EmptyTables:
    """Stand for all that there is, and learn which of them a query reads."""

    def __init__(self, resolve: Resolve, known: Mapping[tuple[str, str], pa.Schema]) -> None:
        self._resolve = resolve
        self._known = known
        self.derived: dict[tuple[str, str], Derived] = {}
        """Named queries whose columns aren't known."""
        self.seen: dict[tuple[str, str], pa.Schema] = {}
        self._failure: UpwellError | None = None
        self._unless_called: UpwellError | None = None

    def raise_failure(self, refusal: str = "") -> None:
        """Raise what went wrong first, and let go of it: it holds the engine, which holds this.

        With a `refusal` the query can't be planned.
        """
        failure = self._failure or (self._unless_called if _NO_TABLE.search(refusal) else None)
        self._failure = self._unless_called = None
        try:
            if failure is not None:
                raise failure
        finally:
            del failure  # it holds this frame, too

    def table(self, namespace: str, name: str) -> FusionTable | None:
        try:
            source = self._resolve(namespace, name)
        except UpwellError as error:
            if name in TABLE_FUNCTIONS:
                self._unless_called = error
            else:
                self._failure = self._failure or error
            return None
        schema = self._known.get((namespace, name)) if isinstance(source, Derived) else schema_of(source)
        if schema is None:
            assert isinstance(source, Derived), "a table knows its columns"
            self.derived[namespace, name] = source
            return None
        self.seen[namespace, name] = schema
        return FusionTable(dataset.dataset(schema.empty_table()))


class _EmptySchema(SchemaProvider):
    def __init__(self, name: str, tables: _EmptyTables) -> None:
        self._name = name
        self._tables = tables

    def owner_name(self) -> str | None:
        return None

    def table_names(self) -> set[str]:
        return set()

    def table_exist(self, name: str) -> bool:
        return True

    def table(self, name: str) -> FusionTable | None:
        return self._tables.table(self._name, name)


def _mentioned_namespaces(text: str, default: str) -> set[str]:
    """Return every word in front of a dot, and the default: a superset of the namespaces in `text`."""
    return {default, *(word.lower() for word in _BEFORE_A_DOT.findall(text))}
