"""Promise: commits of one turn of the loop share a sync, and nobody waits for one that isn't asked for.

Who follows the log is told of all that came after what they had read, and of nothing while nobody asks.
"""

import asyncio
from collections.abc import Iterator

import pytest

from upwell.clock import ManualClock
from upwell.effects import NoPoints
from upwell.engine.commit import Committer
from upwell.feeds.cursor import Follower, Growth, synced_by_turns
from upwell.storage.hot import Batch, Kind, RecordWrite
from upwell.storage.memory import MemoryStore

NOTE = Batch(records=[RecordWrite(Kind.META, "note", b"1")])


@pytest.fixture
def committer() -> Iterator[Committer]:
    committer = Committer(MemoryStore(clock=ManualClock()), points=NoPoints())
    yield committer
    committer.close()


async def test_commits_of_one_turn_share_a_sync(committer: Committer) -> None:
    loop = asyncio.get_running_loop()
    growth = Growth(committer.publication, loop)

    async def commit() -> None:
        seq = committer.apply(NOTE)
        assert (await growth.reached(seq)).seq >= seq

    with synced_by_turns(committer, loop):
        for turn in range(1, 4):
            await asyncio.gather(*(commit() for _ in range(20)))
            assert committer.syncs == turn
    assert growth.view.seq == committer.last_seq


async def test_who_waits_in_a_thread_needs_no_turn_of_the_loop(committer: Committer) -> None:
    with synced_by_turns(committer, asyncio.get_running_loop()):
        seq = committer.apply(NOTE)
        # This thread is the loop's: it has no turn as long as it waits.
        assert committer.publication.wait(seq).seq >= seq
        from_thread = await asyncio.to_thread(lambda: committer.publication.wait(committer.apply(NOTE)))
        assert from_thread.seq == committer.last_seq


async def test_what_was_not_asked_for_yet_is_synced_at_the_end(committer: Committer) -> None:
    with synced_by_turns(committer, asyncio.get_running_loop()):
        seq = committer.apply(NOTE)
    assert (await Growth(committer.publication, asyncio.get_running_loop()).reached(seq)).seq >= seq


async def test_a_follower_tells_of_all_that_came_since_somebody_began(committer: Committer) -> None:
    growth = Growth(committer.publication, asyncio.get_running_loop())
    follower = Follower(growth)
    heard: list[int] = []

    async def follow() -> None:
        while True:
            await follower.grown()
            follower.seq = growth.view.seq
            heard.append(follower.seq)

    async def commit() -> int:
        return (await growth.reached(committer.apply(NOTE))).seq

    following = asyncio.create_task(follow())
    read = await commit()
    missed = await commit()
    assert heard == []
    follower.begin(read)
    follower.begin(missed)  # the first of them hasn't read so far
    await _turns()
    assert heard == [missed]
    told = await commit()
    await _turns()
    assert heard == [missed, told]
    follower.rest()
    await commit()  # it may have been waiting for this one
    heard.clear()
    await commit()
    await _turns()
    assert heard == []
    follower.begin(growth.view.seq)
    await _turns()
    assert heard == []
    await commit()
    await _turns()
    assert heard == [committer.last_seq]
    following.cancel()


async def _turns() -> None:
    """Let everything run that can run by now."""
    for _ in range(5):
        await asyncio.sleep(0)
