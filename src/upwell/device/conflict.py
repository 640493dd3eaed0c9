"""Conflicts: the server has another version of a row than the one that this device edited.

Law: the app decides from (base, local, server), no clock does; every decision is recorded with all three
in `_sync_conflicts`, so nothing that was written is unreadable afterwards.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from upwell.device.apply import RETURNED, REVIVED, Applier
from upwell.device.codec import captured, row_from_capture, row_from_wire
from upwell.device.file import SyncFile
from upwell.device.outbox import Outbox, Outgoing
from upwell.device.schema import Row, Tables
from upwell.protocol.sync import HAS_CHILDREN, ServerRow, is_null


@dataclass(frozen=True, slots=True)
class Conflict:
    """Rows by column name: before the edit, as edited here, on the server; None where there is none."""

    table: str
    key: str
    base: Row | None
    local: Row | None
    server: Row | None


# Returns the row that shall stand, None for "deleted".
Resolver: TypeAlias = Callable[[Conflict], Row | None]


def server_wins(conflict: Conflict) -> Row | None:
    """Take the server's row; the local one stays readable in `_sync_conflicts`."""
    return conflict.server


def client_wins(conflict: Conflict) -> Row | None:
    """Upload the local row again, on top of the server's, unless that has all that was edited here."""
    base, local, server = conflict.base, conflict.local, conflict.server
    if base is not None and local is not None and server is not None:
        edited = [name for name, value in local.items() if value != base.get(name)]
        if all(name in server and server[name] == local[name] for name in edited):
            return server
    return local


class Settlement:
    """Resolves conflicts inside the transaction that stores the answer."""

    def __init__(self, file: SyncFile, applier: Applier, outbox: Outbox, resolver: Resolver) -> None:
        self._file = file
        self._applier = applier
        self._outbox = outbox
        self._resolver = resolver

    def resolve(self, tables: Tables, sent: Outgoing, found: ServerRow) -> None:
        """Let the resolver decide, write the decision, queue it unless it is the server's row."""
        shape = tables.get(sent.table)
        payload = None if found.deleted or is_null(found.payload) else bytes(found.payload).decode()
        base, reason = self._waiting(sent)
        local = captured(self._file.connection, shape, sent.key)
        conflict = Conflict(
            table=shape.name,
            key=sent.key,
            base=row_from_capture(shape, base),
            local=row_from_capture(shape, local),
            server=None if payload is None else row_from_wire(shape, sent.key, payload)[0],
        )
        # A row that was only revived has no edit of the app's to defend against a newer one, nor has one of
        # a history that was lost, against a version that came after it.
        is_settled = reason == REVIVED and conflict.server is not None
        is_settled |= reason == RETURNED and found.server_version >= -self._applier.meta(sent.row)[1]
        chosen = conflict.server if is_settled else self._resolver(conflict)
        is_server = chosen == conflict.server
        decision = _decision(conflict, chosen)
        self._file.record_conflict(sent.row, (base, local, payload), found.server_version, decision)
        self._drop_withheld(sent, found.server_version)
        if is_server:
            self._outbox.remove(sent.row)
        self._applier.write(tables, sent.row, found.server_version, payload)
        if not is_server:
            self._queue(tables, sent, found.server_version, chosen)

    def undelete(self, tables: Tables, sent: Outgoing) -> bool:
        """The server keeps refusing a deletion because of rows that refer to this one: bring the row back.

        Children that this device deleted go first, or with it, so the first refusal changes nothing.
        """
        found = self._file.connection.execute(
            "SELECT base_payload, base_version FROM _sync_pending WHERE table_name = ? AND pk_uuid = ?"
            " AND op = 'DELETE' AND attempts > 0 AND reason = ? AND base_payload IS NOT NULL",
            (*sent.row, HAS_CHILDREN),
        ).fetchone()
        if found is None:
            return False
        payload, version = found
        self._file.record_conflict(sent.row, (payload, None, payload), version, "server")
        self._outbox.remove(sent.row)
        self._applier.overlay(tables, sent.row, row_from_capture(tables.get(sent.table), payload))
        self._applier.set_meta(sent.row, version, is_deleted=False)
        return True

    def discard(self, tables: Tables, row: tuple[str, str]) -> bool:
        """Give up a quarantined change: the row is again what the server had last, as far as it is known."""
        found = self._file.connection.execute(
            "SELECT base_payload, payload, base_version FROM _sync_pending"
            " WHERE table_name = ? AND pk_uuid = ? AND quarantined <> 0",
            row,
        ).fetchone()
        if found is None:
            return False
        base, local, version = found
        self._file.record_conflict(row, (base, local, base), version, "discarded")
        self._outbox.remove(row)
        shape = tables.find(row[0])
        if shape is not None:
            self._applier.overlay(tables, row, row_from_capture(shape, base))
            self._applier.set_meta(row, version, is_deleted=base is None)
        return True

    def _queue(self, tables: Tables, sent: Outgoing, version: int, chosen: Row | None) -> None:
        shape = tables.get(sent.table)
        server = captured(self._file.connection, shape, sent.key)
        self._applier.overlay(tables, sent.row, chosen)
        self._applier.set_meta(sent.row, version, is_deleted=chosen is None)
        payload = server if chosen is None else captured(self._file.connection, shape, sent.key)
        self._file.connection.execute(
            "UPDATE _sync_pending SET op = ?, payload = ? WHERE table_name = ? AND pk_uuid = ?",
            ("DELETE" if chosen is None else "INSERT", payload, *sent.row),
        )
        self._outbox.requeue(sent.row, version, server)

    def _waiting(self, sent: Outgoing) -> tuple[str | None, str | None]:
        """Return what the row was before the app edited it, and why it is pending if not for that."""
        found: tuple[str | None, str | None] | None = self._file.connection.execute(
            "SELECT base_payload, reason FROM _sync_pending WHERE table_name = ? AND pk_uuid = ?", sent.row
        ).fetchone()
        return (None, None) if found is None else found

    def _drop_withheld(self, sent: Outgoing, version: int) -> None:
        self._file.connection.execute(
            "DELETE FROM _sync_withheld WHERE table_name = ? AND pk_uuid = ? AND server_version <= ?",
            (*sent.row, version),
        )


def _decision(conflict: Conflict, chosen: Row | None) -> str:
    if chosen == conflict.server:
        return "server"
    return "local" if chosen == conflict.local else "merged"
