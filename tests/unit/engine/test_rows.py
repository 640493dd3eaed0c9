"""A row is found in whichever tier its newest version lies, and the event loop never touches a file."""

import pytest

from upwell.engine.in_force import partition_name
from upwell.engine.rows import Found, Rows, WouldBlock
from upwell.storage.hot import NO_SEQ, Kind, NoChangeAfter, RecordIs, RowIs
from upwell.testing.embedded import Embedded
from upwell.types import SHARED, Key, user_owner


def find(db: Embedded, key: Key, *, may_block: bool = True) -> Found:
    return db.rows_by_key.find(db.view.hot, db.table("app.ours"), SHARED, key, may_block=may_block)


def value(found: Found) -> object:
    return None if found.live is None or found.live.row is None else found.live.row[1]


def fill(db: Embedded) -> None:
    """1 and 2 cold, 3 cold and changed, 4 cold and deleted, 5 hot."""
    db.change("INSERT INTO app.ours VALUES (1, 1), (2, 2), (3, 3), (4, 4)")
    db.flush("app.ours")
    db.change("UPDATE app.ours SET n = 30 WHERE id = 3")
    db.change("DELETE FROM app.ours WHERE id = 4")
    db.change("INSERT INTO app.ours VALUES (5, 5)")


def test_the_newest_version_is_found_wherever_it_lies(db: Embedded) -> None:
    fill(db)
    assert [value(find(db, key)) for key in range(1, 7)] == [1, 2, 30, None, 5, None]
    assert find(db, 4).version is not None, "a tombstone is a version"
    assert find(db, 6) == Found(None, NO_SEQ, find(db, 1).manifest)


def test_nothing_is_asked_of_files_on_the_loop(db: Embedded) -> None:
    """Also the first look at a manifest is one; afterwards a filter in memory can say that a key is new."""
    fill(db)
    db.reopen()
    assert value(find(db, 5, may_block=False)) == 5
    assert find(db, 4, may_block=False).live is None
    for key in (1, 99):
        with pytest.raises(WouldBlock):
            find(db, key, may_block=False)
    assert value(find(db, 1)) == 1
    assert find(db, 99, may_block=False) == find(db, 99)
    with pytest.raises(WouldBlock):
        find(db, 1, may_block=False)


def test_a_partition_that_was_never_flushed_needs_no_file(db: Embedded) -> None:
    assert find(db, 1, may_block=False) == Found(None, NO_SEQ, None)
    assert db.rows_by_key.cold_partition(db.view.hot, db.table("app.ours"), SHARED) is None


def test_an_answer_names_what_it_relied_on(db: Embedded) -> None:
    fill(db)
    table = db.table("app.ours")
    name = partition_name(table.id, SHARED)
    record = db.view.hot.find_record(Kind.MANIFEST, name)
    hot, cold, absent = find(db, 5), find(db, 1), find(db, 6)
    assert hot.expectations(table, SHARED, 5) == [RowIs(table.id, SHARED, 5, hot.hot_seq)]
    for key, found in ((1, cold), (6, absent)):
        assert found.expectations(table, SHARED, key) == [
            RowIs(table.id, SHARED, key, NO_SEQ),
            RecordIs(Kind.MANIFEST, name, record),
        ]
    assert not isinstance(hot.expectations(table, SHARED, 5)[0], NoChangeAfter)


def test_a_scan_merges_the_tiers_in_key_order(db: Embedded) -> None:
    fill(db)

    def scanned(after: Key | None = None) -> list[object]:
        rows = db.rows_by_key.scan(db.view.hot, db.table("app.ours"), SHARED, after)
        return [version.row for version in rows]

    assert scanned() == [[1, 1], [2, 2], [3, 30], [5, 5]]
    assert scanned(after=2) == [[3, 30], [5, 5]]
    assert scanned(after=5) == []
    db.flush("app.ours")
    assert scanned() == [[1, 1], [2, 2], [3, 30], [5, 5]]


def test_owners_are_those_of_both_tiers(db: Embedded) -> None:
    table = db.table("app.mine")
    db.change("INSERT INTO app.mine (id) VALUES (1)", user="cold")
    db.flush("app.mine")
    db.change("INSERT INTO app.mine (id) VALUES (1)", user="hot")
    assert list(db.view.hot.owners(table.id)) == [user_owner("hot")]
    assert db.rows_by_key.owners(db.view.hot, table) == [user_owner("cold"), user_owner("hot")]
    assert Rows(db.cold).owners(db.view.hot, db.table("app.ours")) == []
