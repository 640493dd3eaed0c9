"""A stock client reads a trimmed log from 0: every row once, parents first, then what is new."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from upwell.clock import ManualClock
from upwell.errors import SeqTrimmed
from upwell.feeds.hydrate import Hydrations
from upwell.testing.embedded import RETENTION_S, Embedded
from upwell.testing.pages import TABLES, USER, Phone, create_tables, server_rows, trim


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def db(tmp_path: Path, clock: ManualClock) -> Iterator[Embedded]:
    with Embedded(tmp_path, clock=clock) as opened:
        create_tables(opened)
        yield opened


def fill(db: Embedded, clock: ManualClock) -> None:
    """Folders stand below folders with larger keys; parents are newer than some of their children."""
    change = db.change
    for number in reversed(range(20)):
        parent = "NULL" if number == 19 else f"'f{number + 1:02}'"
        change(f"INSERT INTO app.folders VALUES ('f{number:02}', {parent})", user=USER)
    change("INSERT INTO app.users VALUES " + ", ".join(f"('u{i}', 'n')" for i in range(7)), user=USER)
    posts = ", ".join(f"('p{i:02}', 'u{i % 7}', 'f{i % 20:02}')" for i in range(30))
    change(f"INSERT INTO app.posts VALUES {posts}", user=USER)
    change("UPDATE app.users SET name = 'renamed'", user=USER)
    change("DELETE FROM app.posts WHERE id < 'p05'", user=USER)
    clock.advance(RETENTION_S + 1)


@pytest.mark.parametrize("limit", [1, 7, 1000])
@pytest.mark.parametrize("is_cold", [False, True])
def test_every_live_row_comes_once_after_its_parents(
    db: Embedded, clock: ManualClock, limit: int, is_cold: bool
) -> None:
    fill(db, clock)
    if is_cold:
        for name in TABLES:
            db.flush(f"app.{name}")
    db.trim.run()
    phone = Phone(db, limit)
    phone.read()
    assert phone.rows() == server_rows(db)
    assert len(phone.seen) == len(set(phone.seen)) == 20 + 7 + 25
    assert phone.cursor == 20 + 7 + 30 + 7 + 5, "the log goes on behind all that was trimmed"


def test_pages_are_full_while_there_are_more(db: Embedded, clock: ManualClock) -> None:
    fill(db, clock)
    db.trim.run()
    phone, sizes = Phone(db, 10), []
    for _ in range(6):
        page = phone.fetch()
        phone.store(page)
        sizes.append((len(page.changes), page.has_more))
    assert sizes == [(10, True)] * 5 + [(7, False)], "52 rows and 5 tombstones"


def test_a_lost_answer_is_given_again_and_a_restart_goes_on(db: Embedded, clock: ManualClock) -> None:
    fill(db, clock)
    db.trim.run()
    phone = Phone(db, 10)
    for _ in range(3):
        lost = phone.fetch()
        again = phone.fetch()
        assert [change.pk for change in again.changes] == [change.pk for change in lost.changes]
        phone.store(again)
        db.reopen()
    phone.read()
    assert phone.rows() == server_rows(db)


def test_what_is_written_meanwhile_comes_from_the_log(db: Embedded, clock: ManualClock) -> None:
    fill(db, clock)
    db.trim.run()
    phone = Phone(db, 5)
    for step in range(6):
        phone.store(phone.fetch())
        db.change(f"INSERT INTO app.users VALUES ('new{step}', 'n')", user=USER)
        db.change(f"INSERT INTO app.folders VALUES ('a{step}', NULL)", user=USER)
        db.change(
            f"UPDATE app.posts SET author = 'new{step}', folder = 'a{step}' WHERE id = 'p{20 + step}'",
            user=USER,
        )
        db.change(f"UPDATE app.folders SET parent = 'a{step}' WHERE id = 'f{step:02}'", user=USER)
        db.change(f"DELETE FROM app.posts WHERE id = 'p1{step}'", user=USER)
    phone.read()
    assert phone.rows() == server_rows(db)


def test_a_cursor_below_the_floor_is_refused_and_a_device_at_it_goes_on(
    db: Embedded, clock: ManualClock
) -> None:
    fill(db, clock)
    db.trim.run()
    stale, current = Phone(db, 10, "tablet"), Phone(db, 10)
    stale.cursor, current.cursor = 30, 69
    with pytest.raises(SeqTrimmed):
        stale.fetch()
    assert current.fetch().changes == []


def test_an_old_file_loses_what_was_deleted_meanwhile(db: Embedded, clock: ManualClock) -> None:
    phone = Phone(db, 3)
    db.change("INSERT INTO app.users VALUES ('u0', 'n'), ('u1', 'n')", user=USER)
    db.change("INSERT INTO app.posts VALUES ('p0', 'u0', NULL), ('p1', 'u1', NULL)", user=USER)
    phone.read()
    db.change("DELETE FROM app.posts WHERE id = 'p0'", user=USER)
    db.change("DELETE FROM app.users WHERE id = 'u0'", user=USER)
    db.flush("app.users")
    clock.advance(RETENTION_S + 1)
    db.trim.run()
    phone.cursor = 0
    phone.read()
    assert phone.rows() == server_rows(db) == [[], [("u1", "n")], [("p1", "u1", None)]]


@pytest.mark.parametrize("kept", ["tail", "nothing"])
def test_after_a_lost_history_a_cursor_from_it_is_refused(db: Embedded, kept: str) -> None:
    db.change("INSERT INTO app.users VALUES ('u0', 'n'), ('u1', 'n')", user=USER)
    ahead, behind = Phone(db, 10), Phone(db, 10)
    ahead.cursor, behind.cursor = 5, 2
    db.store.raise_epoch()
    if kept == "tail":
        db.change("INSERT INTO app.users VALUES ('u2', 'n')", user=USER)
    with pytest.raises(SeqTrimmed):
        ahead.fetch()
    page = behind.fetch()
    expected = [(2**32 + 1, "u2")] if kept == "tail" else []
    assert [(change.server_id, change.pk) for change in page.changes] == expected


# --- a number means one thing


def write_users(db: Embedded, count: int, first: int = 0) -> None:
    for number in range(first, first + count):
        db.change("INSERT INTO app.users VALUES ($1, 'n')", [f"u{number:03}"], user=USER)


@pytest.mark.parametrize("is_server_killed", [False, True])
@pytest.mark.parametrize("limit", [1, 2])
def test_a_late_first_request_begins_no_pages_with_a_number_that_the_device_holds(
    db: Embedded, clock: ManualClock, limit: int, is_server_killed: bool
) -> None:
    """Its own cursor would be taken for a page, and the rows of the pages before would be skipped."""
    phone = Phone(db, limit)
    write_users(db, 1)
    phone.read()
    assert phone.cursor == 1
    if is_server_killed:
        db.reopen()
    write_users(db, 5, first=1)
    trim(db, clock)
    for after in (0, 2, 1):
        with suppress(SeqTrimmed):
            Phone(db, limit).fetch(after)
    with pytest.raises(SeqTrimmed):
        phone.fetch()


def test_what_a_hydration_gave_is_no_number_of_a_page(db: Embedded, clock: ManualClock) -> None:
    write_users(db, 3)
    began = Hydrations(db.committer, db.rows_by_key, db.registry, stream_id="s").hydrate(
        USER, "phone", cursor=None, limit=10, schema="app"
    )
    assert began.next_after == 3
    write_users(db, 7, first=3)
    trim(db, clock)
    read_beside(db, held=3)


def test_where_a_hydration_ended_is_no_number_of_a_later_page(db: Embedded, clock: ManualClock) -> None:
    write_users(db, 5)
    trim(db, clock)
    phone = Phone(db, 2)
    phone.read()
    assert phone.cursor == 5
    write_users(db, 15, first=5)
    trim(db, clock)
    read_beside(db, held=5)


def read_beside(db: Embedded, *, held: int) -> None:
    """Late copies read all pages; the device that holds a number is told that it leads nowhere."""
    late, is_at_end = Phone(db, 1), False
    while not is_at_end:
        page = late.fetch()
        late.store(page)
        is_at_end = not page.has_more
        with pytest.raises(SeqTrimmed):
            late.fetch(held)


@pytest.mark.parametrize("behind", [0, 1, 40])
def test_a_source_that_is_installed_again_reads_all_rows_in_pages(
    db: Embedded, clock: ManualClock, behind: int
) -> None:
    """It held a number close to the floor: its pages are numbered below."""
    write_users(db, 200 - behind)
    phone = Phone(db, 1000)
    phone.read()
    phone.read()
    if behind:
        write_users(db, behind, first=200 - behind)
    trim(db, clock)
    again, sizes = Phone(db, 10), []
    for _ in range(20):
        page = again.fetch()
        again.store(page)
        sizes.append((len(page.changes), page.has_more))
    assert sizes == [(10, True)] * 19 + [(10, False)]
    assert again.cursor == 200
    assert again.rows() == server_rows(db)


def test_where_numbers_run_out_the_last_page_has_all_the_rest(db: Embedded, clock: ManualClock) -> None:
    """It asked with 2 and was given 19, the last below the floor: a page can be called 1 only."""
    write_users(db, 2)
    phone = Phone(db, 100)
    phone.read()
    write_users(db, 17, first=2)
    page = phone.fetch()
    write_users(db, 1, first=19)
    assert (phone.cursor, page.next_after) == (2, 19)
    trim(db, clock)
    again, sizes = Phone(db, 5), []
    for _ in range(2):
        page = again.fetch()
        again.store(page)
        sizes.append((len(page.changes), page.has_more, page.next_after))
    assert sizes == [(5, True, 1), (15, False, 20)]
    assert again.rows() == server_rows(db)


def test_a_page_of_an_earlier_hydration_is_none_of_a_later_one(db: Embedded, clock: ManualClock) -> None:
    write_users(db, 10)
    trim(db, clock)
    phone = Phone(db, 2)
    for _ in range(2):
        phone.store(phone.fetch())
    db.change("UPDATE app.users SET name = 'new' WHERE id > 'u003'", user=USER)
    write_users(db, 10, first=10)
    trim(db, clock)
    late = Phone(db, 2)
    for _ in range(8):
        late.store(late.fetch())
    with pytest.raises(SeqTrimmed):
        phone.fetch()


def test_a_late_first_request_disturbs_no_hydration(db: Embedded, clock: ManualClock) -> None:
    write_users(db, 30)
    trim(db, clock)
    phone = Phone(db, 3)
    for _ in range(9):
        phone.store(phone.fetch())
        Phone(db, 3).fetch()
        Phone(db, 2).fetch(phone.cursor)
    phone.read()
    assert phone.rows() == server_rows(db)
    assert len(phone.seen) == len(set(phone.seen))


def test_a_read_costs_a_commit_only_where_the_device_may_hold_a_greater_number(
    db: Embedded, clock: ManualClock
) -> None:
    write_users(db, 100)
    phone, commits = Phone(db, 1), 0
    for _ in range(100):
        before = db.committer.last_seq
        phone.store(phone.fetch())
        commits += db.committer.last_seq > before
    assert phone.cursor == 100
    assert commits <= 12
    before = db.committer.last_seq
    phone.fetch()
    assert db.committer.last_seq == before
