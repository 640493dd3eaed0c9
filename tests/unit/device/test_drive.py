"""Both drivers: each request is answered once, prefetched ones early, and nothing is under way at the end."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest

from upwell.device import Request, Response, Unreachable
from upwell.device.drive import FileThread, drive, drive_async
from upwell.device.exchange import Exchange, Prefetch, answer_to

FIRST, SECOND, THIRD = (Request("GET", path) for path in ("/1", "/2", "/3"))


class Wire:
    """Answers with the path; never two requests at a time. `broken` paths get no answer."""

    def __init__(self, *broken: str) -> None:
        self.broken = broken
        self.begun: list[str] = []
        self.under_way = 0

    def send(self, request: Request) -> Response:
        self.begin(request)
        return self.end(request)

    async def send_async(self, request: Request) -> Response:
        self.begin(request)
        try:
            await asyncio.sleep(0)
        finally:
            self.under_way -= 1
        self.under_way += 1
        return self.end(request)

    def begin(self, request: Request) -> None:
        assert self.under_way == 0, "one request at a time"
        self.under_way += 1
        self.begun.append(request.path)

    def end(self, request: Request) -> Response:
        self.under_way -= 1
        if request.path in self.broken:
            raise Unreachable(request.path)
        return Response(200, request.path.encode())


Run = Callable[[Exchange[Any], Wire], Any]


def run_blocking(exchange: Exchange[Any], wire: Wire) -> Any:
    return drive(exchange, wire.send, nullcontext())


def run_async(exchange: Exchange[Any], wire: Wire) -> Any:
    async def main() -> Any:
        thread = FileThread()
        try:
            result = await drive_async(exchange, wire.send_async, thread)
        finally:
            thread.close()
            assert asyncio.all_tasks() == {asyncio.current_task()}
        return result

    return asyncio.run(main())


@pytest.fixture(params=[run_blocking, run_async])
def run(request: pytest.FixtureRequest) -> Any:
    yield request.param
    assert [t.name for t in threading.enumerate() if t.name.startswith("upwell")] == []


def ask(*steps: Request | Prefetch) -> Exchange[list[bytes]]:
    bodies = []
    for step in steps:
        if isinstance(step, Prefetch):
            assert (yield step) is None
        else:
            bodies.append((yield from answer_to(step)).body)
    return bodies


def test_answers_in_turn(run: Run) -> None:
    wire = Wire()
    assert run(ask(FIRST, SECOND, FIRST), wire) == [b"/1", b"/2", b"/1"]
    assert wire.begun == ["/1", "/2", "/1"]


def test_a_prefetched_request_is_sent_once(run: Run) -> None:
    wire = Wire()
    again = Request("GET", "/2")
    steps = ask(FIRST, Prefetch(SECOND), again, Prefetch(THIRD), Prefetch(THIRD), THIRD, THIRD)
    assert run(steps, wire) == [b"/1", b"/2", b"/3", b"/3"]
    assert wire.begun == ["/1", "/2", "/3", "/3"]


def test_another_request_waits_until_the_prefetch_is_answered(run: Run) -> None:
    wire = Wire()
    assert run(ask(Prefetch(FIRST), SECOND, FIRST), wire) == [b"/2", b"/1"]
    assert sorted(wire.begun) == ["/1", "/2"]


def test_what_went_wrong_is_raised_where_the_answer_is_asked_for(run: Run) -> None:
    reached: list[str] = []

    def exchange() -> Exchange[None]:
        yield Prefetch(FIRST)
        reached.append("behind the prefetch")
        try:
            yield FIRST
        finally:
            reached.append("cleaned up")

    with pytest.raises(Unreachable, match="/1"):
        run(exchange(), Wire("/1"))
    assert reached == ["behind the prefetch", "cleaned up"]


def test_a_prefetch_nobody_asks_for_is_dropped(run: Run) -> None:
    assert run(ask(FIRST, Prefetch(SECOND)), Wire("/2")) == [b"/1"]
    with pytest.raises(Unreachable, match="/3"):
        run(ask(Prefetch(SECOND), THIRD), Wire("/2", "/3"))


def test_the_exchange_may_go_on_after_a_failure(run: Run) -> None:
    def exchange() -> Exchange[bytes]:
        try:
            yield from answer_to(FIRST)
        except Unreachable:
            return (yield from answer_to(SECOND)).body
        return b""

    assert run(exchange(), Wire("/1")) == b"/2"


def test_an_exchange_without_requests(run: Run) -> None:
    assert run(ask(), Wire()) == []


def test_the_file_is_not_locked_while_the_network_is_waited_for() -> None:
    lock = threading.Lock()
    held: list[bool] = []

    def exchange() -> Exchange[None]:
        held.append(lock.locked())
        yield from answer_to(FIRST)
        held.append(lock.locked())

    def send(request: Request) -> Response:
        held.append(lock.locked())
        return Response(200, b"")

    drive(exchange(), send, lock)
    assert held == [True, False, True]


async def test_a_cancelled_drive_has_ended_its_work_on_the_file() -> None:
    ended, entered, go_on = [], asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def exchange() -> Exchange[None]:
        try:
            loop.call_soon_threadsafe(entered.set)
            go_on.wait()
            ended.append("work")
            yield from answer_to(FIRST)
        finally:
            ended.append("close")

    thread = FileThread()
    task = asyncio.create_task(drive_async(exchange(), Wire().send_async, thread))
    await entered.wait()
    task.cancel()
    loop.call_soon(go_on.set)
    await asyncio.wait([task])
    assert task.cancelled()
    assert ended == ["work", "close"]
    thread.close()
