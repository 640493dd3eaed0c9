"""Schema changes are commits: judged against the newest catalog, so that of two equal ones one succeeds."""

import threading
from collections.abc import Callable, Iterator

import pytest

from upwell.clock import ManualClock
from upwell.effects import NoPoints
from upwell.engine.catalog import (
    OnDelete,
    Reference,
    Role,
    Table,
    TableKind,
    User,
    load_catalog,
)
from upwell.engine.commit import Committer
from upwell.engine.schema import RESERVED_NAMESPACES, Schema
from upwell.errors import AlreadyExists, InvalidOperation, NotFound, UpwellError
from upwell.storage.memory import MemoryStore
from upwell.types import Column, SqlType, TableId

NEW = TableId(0)


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore(clock=ManualClock())


@pytest.fixture
def committer(store: MemoryStore) -> Iterator[Committer]:
    committer = Committer(store, points=NoPoints())
    yield committer
    committer.close()


@pytest.fixture
def schema(committer: Committer) -> Schema:
    schema = Schema(committer, ManualClock())
    schema.ensure_default_namespace()
    schema.create_namespace("app", if_not_exists=False)
    return schema


def table(
    name: str, *, kind: TableKind = TableKind.SHARED, parent: int | None = None, type_: SqlType = SqlType.INT
) -> Table:
    columns = (Column(1, "id", SqlType.INT, primary_key=True), Column(2, "ref", type_))
    references = () if parent is None else (Reference(1, TableId(parent), OnDelete.CASCADE),)
    return Table(NEW, "app", name, kind, columns, references=references)


def create(schema: Schema, made: Table) -> Table:
    return schema.create_table(made, if_not_exists=False)[1]


def test_names_come_and_go(schema: Schema, committer: Committer) -> None:
    first = create(schema, table("t"))
    assert committer.newest_catalog.tables["app", "t"] == first
    schema.drop_table("app", "t", if_exists=False)
    assert ("app", "t") not in committer.newest_catalog.tables
    second = create(schema, table("t"))
    assert second.id == first.id + 1, "an id is never used again"


def test_the_catalog_is_what_its_records_say(
    schema: Schema, committer: Committer, store: MemoryStore
) -> None:
    parent = create(schema, table("parent"))
    create(schema, table("child", parent=parent.id))
    create(schema, table("gone"))
    schema.drop_table("app", "gone", if_exists=False)
    schema.create_namespace("other", if_not_exists=False)
    schema.drop_namespace("other", if_exists=False)
    schema.create_user(User("ann", Role.USER))
    loaded = load_catalog(store)
    assert loaded == committer.newest_catalog
    assert sorted(loaded.tables) == [("app", "child"), ("app", "parent")]
    assert [child.name for child, _ in loaded.children[parent.id]] == ["child"]


@pytest.mark.parametrize(
    ("act", "error", "message"),
    [
        (
            lambda s: s.create_namespace("app", if_not_exists=False),
            AlreadyExists,
            "Namespace 'app' already exists",
        ),
        (lambda s: s.create_namespace("system", if_not_exists=True), InvalidOperation, "reserved"),
        (lambda s: s.drop_namespace("nothing", if_exists=False), NotFound, "Namespace 'nothing' not found"),
        (lambda s: s.drop_namespace("default", if_exists=False), InvalidOperation, "belongs to the server"),
        (lambda s: create(s, table("t")), AlreadyExists, "Table app.t already exists"),
        (lambda s: s.drop_table("app", "nothing", if_exists=False), NotFound, "Table 'nothing' not found"),
        (lambda s: s.create_user(User("root", Role.DBA)), AlreadyExists, "User 'root' already exists"),
        (lambda s: create(s, table("u", parent=77)), NotFound, "dropped meanwhile"),
        (lambda s: create(s, table("u", parent=1, type_=SqlType.TEXT)), InvalidOperation, "same type"),
        (lambda s: create(s, table("u", parent=2)), InvalidOperation, "whose row would it be"),
        (lambda s: s.drop_table("app", "t", if_exists=False), InvalidOperation, "is referenced by app.child"),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(
    schema: Schema,
    committer: Committer,
    act: Callable[[Schema], object],
    error: type[UpwellError],
    message: str,
) -> None:
    create(schema, table("t"))
    create(schema, table("mine", kind=TableKind.USER))
    create(schema, table("child", parent=1))
    schema.create_user(User("root", Role.SYSTEM))
    before, seq = committer.newest_catalog, committer.last_seq
    with pytest.raises(error, match=message):
        act(schema)
    assert (committer.newest_catalog, committer.last_seq) == (before, seq)


def test_if_exists_and_if_not_exists_do_nothing_twice(schema: Schema) -> None:
    made = create(schema, table("t"))
    assert schema.create_namespace("app", if_not_exists=True) is None
    assert schema.create_table(table("t"), if_not_exists=True) == (None, made)
    assert schema.drop_table("app", "nothing", if_exists=True) == (None, None)
    assert schema.drop_namespace("nothing", if_exists=True) == (None, [])


def test_a_dropped_namespace_takes_its_tables_along(schema: Schema, committer: Committer) -> None:
    parent = create(schema, table("parent"))
    create(schema, table("child", parent=parent.id))
    _, dropped = schema.drop_namespace("app", if_exists=False)
    assert sorted(each.name for each in dropped) == ["child", "parent"]
    assert dict(committer.newest_catalog.tables) == {}


def test_a_reference_to_itself_gets_the_tables_own_id(schema: Schema) -> None:
    made = create(schema, table("tree", parent=NEW))
    assert made.references == (Reference(1, made.id, OnDelete.CASCADE),)
    schema.drop_table("app", "tree", if_exists=False)


def test_reserved_names_are_refused(schema: Schema) -> None:
    for name in sorted(RESERVED_NAMESPACES - {"default"}):
        with pytest.raises(InvalidOperation, match="reserved"):
            schema.create_namespace(name, if_not_exists=False)


def test_of_racing_equal_statements_one_succeeds(schema: Schema, committer: Committer) -> None:
    won: list[str] = []

    def race() -> None:
        for number in range(20):
            for kind, act in (
                ("space", lambda name: schema.create_namespace(name, if_not_exists=False)),
                ("table", lambda name: create(schema, table(name))),
                ("user", lambda name: schema.create_user(User(name, Role.USER))),
            ):
                try:
                    act(f"n{number}")  # type: ignore[no-untyped-call]
                except AlreadyExists:
                    continue
                won.append(f"{kind} {number}")

    threads = [threading.Thread(target=race) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(won) == sorted(f"{kind} {n}" for kind in ("space", "table", "user") for n in range(20))
    assert len({made.id for made in committer.newest_catalog.tables.values()}) == 20
