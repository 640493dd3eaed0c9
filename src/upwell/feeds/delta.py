"""Deltas: changes and rows as the cells of live queries (reference contract, sections 1.5 and 2.4).

Law: an insert shows the whole new row, a delete the whole last row, an update the key and all that isn't
NULL, with the old values of exactly the columns that changed; `_seq` is always there.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from upwell.engine.catalog import Table
from upwell.engine.expression import DELETED, SEQ
from upwell.protocol.codec import Tail, change_tail
from upwell.protocol.messages import ChangeType, FieldSchema, Serialization, WireRow
from upwell.storage.hot import Change
from upwell.types import Column, Row, SqlType, Value, to_json, wire_type

_AS_THEY_ARE = frozenset({SqlType.INT, SqlType.SMALLINT, SqlType.TEXT, SqlType.BOOLEAN, SqlType.DOUBLE})


@dataclass(frozen=True, slots=True)
class Output:
    """One column as the wire names it; `index` is a column of the table, `SEQ` or `DELETED`."""

    index: int
    name: str
    type: SqlType
    flags: tuple[str, ...] = ()
    precision: int = 0
    scale: int = 0


_SEQ_OUTPUT = Output(SEQ, "_seq", SqlType.BIGINT, ("nn",))
_DELETED_OUTPUT = Output(DELETED, "_deleted", SqlType.BOOLEAN, ("nn",))


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class Projection:
    """The columns of a live query in their order; `key` is the primary key's, in it or not.

    `columns` is what it was made of: None follows the table when it gets more columns.

    Compared by identity: who has the same one shares encoded changes.
    """

    outputs: tuple[Output, ...]
    key: Output
    columns: tuple[tuple[int, str], ...] | None = None

    @classmethod
    def of(cls, table: Table, columns: tuple[tuple[int, str], ...] | None) -> "Projection":
        """Build the projection of (index, name) pairs; None is everything, `_seq` and `_deleted` too."""
        if columns is None:
            own = [_output(table, index, column.name) for index, column in enumerate(table.columns)]
            return cls((*own, _SEQ_OUTPUT, _DELETED_OUTPUT), _key(table, own))
        outputs = [_output(table, index, name) for index, name in columns]
        if not any(output.name == _SEQ_OUTPUT.name for output in outputs):
            outputs.append(_SEQ_OUTPUT)
        return cls(tuple(outputs), _key(table, outputs), columns)

    def schema(self) -> list[FieldSchema]:
        """Return the columns as `subscription_ack` tells them."""
        return [
            FieldSchema(
                output.name, wire_type(output.type, output.precision, output.scale), index, output.flags
            )
            for index, output in enumerate(self.outputs)
        ]

    def whole(self, row: Sequence[Value], seq: int, *, deleted: bool = False) -> WireRow:
        """Return all cells of a row."""
        return {output.name: _cell(output, row, seq, deleted) for output in self.outputs}

    def rows(self, columns: Mapping[int, Sequence[Value]], seqs: Sequence[int]) -> Iterator[WireRow]:
        """Yield what `whole` returns for rows that are given by columns, by index; some times faster."""
        names = [output.name for output in self.outputs]
        shown = [_cells(output, columns, seqs) for output in self.outputs]
        for row in zip(*shown, strict=True):
            yield dict(zip(names, row, strict=True))

    def tail(self, kind: ChangeType, change: Change, serialization: Serialization = "json") -> Tail:
        """Return the part of the change's frame that all subscribers with this projection share."""
        before, after = change.before, change.after
        rows: list[WireRow] | None
        old: list[WireRow] | None
        match kind:
            case "insert":
                assert after is not None, "an insert has a new row"
                rows, old = [self.whole(after, change.seq)], None
            case "update":
                assert before is not None, "an update has an old row"
                assert after is not None, "an update has a new row"
                rows = [self._present(after, change.seq)]
                old = [self._changed(before, after, change.previous)]
            case "delete":
                assert before is not None, "a delete has a last row"
                rows, old = None, [self.whole(before, change.seq, deleted=True)]
        return change_tail(kind, rows, old, serialization)

    def _present(self, row: Row, seq: int) -> WireRow:
        """Return the key, `_seq` and every cell that isn't NULL."""
        shown = {self.key.name: _cell(self.key, row, seq, deleted=False)}
        for output in self.outputs:
            if output.index < 0 or row[output.index] is not None:
                shown[output.name] = _cell(output, row, seq, deleted=False)
        return shown

    def _changed(self, before: Row, after: Row, seq: int) -> WireRow:
        """Return the key, the old `_seq`, and the old cells that changed and weren't NULL."""
        shown = {self.key.name: _cell(self.key, before, seq, deleted=False)}
        for output in self.outputs:
            index = output.index
            if index == SEQ or (index >= 0 and _differ(before[index], after[index])):
                shown[output.name] = _cell(output, before, seq, deleted=False)
        return shown


def _differ(old: Value, new: Value) -> bool:
    return old is not None and old != new


def _key(table: Table, outputs: Sequence[Output]) -> Output:
    """Return the key as it is named among the outputs, or as the table names it if it isn't there."""
    if not table.has_key:
        return _SEQ_OUTPUT
    name = table.columns[table.key_index].name
    chosen = (output for output in outputs if output.index == table.key_index)
    return next(chosen, _output(table, table.key_index, name))


def _output(table: Table, index: int, name: str) -> Output:
    if index == SEQ:
        return Output(SEQ, name, SqlType.BIGINT, ("nn",))
    if index == DELETED:
        return Output(DELETED, name, SqlType.BOOLEAN, ("nn",))
    column = table.columns[index]
    return Output(index, name, column.type, _flags(column), column.precision, column.scale)


def _flags(column: Column) -> tuple[str, ...]:
    if column.primary_key:
        return ("nn", "pk", "uq")
    return () if column.nullable else ("nn",)


def _cells(output: Output, columns: Mapping[int, Sequence[Value]], seqs: Sequence[int]) -> Sequence[object]:
    if output.index == SEQ:
        return [str(seq) for seq in seqs]
    if output.index == DELETED:
        return [False] * len(seqs)
    cells = columns[output.index]
    if output.type in _AS_THEY_ARE:
        return cells
    return [to_json(cell, output.type) for cell in cells]


def _cell(output: Output, row: Sequence[Value], seq: int, deleted: bool) -> object:
    if output.index == SEQ:
        return str(seq)
    if output.index == DELETED:
        return deleted
    return to_json(row[output.index], output.type)
