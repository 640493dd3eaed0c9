"""Matching: the index finds exactly whom a scan finds, and a change is to each watch what it should be."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from upwell.engine.catalog import Table, TableKind
from upwell.engine.expression import SEQ, And, ColumnRef, Compare, IsNull, Like, Literal, Node, Not, Or
from upwell.feeds.delta import Projection
from upwell.feeds.match import Gaps, Index, Watch, judge
from upwell.protocol.codec import change_frame
from upwell.storage.hot import Change
from upwell.types import Column, Owner, Row, SqlType, TableId

ANN, BEN = Owner("u:ann"), Owner("u:ben")
COLUMNS = (
    Column(1, "id", SqlType.BIGINT, False, True),
    Column(2, "kind", SqlType.TEXT),
    Column(3, "size", SqlType.INT),
    Column(4, "price", SqlType.DOUBLE),
    Column(5, "done", SqlType.BOOLEAN),
)
ITEMS = Table(TableId(1), "shop", "items", TableKind.USER, COLUMNS)
OTHERS = Table(TableId(2), "shop", "others", TableKind.USER, COLUMNS)
EVERYTHING = {table.id: Projection.of(table, None) for table in (ITEMS, OTHERS)}


@dataclass(eq=False)
class Watcher:
    watch: Watch


def watch(
    predicate: Node | None = None, *, table: Table = ITEMS, owner: Owner = ANN, view: bool = False
) -> Watch:
    return Watch(table, owner, EVERYTHING[table.id], predicate, None, view)


def change(before: Row | None, after: Row | None, *, table: Table = ITEMS, owner: Owner = ANN) -> Change:
    row = after or before
    key = row[0] if row else 1
    op = "DELETE" if after is None else "UPDATE" if before else "INSERT"
    return Change(20, True, table.id, owner, 1, key, op, 1, before, after, 10, 1)


def equal(column: int, value: Any) -> Node:
    return Compare("=", ColumnRef(column), Literal(value))


rows = st.tuples(
    st.integers(0, 3),
    st.sampled_from([None, "a", "b", "ab"]),
    st.sampled_from([None, 0, 1, 2]),
    st.sampled_from([None, 0.0, -0.0, 1.0, 1.5]),
    st.sampled_from([None, True, False]),
).map(list)
equalities_of_rows = st.one_of(
    st.builds(equal, st.just(0), st.integers(0, 3)),
    st.builds(equal, st.just(1), st.sampled_from(["a", "b", None])),
    st.builds(equal, st.just(2), st.sampled_from([0, 1, 1.0, 2.5, None])),
    st.builds(equal, st.just(3), st.sampled_from([0, 0.0, 1, 1.5])),
    st.builds(equal, st.just(4), st.sampled_from([True, False])),
    st.builds(lambda value: Compare("=", Literal(value), ColumnRef(2)), st.sampled_from([0, 1, 2])),
)
others = st.one_of(
    st.builds(lambda value: Compare(">", ColumnRef(2), Literal(value)), st.integers(-1, 2)),
    st.just(IsNull(ColumnRef(1))),
    st.just(Like(ColumnRef(1), Literal("a%"))),
    st.just(Compare("<", ColumnRef(SEQ), Literal(15))),
)
predicates = st.recursive(
    st.one_of(equalities_of_rows, others),
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(lambda items: And(tuple(items))),
        st.lists(inner, min_size=1, max_size=3).map(lambda items: Or(tuple(items))),
        inner.map(Not),
    ),
    max_leaves=6,
)
watches = st.builds(
    watch,
    st.none() | predicates,
    table=st.sampled_from([ITEMS, OTHERS]),
    owner=st.sampled_from([ANN, BEN]),
    view=st.booleans(),
)
changes = st.builds(
    change,
    st.none() | rows,
    st.none() | rows,
    table=st.sampled_from([ITEMS, OTHERS]),
    owner=st.sampled_from([ANN, BEN]),
)


def concerned_by_scan(watchers: Sequence[Watcher], entry: Change) -> set[Watcher]:
    return {
        watcher
        for watcher in watchers
        if watcher.watch.table.id == entry.table
        and watcher.watch.owner == entry.owner
        and judge(watcher.watch, entry) is not None
    }


@given(st.lists(watches, max_size=12), st.sets(st.integers(0, 11)), st.lists(changes, min_size=1, max_size=8))
def test_the_index_finds_exactly_whom_a_scan_finds(
    watched: list[Watch], removed: set[int], entries: list[Change]
) -> None:
    watchers = [Watcher(each) for each in watched]
    index: Index[Watcher] = Index()
    for watcher in watchers:
        index.add(watcher)
    for at in removed & set(range(len(watchers))):
        index.discard(watchers[at])
    left = [watcher for at, watcher in enumerate(watchers) if at not in removed]
    for entry in entries:
        found = index.concerned(entry)
        assert len(found) == len(set(found)), "nobody is found twice"
        assert {w for w in found if judge(w.watch, entry) is not None} == concerned_by_scan(left, entry)


def test_an_index_that_everybody_left_holds_nothing() -> None:
    index: Index[Watcher] = Index()
    watchers = [Watcher(watch(equal(1, "a"))), Watcher(watch()), Watcher(watch(equal(0, 1), owner=BEN))]
    for watcher in watchers:
        index.add(watcher)
    assert set(index.partitions()) == {(1, ANN), (1, BEN)}
    for watcher in watchers:
        index.discard(watcher)
    assert index.partitions() == []


def test_a_change_costs_nothing_for_watchers_of_other_values() -> None:
    index: Index[Watcher] = Index()
    for number in range(1_000):
        index.add(Watcher(watch(equal(0, number))))
    [found] = index.concerned(change(None, [7, "a", 1, 1.0, True]))
    assert found.watch.selector == (0, 7)


A, A2, B = [1, "a", 1, None, True], [1, "a", 2, None, True], [1, "b", 1, None, True]


@pytest.mark.parametrize(
    ("before", "after", "plain", "view"),
    [
        (None, A, "insert", "insert"),
        (None, B, None, None),
        (A, A2, "update", "update"),
        (A, B, None, "delete"),
        (B, A, "update", "insert"),
        (B, None, None, None),
        (A, None, "delete", "delete"),
        (None, None, None, None),
        (A, A, "update", "update"),
    ],
)
def test_what_a_change_is_to_a_filter(
    before: Row | None, after: Row | None, plain: str | None, view: str | None
) -> None:
    predicate = equal(1, "a")
    assert judge(watch(predicate), change(before, after)) == plain
    assert judge(watch(predicate, view=True), change(before, after)) == view


def test_a_filter_on_seq_sees_the_seq_of_each_version() -> None:
    newer = Compare(">", ColumnRef(SEQ), Literal(15))
    assert judge(watch(newer), change(A, A2)) == "update"
    assert judge(watch(newer, view=True), change(A, A2)) == "insert"
    assert judge(watch(newer), change(A, None)) is None


def frame(projection: Projection, kind: Any, entry: Change) -> dict[str, Any]:
    decoded: dict[str, Any] = json.loads(change_frame("s", projection.tail(kind, entry)))
    assert decoded.pop("type") == "change"
    assert decoded.pop("subscription_id") == "s"
    return decoded


WHOLE = Projection.of(ITEMS, None)


def test_who_is_behind_remembers_rows_only_that_were_written_over() -> None:
    """A first version's successor ends nothing that was held before it: nobody asks for it."""
    stream = replace(ITEMS, kind=TableKind.STREAM)
    gaps = Gaps(replace(watch(view=True), table=stream), after=5)
    first, second, third = (
        structs.replace(change(None, [1, "a", 1, None, None]), seq=seq, previous=previous, count=count)
        for seq, previous, count in ((10, 0, 1), (20, 10, 2), (30, 20, 3))
    )
    gaps.pass_by(first)
    assert gaps._read == {}
    assert not gaps.has(second)
    assert gaps.has(third)
    gaps.pass_by(second)
    assert gaps._read == {1: 20}
    assert not gaps.has(third)


