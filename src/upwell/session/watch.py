"""Watches: the text of a subscription, bound to whom it is for and to the moment it is asked.

Law: predicate and snapshot text say the same; what changes by itself (NOW(), CURRENT_USER()) is a value
from here on.
"""

from collections.abc import Awaitable, Callable
from functools import partial

import pyarrow as pa

from upwell.engine.catalog import DEFAULT_NAMESPACE, Catalog, Table
from upwell.engine.expression import Context, freeze
from upwell.errors import PermissionDenied
from upwell.feeds.live import LiveFeed
from upwell.feeds.lookout import Question
from upwell.feeds.match import Watch
from upwell.protocol.messages import Subscription
from upwell.session.depth import refuse_deep
from upwell.session.exact import with_exact_literals
from upwell.session.ignored import refuse_ignored
from upwell.session.policy import Action, Principal, require_table
from upwell.session.source import bits_of
from upwell.session.system import is_stored, key_columns
from upwell.sql.checked import with_checked_integers
from upwell.sql.condition import with_moment
from upwell.sql.live import find_system_query, parse_live_query
from upwell.sql.query import Query
from upwell.sql.render import render

Look = Callable[[Principal, str], Awaitable[pa.Table]]
"""Runs a query of system tables for an administrator."""


def bind_watch(
    asked: Subscription, principal: Principal, catalog: Catalog, context: Context, feed: LiveFeed
) -> Watch:
    """Return what the subscription watches; raise what its text, its table or its rights don't allow."""
    query = parse_live_query(asked.sql, catalog, DEFAULT_NAMESPACE)
    after = asked.options.after if asked.options is not None else None
    require_table(principal, Action.READ, query.table)
    where = None if query.where is None else _bound(query.where, query.table, context)
    condition = None
    if where is not None and not query.is_whole:
        condition = feed.sharing.condition(query.table, where, query.names)
    return Watch(
        table=query.table,
        owner=query.table.owner_for(principal.user),
        projection=feed.sharing.projection(query.table, query.columns),
        predicate=freeze(query.predicate, (), context) if query.predicate is not None else None,
        where=where,
        condition=condition,
        view=asked.options is not None and asked.options.view,
        require=partial(require_table, principal, Action.READ),
        untold=(after or 0, query.table.alive_from(context.now_us)),
    )


def find_question(asked: Subscription, principal: Principal, look: Look) -> Question | None:
    """Return what the subscription asks of a system table; None if it is about another one.

    Raises `PermissionDenied`, whatever the table: only administrators follow what the server knows.
    """
    query = find_system_query(asked.sql)
    if query is None:
        return None
    if not principal.is_admin:
        raise PermissionDenied(
            f"Cannot subscribe to system table '{query.namespace}.{query.name}'; it takes role dba or system"
        )
    text = f'SELECT * FROM "{query.namespace}"."{query.name}"'
    if query.where is not None:
        text += f" WHERE {query.where}"
    return Question(
        query.namespace,
        query.name,
        key_columns(query.namespace, query.name),
        query.columns,
        partial(look, principal, text),
        is_stored(query.namespace, query.name),
    )


def _bound(where: str, table: Table, context: Context) -> str:
    """Return a predicate's text for the query engine, with what changes by itself as values."""
    refuse_deep(where)
    refuse_ignored(where)
    text = with_moment(render(where, (), context), context.now_us)
    head = f'SELECT 1 FROM "{table.name}" WHERE '
    whole = with_exact_literals(Query(head + text), [table.columns]).text
    integers = {(table.namespace, table.name): bits_of(table.columns)}
    return with_checked_integers(whole, integers, table.namespace).removeprefix(head)
