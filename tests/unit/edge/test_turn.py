"""Promise: what is long takes one turn of the event loop each, in order; what is short goes between."""

import asyncio

import pytest

from upwell.edge.turn import Turns


async def test_what_is_short_goes_between_what_is_long() -> None:
    turns = Turns()
    done: list[str] = []

    async def work(name: str) -> None:
        await turns.take()
        done.append(name)

    async def count_turns() -> None:
        for _ in range(4):
            done.append("short")
            await asyncio.sleep(0)

    await asyncio.gather(work("a"), work("b"), work("c"), count_turns())
    assert [name for name in done if name != "short"] == ["a", "b", "c"]
    assert all("short" in done[done.index(a) : done.index(b)] for a, b in ("ab", "bc"))


async def test_nobody_waits_for_a_turn_that_is_free() -> None:
    turns = Turns()
    await turns.take()
    await asyncio.sleep(0)
    taking = turns.take()
    try:
        taking.send(None)
    except StopIteration:
        pass
    else:
        raise AssertionError("it waited")


@pytest.mark.parametrize("gone", [0, 1], ids=["whose turn has come", "who waits"])
async def test_who_goes_away_keeps_nobody_waiting(gone: int) -> None:
    turns = Turns()
    waiting = [asyncio.create_task(turns.take()) for _ in range(3)]
    await turns.take()
    await asyncio.sleep(0)
    waiting[gone].cancel()
    async with asyncio.timeout(10):
        ends = await asyncio.gather(*waiting, return_exceptions=True)
        await turns.take()
    assert [isinstance(end, asyncio.CancelledError) for end in ends] == [at == gone for at in range(3)]
