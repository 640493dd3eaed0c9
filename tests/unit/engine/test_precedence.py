"""In the log a row comes after those that it refers to and goes after those that referred to it."""

from pathlib import Path

import pytest

from upwell.clock import ManualClock
from upwell.storage.memory import MemoryStore
from upwell.testing.embedded import Embedded
from upwell.testing.pages import USER, Phone, create_tables, server_rows

BEFORE = """
INSERT INTO app.users VALUES ('u0', 'n');
INSERT INTO app.folders VALUES ('f0', NULL);
INSERT INTO app.folders VALUES ('f1', 'f0');
INSERT INTO app.posts VALUES ('p', 'u0', 'f1')
"""
COMMITS = {
    "parents that follow their children": """
        INSERT INTO app.folders VALUES ('a', 'b'), ('b', 'c'), ('c', NULL)
        """,
    "parents and children that go together": """
        BEGIN; DELETE FROM app.posts; DELETE FROM app.folders; COMMIT
        """,
    "a parent that changed before it goes": """
        BEGIN;
        UPDATE app.users SET name = 'newer';
        DELETE FROM app.posts;
        DELETE FROM app.users;
        COMMIT
        """,
    "a child that gets a parent that is younger": """
        BEGIN;
        INSERT INTO app.posts VALUES ('q', 'u0', NULL);
        INSERT INTO app.users VALUES ('u1', 'n');
        UPDATE app.posts SET author = 'u1';
        DELETE FROM app.users WHERE id = 'u0';
        COMMIT
        """,
}


def run_all(db: Embedded, statements: str) -> None:
    for statement in statements.split(";"):
        db.change(statement.strip(), user=USER)


def check_each_entry(db: Embedded) -> None:
    """A phone that stores entry by entry is refused none."""
    phone = Phone(db, 1)
    phone.read()
    assert phone.rows() == server_rows(db)


@pytest.mark.parametrize("commit", COMMITS)
def test_each_entry_of_a_commit_leaves_what_is_whole(tmp_path: Path, commit: str) -> None:
    with Embedded(tmp_path, store=MemoryStore(clock=ManualClock())) as db:
        create_tables(db)
        run_all(db, BEFORE)
        db.run(COMMITS[commit].strip(), user=USER)
        check_each_entry(db)


@pytest.mark.parametrize("on_delete", ["CASCADE", "SET NULL"])
def test_what_follows_a_parent_is_told_before_it(tmp_path: Path, on_delete: str) -> None:
    with Embedded(tmp_path, store=MemoryStore(clock=ManualClock())) as db:
        create_tables(db, on_delete=on_delete)
        run_all(db, BEFORE)
        db.change("DELETE FROM app.folders WHERE id = 'f0'", user=USER)
        check_each_entry(db)


def test_other_writes_keep_the_order_of_their_statements(tmp_path: Path) -> None:
    with Embedded(tmp_path, store=MemoryStore(clock=ManualClock())) as db:
        create_tables(db)
        db.change(
            "INSERT INTO app.folders VALUES ('z', NULL), ('b', 'a'), ('y', NULL), ('a', NULL)", user=USER
        )
        found = [change.pk for change in Phone(db, 1000).fetch().changes]
        assert found == ["z", "a", "b", "y"]
