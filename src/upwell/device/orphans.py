"""Orphans: server rows whose parent isn't in the file when a pass ends.

Law: after a pass every reference has its parent. An orphan waits in `_sync_withheld` until its parent comes;
one that an unsent edit refers to stays, and the parent that the app deleted here, unsent too, comes back:
the server has rows below it. A revived row whose parent nobody has any more lives on without it; one that
can't is given up with the edits below it, and is again what the server had last.
"""

from collections.abc import Sequence

from upwell.device.apply import REVIVED, Applier
from upwell.device.codec import (
    JsonObject,
    captured,
    decode_object,
    key_value,
    payload_to_wire,
    row_from_capture,
)
from upwell.device.file import NEXT_CHANGE_ID, SyncFile
from upwell.device.schema import Reference, Tables, TableShape, key_expression, quoted

PARENT_MISSING = "parent missing"
_UNPENDING = "NOT IN (SELECT pk_uuid FROM _sync_pending WHERE table_name = ?)"
_REVIVED = f"IN (SELECT pk_uuid FROM _sync_pending WHERE table_name = ? AND reason = '{REVIVED}')"


class Orphans:
    """Finds orphans and settles them, inside the caller's `applying` transaction."""

    def __init__(self, file: SyncFile, applier: Applier) -> None:
        self._file = file
        self._connection = file.connection
        self._applier = applier

    def settle(self, tables: Tables) -> None:
        """Give every reference its parent, or set the row that has it aside."""
        while self._bring_parents_back(tables):
            pass
        while found := self._found(tables, _REVIVED):
            for shape, reference, key in found:
                self._cut_loose(tables, shape, reference, key)
        while found := self._found(tables, _UNPENDING):
            for shape, _, key in found:
                self._set_aside(shape, key)

    def _found(self, tables: Tables, condition: str) -> list[tuple[TableShape, Reference, str]]:
        """Return the rows without a parent that meet a condition on their key, each with one reference."""
        found = {}
        for shape in tables:
            for reference in shape.references:
                for key in self._orphans(shape, reference, condition):
                    found[shape.wire, key] = (shape, reference, key)
        return list(found.values())

    def _orphans(self, shape: TableShape, reference: Reference, condition: str) -> list[str]:
        present = " AND ".join(f"child.{quoted(name)} IS NOT NULL" for name in reference.columns)
        key = key_expression(shape, "child")
        rows = self._connection.execute(
            f"SELECT {key} FROM {quoted(shape.name)} AS child WHERE {present}"
            f" AND NOT EXISTS (SELECT 1 FROM {quoted(reference.parent)} AS parent WHERE {reference.join})"
            f" AND {key} {condition}",
            (shape.wire,),
        )
        return [row[0] for row in rows]

    # --- set aside

    def _set_aside(self, shape: TableShape, key: str) -> None:
        row = (shape.wire, key)
        payload = captured(self._connection, shape, key)
        assert payload is not None, "an orphan was just read"
        wire = payload_to_wire(shape, payload, self._extra_of(row)).decode()
        self._applier.withhold(row, self._applier.meta(row)[0], wire, PARENT_MISSING)
        self._applier.delete(shape, row)
        self._connection.execute("DELETE FROM _sync_row_meta WHERE table_name = ? AND pk_uuid = ?", row)

    def _extra_of(self, row: tuple[str, str]) -> JsonObject:
        found = self._connection.execute(
            "SELECT payload FROM _sync_extra WHERE table_name = ? AND pk_uuid = ?", row
        ).fetchone()
        return {} if found is None else decode_object(found[0])

    # --- bring back

    def _bring_parents_back(self, tables: Tables) -> bool:
        """Undo unsent deletions of parents of rows that can't wait; tell whether there were any."""
        waiting = self._found(tables, _UNPENDING)
        needed = [each for each in waiting if self._is_needed(tables, each[0], each[2])]
        needed += self._found(tables, _REVIVED)
        return sum(self._undelete_parent(tables, *each) for each in needed) > 0

    def _is_needed(self, tables: Tables, shape: TableShape, key: str) -> bool:
        """Tell whether an unsent row refers to this one, be it by way of others."""
        seen, todo = {(shape.wire, key)}, [(shape, key)]
        while todo:
            parent, parent_key = todo.pop()
            for child, reference in tables.references_to(parent.wire):
                for child_key, is_unsent in self._children(parent, parent_key, child, reference):
                    if is_unsent:
                        return True
                    if (child.wire, child_key) not in seen:
                        seen.add((child.wire, child_key))
                        todo.append((child, child_key))
        return False

    def _children(
        self, parent: TableShape, parent_key: str, child: TableShape, reference: Reference
    ) -> list[tuple[str, int]]:
        """Return key and whether it is pending, of the rows that refer to this one."""
        key = key_expression(child, "child")
        return self._connection.execute(
            f"SELECT {key}, EXISTS (SELECT 1 FROM _sync_pending WHERE table_name = ? AND pk_uuid = {key})"
            f" FROM {quoted(child.name)} AS child JOIN {quoted(parent.name)} AS parent ON {reference.join}"
            f" WHERE parent.{quoted(parent.primary_key.name)} = ?",
            (child.wire, key_value(parent, parent_key)),
        ).fetchall()

    def _undelete_parent(self, tables: Tables, child: TableShape, reference: Reference, key: str) -> bool:
        parent = tables.find(reference.parent)
        if parent is None:
            return False
        columns = ", ".join(f"child.{quoted(name)}" for name in reference.columns)
        wanted = self._connection.execute(
            f"SELECT {columns} FROM {quoted(child.name)} AS child"
            f" WHERE child.{quoted(child.primary_key.name)} = ?",
            (key_value(child, key),),
        ).fetchone()
        deletions = self._connection.execute(
            "SELECT pk_uuid, base_version, base_payload FROM _sync_pending"
            " WHERE table_name = ? AND op = 'DELETE' AND base_payload IS NOT NULL",
            (parent.wire,),
        )
        for parent_key, version, payload in deletions:
            content = row_from_capture(parent, payload) or {}
            if tuple(content[name] for name in reference.parent_columns) == wanted:
                self._undelete(tables, parent, parent_key, version, payload)
                return True
        return False

    def _undelete(self, tables: Tables, shape: TableShape, key: str, version: int, payload: str) -> None:
        """The row is again what the server had; that goes up too, for the deletion may be on its way."""
        row = (shape.wire, key)
        self._file.record_conflict(row, (payload, None, payload), version, "server")
        self._applier.overlay(tables, row, row_from_capture(shape, payload))
        self._applier.set_meta(row, version, is_deleted=False)
        self._connection.execute(
            "UPDATE _sync_pending SET op = 'UPDATE', payload = base_payload, reason = ?, detail = NULL,"
            f" attempts = 0, quarantined = 0, change_id = {NEXT_CHANGE_ID}"
            " WHERE table_name = ? AND pk_uuid = ?",
            (REVIVED, *row),
        )
        self._file.take_change_id()

    # --- cut loose

    def _cut_loose(self, tables: Tables, shape: TableShape, reference: Reference, key: str) -> None:
        """Let a pending row go on without its parent; one that can't is given up, and so on below it."""
        todo = [(shape, reference, key)]
        while todo:
            shape, reference, key = todo.pop()
            loose = [
                column.name
                for column in shape.columns
                if column.name in reference.columns
                and column is not shape.primary_key
                and not column.is_required
            ]
            if loose:
                self._let_go(shape, loose, key)
            else:
                todo += self._give_up(tables, shape, key)

    def _let_go(self, shape: TableShape, columns: Sequence[str], key: str) -> None:
        changes = ", ".join(f"{quoted(name)} = NULL" for name in columns)
        self._connection.execute(
            f"UPDATE {quoted(shape.name)} SET {changes} WHERE {quoted(shape.primary_key.name)} = ?",
            (key_value(shape, key),),
        )
        self._connection.execute(
            "UPDATE _sync_pending SET payload = ?, attempts = 0 WHERE table_name = ? AND pk_uuid = ?",
            (captured(self._connection, shape, key), shape.wire, key),
        )

    def _give_up(
        self, tables: Tables, shape: TableShape, key: str
    ) -> list[tuple[TableShape, Reference, str]]:
        """Take a pending row out, with a record of its edit; return the unsent rows that refer to it."""
        row = (shape.wire, key)
        found = self._connection.execute(
            "SELECT base_payload, base_version FROM _sync_pending WHERE table_name = ? AND pk_uuid = ?", row
        ).fetchone()
        if found is None:
            return []  # it went with another parent
        base, version = found
        below = [
            (child, reference, child_key)
            for child, reference in tables.references_to(shape.wire)
            for child_key, is_unsent in self._children(shape, key, child, reference)
            if is_unsent
        ]
        local = captured(self._connection, shape, key)
        self._file.record_conflict(row, (base, local, base), version, "server")
        self._connection.execute("DELETE FROM _sync_pending WHERE table_name = ? AND pk_uuid = ?", row)
        # What the app had moved here is again where the server has it.
        self._applier.overlay(tables, row, row_from_capture(shape, base))
        self._applier.set_meta(row, version, is_deleted=base is None)
        return below
