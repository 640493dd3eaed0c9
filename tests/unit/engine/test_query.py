"""The door to DataFusion: a query sees one View, resolved over both tiers before any predicate."""

import gc
import weakref

import pyarrow as pa
import pytest
from datafusion import DataFrame

from upwell.engine.source import Resolve, Source
from upwell.errors import InvalidSql, PermissionDenied, QueryFailure, TableNotFound, UpwellError
from upwell.testing.embedded import Embedded
from upwell.types import SHARED, user_owner


def resolver(db: Embedded, user: str = "ann") -> Resolve:
    def resolve(namespace: str, name: str) -> Source | pa.Table:
        if namespace == "secret":
            raise PermissionDenied("not yours")
        if namespace == "made":
            return pa.table({"a": [1, 2]})
        table = db.view.catalog.get_table(namespace, name)
        return Source(table, table.owner_for(user))

    return resolve


def run(db: Embedded, text: str, user: str = "ann") -> list[tuple[object, ...]]:
    resolve = resolver(db, user)
    names = db.query.scout.tables_in(text, "app", resolve)
    found = db.query.run(db.settle(), text, "app", names, resolve)
    return list(zip(*(column.to_pylist() for column in found.columns), strict=True))


@pytest.fixture(params=["hot", "cold", "mixed", "hidden"])
def filled(db: Embedded, request: pytest.FixtureRequest) -> Embedded:
    """The same rows in whichever tier: (1, 10), (2, 21), (4, 40); 3 is deleted.

    `hidden`: all are cold, and so are the old ones and the tombstone that hides one.
    """
    tier = request.param
    db.change(
        "INSERT INTO app.mine (id, n, s) VALUES (1, 10, 'old'), (2, 20, 'old'), (3, 30, 'old')", user="ann"
    )
    if tier in ("mixed", "hidden"):
        db.flush("app.mine")
    db.change("UPDATE app.mine SET n = 21, s = 'new' WHERE id = 2", user="ann")
    db.change("DELETE FROM app.mine WHERE id = 3", user="ann")
    db.change("INSERT INTO app.mine (id, n, s) VALUES (4, 40, 'new')", user="ann")
    db.change("INSERT INTO app.mine (id, n, s) VALUES (1, 99, 'bob')", user="bob")
    if tier in ("cold", "hidden"):
        db.flush("app.mine")
    return db


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("SELECT id, n FROM mine ORDER BY id", [(1, 10), (2, 21), (4, 40)]),
        ("SELECT count(*), sum(n), min(id), max(s) FROM app.mine", [(3, 71, 1, "old")]),
        ("SELECT id FROM mine WHERE s = 'old' ORDER BY id", [(1,)]),
        ("SELECT id FROM mine WHERE n = 20 OR id = 3", []),
        ("SELECT count(*) FROM mine WHERE _deleted", [(0,)]),
        (
            "SELECT a.id, b.n FROM mine a JOIN mine b ON a.id = b.id WHERE b.n > 20 ORDER BY 1",
            [(2, 21), (4, 40)],
        ),
        ("WITH big AS (SELECT * FROM mine WHERE n > 15) SELECT count(*) FROM big", [(2,)]),
        ("SELECT s, count(*) FROM mine GROUP BY s ORDER BY s", [("new", 2), ("old", 1)]),
        ("SELECT id, row_number() OVER (ORDER BY n DESC) FROM mine ORDER BY id LIMIT 2", [(1, 3), (2, 2)]),
        ("SELECT count(*) FROM mine UNION ALL SELECT count(*) FROM ours ORDER BY 1", [(0,), (3,)]),
        ("SELECT id FROM mine WHERE id IN (SELECT a FROM made.up) ORDER BY id", [(1,), (2,)]),
        ("SELECT 1 + 1", [(2,)]),
    ],
)
def test_the_tier_makes_no_difference(
    filled: Embedded, text: str, expected: list[tuple[object, ...]]
) -> None:
    assert run(filled, text) == expected


def test_a_user_sees_their_own_rows_only(filled: Embedded) -> None:
    assert run(filled, "SELECT n FROM mine", user="bob") == [(99,)]
    assert run(filled, "SELECT n FROM mine", user="eve") == []


def test_a_query_stays_with_its_view(filled: Embedded) -> None:
    """Whatever is written and flushed after it was taken."""
    resolve, view = resolver(filled), filled.settle()
    text = "SELECT count(*), sum(n) FROM mine"
    names = filled.query.scout.tables_in(text, "app", resolve)
    for key in range(10, 13):
        filled.change(f"INSERT INTO app.mine (id, n) VALUES ({key}, 1)", user="ann")
        filled.change("UPDATE app.mine SET n = n + 1", user="ann")
        filled.flush("app.mine")
        found = filled.query.run(view, text, "app", names, resolve)
        assert [column.to_pylist() for column in found.columns] == [[3], [71]]
    assert run(filled, text) == [(6, 71 + 3 + 9 + 3 + 2 + 1)]


