"""The model does what SQL says, and a refused statement changes nothing."""

import pytest

from upwell.testing import DuplicateKey, NullKey, TableModel


def ids(model: TableModel, owner: str | None = None) -> list[object]:
    return [row["id"] for row in model.rows(owner)]


def test_rows_come_in_key_order_with_missing_columns_as_null() -> None:
    model = TableModel("id", columns=("id", "name"))
    assert model.insert(None, {"id": 2, "name": "b"}, {"id": 1}) == 2
    assert model.rows(None) == [{"id": 1, "name": None}, {"id": 2, "name": "b"}]


def test_an_insert_of_a_key_that_exists_adds_none_of_its_rows() -> None:
    model = TableModel("id")
    model.insert(None, {"id": 1})
    with pytest.raises(DuplicateKey):
        model.insert(None, {"id": 2}, {"id": 1})
    with pytest.raises(DuplicateKey):
        model.insert(None, {"id": 3}, {"id": 3})
    assert ids(model) == [1]


def test_a_key_without_value_is_refused() -> None:
    model = TableModel(("a", "b"))
    with pytest.raises(NullKey):
        model.insert(None, {"a": 1})
    assert model.count(None) == 0


def test_update_returns_how_many_rows_matched() -> None:
    model = TableModel("id")
    model.insert(None, {"id": 1, "n": 1}, {"id": 2, "n": 1}, {"id": 3, "n": None})
    assert model.update(None, {"n": 5}, {"n": 1}) == 2
    assert model.update(None, lambda row: {"n": row["id"]}, lambda row: row["id"] == 3) == 1
    assert model.update(None, {"n": 9}, {"id": 4}) == 0
    assert [row["n"] for row in model.rows(None)] == [5, 5, 3]


def test_an_update_may_move_keys_but_not_onto_another() -> None:
    model = TableModel("id")
    model.insert(None, {"id": 1}, {"id": 2})
    assert model.update(None, lambda row: {"id": int(str(row["id"])) + 1}) == 2
    assert ids(model) == [2, 3]
    with pytest.raises(DuplicateKey):
        model.update(None, {"id": 3}, {"id": 2})
    assert ids(model) == [2, 3]


def test_null_equals_nothing() -> None:
    model = TableModel("id")
    model.insert(None, {"id": 1, "n": None})
    assert (model.count(None, {"n": None}), model.delete(None, {"n": None}), model.count(None)) == (0, 0, 1)


def test_delete_removes_what_matches() -> None:
    model = TableModel("id")
    model.insert(None, {"id": 1}, {"id": 2})
    assert model.delete(None, {"id": 1}) == 1
    assert ids(model) == [2]
    assert model.delete(None) == 1
    assert (ids(model), model.owners()) == ([], [])


def test_owners_do_not_see_or_touch_each_other() -> None:
    model = TableModel("id")
    model.insert("anna", {"id": 1, "n": 1})
    model.insert("berta", {"id": 1, "n": 2})
    model.insert(None, {"id": 1, "n": 3})
    assert model.update("anna", {"n": 9}) == model.delete("berta") == 1
    assert (model.owners(), model.find_row("anna", 1)) == ([None, "anna"], {"id": 1, "n": 9})
    assert (model.find_row("berta", 1), model.find_row(None, 1)) == (None, {"id": 1, "n": 3})


def test_copies_and_results_are_independent() -> None:
    model = TableModel("id")
    model.insert(None, {"id": 1, "n": 1})
    before = model.copy()
    model.rows(None)[0]["n"] = 7
    model.update(None, {"n": 2})
    assert (before.rows(None), model.rows(None)) == ([{"id": 1, "n": 1}], [{"id": 1, "n": 2}])
