"""The background loop of the asynchronous driver: one task makes rounds, another holds the watch stream.

Law: whoever starts it waits for its end; no task is left when `stop` returns.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import TypeAlias

from upwell.device.background import Background, Round
from upwell.device.drive import FileThread, outlast
from upwell.device.failures import DeviceError, NotSynced, Unreachable
from upwell.device.pace import Pause
from upwell.device.transport import AsyncStream, Request
from upwell.device.watch import Open, Read, Watch

OpenAsyncStream: TypeAlias = Callable[[Request], AsyncStream]


class Tasks:
    """One run of the loop. `sync` makes a round; `open_stream` None: the transport has no streams."""

    def __init__(
        self,
        background: Background,
        watch: Watch,
        *,
        sync: Callable[[], Awaitable[object]],
        open_stream: OpenAsyncStream | None,
        thread: FileThread,
        now: Callable[[], float],
    ) -> None:
        self._background = background
        self._watch = watch
        self._sync = sync
        self._open_stream = open_stream
        self._thread = thread
        self._now = now
        self._woken = asyncio.Event()
        self._ended = asyncio.Condition()
        self._stream: AsyncStream | None = None
        self._task: asyncio.Task[None] | None = None
        self._is_over = False

    @property
    def is_running(self) -> bool:
        return self._task is not None and not self._is_over

    def start(self) -> None:
        """Begin."""
        self._task = asyncio.create_task(self._run(), name="upwell-device")

    async def stop(self) -> None:
        """Cancel what is under way, and wait for its end."""
        assert self._task is not None, "started before it is stopped"
        self._task.cancel()
        await outlast(self._task)

    async def ask(self, until_s: float | None) -> Exception | None:
        """Wait for a round that begins after this call; return why there was no successful one."""
        number = self._background.ask()
        self._woken.set()
        left_s = None if until_s is None else max(until_s - self._now(), 0.0)
        with suppress(TimeoutError):
            async with asyncio.timeout(left_s), self._ended:
                await self._ended.wait_for(lambda: self._background.ended >= number or not self.is_running)
        if self._background.succeeded >= number:
            return None
        return self._background.failure or NotSynced("the round has not ended")

    async def _run(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._run_rounds(), name="upwell-sync")
                if self._open_stream is not None:
                    group.create_task(self._run_watch(self._open_stream), name="upwell-watch")
        finally:
            # Nobody may wait for a loop that is no more.
            self._is_over = True
            async with self._ended:
                self._ended.notify_all()

    async def _run_rounds(self) -> None:
        steps = self._background.steps()
        failure: Exception | None = None
        while True:
            step = await self._thread.run(partial(steps.send, failure))
            async with self._ended:
                self._ended.notify_all()
            failure = await self._perform(step)

    async def _perform(self, step: Round | Pause) -> Exception | None:
        match step:
            case Pause():
                with suppress(TimeoutError):
                    async with asyncio.timeout(step.seconds):
                        await self._woken.wait()
                self._woken.clear()
                return None
            case Round():
                try:
                    await self._sync()
                # The app's resolver runs in there, too: whatever it raises must not end the loop silently.
                except Exception as failure:  # noqa: BLE001
                    return failure
                return None

    async def _run_watch(self, open_stream: OpenAsyncStream) -> None:
        steps = self._watch.steps()
        step = next(steps)
        try:
            while True:
                try:
                    chunk = await self._perform_watch(step, open_stream)
                except DeviceError as failure:
                    step = steps.throw(failure)
                # A transport of the app may raise anything: it must not end the rounds.
                except Exception as failure:  # noqa: BLE001
                    step = steps.throw(Unreachable(str(failure)))
                else:
                    step = steps.send(chunk)
                self._woken.set()
        finally:
            await self._close_stream()

    async def _perform_watch(self, step: Open | Read | Pause, open_stream: OpenAsyncStream) -> bytes | None:
        match step:
            case Pause():
                await self._close_stream()
                await asyncio.sleep(step.seconds)
                return None
            case Open():
                self._stream = open_stream(step.request)
                await self._stream.open()
                return None
            case Read():
                assert self._stream is not None, "opened before it is read"
                return await self._stream.read()

    async def _close_stream(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            await stream.close()
