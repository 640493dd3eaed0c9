"""What a live table shows: whole snapshots and what follows them, in the order of the primary key."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pytest

from upwell.client.failures import ConnectionLost, LiveError
from upwell.client.steps import Anew, Change, Deliver, Event, SnapshotDone, Subscribed
from upwell.client.table import Kept
from upwell.protocol.messages import FieldSchema

SCHEMA = (
    FieldSchema("id", "BigInt", 0, ("pk",)),
    FieldSchema("v", "Text", 1),
    FieldSchema("_seq", "BigInt", 2),
)


def put(key: object, value: str, seq: int) -> Deliver:
    return Deliver(Change("insert", {"id": key, "v": value, "_seq": seq}, None, seq))


def gone(key: object, seq: int) -> Deliver:
    return Deliver(Change("delete", {"id": key, "_seq": seq}, None, seq))


def fed(kept: Kept, *events: Event, schema: Sequence[FieldSchema] = SCHEMA) -> list[tuple[Any, Any]]:
    for event in events:
        kept.take(event, tuple(schema))
    return [(row["id"], row["v"]) for row in kept.rows()[1]]


def test_nothing_is_shown_before_the_snapshot_is_whole() -> None:
    kept = Kept()
    with pytest.raises(ConnectionLost, match="not open"):
        fed(kept, Subscribed(), put(2, "b", 1))
    assert not kept.is_settled
    assert fed(kept, put(1, "a", 2), SnapshotDone()) == [(1, "a"), (2, "b")]
    assert fed(kept, gone(2, 3), put(3, "c", 4)) == [(1, "a"), (3, "c")]
    assert kept.find(3) == {"id": 3, "v": "c"}
    assert kept.find(2) is None


def test_a_resume_goes_on_with_the_rows_and_a_new_snapshot_replaces_them_at_once() -> None:
    kept = Kept()
    assert fed(kept, Subscribed(), put(1, "a", 1), SnapshotDone()) == [(1, "a")]
    assert fed(kept, Subscribed(), put(2, "b", 2), SnapshotDone(), gone(1, 1)) == [(1, "a"), (2, "b")]
    version = kept.version
    assert fed(kept, Anew(), Subscribed(), put(7, "g", 7)) == [(1, "a"), (2, "b")]
    assert kept.version == version, "nobody who waits is woken in between"
    assert fed(kept, SnapshotDone()) == [(7, "g")]


def test_what_it_gives_is_a_copy() -> None:
    kept = Kept()
    fed(kept, Subscribed(), put(1, "a", 1), SnapshotDone())
    kept.rows()[1][0]["v"] = "b"
    row = kept.find(1)
    assert row is not None
    row["v"] = "b"
    assert fed(kept) == [(1, "a")]


def test_the_end_is_told_to_everybody_who_reads() -> None:
    kept = Kept()
    fed(kept, Subscribed(), put(1, "a", 1), SnapshotDone())
    kept.end(LiveError("NOT_FOUND", "dropped"))
    assert kept.is_settled
    for read in (kept.rows, lambda: kept.find(1)):
        with pytest.raises(LiveError, match="dropped"):
            read()


def test_a_query_without_the_key_is_refused() -> None:
    with pytest.raises(LiveError, match="primary key"):
        Kept().take(Subscribed(), SCHEMA[1:])


@pytest.mark.parametrize(
    "keys",
    [
        [-5, 3, 20],
        ["", "B", "a", "b", "é", "\uffff", "\U0001f600"],
        [b"\x00", b"\x00\x00", b"\xff"],
        [-(1 << 62), datetime(1950, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=UTC), 1 << 62],
    ],
)
def test_rows_are_in_the_order_of_their_keys(keys: list[Any]) -> None:
    events = [put(key, "v", seq) for seq, key in enumerate(reversed(keys))]
    assert fed(Kept(), Subscribed(), *events, SnapshotDone()) == [(key, "v") for key in keys]


def test_a_key_of_two_columns_is_ordered_by_the_first_first() -> None:
    both = (SCHEMA[0], FieldSchema("v", "Text", 1, ("pk",)))
    events = [put(2, "a", 1), put(1, "b", 2), put(1, "a", 3)]
    kept = Kept()
    assert fed(kept, Subscribed(), *events, SnapshotDone(), schema=both) == [(1, "a"), (1, "b"), (2, "a")]
    assert kept.find((1, "b")) == {"id": 1, "v": "b"}
