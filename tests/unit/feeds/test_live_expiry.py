"""Live queries of STREAM tables: who asks for a view is told the end of each row, who doesn't is not."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from upwell.errors import SeqTrimmed
from upwell.feeds.snapshot import SCAN_CHANGES
from upwell.testing.embedded import GRACE_S
from upwell.testing.live import Subscriber
from upwell.testing.stream import TTL_S, Stage, staged


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    async with staged(tmp_path) as stage:
        yield stage


def told(subscriber: Subscriber) -> list[tuple[str, str]]:
    return [(kind, key) for kind, key, _ in subscriber.events]


async def test_a_view_is_told_each_end_and_others_nothing(stage: Stage) -> None:
    await stage.types("before")
    view = await stage.subscriber().open(view=True, batch_size=1)
    plain = await stage.subscriber().open()
    live = await stage.subscriber().open(live_only=True)
    other = await stage.subscriber("ben").open(view=True)
    await stage.after(5)
    await stage.types("a", "b")
    await stage.types("elsewhere", doc=2)
    await stage.after(TTL_S - 4)
    await stage.types("c")
    await view.until(lambda: len(view.events) == 4)
    assert told(view) == [("insert", "a"), ("insert", "b"), ("delete", "before"), ("insert", "c")]
    await stage.after(6)
    await stage.types("d")
    for subscriber in (view, plain, live):
        await subscriber.until(lambda s=subscriber: s.events[-1][1] == "d")
    assert told(view)[4:] == [("delete", "a"), ("delete", "b"), ("insert", "d")]
    assert list(view.rows) == ["c", "d"]
    assert told(plain) == told(live) == [("insert", each) for each in "abcd"]
    assert (plain.snapshot_keys, live.snapshot_keys) == (["before"], [])
    assert (other.events, other.rows) == ([], {})


async def test_what_is_over_is_in_no_snapshot_and_its_end_told_to_nobody_new(stage: Stage) -> None:
    await stage.types("old")
    stage.clock.advance(TTL_S + 1)
    await stage.types("young")
    new = await stage.subscriber().open(view=True)
    assert new.snapshot_keys == ["young"]
    await stage.after(0)
    await stage.types("fence")
    await new.until(lambda: "fence" in new.rows)
    assert told(new) == [("insert", "fence")]


async def test_a_key_that_comes_again_before_its_end_was_noted(stage: Stage) -> None:
    """For the view the new row replaces the old one, also where only one of the two matches."""
    await stage.types("x", "y")
    await stage.types("z", doc=2)
    view = await stage.subscriber().open(view=True)
    plain = await stage.subscriber().open()
    stage.clock.advance(TTL_S + 1)
    await stage.types("x")
    await stage.types("y", doc=2)
    await stage.types("z")
    await stage.after(0)
    await stage.types("fence")
    for subscriber in (view, plain):
        await subscriber.until(lambda s=subscriber: "fence" in s.rows)
    assert told(view) == [("update", "x"), ("delete", "y"), ("insert", "z"), ("insert", "fence")]
    assert list(view.rows) == ["x", "z", "fence"]
    assert told(plain) == [("insert", "x"), ("insert", "z"), ("insert", "fence")]


async def test_a_row_that_is_written_again_lives_from_then_on_whatever_it_says(stage: Stage) -> None:
    """Presence is renewed by the very same values."""
    await stage.types("x")
    view = await stage.subscriber().open(view=True)
    again = "INSERT INTO app.typing VALUES ('x', 1) ON CONFLICT (id) DO UPDATE SET doc = excluded.doc"
    for _ in range(3):
        await stage.after(TTL_S - 1)
        await stage.db.outcomes(again, user="ann")
    await stage.after(TTL_S - 1)
    await stage.types("fence")
    await view.until(lambda: "fence" in view.rows)
    assert told(view) == [("update", "x")] * 3 + [("insert", "fence")]
    await stage.after(2)
    await view.until(lambda: list(view.rows) == ["fence"])
    assert told(view)[4:] == [("delete", "x")]


async def test_a_resume_tells_the_ends_that_were_missed(stage: Stage) -> None:
    await stage.types("a", "b")
    view = await stage.subscriber().open(view=True)
    view.close()
    await stage.types("never seen")
    stage.clock.advance(5)
    await stage.types("c")
    await stage.after(6)
    await view.resume(view=True)
    await view.until(lambda: list(view.rows) == ["c"])
    await stage.types("fence")
    await view.until(lambda: "fence" in view.rows)
    assert told(view) == [("delete", "a"), ("delete", "b"), ("insert", "fence")]
    assert view.snapshot_keys == ["a", "b", "c"]


async def test_an_end_that_comes_after_the_resume_is_told_too(stage: Stage) -> None:
    await stage.types("a")
    view = await stage.subscriber().open(view=True)
    view.close()
    await stage.types("b")
    stage.clock.advance(TTL_S + 1)
    await view.resume(view=True)
    await stage.after(0)
    await view.until(lambda: not view.rows)
    assert told(view) == [("delete", "a")]
    assert view.snapshot_keys == ["a"], "b was over before anything was told of it"


LEAVES = "INSERT INTO app.typing VALUES ('a', 2) ON CONFLICT (id) DO UPDATE SET doc = excluded.doc"


@pytest.mark.parametrize("is_noted", [True, False])
@pytest.mark.parametrize("is_left", [True, False])
async def test_a_row_that_was_renewed_and_ended_meanwhile_ends_for_who_held_it(
    stage: Stage, *, is_noted: bool, is_left: bool
) -> None:
    """The renewal may be in the log no more; what it said, and whether it matched, is no matter."""
    await stage.types("a")
    view = await stage.subscriber().open(view=True)
    view.close()
    await stage.db.outcomes(LEAVES if is_left else LEAVES.replace("2)", "1)"), user="ann")
    if is_noted:
        await stage.after(TTL_S + 1)
    else:
        stage.clock.advance(TTL_S + 1)
    await view.resume(view=True)
    await stage.after(0)
    await stage.types("fence")
    await view.until(lambda: "fence" in view.rows)
    assert list(view.rows) == ["fence"]


async def test_a_key_that_came_again_and_ended_meanwhile(stage: Stage) -> None:
    """Its first end was noted, its second isn't yet: the row that was held is over."""
    await stage.types("a")
    view = await stage.subscriber().open(view=True)
    view.close()
    await stage.after(TTL_S + 1)
    await stage.types("a")
    stage.clock.advance(TTL_S + 1)
    await view.resume(view=True)
    await stage.after(0)
    await stage.types("fence")
    await view.until(lambda: "fence" in view.rows)
    assert told(view) == [("delete", "a"), ("insert", "fence")]


