"""Promise: commits of one turn of the loop share a sync, and nobody waits for one that isn't asked for."""

import asyncio
from collections.abc import Iterator

import pytest

from upwell.clock import ManualClock
from upwell.effects import NoPoints
from upwell.engine.commit import Committer
from upwell.feeds.cursor import Growth, synced_by_turns
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
