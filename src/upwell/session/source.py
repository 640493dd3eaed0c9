"""Sources: what a name in a query stands for, to who asks.

Law: nobody's query reads what its principal may not read, nor what another write than its own has
staged.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import pyarrow as pa

from upwell.engine.catalog import TableKind
from upwell.engine.expression import Context
from upwell.engine.named_query import NamedQuery
from upwell.engine.source import OWNER, AnySource, Derived, Everybody, Resolve, Source, without_later
from upwell.engine.view import View
from upwell.engine.write import Write
from upwell.errors import InvalidOperation
from upwell.feeds.live import LiveFeed
from upwell.feeds.registry import Registry
from upwell.session.exact import with_exact_literals
from upwell.session.policy import Action, Principal, require_admin, require_table
from upwell.session.server import ENGINE_SETTINGS, SERVER_LAYOUTS, Server
from upwell.session.system import (
    SETTINGS,
    SYSTEM,
    TRANSACTIONS,
    is_system,
    made,
    system_table,
    transactions_table,
)
from upwell.session.transaction import Transactions
from upwell.sql.checked import with_checked_integers
from upwell.sql.owners import PREFIX
from upwell.sql.query import Query
from upwell.sql.render import render
from upwell.sql.scope import Tables
from upwell.types import INTEGER_BITS, Column


@dataclass(frozen=True, slots=True)
class Resolver:
    """Tells what the names of one query stand for, to `principal` on `view`.

    `is_open`: SHOW and DESCRIBE ask, who may read system tables for everybody. `others` are the names by
    which this query, and the audit log knows it, reads the rows of all users.
    """

    view: View
    principal: Principal
    registry: Registry
    feed: LiveFeed
    transactions: Transactions
    server: Server
    write: Write | None
    context: Context
    is_open: bool = False
    others: frozenset[str] = frozenset()

    def __call__(self, namespace: str, name: str) -> AnySource:
        """Return the rows behind a name; raise `PermissionDenied` or `TableNotFound`."""
        if namespace == SYSTEM and name in self.others:
            return _everybody(self.view, self.principal, name.removeprefix(PREFIX), self.context.now_us)
        system = self._find_system(namespace, name)
        if system is not None:
            return system
        named = self.view.catalog.queries.get((namespace, name))
        if named is not None:
            # What the query that reads a view may read beyond its principal's rights, the view may not.
            return _derived(named, self.context, replace(self, is_open=False, others=frozenset()))
        table = self.view.catalog.get_table(namespace, name)
        require_table(self.principal, Action.READ, table)
        owner = table.owner_for(self.principal.user)
        staged = None if self.write is None else self.write.staged_in(table, owner)
        return Source(table, owner, staged, table.alive_from(self.context.now_us))

    def _find_system(self, namespace: str, name: str) -> pa.Table | None:
        if (namespace, name) == TRANSACTIONS:
            return transactions_table(self.principal, self.transactions)
        if namespace == SYSTEM and name in SERVER_LAYOUTS:
            if not self.is_open:
                require_admin(self.principal, f"system.{name}")
            found = self.server.find(name, self.view, self.principal)
            assert found is not None, "each layout has its rows"
            return made(*found)
        if (namespace, name) == SETTINGS:
            require_admin(self.principal, "settings")
            return made(ENGINE_SETTINGS, self.server.engine_settings())
        if is_system(namespace):
            return system_table(
                namespace, name, self.view, self.principal, self.registry, self.feed, is_open=self.is_open
            )
        return None


def stored_columns(sources: Iterable[AnySource]) -> list[tuple[Column, ...]]:
    """Return the columns of what isn't a system table."""
    return [
        source.query.columns if isinstance(source, Derived) else source.table.columns
        for source in sources
        if not isinstance(source, pa.Table)
    ]


def integers_of(named: Iterable[tuple[tuple[str, str], AnySource]]) -> Tables:
    """Return the columns of the tables behind names with their bits, 0 for what is no integer."""
    return {place: bits_of(columns) for place, source in named for columns in stored_columns([source])}


def bits_of(columns: Iterable[Column]) -> dict[str, int]:
    """Return the names of columns with their bits, 0 for what is no integer."""
    return {column.name: INTEGER_BITS.get(column.type, 0) for column in columns}


def _derived(query: NamedQuery, context: Context, resolver: Resolve) -> Derived:
    """Return a view as who asks may read it; raise if they may not read a table that it names."""

    def within(namespace: str, name: str) -> AnySource:
        return without_later(resolver(namespace, name), query.seen_of((namespace, name)))

    places = [place for place in query.reads if not is_system(place[0])]
    text = render(query.selected, (), context, is_part=True)
    sources = [within(*place) for place in places]
    exact = with_exact_literals(Query(text), stored_columns(sources)).text
    exact = with_checked_integers(exact, integers_of(zip(places, sources, strict=True)), query.home)
    return Derived(query, exact, within)


def _everybody(view: View, principal: Principal, name: str, now_us: int) -> Everybody:
    require_admin(principal, "the rows of all users")
    table = view.catalog.get_table(*name.split("."))
    if table.kind is TableKind.SHARED:
        raise InvalidOperation(f"{name} is a SHARED table: everybody's rows are the same, SELECT reads them")
    if OWNER in table.index_of:
        raise InvalidOperation(f"all_owners needs the name {OWNER}, and {name} has a column of it")
    return Everybody(table, table.alive_from(now_us))
