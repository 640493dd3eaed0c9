"""The tail in memory gives what the log would give, or says that it doesn't reach back so far."""

from dataclasses import replace

import msgspec
import pytest

from upwell.engine.changelog import Changelog
from upwell.engine.view import View
from upwell.storage.hot import Change
from upwell.testing.embedded import Embedded
from upwell.types import user_owner

ANN, BOB = user_owner("ann"), user_owner("bob")


def change(seq: int) -> Change:
    return Change(seq, True, 1, ANN, seq, seq, "INSERT", 1, None, [seq], 0, 1)


def at(view: View, seq: int) -> View:
    return replace(view, seq=seq)  # type: ignore[arg-type]


@pytest.fixture
def view(db: Embedded) -> View:
    return db.view


def test_the_tail_is_what_lies_between_cursor_and_view(view: View) -> None:
    log = Changelog(floor=5)
    log.append([change(6), change(8)])
    log.append([change(9)])
    seqs = {after: [c.seq for c in log.tail(at(view, 8), after=after) or []] for after in (5, 6, 7, 8)}
    assert seqs == {5: [6, 8], 6: [8], 7: [8], 8: []}
    assert log.tail(at(view, 9), after=4) is None, "below the floor only the store knows"


def test_the_oldest_are_forgotten_and_the_floor_says_so(view: View) -> None:
    log = Changelog(floor=0, tail_changes_max=4)
    for seq in range(1, 41):
        log.append([change(seq)])
        for after in range(seq):
            found = log.tail(at(view, seq), after=after)
            assert found is None or [c.seq for c in found] == list(range(after + 1, seq + 1))
        assert log.tail(at(view, seq), after=max(0, seq - 4)) is not None, "the newest are always there"
    assert log.tail(at(view, 40), after=20) is None


def test_large_rows_are_forgotten_by_their_bytes(view: View) -> None:
    log = Changelog(floor=0, tail_bytes_max=100_000)
    for seq in range(1, 101):
        log.append([msgspec.structs.replace(change(seq), after=[seq, "x" * 10_000])])
    kept = next(100 - after for after in range(100) if log.tail(at(view, 100), after=after) is not None)
    assert 9 <= kept <= 20, "each costs some 10.5 kB; forgetting starts at twice the bound"
    assert log.tail(at(view, 100), after=99) is not None


def test_a_commit_of_many_rows_doesnt_stay_until_the_next_one(view: View) -> None:
    log = Changelog(floor=0, tail_changes_max=4)
    log.append([change(seq) for seq in range(1, 1_001)])
    found = {after: log.tail(at(view, 1_000), after=after) for after in (0, 995, 996, 1_000)}
    seqs = {after: changes and [c.seq for c in changes] for after, changes in found.items()}
    assert seqs == {0: None, 995: None, 996: [997, 998, 999, 1_000], 1_000: []}


def test_deleted_rows_and_uploaded_texts_have_a_size_too(view: View) -> None:
    log = Changelog(floor=0, tail_bytes_max=100_000)
    for seq in range(1, 101):
        old = msgspec.structs.replace(
            change(seq), before=[seq, "x" * 5_000], after=None, uploaded="y" * 5_000
        )
        log.append([old])
    kept = next(100 - after for after in range(100) if log.tail(at(view, 100), after=after) is not None)
    assert 9 <= kept <= 20


def test_the_log_is_read_by_table_and_owner_never_beyond_the_view(db: Embedded) -> None:
    db.change("INSERT INTO app.mine (id) VALUES (1), (2)", user="ann")
    db.change("INSERT INTO app.mine (id) VALUES (1)", user="bob")
    old = db.settle()
    db.change("DELETE FROM app.mine WHERE id = 1", user="ann")
    table, log = db.table("app.mine").id, db.committer.changelog

    def read(view: View, owner: str | None, after: int = 0, limit: int = 99) -> list[tuple[str, object, str]]:
        found = log.read(view, table, user_owner(owner) if owner else None, after=after, limit=limit)
        return [(c.owner, c.key, c.op) for c in found]

    assert read(old, "ann") == [(ANN, 1, "INSERT"), (ANN, 2, "INSERT")]
    assert read(old, None) == [(ANN, 1, "INSERT"), (ANN, 2, "INSERT"), (BOB, 1, "INSERT")]
    assert read(db.view, "ann", after=old.seq) == [(ANN, 1, "DELETE")]
    assert read(db.view, None, limit=1) == [(ANN, 1, "INSERT")]
    tail = log.tail(old, after=0)
    assert tail is not None
    assert [(c.owner, c.key, c.op) for c in tail] == read(old, None)
