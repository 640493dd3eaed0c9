"""The outbox: an exact copy of what was sent, kept until the server has answered it.

Laws: what is in the outbox is sent again, unchanged, until there is an answer, so a lost one has no effect;
a pending change goes away only if the row still is what was acknowledged, otherwise it is queued again with
a fresh change id on top of the acknowledged version; a refused change stays.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeAlias

from msgspec import UNSET, Raw

from upwell.device.apply import REVIVED
from upwell.device.codec import JsonObject, decode_object, encode_json, key_to_wire, payload_to_wire
from upwell.device.file import SyncFile
from upwell.device.schema import BLOB_ELSEWHERE, Tables
from upwell.protocol.sync import (
    FK_MISSING,
    HAS_CHILDREN,
    INT64_MAX,
    UNREGISTERED_TABLE,
    Status,
    UploadChange,
)

RowKey = tuple[str, str]
INVALID_TEXT, INVALID_KEY, BLOB_IN_TEXT = "invalid_text", "invalid_key", "blob_in_text"
NO_CHANGE_ID = "no_change_id"
"""Why a change is in quarantine before it was ever sent."""

PendingRow: TypeAlias = tuple[str, str, str, int, str | None, int]
"""Table, key, operation, base version, payload, change id."""

# Of a JSON list of [position, version] pairs.
_ANSWERED = (
    "(SELECT json_extract(value, '$[0]') AS position, json_extract(value, '$[1]') AS version"
    " FROM json_each(?)) AS a JOIN _sync_outbox AS o ON o.position = a.position"
)
_IS_UNCHANGED = "CASE WHEN 'DELETE' IN (p.op, o.op) THEN p.op = o.op ELSE p.payload IS o.payload END"


class Outgoing(NamedTuple):
    """One change as it was (or will be) sent; `payload` is the captured form."""

    table: str
    key: str
    op: str
    base_version: int
    payload: str | None
    wire_payload: str | None
    change_id: int
    position: int

    @property
    def row(self) -> RowKey:
        """Table and key."""
        return self.table, self.key


class Outbox:
    """Takes batches from `_sync_pending`, and takes them off after the answer."""

    def __init__(self, file: SyncFile) -> None:
        self._file = file

    def outstanding(self) -> list[Outgoing]:
        """What was sent and never answered."""
        rows = self._file.connection.execute(
            "SELECT table_name, pk_uuid, op, base_version, payload, wire_payload, change_id, position"
            " FROM _sync_outbox ORDER BY position"
        )
        return list(map(Outgoing._make, rows))

    def freeze(self, tables: Tables, limit: int, skip: Iterable[RowKey]) -> list[Outgoing]:
        """Copy the next `limit` changes: untried ones first, parents before children, deletions last.

        What was sent and never answered comes first, also by another process. Raises `NotSignedIn` if that
        one gave the file away: what is pending may be another user's.
        """
        with self._file.transaction() as connection:
            self._file.require_owner()
            if outstanding := self.outstanding():
                return outstanding
            self._number()
            picked = self._pick(tables, limit, set(skip))
            has_extra = connection.execute("SELECT 1 FROM _sync_extra LIMIT 1").fetchone() is not None
            batch = [
                Outgoing(*row[:5], self._wire(tables, row, has_extra=has_extra), row[5], position)
                for position, row in enumerate(picked, 1)
            ]
            connection.executemany(
                "INSERT INTO _sync_outbox"
                " (table_name, pk_uuid, op, base_version, payload, wire_payload, change_id, position)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                batch,
            )
            if batch:
                self._file.note_sent(max(sent.change_id for sent in batch))
            return batch

    def _pick(self, tables: Tables, limit: int, skipped: set[RowKey]) -> list[PendingRow]:
        """Take them group by group, in the order of an index: what waits in thousands isn't sorted anew."""
        parents_first = sorted(tables.rank, key=lambda wire: tables.rank[wire])
        groups = [(wire, 0) for wire in parents_first] + [(wire, 1) for wire in reversed(parents_first)]
        picked: list[PendingRow] = []
        attempts = -1
        while len(picked) < limit and (next_attempts := self._attempts_above(attempts)) is not None:
            attempts = next_attempts
            for wire, is_deletion in groups:
                room = limit - len(picked)
                rows = self._file.connection.execute(
                    "SELECT table_name, pk_uuid, op, base_version, payload, change_id FROM _sync_pending"
                    " WHERE quarantined = 0 AND attempts = ? AND table_name = ? AND (op = 'DELETE') = ?"
                    " ORDER BY change_id LIMIT ?",
                    (attempts, wire, is_deletion, room + len(skipped) if room else 0),
                ).fetchall()
                wanted = [row for row in rows if row[:2] not in skipped][:room]
                picked += [row for row in wanted if not self._is_set_aside(row)]
        return picked

    def _is_set_aside(self, row: PendingRow) -> bool:
        """Quarantine a row that has no form on the wire."""
        table, key = row[:2]
        reason, detail = self._unsayable(row)
        if reason:
            self._file.connection.execute(
                "UPDATE _sync_pending SET quarantined = 1, reason = ?, detail = ?"
                " WHERE table_name = ? AND pk_uuid = ?",
                (reason, detail, table, key),
            )
        return bool(reason)

    def _unsayable(self, row: PendingRow) -> tuple[str, str]:
        table, key, _, _, payload, change_id = row
        # Counting past the largest integer, SQLite goes on with doubles.
        if type(change_id) is not int or change_id >= INT64_MAX:
            return (
                NO_CHANGE_ID,
                "this source has used up its change ids: install the app anew, as another one",
            )
        if not isinstance(key, str):
            return INVALID_KEY, "the key is a BLOB in a column that isn't declared BLOB: write it as text"
        if payload is None:
            return "", ""
        if f'{{"{BLOB_ELSEWHERE}":' in payload:
            return BLOB_IN_TEXT, "a column that isn't declared BLOB holds one: declare it, or write text"
        if "\ufffd" in payload and self._stored(table, key) != payload.encode():
            return INVALID_TEXT, "a text of this row is not UTF-8: write it as UTF-8, or into a BLOB column"
        return "", ""

    def _stored(self, table: str, key: str) -> bytes:
        found: bytes = self._file.connection.execute(
            "SELECT CAST(payload AS BLOB) FROM _sync_pending WHERE table_name = ? AND pk_uuid = ?",
            (table, key),
        ).fetchone()[0]
        return found

    def _attempts_above(self, attempts: int) -> int | None:
        found: int | None = self._file.connection.execute(
            "SELECT min(attempts) FROM _sync_pending WHERE quarantined = 0 AND attempts > ?", (attempts,)
        ).fetchone()[0]
        return found

    def shorten(self, batch: list[Outgoing], count: int) -> None:
        """The batch was refused as too large, nothing of it was applied: keep its first `count` changes."""
        with self._file.transaction() as connection:
            if self.outstanding() == batch:
                dropped = [(sent.position,) for sent in batch[count:]]
                connection.executemany("DELETE FROM _sync_outbox WHERE position = ?", dropped)

    def deletions_elsewhere(self) -> set[RowKey]:
        """Return the deletions outside of the batch that may let go of what is deleted in it."""
        return set(
            self._file.connection.execute(
                "SELECT table_name, pk_uuid FROM _sync_pending"
                f" WHERE op = 'DELETE' AND quarantined = 0 AND (attempts = 0 OR reason = '{HAS_CHILDREN}')"
                " AND (table_name, pk_uuid) NOT IN (SELECT table_name, pk_uuid FROM _sync_outbox)"
            )
        )

    def clear(self) -> None:
        """The batch was answered; in the transaction that stores the answer."""
        self._file.connection.execute("DELETE FROM _sync_outbox")

    def acknowledge(self, answered: Sequence[tuple[Outgoing, int]]) -> None:
        """The server has each of these as a version (0: it doesn't know the row, and needn't)."""
        connection = self._file.connection
        positions = encode_json([(sent.position, version) for sent, version in answered]).decode()
        connection.execute(
            "INSERT INTO _sync_row_meta (table_name, pk_uuid, server_version, deleted, hydration)"
            f" SELECT o.table_name, o.pk_uuid, a.version, o.op = 'DELETE', ? FROM {_ANSWERED} WHERE true"
            " ON CONFLICT (table_name, pk_uuid) DO UPDATE SET server_version = excluded.server_version,"
            " hydration = excluded.hydration",
            # A hydration that another process has begun would miss it: the log hides a source's own changes.
            (self._file.reading().hydration, positions),
        )
        connection.execute(
            "DELETE FROM _sync_pending WHERE rowid IN (SELECT p.rowid"
            f" FROM {_ANSWERED} JOIN _sync_pending AS p USING (table_name, pk_uuid) WHERE {_IS_UNCHANGED})",
            (positions,),
        )
        edited = connection.execute(
            "SELECT a.position FROM " + _ANSWERED + " JOIN _sync_pending AS p USING (table_name, pk_uuid)",
            (positions,),
        ).fetchall()
        changed = {position for (position,) in edited}
        for sent, version in answered:
            if sent.position in changed:
                self.requeue(sent.row, version, None if sent.op == "DELETE" else sent.payload)

    def is_unchanged(self, sent: Outgoing) -> bool:
        """Tell whether the row still is what was sent."""
        op, payload = self._file.connection.execute(
            "SELECT op, payload FROM _sync_pending WHERE table_name = ? AND pk_uuid = ?", sent.row
        ).fetchone() or (sent.op, sent.payload)
        if "DELETE" in (op, sent.op):
            return bool(op == sent.op)
        return bool(payload == sent.payload)

    def remove(self, row: RowKey) -> None:
        """Nothing is pending for this row any more."""
        self._file.connection.execute("DELETE FROM _sync_pending WHERE table_name = ? AND pk_uuid = ?", row)

    def requeue(self, row: RowKey, version: int, base_payload: str | None) -> None:
        """The pending change goes on top of `version`, whose content is `base_payload` (None: deleted)."""
        self._file.connection.execute(
            "UPDATE _sync_pending SET base_version = ?, base_payload = ?, change_id = ?, attempts = 0,"
            " op = CASE WHEN op = 'DELETE' THEN op WHEN ? THEN 'UPDATE' ELSE 'INSERT' END"
            " WHERE table_name = ? AND pk_uuid = ?",
            (
                version,
                base_payload,
                self._file.take_change_id(),
                version > 0 and base_payload is not None,
                *row,
            ),
        )

    def refuse(self, sent: Outgoing, reason: str, detail: str, *, is_final: bool) -> None:
        """Keep a change that was not applied: behind the others; if final, until the app edits the row."""
        if self.is_unchanged(sent):
            self._file.connection.execute(
                "UPDATE _sync_pending SET attempts = attempts + 1, detail = ?, quarantined = ?,"
                # What was revived is known by that until its parent is settled.
                " reason = CASE WHEN reason = ? AND ? = ? THEN reason ELSE ? END"
                " WHERE table_name = ? AND pk_uuid = ?",
                (detail, is_final, REVIVED, reason, FK_MISSING, reason, *sent.row),
            )

    def retry_refused(self) -> int:
        """Queue the quarantined changes again, as new as any other; return how many."""
        with self._file.transaction() as connection:
            return connection.execute(
                "UPDATE _sync_pending SET quarantined = 0, attempts = 0, reason = NULL, detail = NULL"
                " WHERE quarantined <> 0"
            ).rowcount

    def unregistered(self) -> list[tuple[str, int]]:
        """Tables that the server didn't know when they were last tried, and how many changes wait in each."""
        return self._file.connection.execute(
            "SELECT table_name, count(*) FROM _sync_pending WHERE reason = ? AND attempts > 0"
            " GROUP BY table_name ORDER BY table_name",
            (UNREGISTERED_TABLE,),
        ).fetchall()

    def _number(self) -> None:
        # Only changes that were captured without client info have no id yet.
        for row in self._file.connection.execute(
            "SELECT table_name, pk_uuid FROM _sync_pending WHERE change_id IS NULL ORDER BY rowid"
        ).fetchall():
            self._file.connection.execute(
                "UPDATE _sync_pending SET change_id = ? WHERE table_name = ? AND pk_uuid = ?",
                (self._file.take_change_id(), *row),
            )

    def _wire(self, tables: Tables, row: PendingRow, *, has_extra: bool) -> str | None:
        table, key, op, _, payload, _ = row
        if op == "DELETE" or payload is None:
            return None
        extra = self._extra((table, key)) if has_extra else {}
        return payload_to_wire(tables.get(table), payload, extra).decode()

    def _extra(self, row: RowKey) -> JsonObject:
        found = self._file.connection.execute(
            "SELECT payload FROM _sync_extra WHERE table_name = ? AND pk_uuid = ?", row
        ).fetchone()
        return {} if found is None else decode_object(found[0])


