"""ALTER TABLE makes a reference of a column without values, and drops one; so tables refer to each other."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from upwell.clock import ManualClock
from upwell.errors import (
    ConstraintViolation,
    InvalidOperation,
    InvalidSql,
    PermissionDenied,
    TableNotFound,
    UpwellError,
)
from upwell.storage.hot import ExpectationFailed
from upwell.storage.memory import MemoryStore
from upwell.testing.embedded import Embedded
from upwell.types import user_owner

USER = "ann"


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Embedded]:
    clock = ManualClock()
    with Embedded(tmp_path, store=MemoryStore(clock=clock), clock=clock) as opened:
        opened.run(
            "CREATE NAMESPACE app;"
            " CREATE USER TABLE app.a (id INT PRIMARY KEY, b INT, n BIGINT, m INT NOT NULL);"
            " CREATE USER TABLE app.b (id INT PRIMARY KEY, a INT REFERENCES app.a (id));"
            " CREATE SHARED TABLE app.shared (id INT PRIMARY KEY, b INT)"
        )
        yield opened


def text_of(db: Embedded, sql: str) -> str:
    return str(db.run(sql).result)


def test_two_tables_refer_to_each_other(db: Embedded) -> None:
    assert "ADD FOREIGN KEY (b) REFERENCES app.b (version 2)" in text_of(
        db, "ALTER TABLE app.a ADD CONSTRAINT x FOREIGN KEY (b) REFERENCES b (id) ON DELETE SET NULL"
    )
    assert "unchanged" in text_of(
        db, "ALTER TABLE app.a ADD FOREIGN KEY (b) REFERENCES app.b ON DELETE SET NULL"
    )
    db.run(
        "BEGIN; INSERT INTO app.a VALUES (1, NULL, 0, 0); INSERT INTO app.b VALUES (1, 1); COMMIT", user=USER
    )
    db.change("UPDATE app.a SET b = 1", user=USER)
    with pytest.raises(ConstraintViolation, match="insert the parent first"):
        db.change("UPDATE app.a SET b = 2", user=USER)
    with pytest.raises(ConstraintViolation, match="is still referenced"):
        db.change("DELETE FROM app.a", user=USER)
    db.change("DELETE FROM app.b", user=USER)
    assert db.rows("SELECT id, b FROM app.a", user=USER) == [(1, None)]


def test_tables_in_a_circle_are_dropped_after_their_reference(db: Embedded) -> None:
    db.run("ALTER TABLE app.a ADD FOREIGN KEY (b) REFERENCES app.b (id)")
    for table, child in (("a", "b"), ("b", "a")):
        with pytest.raises(InvalidOperation, match=f"ALTER TABLE app.{child} DROP FOREIGN KEY"):
            db.run(f"DROP TABLE app.{table}")
    assert "DROP FOREIGN KEY (b) (version 3)" in text_of(db, "ALTER TABLE app.a DROP FOREIGN KEY (b)")
    db.run("DROP TABLE app.b; DROP TABLE app.a")


def test_a_namespace_goes_with_its_circle(db: Embedded) -> None:
    db.run("ALTER TABLE app.a ADD FOREIGN KEY (b) REFERENCES app.b (id)")
    db.run("DROP NAMESPACE app")


@pytest.mark.parametrize("tier", ["hot", "cold"])
def test_a_column_with_values_becomes_no_reference(db: Embedded, tier: str) -> None:
    """Whoever has them; values that are gone don't count, nor do rows without."""
    db.change("INSERT INTO app.a VALUES (1, NULL, 0, 0), (2, 7, 0, 0)", user="bob")
    if tier == "cold":
        db.flush("app.a")
    with pytest.raises(ConstraintViolation, match=r"app\.a has rows with a value there"):
        db.run("ALTER TABLE app.a ADD FOREIGN KEY (b) REFERENCES app.b (id)")
    db.change("UPDATE app.a SET b = NULL", user="bob")
    db.run("ALTER TABLE app.a ADD FOREIGN KEY (b) REFERENCES app.b (id)")
    with pytest.raises(ConstraintViolation, match="insert the parent first"):
        db.change("UPDATE app.a SET b = 7", user="bob")


