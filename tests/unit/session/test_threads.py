"""Query threads: a statement that never ends is answered in time, and keeps nobody waiting."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from upwell.engine.stop import Stop, Stopped
from upwell.session.threads import QueryThreads, StatementTimeout


async def test_a_runaway_is_given_up_and_its_slot_is_free() -> None:
    end = threading.Event()
    stopped: list[bool] = []

    def runaway(stop: Stop) -> None:
        end.wait(30)
        try:
            stop.take_effect()
        except Stopped:
            stopped.append(True)
            raise

    with ThreadPoolExecutor(2) as pool:
        threads = QueryThreads(pool, slots=1, timeout_s=0.05)
        with pytest.raises(StatementTimeout, match=r"exceeded 0\.05s"):
            await threads.run(runaway)
        assert await threads.run(lambda stop: 7) == 7, "the next one has a slot and a thread"
        end.set()
    assert stopped == [True], "what was given up takes no effect afterwards"


async def test_what_has_begun_to_take_effect_is_waited_for() -> None:
    began, end = threading.Event(), threading.Event()

    def late(stop: Stop) -> str:
        stop.take_effect()
        began.set()
        end.wait(30)
        return "done"

    with ThreadPoolExecutor(1) as pool:
        threads = QueryThreads(pool, slots=1, timeout_s=0.05)
        answer = asyncio.create_task(threads.run(late))
        await asyncio.to_thread(began.wait, 30)
        done, _ = await asyncio.wait([answer], timeout=0.2)
        assert not done
        end.set()
        assert await answer == "done"


async def test_failures_of_the_work_are_its_own() -> None:
    def fails(stop: Stop) -> None:
        raise ValueError("of the work")

    with ThreadPoolExecutor(1) as pool, pytest.raises(ValueError, match="of the work"):
        await QueryThreads(pool, slots=1, timeout_s=30).run(fails)


def test_a_stop_is_settled_once() -> None:
    stop = Stop()
    stop.check()
    assert stop.request()
    with pytest.raises(Stopped):
        stop.take_effect()
    late = Stop()
    late.take_effect()
    assert not late.request()
    late.check()
