"""Query threads: a statement that never ends is answered in time, and keeps nobody waiting."""

import asyncio
import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from upwell.engine.stop import Stop, Stopped
from upwell.errors import UpwellError
from upwell.session.threads import (
    READ_CHARS_MAX,
    READ_INLINE_CHARS_MAX,
    Client,
    ClientGone,
    QueryThreads,
    StatementTimeout,
    client,
)
from upwell.testing import wait_until
from upwell.testing.embedded import Embedded, memory_store


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


async def test_a_long_text_is_read_in_a_thread_and_not_behind_queries() -> None:
    """A short one is read at once, which is quicker; a very long one waits its turn as a query does."""
    end = threading.Event()
    with ThreadPoolExecutor(4) as pool:
        threads = QueryThreads(pool, slots=1, timeout_s=60)
        query = asyncio.create_task(threads.run(lambda stop: end.wait(30)))
        assert await threads.read(READ_INLINE_CHARS_MAX, threading.get_ident) == threading.get_ident()
        for chars in (READ_INLINE_CHARS_MAX + 1, READ_CHARS_MAX):
            assert await threads.read(chars, threading.get_ident) != threading.get_ident()
        longest = asyncio.create_task(threads.read(READ_CHARS_MAX + 1, threading.get_ident))
        await asyncio.wait([longest], timeout=0.05)
        assert not query.done()
        assert not longest.done()
        end.set()
        assert await longest != threading.get_ident()
        assert await query


async def test_who_has_gone_is_not_worked_for() -> None:
    hung_up, end = asyncio.Event(), threading.Event()
    token = client.set(Client(hung_up.wait))
    try:
        with ThreadPoolExecutor(2) as pool:
            threads = QueryThreads(pool, slots=1, timeout_s=30)
            first = asyncio.create_task(threads.run(lambda stop: end.wait(30)))
            second = asyncio.create_task(threads.run(lambda stop: pytest.fail("nobody waits for it")))
            await asyncio.sleep(0)
            hung_up.set()
            for each in (first, second):
                with pytest.raises(ClientGone):
                    await each
            end.set()
            assert await threads.run(lambda stop: 7) == 7, "a short one is done before anybody looks"
    finally:
        client.reset(token)


async def test_failures_of_the_work_are_its_own() -> None:
    def fails(stop: Stop) -> None:
        raise ValueError("of the work")

    with ThreadPoolExecutor(1) as pool, pytest.raises(ValueError, match="of the work"):
        await QueryThreads(pool, slots=1, timeout_s=30).run(fails)


def test_a_stop_calls_who_can_end_the_work() -> None:
    called: list[int] = []
    stop = Stop()
    with stop.calling(lambda: called.append(1)):
        assert not called
        assert stop.request()
    with stop.calling(lambda: called.append(2)):
        assert called == [1, 2], "also who comes too late"


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


async def test_a_failure_holds_nothing_when_it_is_dealt_with() -> None:
    """No collection of garbage is needed for that: on an idle server there may be none for hours."""

    class Held:
        pass

    held: list[weakref.ref[Held]] = []

    def fail(stop: Stop) -> None:
        mine = Held()
        held.append(weakref.ref(mine))
        raise StatementTimeout("whatever it is")

    gc.disable()
    try:
        with ThreadPoolExecutor(1) as pool:
            threads = QueryThreads(pool, slots=1, timeout_s=30)
            with suppress(StatementTimeout):
                await threads.run(fail)
        assert [each() for each in held] == [None]
    finally:
        gc.enable()


async def test_who_waits_no_longer_is_let_go_of() -> None:
    """With them the request, its body and its connection, of each statement that took a while."""
    gc.disable()
    try:
        who = Client(asyncio.Event().wait)
        token = client.set(who)
        looking = who.gone
        await asyncio.sleep(0)
        client.reset(token)
        who.close()
        with suppress(asyncio.CancelledError):
            await looking
        held = weakref.ref(who)
        del who, looking, token
        for _ in range(2):
            await asyncio.sleep(0)  # the loop has what it runs in its hands
        assert held() is None
    finally:
        gc.enable()


@pytest.mark.parametrize(
    "sql",
    [
        "INSERT INTO app.ours VALUES (1, 1)",
        "INSERT INTO app.ours VALUES (5, 1), (5, 2)",
        "SELECT nope FROM app.ours",
        "SELECT 1 / (n - n) FROM app.ours",
        "SELECT * FROM app.none",
        "UPDATE app.ours SET n = 1 / (n - n) WHERE id > 0",
    ],
)
def test_a_statement_that_failed_lets_go_of_its_view(tmp_path: Path, sql: str) -> None:
    """The View holds a snapshot of the hot store, and the files that its manifests name."""
    with Embedded(tmp_path, store=memory_store()) as db:
        db.run("CREATE NAMESPACE app; CREATE SHARED TABLE app.ours (id INT PRIMARY KEY, n INT)")
        db.change("INSERT INTO app.ours VALUES (1, 1)")
        db.flush("app.ours")
        gc.collect()
        gc.disable()
        try:
            with suppress(UpwellError):
                db.run(sql)
            db.change("INSERT INTO app.ours VALUES (2, 2)")
            views = db.committer.publication.views
            wait_until(lambda: len(views()) == 1, timeout_s=10, what="the thread that publishes, too")
        finally:
            gc.enable()
