"""Snapshot and deltas, folded, are the rows of the SELECT."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upwell.client.fold import LiveTable
from upwell.client.steps import Change
from upwell.protocol.messages import FieldSchema

SCHEMA = [
    FieldSchema("id", "BigInt", 0, ("nn", "pk", "uq")),
    FieldSchema("a", "Text", 1),
    FieldSchema("b", "Int", 2),
    FieldSchema("_seq", "BigInt", 3, ("nn",)),
]
Row = dict[str, object]
Cells = st.tuples(st.none() | st.text(max_size=2), st.none() | st.integers(0, 2))
Ops = st.lists(st.tuples(st.integers(0, 3), st.none() | Cells), max_size=25)


def _change(model: dict[int, Row], seq: int, key: int, cells: tuple[object, object] | None) -> Change | None:
    """Apply one operation to the model and return the change that a server sends for it."""
    before = model.get(key)
    if cells is None:
        if before is None:
            return None
        del model[key]
        return Change("delete", {**before, "_seq": seq}, {**before, "_seq": seq}, seq)
    row: Row = {"id": key, "a": cells[0], "b": cells[1]}
    model[key] = row
    if before is None:
        return Change("insert", {**row, "_seq": seq, "_deleted": False}, None, seq)
    new = {name: cell for name, cell in row.items() if cell is not None}
    old = {"id": key} | {name: cell for name, cell in before.items() if cell != row[name]}
    return Change("update", {**new, "_seq": seq}, old, seq)


@given(Ops, st.integers(0, 25))
def test_snapshot_and_deltas_are_the_select(
    ops: list[tuple[int, tuple[object, object] | None]], cut: int
) -> None:
    model: dict[int, Row] = {}
    seqs: dict[int, int] = {}
    table = LiveTable.of(SCHEMA)
    for seq, (key, cells) in enumerate(ops[:cut]):
        _change(model, seq, key, cells)
        seqs[key] = seq
    for key, row in model.items():
        table.apply(Change("snapshot", {**row, "_seq": seqs[key], "_deleted": False}, None, seqs[key]))
    assert table.rows == model
    for seq, (key, cells) in enumerate(ops[cut:], start=cut):
        if change := _change(model, seq, key, cells):
            table.apply(change)
            table.apply(change)
        assert table.rows == model


def test_a_missed_delete_older_than_the_row_that_came_back_is_ignored() -> None:
    table = LiveTable.of(SCHEMA)
    table.apply(Change("snapshot", {"id": 1, "a": "new", "b": None}, None, 12))
    table.apply(Change("delete", {"id": 1}, {"id": 1}, 11))
    assert table.rows == {1: {"id": 1, "a": "new", "b": None}}


def test_a_key_of_several_columns_is_a_tuple_and_a_query_without_key_is_refused() -> None:
    table = LiveTable(("x", "y"))
    table.apply(Change("insert", {"x": 1, "y": "a", "_seq": 5}, None, 5))
    assert table.rows == {(1, "a"): {"x": 1, "y": "a"}}
    assert table.seqs == {(1, "a"): 5}
    with pytest.raises(ValueError, match="primary key"):
        LiveTable.of(SCHEMA[1:])
