"""The overlay is the hot rows of a View; kept while nothing changed, and bounded whatever is asked."""

import random
import threading

import pytest

from upwell.engine.hot_rows import CHUNKS_MAX, PARTITION_BYTES, HotRows
from upwell.engine.overlay import Overlay
from upwell.engine.view import View
from upwell.testing.embedded import Embedded
from upwell.types import SHARED, user_owner

HISTORY_STEPS = 100

ANN = user_owner("ann")


def hot(db: Embedded, overlay: Overlay, view: View | None = None, owner: str = "ann") -> HotRows:
    return overlay.hot_rows(view or db.view, db.table("app.mine"), user_owner(owner))


def keys(rows: HotRows) -> list[object]:
    found: list[object] = sorted(rows.arrow.column(0).to_pylist())
    return found


def insert(db: Embedded, *ids: int, user: str = "ann") -> None:
    db.change(f"INSERT INTO app.mine (id) VALUES {', '.join(f'({key})' for key in ids)}", user=user)


def test_a_batch_is_kept_until_its_partition_changes(db: Embedded) -> None:
    overlay = Overlay()
    insert(db, 2, 1)
    first = hot(db, overlay)
    assert keys(first) == [1, 2]
    insert(db, 1, user="bob")
    db.change("INSERT INTO app.ours VALUES (1, 1)")
    assert hot(db, overlay) is first, "others' rows are others'"
    insert(db, 3)
    assert keys(hot(db, overlay)) == [1, 2, 3]
    db.change("DELETE FROM app.mine WHERE id = 1", user="ann")
    assert keys(hot(db, overlay)) == [2, 3]


def test_an_older_view_gets_its_own_rows_and_spoils_nothing(db: Embedded) -> None:
    overlay = Overlay()
    insert(db, 1)
    old = db.settle()
    insert(db, 2)
    newest = hot(db, overlay)
    assert keys(hot(db, overlay, old)) == [1]
    assert hot(db, overlay) is newest


def test_what_is_cold_is_left_out_before_and_after_its_cleanup(db: Embedded) -> None:
    overlay = Overlay()
    insert(db, 1, 2)
    assert keys(hot(db, overlay)) == [1, 2]
    db.flush("app.mine")
    assert keys(hot(db, overlay)) == []
    cold_seqs = db.rows("SELECT _seq FROM app.mine ORDER BY id", user="ann")
    db.change("UPDATE app.mine SET n = 1 WHERE id = 1", user="ann")
    db.change("DELETE FROM app.mine WHERE id = 2", user="ann")
    changed = hot(db, overlay)
    assert keys(changed) == [1]
    assert sorted(changed.superseded) == sorted(seq for (seq,) in cold_seqs)


def test_the_bytes_are_bounded_and_the_least_recently_read_goes_first(db: Embedded) -> None:
    overlay = Overlay(bytes_kept_max=3 * PARTITION_BYTES + 1_000)
    kept = {}
    for user in ("a", "b", "c"):
        kept[user] = hot(db, overlay, owner=user)  # empty partitions weigh as well
    assert hot(db, overlay, owner="a") is kept["a"]
    insert(db, 1, 2, 3, user="d")
    hot(db, overlay, owner="d")
    assert hot(db, overlay, owner="a") is kept["a"]
    assert hot(db, overlay, owner="b") is not kept["b"]


def test_many_empty_partitions_do_not_pile_up(db: Embedded) -> None:
    overlay = Overlay(bytes_kept_max=10 * PARTITION_BYTES)
    for number in range(100):
        hot(db, overlay, owner=f"user {number}")
    assert len(overlay._kept) == 10


def test_one_partition_above_the_bound_is_still_served(db: Embedded) -> None:
    overlay = Overlay(bytes_kept_max=1)
    insert(db, *range(10))
    assert keys(hot(db, overlay)) == list(range(10))


