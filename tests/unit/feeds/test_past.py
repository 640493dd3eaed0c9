"""A stock client of a trimmed log gets the rows of the floor, and no page ends in a state that it refuses."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from upwell.clock import ManualClock
from upwell.feeds.upload import UploadLimits, Uploads
from upwell.protocol import sync
from upwell.testing.embedded import Embedded
from upwell.testing.pages import TABLES, USER, Phone, create_tables, server_rows, trim
from upwell.types import user_owner

BELOW = """
INSERT INTO app.folders VALUES ('f0', NULL);
INSERT INTO app.folders VALUES ('f1', 'f0');
INSERT INTO app.users VALUES ('u0', 'n'), ('u1', 'n');
INSERT INTO app.posts VALUES ('x', 'u0', NULL), ('y', 'u1', 'f1')
"""
ABOVE = {
    "a parent goes": """
        INSERT INTO app.posts VALUES ('p', NULL, 'f1');
        DELETE FROM app.posts WHERE folder = 'f1';
        DELETE FROM app.folders WHERE id = 'f1'
        """,
    "a parent changes": """
        INSERT INTO app.posts VALUES ('p', 'u0', NULL);
        UPDATE app.users SET name = 'newer';
        UPDATE app.users SET name = 'newest' WHERE id = 'u0'
        """,
    "a parent changes and goes": """
        INSERT INTO app.posts VALUES ('p', 'u0', NULL);
        UPDATE app.users SET name = 'newer' WHERE id = 'u0';
        DELETE FROM app.posts WHERE author = 'u0';
        DELETE FROM app.users WHERE id = 'u0'
        """,
    "grandparents go": """
        INSERT INTO app.folders VALUES ('f2', 'f1');
        INSERT INTO app.posts VALUES ('p', 'u0', 'f2');
        DELETE FROM app.posts WHERE id IN ('p', 'y');
        DELETE FROM app.folders WHERE id = 'f2';
        DELETE FROM app.folders WHERE id = 'f1';
        DELETE FROM app.folders WHERE id = 'f0'
        """,
    "a parent goes and comes back": """
        INSERT INTO app.posts VALUES ('p', 'u0', NULL);
        DELETE FROM app.posts WHERE author = 'u0';
        DELETE FROM app.users WHERE id = 'u0';
        INSERT INTO app.users VALUES ('u0', 'another');
        INSERT INTO app.posts VALUES ('p', 'u0', 'f1')
        """,
    "a child gets another parent": """
        INSERT INTO app.users VALUES ('u2', 'n');
        UPDATE app.posts SET author = 'u2';
        DELETE FROM app.users WHERE id <> 'u2';
        INSERT INTO app.folders VALUES ('f2', NULL);
        UPDATE app.folders SET parent = 'f2' WHERE id = 'f0';
        UPDATE app.folders SET parent = 'f2' WHERE id = 'f1';
        DELETE FROM app.folders WHERE id = 'f0'
        """,
}


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def db(tmp_path: Path, clock: ManualClock) -> Iterator[Embedded]:
    with Embedded(tmp_path, clock=clock) as opened:
        create_tables(opened)
        yield opened


def run_all(db: Embedded, statements: str) -> None:
    for statement in statements.split(";"):
        db.change(statement.strip(), user=USER)


@pytest.mark.parametrize("is_cold", [False, True])
@pytest.mark.parametrize("above", ABOVE)
def test_no_page_ends_where_a_row_has_no_parent(
    db: Embedded, clock: ManualClock, above: str, is_cold: bool
) -> None:
    run_all(db, BELOW)
    trim(db, clock)
    flush_all(db, is_asked=is_cold)
    run_all(db, ABOVE[above])
    flush_all(db, is_asked=is_cold)
    for limit in (1, 2, 1000):
        phone = Phone(db, limit, f"phone{limit}")
        while phone.cursor < 6:
            phone.store(phone.fetch())
        assert phone.rows() == [
            [("f0", None), ("f1", "f0")],
            [("u0", "n"), ("u1", "n")],
            [("x", "u0", None), ("y", "u1", "f1")],
        ]
        phone.read()
        assert phone.rows() == server_rows(db)


def flush_all(db: Embedded, *, is_asked: bool) -> None:
    for name in TABLES if is_asked else ():
        db.flush(f"app.{name}")


def test_an_old_file_loses_what_was_gone_and_is_back_by_now(db: Embedded, clock: ManualClock) -> None:
    """The old row would keep its old parent from going."""
    phone = Phone(db, 1)
    run_all(db, BELOW)
    phone.read()
    run_all(db, "DELETE FROM app.posts WHERE id = 'x'; DELETE FROM app.users WHERE id = 'u0'")
    trim(db, clock)
    run_all(db, "INSERT INTO app.posts VALUES ('x', 'u1', NULL)")
    phone.cursor = 0
    phone.read()
    assert phone.rows() == server_rows(db)


def upload(db: Embedded, *changes: tuple[str, str, int, str | None]) -> None:
    """Write rows (table, key, version before, payload) as the phone does."""
    uploads = Uploads(db.committer, db.rows_by_key, db.query, db.engine.defaults, UploadLimits(100, 1 << 20))
    for table, pk, version, payload in changes:
        change = sync.UploadChange(
            source_change_id=db.view.hot.owner_counter(user_owner(USER)) + 1,
            schema="app",
            table=table,
            op="DELETE" if payload is None else "UPDATE" if version else "INSERT",
            pk=pk,
            server_version=version,
            payload=msgspec.UNSET if payload is None else msgspec.Raw(payload.encode()),
        )
        [status] = uploads.upload(USER, "phone", sync.UploadRequest(changes=[change])).statuses
        assert status.status == "applied", status


OWN = {
    "a row that nobody refers to": [("posts", "x", 1, '{"id": "x", "author": "u1", "folder": null}')],
    "a parent": [("users", "u0", 1, '{"id": "u0", "name": "own"}')],
    "a row below": [
        ("posts", "x", 1, None),
        ("users", "u0", 1, None),
    ],
    "a new parent": [
        ("folders", "f9", 0, '{"id": "f9", "parent": null}'),
        ("folders", "f0", 1, '{"id": "f0", "parent": "f9"}'),
    ],
}


@pytest.mark.parametrize("limit", [1, 1000])
@pytest.mark.parametrize("own", OWN)
def test_what_a_device_sent_itself_since_the_floor_is_not_undone(
    db: Embedded, clock: ManualClock, own: str, limit: int
) -> None:
    """It doesn't ask for its own changes, as the stock client unless its app says so."""
    phone = Phone(db, limit, include_self=False)
    run_all(db, BELOW)
    phone.read()
    trim(db, clock)
    for change in OWN[own]:
        upload(db, change)
    phone.cursor = 0
    for table, pk, _, payload in OWN[own]:
        phone.apply(table, pk, payload)
    here = phone.rows()
    assert here == server_rows(db)
    phone.read()
    assert phone.rows() == here


@pytest.mark.parametrize("limit", [1, 1000])
def test_a_parent_that_the_device_changed_itself_comes_before_its_children(
    db: Embedded, clock: ManualClock, limit: int
) -> None:
    run_all(db, BELOW)
    trim(db, clock)
    for each in ("a parent", "a new parent"):
        upload(db, *OWN[each])
    phone = Phone(db, limit, include_self=False)
    phone.read()
    assert phone.rows() == server_rows(db)
