"""Watches: the text of a subscription, bound to whom it is for and to the moment it is asked.

Law: predicate and snapshot text say the same; what changes by itself (NOW(), CURRENT_USER()) is a value
from here on.
"""

from functools import partial

from upwell.engine.catalog import DEFAULT_NAMESPACE, Catalog
from upwell.engine.expression import Context, freeze
from upwell.errors import (
    InvalidInput,
    InvalidOperation,
    InvalidSql,
    NotFound,
    UpwellError,
)
from upwell.feeds.live import LiveFeed
from upwell.feeds.match import Watch
from upwell.feeds.subscription import ending_code
from upwell.protocol.messages import Subscription
from upwell.session.policy import Action, Principal, require_table
from upwell.sql.lex import tokenize
from upwell.sql.live import parse_live_query
from upwell.sql.render import render
from upwell.types import format_timestamp


def bind_watch(
    asked: Subscription, principal: Principal, catalog: Catalog, context: Context, feed: LiveFeed
) -> Watch:
    """Return what the subscription watches; raise what its text, its table or its rights don't allow."""
    query = parse_live_query(asked.sql, catalog, DEFAULT_NAMESPACE)
    after = asked.options.after if asked.options is not None else None
    require_table(principal, Action.READ, query.table)
    return Watch(
        table=query.table,
        owner=query.table.owner_for(principal.user),
        projection=feed.projection(query.table, query.columns),
        predicate=freeze(query.predicate, (), context) if query.predicate is not None else None,
        where=_bound(query.where, context) if query.where is not None else None,
        view=asked.options is not None and asked.options.view,
        require=partial(require_table, principal, Action.READ),
        untold=(after or 0, query.table.alive_from(context.now_us)),
    )


def live_code(error: UpwellError) -> str:
    """Return the code of an error frame (reference contract, section 2.4)."""
    match error:
        case NotFound():
            return "NOT_FOUND"
        case InvalidSql():
            return "INVALID_SQL"
        case InvalidOperation() | InvalidInput():
            return "UNSUPPORTED"
        case _:
            return ending_code(error)


def _bound(where: str, context: Context) -> str:
    """Return a predicate's text with the session's functions and NOW() as values."""
    text = render(where, (), context)
    tokens = tokenize(text)
    moment = f"TIMESTAMP '{format_timestamp(context.now_us).removesuffix('Z')}'"
    for at in range(len(tokens) - 1, -1, -1):
        token = tokens[at]
        is_called = [each.word for each in tokens[at + 1 : at + 3]] == ["(", ")"]
        if token.word == "CURRENT_TIMESTAMP" or (token.word == "NOW" and is_called):
            end = tokens[at + 2].end if is_called else token.end
            text = text[: token.start] + moment + text[end:]
    return text
