"""`system.live` and KILL LIVE QUERY: the live queries that run at this moment (contract, 3.11 and 4).

Law: administrators see all, everybody else their own; a live query is listed as long as it gets changes.
"""

from collections.abc import Sequence

import msgspec

from upwell.errors import NotFound
from upwell.feeds.live import LiveFeed
from upwell.feeds.subscription import Listing
from upwell.protocol.messages import SubscriptionOptions
from upwell.session.fleet import Layout, Rows
from upwell.session.policy import Principal
from upwell.types import SqlType, Value

NODE_ID = 1
_TEXT, _BIG, _TIME, _JSON = SqlType.TEXT, SqlType.BIGINT, SqlType.TIMESTAMP, SqlType.JSON
LIVE_QUERIES: Layout = [
    ("live_id", _TEXT), ("connection_id", _TEXT), ("subscription_id", _TEXT), ("namespace_id", _TEXT),
    ("table_name", _TEXT), ("user_id", _TEXT), ("query", _TEXT), ("options", _JSON), ("status", _TEXT),
    ("created_at", _TIME), ("last_update", _TIME), ("changes", _BIG), ("node_id", _BIG),
    ("last_ping_at", _TIME),
]  # fmt: skip


def live_queries(principal: Principal, feed: LiveFeed) -> tuple[Layout, Rows]:
    """Return the live queries that the principal may see; any thread may call it."""
    found = feed.subscriptions()
    return LIVE_QUERIES, [_row(each) for each in found if principal.is_admin or each.user == principal.user]


def kill_live(principal: Principal, feed: LiveFeed, live_id: str) -> str:
    """End a live query and say so; raise `NotFound` also for others' that the principal may not see."""
    if not feed.kill(live_id, None if principal.is_admin else principal.user):
        raise NotFound(f"live query '{live_id[:200]}'; SELECT live_id FROM system.live lists them")
    return f"Live query killed: {live_id}"


def _row(found: Listing) -> Sequence[Value]:
    origin = found.origin
    return (
        found.live_id, origin.connection, found.id, found.namespace, found.table_name, origin.user,
        origin.sql, _options(origin.options), "active", origin.created_at_us, found.updated_at_us,
        found.changes, NODE_ID, origin.heard_at_us(),
    )  # fmt: skip


def _options(options: SubscriptionOptions | None) -> str | None:
    return None if options is None else msgspec.json.encode(options).decode()
