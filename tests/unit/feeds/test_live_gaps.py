"""A row that a client holds leaves its view, and that leaves the log, while the client isn't looking.

What made the version that left is gone with it; only what comes after it can tell the client.
"""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from upwell.feeds.behind import PAGE_CHANGES
from upwell.testing.live import Subscriber
from upwell.testing.stream import TTL_S, Stage, staged

CALLS_MAX = 6


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    async with staged(tmp_path) as stage:
        yield stage


async def holds(stage: Stage, *ids: str) -> Subscriber:
    """Return a view that holds these rows."""
    await stage.types(*ids)
    return await stage.subscriber().open(view=True)


async def comes_to_rest(stage: Stage, view: Subscriber, *rows: str) -> None:
    """The view holds these rows when everything is told."""
    await stage.types("fence")
    await view.until(lambda: "fence" in view.rows or view.errors)
    assert (view.errors, sorted(view.rows)) == ([], sorted([*rows, "fence"]))


@pytest.mark.parametrize("call", range(1, CALLS_MAX))
@pytest.mark.parametrize("newer", [0, 1], ids=["alone", "with newer rows"])
async def test_it_leaves_and_ends_at_any_moment_of_the_resume(stage: Stage, call: int, newer: int) -> None:
    view = await holds(stage, "a")
    view.close()
    await stage.types_again("a", doc=2)
    stage.clock.advance(1)
    await stage.types(*["b"] * newer)
    stage.threads.before_call(call, lambda: stage.passes(TTL_S - 0.5))
    await view.resume(view=True, batch_size=1)
    await stage.threads.at_last()
    await comes_to_rest(stage, view, *["b"] * newer)


@pytest.mark.parametrize("call", range(1, CALLS_MAX))
async def test_it_leaves_twice_and_only_the_first_time_is_gone(stage: Stage, call: int) -> None:
    view = await holds(stage, "a")
    view.close()
    await stage.types_again("a", doc=2)
    stage.clock.advance(5)
    await stage.types("b")
    await stage.types_again("a", doc=3)
    stage.threads.before_call(call, lambda: stage.passes(TTL_S - 4))
    await view.resume(view=True, batch_size=1)
    await stage.threads.at_last()
    await comes_to_rest(stage, view, "b")


@pytest.mark.parametrize("call", [1, 2, 3])
async def test_its_end_stands_on_a_later_page_than_it_did(stage: Stage, call: int) -> None:
    """A reader that lags meets the end pages after the place where the version had been."""
    view = await holds(stage, "a")
    view.is_stalled = True
    await stage.types_again("a", doc=2)
    stage.clock.advance(5)
    rows = ", ".join(f"('r{number}', 2)" for number in range(2 * PAGE_CHANGES + 10))
    await stage.db.outcomes(f"INSERT INTO app.typing VALUES {rows}", user="ann")
    await stage.forgets()
    stage.threads.before_call(call, lambda: stage.passes(TTL_S - 4))
    view.release()
    await comes_to_rest(stage, view)


async def test_a_row_that_lives_on_is_taken_out_only_once(stage: Stage) -> None:
    """What was told of on an earlier page isn't taken for lost with what has expired."""
    view = await holds(stage, "a")
    view.is_stalled = True
    await stage.types_again("never in", doc=2)
    for doc in (3, 4):
        await stage.types_again("never in", "a", doc=doc)
    rows = ", ".join(f"('r{number}', 2)" for number in range(2 * PAGE_CHANGES))
    await stage.db.outcomes(f"INSERT INTO app.typing VALUES {rows}", user="ann")
    await stage.types_again("never in", "a", doc=5)
    await stage.forgets()
    view.release()
    await comes_to_rest(stage, view)
    assert [(kind, key) for kind, key, _ in view.events] == [("delete", "a"), ("insert", "fence")]


async def test_the_pump_finds_it_gone(stage: Stage) -> None:
    """Memory forgets, and rows end, before the pump has looked."""
    view = await holds(stage, "a", "b")
    await stage.pauses()
    await stage.types_again("a", doc=2)
    await stage.forgets()
    await stage.after(TTL_S + 1)
    stage.goes_on()
    await comes_to_rest(stage, view)


async def test_a_resume_is_cut_off_before_its_deletes_and_they_leave_the_log(stage: Stage) -> None:
    """The client's cursor is past the place where the row left; what told of that has expired since."""
    view = await holds(stage, "a")
    view.close()
    await stage.types_again("a", doc=2)
    stage.clock.advance(5)
    await stage.types("b")
    view.frames_left = 2
    await view.resume(view=True)
    view.close()
    assert sorted(view.rows) == ["a", "b"]
    await stage.after(TTL_S - 4)
    view.frames_left = None
    await view.resume(view=True)
    await comes_to_rest(stage, view, "b")