def test_threads_that_read_while_rows_change_each_get_their_view(db: Embedded) -> None:
    overlay, table = Overlay(bytes_kept_max=2 * PARTITION_BYTES), db.table("app.ours")
    problems: list[object] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            view = db.view
            found = keys(overlay.hot_rows(view, table, SHARED))
            if found != [version.key for version in view.hot.scan_rows(table.id, SHARED)]:
                problems.append(found)
            hot(db, overlay, view, owner=str(len(found)))

    readers = [threading.Thread(target=read) for _ in range(4)]
    for reader in readers:
        reader.start()
    for key in range(60):
        db.change(f"INSERT INTO app.ours VALUES ({key}, 1)")
    done.set()
    for reader in readers:
        reader.join(30)
    assert problems == []


def test_what_was_converted_once_is_not_scanned_again(db: Embedded) -> None:
    overlay = Overlay(db.committer.changelog)
    insert(db, *range(0, 400, 2))
    first = hot(db, overlay)
    db.change("UPDATE app.mine SET n = 7 WHERE id = 10", user="ann")
    insert(db, 1)
    second = hot(db, overlay)
    assert keys(second) == sorted([*range(0, 400, 2), 1])
    assert second.chunks[0].batch is not first.chunks[0].batch, "few rows are merged"
    insert(db, *range(1_000, 1_600))
    third = hot(db, overlay)
    insert(db, 5)
    assert hot(db, overlay).chunks[0].batch is third.chunks[0].batch
    assert keys(first) == list(range(0, 400, 2)), "an older reader keeps what it has"
    assert first.is_ordered
    assert not second.is_ordered


@pytest.mark.parametrize("seed", range(4))
def test_through_any_history_it_is_what_a_scan_gives(db: Embedded, seed: int) -> None:
    """Inserts, updates, deletes, new rows of old keys, flushes; read after some of them, and by old Views."""
    chance = random.Random(seed)
    overlay = Overlay(db.committer.changelog if seed % 2 else None)
    views = [db.settle()]
    for step in range(HISTORY_STEPS):
        _change(db, chance, step)
        if chance.random() < 0.4:
            views = [*views[-3:], db.settle()]
            for view in (views[-1], chance.choice(views)):
                _compare(db, overlay, view, f"seed {seed}, step {step}")


def _change(db: Embedded, chance: random.Random, step: int) -> None:
    low = chance.randrange(400)
    span = f"id BETWEEN {low} AND {low + chance.choice((0, 3, 60))}"
    match chance.choice(("insert", "insert", "update", "delete", "batch", "flush")):
        case "update":
            db.change(f"UPDATE app.mine SET n = {step} WHERE {span}", user="ann")
        case "delete":
            db.change(f"DELETE FROM app.mine WHERE {span}", user="ann")
        case "flush" if chance.random() < 0.3:
            db.flush("app.mine")
        case "batch":
            known = {key for (key,) in db.rows("SELECT id FROM app.mine", user="ann")}
            if new := [key for key in range(low, low + 90) if key not in known]:
                insert(db, *new)
        case _:
            if not db.rows(f"SELECT id FROM app.mine WHERE id = {low}", user="ann"):
                insert(db, low)


def _compare(db: Embedded, overlay: Overlay, view: View, where: str) -> None:
    rows, whole = hot(db, overlay, view), hot(db, Overlay(), view)
    assert len(rows.chunks) <= CHUNKS_MAX, where
    assert rows.count == rows.arrow.num_rows == whole.count, where
    assert rows.arrow.sort_by("id") == whole.arrow.sort_by("id"), where
    assert set(rows.superseded) >= set(whole.superseded), where
    live = set(rows.arrow.column("_seq").to_pylist())
    assert live.isdisjoint(rows.superseded), where
    if rows.is_ordered:
        assert rows.arrow.column("id").to_pylist() == sorted(rows.arrow.column("id").to_pylist()), where


def test_rows_that_are_too_far_behind_are_not_brought_up_to_date_in_part(db: Embedded) -> None:
    overlay = Overlay()
    insert(db, 1)
    hot(db, overlay)
    insert(db, 2, 3, 4)
    table = db.table("app.mine")
    assert overlay.find_rows(db.view, table, ANN, changes_max=2) is None
    found = overlay.find_rows(db.view, table, ANN, changes_max=3)
    assert found is not None
    assert keys(found) == [1, 2, 3, 4]
