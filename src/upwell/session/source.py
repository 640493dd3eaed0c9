"""Sources: what a name in a query stands for, to who asks.

Law: nobody's query reads what its principal may not read, nor what another write than its own has
staged.
"""

import pyarrow as pa

from upwell.engine.catalog import TableKind
from upwell.engine.query import OWNER, Everybody, Source
from upwell.engine.view import View
from upwell.engine.write import Write
from upwell.errors import InvalidOperation
from upwell.feeds.live import LiveFeed
from upwell.feeds.registry import Registry
from upwell.session.policy import Action, Principal, require_admin, require_table
from upwell.session.server import SERVER_LAYOUTS, Server
from upwell.session.system import SYSTEM, TRANSACTIONS, is_system, made, system_table, transactions_table
from upwell.session.transaction import Transactions
from upwell.sql.owners import PREFIX


def resolve(
    view: View,
    principal: Principal,
    registry: Registry,
    feed: LiveFeed,
    transactions: Transactions,
    server: Server,
    write: Write | None,
    now_us: int,
    is_open: bool,
    others: frozenset[str],
    namespace: str,
    name: str,
) -> Source | Everybody | pa.Table:
    """Return the rows behind a name; raise `PermissionDenied` or `TableNotFound`.

    `is_open`: SHOW and DESCRIBE ask, who may read system tables for everybody. `others` are the names by
    which this query, and the audit log knows it, reads the rows of all users.
    """
    if namespace == SYSTEM and name in others:
        return _everybody(view, principal, name.removeprefix(PREFIX), now_us)
    if (namespace, name) == TRANSACTIONS:
        return transactions_table(principal, transactions)
    if namespace == SYSTEM and name in SERVER_LAYOUTS:
        if not is_open:
            require_admin(principal, f"system.{name}")
        found = server.find(name, view, principal)
        assert found is not None, "each layout has its rows"
        return made(*found)
    if is_system(namespace):
        return system_table(namespace, name, view, principal, registry, feed, is_open=is_open)
    table = view.catalog.get_table(namespace, name)
    require_table(principal, Action.READ, table)
    owner = table.owner_for(principal.user)
    staged = None if write is None else write.staged_in(table, owner)
    return Source(table, owner, staged, table.alive_from(now_us))


def _everybody(view: View, principal: Principal, name: str, now_us: int) -> Everybody:
    require_admin(principal, "the rows of all users")
    table = view.catalog.get_table(*name.split("."))
    if table.kind is TableKind.SHARED:
        raise InvalidOperation(f"{name} is a SHARED table: everybody's rows are the same, SELECT reads them")
    if OWNER in table.index_of:
        raise InvalidOperation(f"all_owners needs the name {OWNER}, and {name} has a column of it")
    return Everybody(table, table.alive_from(now_us))
