"""What the tests of the SQL room share."""

import pytest

from upwell.engine.catalog import Catalog, Namespace, Reference, Table, TableKind
from upwell.engine.expression import Context
from upwell.types import Column, Default, SqlType, TableId


@pytest.fixture(scope="session")
def notes() -> Table:
    return Table(
        TableId(1),
        "app",
        "notes",
        TableKind.USER,
        (
            Column(1, "id", SqlType.BIGINT, False, True, Default("SNOWFLAKE_ID"), "id"),
            Column(2, "title", SqlType.TEXT, physical="title"),
            Column(3, "stars", SqlType.INT, True, False, Default(None, 3), "stars"),
            Column(4, "score", SqlType.DOUBLE, physical="score"),
            Column(5, "done", SqlType.BOOLEAN, physical="done"),
            Column(6, "at", SqlType.TIMESTAMP, True, False, Default("NOW"), "at"),
            Column(7, "ref", SqlType.UUID, physical="ref"),
        ),
    )


@pytest.fixture(scope="session")
def tags(notes: Table) -> Table:
    return Table(
        TableId(2),
        "app",
        "tags",
        TableKind.SHARED,
        (
            Column(1, "name", SqlType.TEXT, False, True, physical="name"),
            Column(2, "note", SqlType.BIGINT, physical="note"),
        ),
        references=(Reference(1, notes.id),),
    )


@pytest.fixture(scope="session")
def catalog(notes: Table, tags: Table) -> Catalog:
    spaces = {"app": Namespace("app")}
    return Catalog(spaces, {("app", "notes"): notes, ("app", "tags"): tags}, {})


@pytest.fixture(scope="session")
def context() -> Context:
    moment = 1_700_000_000_000_000
    return Context("o'hara", "service", moment, lambda: 42, lambda: "a-uuid", lambda: "a-ulid")