def test_a_column_that_was_added_becomes_one(db: Embedded) -> None:
    db.change("INSERT INTO app.b VALUES (1, NULL)", user=USER)
    db.run("ALTER TABLE app.b ADD COLUMN next INT")
    db.run("ALTER TABLE app.b ADD FOREIGN KEY (next) REFERENCES app.b ON DELETE CASCADE")
    db.change("INSERT INTO app.b VALUES (2, NULL, 1)", user=USER)
    db.change("UPDATE app.b SET next = 2 WHERE id = 1", user=USER)
    db.change("DELETE FROM app.b WHERE id = 1", user=USER)
    assert db.rows("SELECT id FROM app.b", user=USER) == []


@pytest.mark.parametrize(
    ("statement", "error", "said"),
    [
        ("app.a ADD FOREIGN KEY (b) REFERENCES app.none", TableNotFound, "app.none"),
        ("app.a ADD FOREIGN KEY (x) REFERENCES app.b", InvalidOperation, "'x' does not exist"),
        ("app.a ADD FOREIGN KEY (n) REFERENCES app.b", InvalidOperation, "give both the same type"),
        ("app.a ADD FOREIGN KEY (b) REFERENCES app.b (a)", InvalidSql, "the primary key is 'id'"),
        ("app.a ADD FOREIGN KEY (m) REFERENCES app.b ON DELETE SET NULL", InvalidOperation, "to be nullable"),
        ("app.a ADD FOREIGN KEY (b, n) REFERENCES app.b (id, a)", InvalidSql, "several columns"),
        ("app.b ADD FOREIGN KEY (a) REFERENCES app.b", InvalidOperation, "DROP FOREIGN KEY (a) first"),
        ("app.shared ADD FOREIGN KEY (b) REFERENCES app.b", InvalidOperation, "cannot reference USER table"),
        ("app.a DROP FOREIGN KEY (b)", InvalidOperation, "REFERENCES nothing"),
        ("app.a DROP FOREIGN KEY (x)", InvalidOperation, "'x' does not exist"),
    ],
)
def test_what_is_refused_is_refused_by_name(
    db: Embedded, statement: str, error: type[UpwellError], said: str
) -> None:
    with pytest.raises(error) as refusal:
        db.run(f"ALTER TABLE {statement}")
    assert said in str(refusal.value)


def test_role_user_does_not_learn_what_rows_others_have(db: Embedded) -> None:
    with pytest.raises(PermissionDenied, match="depends on everybody's rows"):
        db.run("ALTER TABLE app.a ADD FOREIGN KEY (b) REFERENCES app.b", user=USER)


def test_who_deletes_a_parent_meanwhile_meets_the_new_reference(db: Embedded) -> None:
    """It was evaluated when nothing referred to the row."""
    db.change("INSERT INTO app.b VALUES (1, NULL)", user=USER)
    write = db.write(db.settle())
    write.delete(db.table("app.b"), user_owner(USER), [1])
    db.run("ALTER TABLE app.a ADD FOREIGN KEY (b) REFERENCES app.b")
    db.change("INSERT INTO app.a VALUES (1, 1, 0, 0)", user=USER)
    with pytest.raises(ExpectationFailed):
        db.committer.apply(write.batch)


def test_who_writes_a_child_meanwhile_is_told(db: Embedded) -> None:
    write = db.write(db.settle())
    write.insert(db.table("app.a"), user_owner(USER), [1, 5, 0, 0])
    db.run("ALTER TABLE app.a ADD FOREIGN KEY (b) REFERENCES app.b")
    with pytest.raises(ExpectationFailed):
        db.committer.apply(write.batch)
