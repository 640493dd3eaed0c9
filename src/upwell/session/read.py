"""Reads: a SELECT by key at once, any other in a query thread, each through one View."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

import pyarrow as pa

from upwell.engine.expression import Parameter, find_key
from upwell.engine.flow import Given
from upwell.engine.query import QueryEngine
from upwell.engine.result import refuse_not_finite, renamed, result_columns, without_directories
from upwell.engine.rows import Rows, WouldBlock
from upwell.engine.source import AnySource, Resolve, Source, declared_columns, names_of
from upwell.engine.stop import Stop
from upwell.engine.tiers import with_tiers
from upwell.engine.view import View
from upwell.engine.write import Write
from upwell.errors import InvalidOperation, QueryFailure
from upwell.feeds.cursor import Growth
from upwell.feeds.live import LiveFeed
from upwell.feeds.registry import Registry
from upwell.session.call import Call
from upwell.session.depth import refuse_deep
from upwell.session.direct import find_direct, find_keys
from upwell.session.dml import evaluate
from upwell.session.exact import with_exact_literals
from upwell.session.ignored import refuse_ignored
from upwell.session.order import ordered, text_in_order
from upwell.session.outcome import Answer, PointAnswer, Streamed
from upwell.session.point import point_answer
from upwell.session.policy import Action, require_table
from upwell.session.server import Server
from upwell.session.source import Resolver, bits_of, integers_of, stored_columns
from upwell.session.threads import QueryThreads
from upwell.session.transaction import Transactions
from upwell.sql.caption import with_captions
from upwell.sql.checked import with_checked_integers
from upwell.sql.owners import name_all_owners
from upwell.sql.query import Query
from upwell.sql.render import render
from upwell.sql.scope import Tables
from upwell.sql.star import with_declared_stars, with_stars_once
from upwell.sql.statements import DirectRead, PointRead, Select
from upwell.sql.twins import OwnNames, is_for_twins, own_names
from upwell.types import Column, Key, Value


@dataclass(frozen=True, slots=True)
class Reader:
    """Answers queries."""

    rows: Rows
    query: QueryEngine
    growth: Growth
    threads: QueryThreads
    registry: Registry
    feed: LiveFeed
    transactions: Transactions
    server: Server

    async def select(self, call: Call, statement: Select) -> Answer | PointAnswer | Streamed:
        view = self.growth.view if call.transaction is None else call.transaction.view
        if call.streams and not statement.explains:
            return await self.threads.run(lambda stop: self._stream(call, view, statement))
        try:
            found = self.find_at_once(call, statement, view)
        except WouldBlock:
            assert statement.point is not None, "all else looks at what is in memory"
            point = partial(self._point, call, statement.point, view, may_block=True)
            return await self.threads.run(lambda stop: point())
        if found is not None:
            return found
        table = await self.threads.run(partial(self._query, call, view, statement))
        if statement.explains:
            table = without_directories(table)
        refuse_not_finite(table)
        return Streamed(table.schema, Given(table)) if call.streams else Answer(table)

    def find_at_once(self, call: Call, statement: Select, view: View) -> Answer | PointAnswer | None:
        """Answer a plain query of what is in memory; None, or `WouldBlock`, if that takes a query thread."""
        if statement.point is not None and statement.point.key.node is not None:
            require_table(call.principal, Action.READ, statement.point.table)
            return self._point(call, statement.point, view, may_block=False)
        found = self._direct(call, statement, view, inline=True)
        if found is None:
            return None
        assert statement.direct is not None, "it was answered"
        return Answer(found, statement.direct.result_columns)

    def rows_of(
        self,
        call: Call,
        view: View,
        write: Write,
        stop: Stop,
        text: str,
        values: Sequence[Value],
        given: pa.Table | None,
        *,
        is_stored: bool,
    ) -> pa.Table:
        """Return the rows of a query that `write` asks, what it has staged included, in any order.

        `given` is what the only table in it stands for, whose rows keep their order. `is_stored`: what is
        computed becomes part of rows, so that an integer that doesn't fit is an error, and a star means
        the columns that were declared.
        """
        if name_all_owners(text, call.namespace)[1]:
            raise InvalidOperation(
                "all_owners() is for a SELECT of its own: no statement may change rows by what others have; "
                "read them, and write what you want to keep"
            )
        refuse_deep(text)
        text = render(text, values, call.context())
        refuse_deep(text)
        refuse_ignored(text)
        resolver = self._resolver(call, view, write) if given is None else lambda namespace, name: given
        if given is None and is_stored:
            text = with_declared_stars(text, partial(_declared, resolver, call.namespace))
        own, tables = self._read(text, call.namespace, resolver)
        if given is None:
            named = [(place, resolver(*place)) for place in tables]
            columns, integers = stored_columns(source for _, source in named), integers_of(named)
        else:
            columns = [tuple(_columns(given))]
            integers = {place: bits_of(columns[0]) for place in tables}
        own, text = self._checked(own, call.namespace, resolver, columns, integers, is_stored=is_stored)
        found = self.query.run(view, text, call.namespace, tables, resolver, stop=stop)
        return renamed(found, own.restored(found.column_names))

    def scouted(
        self, call: Call, view: View, text: str, namespace: str
    ) -> tuple[Mapping[tuple[str, str], pa.Schema], pa.Schema]:
        """Return what a query reads with its columns, and those of the result; nothing of it is run."""
        refuse_deep(text)
        text = render(text, (), call.context())
        refuse_deep(text)
        refuse_ignored(text)
        return self.query.scout.scouted(text, namespace, self._resolver(call, view, None))

    def find_keys(
        self,
        call: Call,
        view: View,
        write: Write,
        read: DirectRead,
        values: Sequence[Value],
        *,
        inline: bool,
    ) -> list[Key] | None:
        """Return the keys that a write asks for, None if only a query can tell them."""
        table, owner = read.table, read.table.owner_for(call.principal.user)
        if table.is_ephemeral or write.staged_in(table, owner) is not None:
            return None
        return find_keys(read, values, Source(table, owner), view, self.query, inline=inline)

    def _point(self, call: Call, point: PointRead, view: View, *, may_block: bool) -> PointAnswer:
        owner = point.table.owner_for(call.principal.user)
        key_column = point.table.columns[point.table.key_index]
        node = point.key.node
        # Most keys are literals: then nobody asks for the session's time and ids.
        value = (
            call.values[node.index]
            if isinstance(node, Parameter)
            else evaluate(node, [], call.values, call.context())
        )
        key = find_key(value, key_column)
        if key is None:
            return point_answer(point, None)
        if call.transaction is None:
            live = self.rows.find(view.hot, point.table, owner, key, may_block=may_block).live
            is_ephemeral = point.table.is_ephemeral
            if is_ephemeral and live and live.seq < point.table.alive_from(call.context().now_us):
                live = None
        else:
            call.transaction.write.may_block = may_block
            live = call.transaction.write.find_live(point.table, owner, key)
        return point_answer(point, live)

    def _direct(self, call: Call, statement: Select, view: View, *, inline: bool) -> pa.Table | None:
        read = statement.direct
        if read is None or call.transaction is not None:  # what it has staged is no part of the overlay
            return None
        require_table(call.principal, Action.READ, read.table)
        table = read.table
        alive_from = table.alive_from(call.context().now_us) if table.is_ephemeral else 0
        source = Source(table, table.owner_for(call.principal.user), alive_from=alive_from)
        return find_direct(read, call.values, source, view, self.query, inline=inline)

    def _query(self, call: Call, view: View, statement: Select, stop: Stop) -> pa.Table:
        found = self._direct(call, statement, view, inline=False)
        if found is not None:
            return found
        own, text, resolver, tables, sources = self._named(call, view, statement)
        found = ordered(
            text,
            sources,
            lambda final: self.query.run(view, final, call.namespace, tables, resolver, stop=stop),
            rows_unordered=partial(self.query.rows_unordered, view),
        )
        found = renamed(found, own.restored(found.column_names))
        return with_tiers(found, self.query, view, sources) if statement.explains else found

    def _stream(self, call: Call, view: View, statement: Select) -> Streamed:
        own, text, resolver, tables, sources = self._named(call, view, statement)
        in_order = text_in_order(text, sources, rows_unordered=partial(self.query.rows_unordered, view))
        try:
            schema, flow = self.query.stream(view, in_order, call.namespace, tables, resolver)
        except QueryFailure:
            if in_order == text:
                raise
            schema, flow = self.query.stream(view, text, call.namespace, tables, resolver)
        names = own.restored(schema.names)
        if names != schema.names:
            schema = pa.schema([field.with_name(name) for field, name in zip(schema, names, strict=True)])
            flow.names = names
        return Streamed(schema, flow)

    def _named(
        self, call: Call, view: View, statement: Select
    ) -> tuple[OwnNames, str, Resolve, list[tuple[str, str]], Sequence[AnySource]]:
        """Return a query's text for the engine, and what the names in it stand for."""
        refuse_deep(statement.text)  # before it is rewritten, too: that takes as long as it is deep
        text = render(statement.text, call.values, call.context())
        refuse_deep(text)
        refuse_ignored(text)
        write = None if call.transaction is None else call.transaction.write
        resolver = self._resolver(call, view, write, is_open=statement.is_open, others=statement.others)
        own, tables = self._read(text, call.namespace, resolver)
        sources = [resolver(*name) for name in tables]
        integers = integers_of(zip(tables, sources, strict=True))
        own, text = self._checked(own, call.namespace, resolver, stored_columns(sources), integers)
        return own, text, resolver, tables, sources

    def _checked(
        self,
        own: OwnNames,
        namespace: str,
        resolver: Resolve,
        columns: Sequence[Sequence[Column]],
        integers: Tables,
        *,
        is_stored: bool = False,
    ) -> tuple[OwnNames, str]:
        """Return a query with exact literals and integers that are checked, and how its columns are named."""
        text = with_captions(Query(own.text), partial(with_exact_literals, tables=columns)).text
        checked = with_checked_integers(text, integers, namespace, is_stored=is_stored)
        if checked != text:
            names = self.query.scout.columns_in(text, namespace, resolver)
            self.query.scout.require_same(text, checked, namespace, resolver, is_stored=is_stored)
            own = replace(own, names=names)
        return own, checked

    def _read(self, text: str, namespace: str, resolver: Resolve) -> tuple[OwnNames, list[tuple[str, str]]]:
        """Return a query that the engine can plan, and the tables that it reads."""
        try:
            return OwnNames(text, {}), self.query.scout.tables_in(text, namespace, resolver)
        except QueryFailure as failure:
            if is_for_twins(str(failure)):
                text = with_stars_once(text, partial(_columns_seen, resolver, namespace))
            for own in own_names(text, str(failure)):
                with suppress(QueryFailure):
                    return own, self.query.scout.tables_in(own.text, namespace, resolver)
            raise

    def _resolver(
        self,
        call: Call,
        view: View,
        write: Write | None,
        *,
        is_open: bool = False,
        others: frozenset[str] = frozenset(),
    ) -> Resolve:
        parts = (self.registry, self.feed, self.transactions, self.server)
        return Resolver(view, call.principal, *parts, write, call.context(), is_open, others)


def _columns(given: pa.Table) -> list[Column]:
    return [Column(0, column.name, column.type) for column in result_columns(given.schema)]


def _declared(resolver: Resolve, home: str, namespace: str | None, name: str) -> Sequence[str] | None:
    return declared_columns(resolver(home if namespace is None else namespace, name))


def _columns_seen(resolver: Resolve, home: str, namespace: str | None, name: str) -> Sequence[str]:
    return names_of(resolver(home if namespace is None else namespace, name))
