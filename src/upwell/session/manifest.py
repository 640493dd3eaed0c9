"""`system.manifest`: what is cold, a row a partition (contract, section 4).

Law: a row says what the manifest in force says; one that can't be read is a row with the state `error`. A
manifest names bounds of its rows' values: who isn't an administrator sees those of rows they may read.
"""

import hashlib
from collections.abc import Sequence

import msgspec

from upwell.engine.catalog import Table
from upwell.engine.rows import Rows as TierRows
from upwell.engine.view import View
from upwell.errors import PermissionDenied, UpwellError
from upwell.session.fleet import Layout, Rows
from upwell.session.policy import Action, Principal, require_table
from upwell.types import Owner, SqlType, Value, owner_user

_TEXT, _BOOL, _TIME = SqlType.TEXT, SqlType.BOOLEAN, SqlType.TIMESTAMP
MANIFEST: Layout = [
    ("cache_key", _TEXT), ("namespace_id", _TEXT), ("table_name", _TEXT), ("scope", _TEXT), ("etag", _TEXT),
    ("last_refreshed", _TIME), ("last_accessed", _TIME), ("in_memory", _BOOL), ("sync_state", _TEXT),
    ("manifest_json", SqlType.JSON),
]  # fmt: skip


def manifests(view: View, tiers: TierRows, principal: Principal) -> Rows:
    """Return a row for each partition that was flushed and may be read; reads their manifests."""
    rows: list[Sequence[Value]] = []
    for table in sorted(view.catalog.tables.values(), key=lambda table: table.full_name):
        for owner in tiers.owners(view.hot, table):
            if not tiers.manifest_number(view.hot, table, owner) or not _may_read(principal, table, owner):
                continue
            scope = owner_user(owner) or "shared"
            name = (f"{table.full_name.replace('.', ':', 1)}:{scope}", table.namespace, table.name, scope)
            try:
                partition = tiers.cold_partition(view.hot, table, owner)
            except UpwellError:
                rows.append((*name, None, None, None, False, "error", None))
                continue
            assert partition is not None, "it has a manifest"
            text = msgspec.json.encode(partition.manifest)
            at_us = partition.manifest.updated_at * 1000
            is_behind = next(view.hot.scan_rows(table.id, owner), None) is not None
            state = "pending_write" if is_behind else "in_sync"
            etag = hashlib.sha256(text).hexdigest()[:16]
            rows.append((*name, etag, at_us, at_us, True, state, text.decode()))
    return rows


def _may_read(principal: Principal, table: Table, owner: Owner) -> bool:
    if principal.is_admin:
        return True
    try:
        require_table(principal, Action.READ, table)
    except PermissionDenied:
        return False
    return owner == table.owner_for(principal.user)