def test_an_insert_shows_the_whole_row() -> None:
    row = {"id": "1", "kind": "a", "size": 1, "price": None, "done": True, "_seq": "20", "_deleted": False}
    assert frame(WHOLE, "insert", change(None, A)) == {"change_type": "insert", "rows": [row]}


def test_an_update_shows_what_is_not_null_and_the_old_values_of_what_changed() -> None:
    entry = change([1, "a", 1, None, True], [1, "a", None, 2.5, False])
    assert frame(WHOLE, "update", entry) == {
        "change_type": "update",
        "rows": [{"id": "1", "kind": "a", "price": 2.5, "done": False, "_seq": "20", "_deleted": False}],
        "old_values": [{"id": "1", "size": 1, "done": True, "_seq": "10"}],
    }


def test_a_delete_shows_the_last_row_and_the_seq_of_its_end() -> None:
    row = {"id": "1", "kind": "a", "size": 1, "price": None, "done": True, "_seq": "20", "_deleted": True}
    assert frame(WHOLE, "delete", change(A, None)) == {"change_type": "delete", "old_values": [row]}


def test_a_projection_adds_seq_and_names_the_key_of_an_update() -> None:
    sizes = Projection.of(ITEMS, ((2, "much"),))
    assert [field.name for field in sizes.schema()] == ["much", "_seq"]
    assert frame(sizes, "insert", change(None, A))["rows"] == [{"much": 1, "_seq": "20"}]
    assert frame(sizes, "update", change(A, A2)) == {
        "change_type": "update",
        "rows": [{"id": "1", "much": 2, "_seq": "20"}],
        "old_values": [{"id": "1", "much": 1, "_seq": "10"}],
    }


def test_an_update_names_the_key_as_the_projection_does() -> None:
    renamed = Projection.of(ITEMS, ((0, "number"), (1, "id")))
    found = frame(renamed, "update", change(A, A2))
    assert found["rows"] == [{"number": "1", "id": "a", "_seq": "20"}]
    assert found["old_values"] == [{"number": "1", "_seq": "10"}]


def test_the_schema_tells_types_and_flags() -> None:
    told = [(field.name, field.data_type, field.index, field.flags) for field in WHOLE.schema()]
    assert told[0] == ("id", "BigInt", 0, ("nn", "pk", "uq"))
    assert told[1] == ("kind", "Text", 1, ())
    assert told[-2:] == [("_seq", "BigInt", 5, ("nn",)), ("_deleted", "Boolean", 6, ("nn",))]
