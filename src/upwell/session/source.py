"""Sources: what a name in a query stands for, to who asks.

Law: nobody's query reads what its principal may not read.
"""

import pyarrow as pa

from upwell.engine.query import Source
from upwell.engine.view import View
from upwell.feeds.live import LiveFeed
from upwell.feeds.registry import Registry
from upwell.session.policy import Action, Principal, require_table
from upwell.session.system import is_system, system_table


def resolve(
    view: View,
    principal: Principal,
    registry: Registry,
    feed: LiveFeed,
    is_open: bool,
    namespace: str,
    name: str,
) -> Source | pa.Table:
    """Return the rows behind a name; raise `PermissionDenied` or `TableNotFound`.

    `is_open`: SHOW and DESCRIBE ask, who may read system tables for everybody.
    """
    if is_system(namespace):
        return system_table(namespace, name, view, principal, registry, feed, is_open=is_open)
    table = view.catalog.get_table(namespace, name)
    require_table(principal, Action.READ, table)
    return Source(table, table.owner_for(principal.user))