async def test_who_lags_beyond_a_renewal_that_has_expired(stage: Stage) -> None:
    await stage.types("a")
    view = await stage.subscriber().open(view=True)
    view.is_stalled = True
    await stage.db.outcomes(LEAVES, user="ann")
    await stage.after(TTL_S + 1)
    await stage.forgets()
    await stage.types("c")
    view.release()
    await view.until(lambda: "c" in view.rows or view.errors)
    assert told(view) == [("delete", "a"), ("insert", "c")]


async def test_beyond_the_grace_a_view_is_told_so_and_others_just_go_on(stage: Stage) -> None:
    await stage.types("a")
    view = await stage.subscriber().open(view=True)
    plain = await stage.subscriber().open()
    for subscriber in (view, plain):
        subscriber.close()
    await stage.after(TTL_S + 1)
    await stage.after(GRACE_S)
    await stage.evicts()
    with pytest.raises(SeqTrimmed, match="subscribe again without `from`"):
        await view.resume(view=True)
    await plain.resume()
    await stage.types("b")
    await plain.until(lambda: "b" in plain.rows)
    assert told(plain) == [("insert", "b")]


async def test_who_lags_is_told_in_the_same_order(stage: Stage) -> None:
    view, slow = [await stage.subscriber().open(view=True) for _ in range(2)]
    slow.is_stalled = True
    await stage.types("a")
    await stage.after(TTL_S + 1)
    await stage.types("a", "b")
    await stage.after(TTL_S + 1)
    await view.until(lambda: len(view.events) == 6)
    assert slow.events == []
    slow.release()
    await slow.until(lambda: len(slow.events) == 6)
    assert slow.events == view.events
    kinds = ("insert", "delete", "insert", "insert", "delete", "delete")
    assert told(view) == list(zip(kinds, "aaabab", strict=True))


async def test_who_lags_beyond_what_has_expired_goes_on_from_the_log(stage: Stage) -> None:
    """What expired meanwhile is nothing to it, a view is told its end."""
    plain, view = await stage.subscriber().open(), await stage.subscriber().open(view=True)
    plain.is_stalled = view.is_stalled = True
    await stage.types("a", "b")
    await stage.after(TTL_S + 1)
    await stage.forgets()
    await stage.types("c")
    for subscriber in (plain, view):
        subscriber.release()
        await subscriber.until(lambda s=subscriber: "c" in s.rows or s.errors)
    assert plain.errors + view.errors == []
    assert told(plain) == [("insert", "c")]
    assert told(view) == [("delete", "a"), ("delete", "b"), ("insert", "c")]


async def test_a_view_that_lags_beyond_the_grace_is_told_so(stage: Stage) -> None:
    plain, view = await stage.subscriber().open(), await stage.subscriber().open(view=True)
    plain.is_stalled = view.is_stalled = True
    await stage.types("a")
    await stage.after(TTL_S + 1)
    await stage.after(GRACE_S)
    await stage.evicts()
    await stage.forgets()
    await stage.types("b")
    for subscriber in (plain, view):
        subscriber.release()
        await subscriber.until(lambda s=subscriber: s.rows or s.errors)
    assert [code for code, _ in view.errors] == ["HISTORY_PRUNED"]
    assert (told(plain), plain.errors) == ([("insert", "b")], [])


async def test_a_resume_over_pages_of_changes_ends_no_row_that_was_never_in(stage: Stage) -> None:
    """Versions of one row are on several pages: none of them is lost."""
    view = await stage.subscriber().open(view=True)
    await stage.types("a")
    await view.until(lambda: "a" in view.rows)
    view.close()
    again = "INSERT INTO app.typing VALUES ('x', {}) ON CONFLICT (id) DO UPDATE SET doc = excluded.doc"
    for doc in (2, 3, 4):
        await stage.db.outcomes(again.format(doc), user="ann")
    rows = ", ".join(f"('r{number}', 2)" for number in range(SCAN_CHANGES))
    await stage.db.outcomes(f"INSERT INTO app.typing VALUES {rows}", user="ann")
    await stage.db.outcomes(again.format(5), user="ann")
    await view.resume(view=True)
    await stage.types("fence")
    await view.until(lambda: "fence" in view.rows)
    assert told(view) == [("insert", "a"), ("insert", "fence")]
