"""Sources: what a name in a query stands for, to who asks.

Law: nobody's query reads what its principal may not read, nor what another write than its own has
staged.
"""

import pyarrow as pa

from upwell.engine.query import Source
from upwell.engine.view import View
from upwell.engine.write import Write
from upwell.feeds.live import LiveFeed
from upwell.feeds.registry import Registry
from upwell.session.policy import Action, Principal, require_table
from upwell.session.system import TRANSACTIONS, is_system, system_table, transactions_table
from upwell.session.transaction import Transactions


def resolve(
    view: View,
    principal: Principal,
    registry: Registry,
    feed: LiveFeed,
    transactions: Transactions,
    write: Write | None,
    now_us: int,
    is_open: bool,
    namespace: str,
    name: str,
) -> Source | pa.Table:
    """Return the rows behind a name; raise `PermissionDenied` or `TableNotFound`.

    `is_open`: SHOW and DESCRIBE ask, who may read system tables for everybody.
    """
    if (namespace, name) == TRANSACTIONS:
        return transactions_table(principal, transactions)
    if is_system(namespace):
        return system_table(namespace, name, view, principal, registry, feed, is_open=is_open)
    table = view.catalog.get_table(namespace, name)
    require_table(principal, Action.READ, table)
    owner = table.owner_for(principal.user)
    staged = None if write is None else write.staged_in(table, owner)
    return Source(table, owner, staged, table.alive_from(now_us))