def upload_change(schema: str, tables: Tables, sent: Outgoing) -> UploadChange:
    """The wire form of a change."""
    return UploadChange(
        source_change_id=sent.change_id,
        schema=schema,
        table=sent.table,
        op=sent.op,
        pk=key_to_wire(tables.get(sent.table), sent.key),
        server_version=sent.base_version,
        payload=UNSET if sent.wire_payload is None else Raw(sent.wire_payload.encode()),
    )


def acknowledged_version(sent: Outgoing, status: Status) -> int:
    """The version that `sent` got; an applied change always made base + 1.

    An answer without a version is either a repetition (the change was applied before) or the deletion of a
    row that the server never knew; `current_server_version` = 0 tells the second.
    """
    if status.new_server_version is not None:
        return status.new_server_version
    if status.applied_server_version is not None:
        return status.applied_server_version
    if status.current_server_version is not None:
        return min(status.current_server_version, sent.base_version + 1)
    is_unknown_row = sent.op == "DELETE" and sent.base_version == 0 and not status.duplicate
    return 0 if is_unknown_row else sent.base_version + 1


def is_repeated(sent: Outgoing, status: Status) -> bool:
    """Whether the server had applied the change before."""
    return bool(status.duplicate) or (status.new_server_version is None and sent.op != "DELETE")
