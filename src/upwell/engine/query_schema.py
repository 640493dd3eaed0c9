"""Named queries come and go, and keep what they read: CREATE VIEW and DROP VIEW as commits of records.

Law: judged against the newest catalog under the write lock. What a named query reads can't be dropped, nor
a column that it may use be dropped, renamed or retyped, as long as it is there.
"""

from collections.abc import Collection
from dataclasses import replace

from upwell.clock import Clock
from upwell.engine.alter import Alteration, DropColumn, ModifyColumn, RenameColumn
from upwell.engine.catalog import SYSTEM_NAMESPACE, Catalog, Table, query_record
from upwell.engine.commit import Committer, Note, no_note
from upwell.engine.named_query import NamedQuery, QueryName, readers, refuse_deep
from upwell.errors import AlreadyExists, InvalidOperation, NotFound
from upwell.ids import Seq
from upwell.storage.hot import Batch, ExpectationFailed

_UNSTORED = frozenset({SYSTEM_NAMESPACE, "information_schema"})


class QuerySchema:
    """Changes of named queries; each returns the seq to wait for, None if there was nothing to do."""

    def __init__(self, committer: Committer, clock: Clock, note: Note = no_note) -> None:
        self._committer = committer
        self._clock = clock
        self._note = note

    def noted(self, note: Note) -> "QuerySchema":
        """Return what makes one change, with which `note` is committed."""
        return QuerySchema(self._committer, self._clock, note)

    @property
    def last_seq(self) -> Seq:
        """The end of the newest commit, published or not."""
        return self._committer.last_seq

    def create(
        self, query: NamedQuery, planned: Catalog, *, replaces: bool, if_not_exists: bool
    ) -> Seq | None:
        """Keep a query that was planned on `planned`; raise `ExpectationFailed` if that has changed since."""
        with self._committer.lock:
            catalog = self._committer.newest_catalog
            if query.place in catalog.tables:
                raise AlreadyExists(f"Table {query.full_name} already exists")
            old = catalog.queries.get(query.place)
            if old is not None and if_not_exists:
                return None
            if old is not None and not replaces:
                raise AlreadyExists(
                    f"View {query.full_name} already exists; CREATE OR REPLACE VIEW replaces it"
                )
            if query.namespace not in catalog.namespaces:
                raise NotFound(
                    f"Namespace '{query.namespace}' does not exist. "
                    f"Create it first with CREATE NAMESPACE {query.namespace}"
                )
            if any(_found(catalog, place) != _found(planned, place) for place in query.reads):
                raise ExpectationFailed("what the view reads was changed meanwhile")
            _refuse_other_columns(catalog, old, query)
            refuse_deep({**catalog.queries, query.place: query})
            kept = replace(query, created_at_us=self._clock.now_us())
            return self._committer.apply(Batch(records=[query_record(kept), *self._note()]))

    def drop(self, place: QueryName, *, if_exists: bool) -> Seq | None:
        """Forget a query; raise if another one reads it."""
        with self._committer.lock:
            catalog = self._committer.newest_catalog
            query = catalog.queries.get(place)
            if query is None:
                if place in catalog.tables:
                    raise InvalidOperation(f"{place[0]}.{place[1]} is a table; DROP TABLE drops it")
                if if_exists:
                    return None
                raise NotFound(f"View '{place[1]}' not found in namespace '{place[0]}'")
            refuse_read(catalog, [place])
            return self._committer.apply(Batch(records=[query_record(query, dropped=True), *self._note()]))


def refuse_read(catalog: Catalog, dropped: Collection[QueryName]) -> None:
    """Raise if a query that stays reads one of what is dropped."""
    for place in dropped:
        for reader in readers(catalog.queries, place):
            if reader.place not in dropped:
                name = reader.full_name
                raise InvalidOperation(f"{'.'.join(place)} is read by view {name}; DROP VIEW {name} first")


def refuse_used(catalog: Catalog, table: Table, alteration: Alteration) -> None:
    """Raise if a named query may use the column that is altered."""
    match alteration:
        case DropColumn(name) | RenameColumn(name):
            pass
        case ModifyColumn(name) if any(
            each.name == name and alteration.applied(each) != each for each in table.columns
        ):
            pass
        case _:
            return
    for reader in readers(catalog.queries, (table.namespace, table.name)):
        if reader.uses((table.namespace, table.name), name):
            raise InvalidOperation(
                f"column '{name}' of {table.full_name} is used by view {reader.full_name}; "
                f"DROP VIEW {reader.full_name} first"
            )


def _found(catalog: Catalog, place: QueryName) -> Table | NamedQuery | None:
    return None if place[0] in _UNSTORED else catalog.tables.get(place) or catalog.queries.get(place)


def _refuse_other_columns(catalog: Catalog, old: NamedQuery | None, new: NamedQuery) -> None:
    """Raise if a query that others read is replaced by one that lacks a column."""
    if old is None or new.columns[: len(old.columns)] == old.columns:
        return
    for reader in readers(catalog.queries, old.place):
        raise InvalidOperation(
            f"view {reader.full_name} reads {old.full_name}: it may only be replaced by a query that begins "
            f"with the same columns; DROP VIEW {reader.full_name} first"
        )
