"""Recount: what was hot before the server started is counted again, since counts live in memory only.

Law: a partition that was due before the stop is due after the start. Beside the counting, clients write: what
they change is counted by the commits, what a flush takes meanwhile isn't counted here.
"""

from upwell.engine.catalog import Table
from upwell.engine.commit import Committer
from upwell.engine.flush_policy import NEVER
from upwell.engine.in_force import decode_manifest_record, partition_name
from upwell.engine.view import View
from upwell.storage.hot import HotReader, Kind
from upwell.types import Owner


def recount(committer: Committer, first: View) -> None:
    """Count the hot rows of the View that a server starts with, at most as many as make a flush due."""
    for table in first.catalog.by_id.values():
        policy = committer.pending.policy(table)
        if policy == NEVER:
            continue
        for owner in first.hot.owners(table.id):
            until = _flushed_until(first.hot, table, owner)
            rows, since = _count(first, table, owner, until, policy.rows_max)
            with committer.lock:
                if rows and _flushed_until(committer.newest, table, owner) == until:
                    committer.pending.add(table.id, owner, rows, since)


def _count(view: View, table: Table, owner: Owner, until: int, rows_max: int | None) -> tuple[int, int]:
    rows = since = 0
    for version in view.hot.scan_rows(table.id, owner):
        if version.seq > until:
            rows += 1
            since = min(since or version.seq, version.seq)
            if rows == rows_max:
                break
    return rows, since


def _flushed_until(reader: HotReader, table: Table, owner: Owner) -> int:
    record = reader.find_record(Kind.MANIFEST, partition_name(table.id, owner))
    return decode_manifest_record(record).flushed_until
