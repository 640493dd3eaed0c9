"""Children are found in both tiers, of one View, with as few look-ups as there can be."""

from collections.abc import Sequence

import pytest

from upwell.engine.catalog import Reference, Table
from upwell.engine.query import QueryEngine
from upwell.engine.references import Children
from upwell.engine.source import Resolve
from upwell.engine.view import View
from upwell.testing.embedded import Embedded
from upwell.types import Key, user_owner

ANN = user_owner("ann")


class CountingQueries(QueryEngine):
    """Counts the queries that it runs."""

    count = 0

    def run(self, view: View, text: str, namespace: str, tables: list[tuple[str, str]], resolve: Resolve):  # type: ignore[no-untyped-def]
        self.count += 1
        return super().run(view, text, namespace, tables, resolve)


@pytest.fixture
def queries(db: Embedded) -> CountingQueries:
    return CountingQueries(db.rows_by_key, db.overlay)


def family(db: Embedded, kind: str, *parents: object) -> tuple[Table, Reference]:
    db.run(
        f"CREATE TABLE app.parent (id {kind} PRIMARY KEY) WITH (TYPE = 'USER');"
        f'CREATE TABLE app.child (id INT PRIMARY KEY, "Of" {kind} REFERENCES app.parent(id))'
        " WITH (TYPE = 'USER')"
    )
    for number, parent in enumerate(parents):
        db.run("INSERT INTO app.parent VALUES ($1)", [parent], user="ann")  # type: ignore[list-item]
        db.run(f"INSERT INTO app.child VALUES ({number}, $1)", [parent], user="ann")  # type: ignore[list-item]
    child = db.table("app.child")
    return child, child.references[0]


def found(
    children: Children, child: Table, reference: Reference, keys: Sequence[Key]
) -> list[tuple[Key, Key]]:
    return sorted(children(child, ANN, reference, keys))


@pytest.mark.parametrize(
    ("kind", "parents"),
    [
        ("INT", [1, -2]),
        ("BIGINT", [2**62, -(2**63)]),
        ("TEXT", ["it's", 'a "quoted" ; -- name', ""]),
        ("UUID", ["00000000-0000-4000-8000-000000000001"]),
        ("BOOLEAN", [True, False]),
        ("TIMESTAMP", [0, 1_767_225_600_000_001]),
        ("DOUBLE", [0.1, 1e300]),
    ],
)
@pytest.mark.parametrize("cold", [False, True], ids=["hot", "cold"])
def test_children_are_found_by_keys_of_every_type(
    db: Embedded, queries: CountingQueries, kind: str, parents: list[Key], cold: bool
) -> None:
    child, reference = family(db, kind, *parents)
    if cold:
        db.flush("app.child")
    children = Children(queries, db.settle())
    assert found(children, child, reference, parents) == sorted(
        (parent, number) for number, parent in enumerate(parents)
    )


def test_keys_foreseen_are_looked_up_together(db: Embedded, queries: CountingQueries) -> None:
    child, reference = family(db, "INT", 1, 2, 3)
    children = Children(queries, db.settle(), foreseen={reference.parent: [1, 2, 3, 4]})
    assert [found(children, child, reference, [key]) for key in (1, 2, 3, 4)] == [
        [(1, 0)],
        [(2, 1)],
        [(3, 2)],
        [],
    ]
    assert queries.count == 1
    assert found(children, child, reference, [9]) == []
    assert found(children, child, reference, [9, 1]) == [(1, 0)]
    assert queries.count == 2


def test_children_of_others_and_deleted_ones_do_not_count(db: Embedded, queries: CountingQueries) -> None:
    child, reference = family(db, "INT", 1)
    db.change("INSERT INTO app.child VALUES (5, NULL)", user="ann")
    db.run("INSERT INTO app.parent VALUES (1); INSERT INTO app.child VALUES (7, 1)", user="bob")
    before = db.settle()
    db.change("DELETE FROM app.child WHERE id = 0", user="ann")
    assert found(Children(queries, db.settle()), child, reference, [1]) == []
    assert found(Children(queries, before), child, reference, [1]) == [(1, 0)]
