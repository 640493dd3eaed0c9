"""Driving an exchange: its steps in turn, each request sent and answered; blocking, and on an event loop.

Laws: one request at a time is under way; what goes wrong with it is raised where the exchange waits for the
answer; nothing is under way any more when a drive ends.
"""

import asyncio
from collections.abc import Awaitable, Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Generic, Self, TypeAlias, TypeVar

from upwell.device.exchange import Exchange, Prefetch, Step
from upwell.device.failures import DeviceError
from upwell.device.transport import Request, Response

T = TypeVar("T")
S = TypeVar("S")
A = TypeVar("A")

Send: TypeAlias = Callable[[Request], Response]
SendAsync: TypeAlias = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Done(Generic[T]):
    """What a generator returned."""

    value: T


def proceed(flow: Generator[S, A | None, T], answer: A | None) -> S | Done[T]:
    """Send `answer` in; return the next step."""
    try:
        return flow.send(answer)
    except StopIteration as end:
        return Done(end.value)


def _advance(exchange: Exchange[T], answer: Response | Exception | None) -> Step | Done[T]:
    if not isinstance(answer, Exception):
        return proceed(exchange, answer)
    try:
        return exchange.throw(answer)
    except StopIteration as end:
        return Done(end.value)


def drive(exchange: Exchange[T], send: Send, file_lock: AbstractContextManager[object]) -> T:
    """Run the exchange to its end and return its result; `file_lock` is held while it works on the file."""
    answer: Response | Exception | None = None
    with Ahead(send) as ahead:
        try:
            while True:
                with file_lock:
                    step = _advance(exchange, answer)
                if isinstance(step, Done):
                    return step.value
                try:
                    answer = ahead.perform(step)
                except DeviceError as failure:
                    answer = failure
        finally:
            with file_lock:
                exchange.close()


class Ahead:
    """Performs steps; from the first prefetch on one thread sends everything, in the order asked for."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._thread: ThreadPoolExecutor | None = None
        self._begun: dict[Request, Future[Response]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is not None:
            self._thread.shutdown(wait=True, cancel_futures=True)

    def perform(self, step: Step) -> Response | None:
        """Begin a prefetch, or answer a request; raise what went wrong with it."""
        if isinstance(step, Prefetch):
            self._begin(step.request)
            return None
        begun = self._begun.pop(step, None)
        if begun is not None:
            return begun.result()
        if self._thread is not None:
            return self._thread.submit(self._send, step).result()
        return self._send(step)

    def _begin(self, request: Request) -> None:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "upwell-prefetch")
        if request not in self._begun:
            self._begun[request] = self._thread.submit(self._send, request)


class FileThread:
    """The one thread that works on the file of an asynchronous device; the event loop never does."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, "upwell-device")
        self.is_closed = False

    async def run(self, call: Callable[[], T]) -> T:
        """Return the call's result; a cancelled caller leaves only when the call has ended."""
        future = asyncio.get_running_loop().run_in_executor(self._executor, call)
        try:
            await outlast(future)
        except asyncio.CancelledError:
            # What the call raised has nobody left to hear it.
            future.exception()
            raise
        return future.result()

    def close(self) -> None:
        """End the thread; nothing may be running on it."""
        self.is_closed = True
        self._executor.shutdown()


async def outlast(future: asyncio.Future[T]) -> None:
    """Wait until it has ended, however; a cancelled caller waits, too, and is cancelled then."""
    is_cancelled = False
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError:
            is_cancelled = True
    if is_cancelled:
        raise asyncio.CancelledError


async def drive_async(exchange: Exchange[T], send: SendAsync, thread: FileThread) -> T:
    """Run the exchange to its end and return its result; its own work is done on `thread`."""
    answer: Response | Exception | None = None
    ahead = AheadAsync(send)
    try:
        while True:
            step = await thread.run(partial(_advance, exchange, answer))
            if isinstance(step, Done):
                return step.value
            try:
                answer = await ahead.perform(step)
            except DeviceError as failure:
                answer = failure
    finally:
        await ahead.close()
        await thread.run(exchange.close)


class AheadAsync:
    """Performs steps; a prefetch is a task."""

    def __init__(self, send: SendAsync) -> None:
        self._send = send
        self._turn = asyncio.Lock()
        self._begun: dict[Request, asyncio.Task[Response]] = {}

    async def perform(self, step: Step) -> Response | None:
        """Begin a prefetch, or answer a request; raise what went wrong with it."""
        if isinstance(step, Prefetch):
            if step.request not in self._begun:
                self._begun[step.request] = asyncio.create_task(self._in_turn(step.request))
            return None
        begun = self._begun.get(step)
        if begun is None:
            return await self._in_turn(step)
        try:
            return await begun
        finally:
            # A cancelled wait has cancelled the task, too; `close` need not see it.
            self._begun.pop(step)

    async def close(self) -> None:
        """Cancel what nobody asked for, and wait for its end."""
        for task in self._begun.values():
            task.cancel()
        await asyncio.gather(*self._begun.values(), return_exceptions=True)

    async def _in_turn(self, request: Request) -> Response:
        async with self._turn:
            return await self._send(request)