def test_tables_are_named_by_planning_not_by_guessing(db: Embedded) -> None:
    resolve = resolver(db)
    text = "WITH mine AS (SELECT 'app.ours' AS x) SELECT * FROM mine, app.ours o WHERE o.n IS NULL"
    assert db.query.scout.tables_in(text, "app", resolve) == [("app", "ours")]
    assert db.query.scout.tables_in("SELECT 1", "app", resolve) == []


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("SELECT * FROM app.nothing", TableNotFound),
        ("SELECT * FROM secret.plan", PermissionDenied),
        ("SELECT (SELECT max(a) FROM secret.plan) FROM mine", PermissionDenied),
        ("SELEC 1", InvalidSql),
        ("SELECT nothing FROM mine", QueryFailure),
        ("SELECT id / 0 FROM mine WHERE id = 1", QueryFailure),
        ("SELECT CAST('x' AS INT)", QueryFailure),
        ("DROP TABLE mine", UpwellError),
        ("INSERT INTO mine VALUES (1)", UpwellError),
        ("CREATE EXTERNAL TABLE t STORED AS PARQUET LOCATION '/etc'", UpwellError),
        ("COPY mine TO '/tmp/out.parquet'", UpwellError),
        ("SET datafusion.execution.batch_size = 1", UpwellError),
    ],
)
def test_what_a_query_may_not_or_cannot_do_is_a_domain_error(
    db: Embedded, text: str, error: type[UpwellError]
) -> None:
    db.change("INSERT INTO app.mine (id, n) VALUES (1, 1)", user="ann")
    with pytest.raises(error) as raised:
        run(db, text)
    assert "Traceback" not in str(raised.value)


def test_results_know_the_types_of_their_columns_in_each_tier(filled: Embedded) -> None:
    resolve = resolver(filled)
    text = "SELECT id, n, s, _seq FROM mine"
    found = filled.query.run(filled.settle(), text, "app", [("app", "mine")], resolve)
    types = [(field.metadata or {}).get(b"upwell.type") for field in found.schema]
    assert types == [b"Int", b"Int", b"Text", b"BigInt"]


def test_owners_are_told_apart_by_more_than_their_names(db: Embedded) -> None:
    db.change("INSERT INTO app.ours VALUES (1, 1)")
    db.change("INSERT INTO app.mine (id) VALUES (7)", user="s:")
    db.flush("app.ours")
    db.flush("app.mine")
    assert run(db, "SELECT id FROM mine", user="s:") == [(7,)]
    assert run(db, "SELECT id FROM ours", user="s:") == [(1,)]
    assert db.rows_by_key.owners(db.view.hot, db.table("app.mine")) == [user_owner("s:")]
    assert db.rows_by_key.owners(db.view.hot, db.table("app.ours")) == [SHARED]


def test_a_count_of_whole_tables_is_arithmetic_that_agrees_with_a_scan(db: Embedded) -> None:
    """In each state of the tiers, and again when it was remembered."""
    steps = (
        lambda: db.change("INSERT INTO app.mine (id) VALUES (1), (2), (3), (4)", user="ann"),
        lambda: db.flush("app.mine"),
        lambda: db.change("INSERT INTO app.mine (id) VALUES (5)", user="ann"),
        lambda: db.change("UPDATE app.mine SET n = 1 WHERE id = 2", user="ann"),
        lambda: db.change("DELETE FROM app.mine WHERE id = 3", user="ann"),
        lambda: db.flush("app.mine"),
        lambda: db.change("INSERT INTO app.mine (id) VALUES (3)", user="ann"),
        lambda: db.flush("app.mine"),
        lambda: db.change("DELETE FROM app.mine", user="ann"),
        lambda: db.flush("app.mine"),
    )
    known = 0
    for step in steps:
        step()
        source = Source(db.table("app.mine"), user_owner("ann"))
        ((scanned,),) = run(db, "SELECT COUNT(*) FROM (SELECT id FROM mine WHERE id > 0) x")
        for _ in range(2):
            assert db.query.find_count(db.settle(), source) in (None, scanned)
            assert db.rows("SELECT COUNT(*) FROM app.mine", user="ann") == [(scanned,)]
        known += db.query.find_count(db.settle(), source) is not None
    assert known >= 5, "and mostly it is known"


@pytest.mark.parametrize(
    "text", ["SELECT * FROM secret.t ORDER BY 1", "SELECT n + 1 FROM nothing", "SELECT nothing FROM mine"]
)
def test_a_refused_query_holds_no_view(db: Embedded, text: str) -> None:
    """What is held would keep its snapshot, and the files that it names, for ever."""
    gone = []
    for key in range(3):
        db.change(f"INSERT INTO app.mine (id, n, s) VALUES ({key}, 1, 's')", user="ann")
        gone.append(weakref.ref(db.view))
        with pytest.raises(UpwellError):
            refused(db, text)
    db.change("INSERT INTO app.mine (id, n, s) VALUES (9, 1, 's')", user="ann")
    gc.collect()
    assert [each() for each in gone] == [None] * 3


def test_what_was_planned_of_a_manifest_goes_with_the_next(db: Embedded) -> None:
    """A plan takes some 150 kB that only the query engine sees; each flush makes a manifest."""
    planned = []
    for key in range(5):
        db.change(f"INSERT INTO app.mine (id, n, s) VALUES ({key}, 1, 's')", user="ann")
        db.flush("app.mine")
        assert len(db.rows("SELECT id FROM app.mine WHERE n + 0 = 1", user="ann")) == key + 1
        gc.collect()
        planned.append(sum(isinstance(each, DataFrame) for each in gc.get_objects()))
    assert planned[1:] == planned[:1] * 4


def refused(db: Embedded, text: str) -> None:
    view = db.view
    db.query.scout.tables_in(text, "app", lambda *name: resolver(db)(*name) if view else pa.table({}))
