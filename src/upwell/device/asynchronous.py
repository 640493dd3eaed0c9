"""The asynchronous device: what `Device` does, on an event loop that never waits for the file.

Law: no decision is taken here; the blocking device differs only in how it waits. A cancelled call has ended
its work on the file when it returns, and may be made again.
"""

import asyncio
import os
import random
import time
from collections.abc import Awaitable, Callable, Generator, Sequence
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeAlias, TypeVar, Unpack

from upwell.device.background import Background, Round, until_synced
from upwell.device.drive import Done, FileThread, drive_async, outlast, proceed
from upwell.device.exchange import Exchange
from upwell.device.failures import NotSignedIn, NotSynced, Unreachable
from upwell.device.file import connect, meet_triggers
from upwell.device.installation import Installation, Options
from upwell.device.pace import PACE, Pace, Pause
from upwell.device.report import (
    DeviceStatus,
    DownloadReport,
    HydrateReport,
    PendingChange,
    SyncReport,
    UploadReport,
)
from upwell.device.sync import PAGE_ROWS
from upwell.device.tasks import OpenAsyncStream, Tasks
from upwell.device.transport import (
    AsyncHttpTransport,
    AsyncStream,
    AsyncStreamTransport,
    AsyncTransport,
    Request,
    Response,
)
from upwell.device.watch import Watch

T = TypeVar("T")

# From the URL of `sign_in` to a transport.
AsyncDial: TypeAlias = Callable[[str], AsyncTransport]


class AsyncDevice:
    """One installation of an app; made by `AsyncDevice.open`. Tasks of one event loop may share it.

    `connection` is a plain connection of sqlite3, for the app to use as it likes. The callbacks `resolver`
    and `on_progress` are called on the thread that works on the file.
    """

    def __init__(
        self,
        path: str,
        installation: Installation,
        thread: FileThread,
        *,
        dial: AsyncDial,
        pace: Pace,
        now: Callable[[], float],
        chance: Callable[[], float],
    ) -> None:
        self.connection = connect(path, has_foreign_keys=True)
        self._installation = installation
        self._thread = thread
        self._dial = dial
        self._pace = pace
        self._now = now
        self._chance = chance
        self._transport: AsyncTransport | None = None
        self._token: str | None = None
        self._loop: Tasks | None = None
        self._sending: set[asyncio.Future[Response]] = set()
        # One exchange at a time; the app's own connection is not concerned.
        self._exchange = asyncio.Lock()

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        schema: str,
        tables: Sequence[str],
        dial: AsyncDial = AsyncHttpTransport,
        pace: Pace = PACE,
        now: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
        **options: Unpack[Options],
    ) -> "Opening":
        """Open or create the file, for `async with` or `await`; arguments and errors as of `Device.open`."""

        def begin(thread: FileThread) -> AsyncDevice:
            installation = Installation.open(str(path), schema=schema, tables=tables, **options)
            try:
                return cls(str(path), installation, thread, dial=dial, pace=pace, now=now, chance=chance)
            except BaseException:
                installation.close()
                raise

        return Opening(begin)

    async def register(self, tables: Sequence[str]) -> None:
        """Capture more tables; rows that they have are queued. Without any, rebuild stale triggers."""
        async with self._exchange:
            await self._thread.run(lambda: self._installation.register(tables))
        meet_triggers(self.connection)

    async def sign_in(
        self, url: str, user: str, *, token: str | None = None, password: str | None = None
    ) -> None:
        """Connect the file with `user` on the server at `url`; as `Device.sign_in`."""
        transport = self._dial(url)
        try:
            async with self._exchange:
                signing_in = self._installation.sign_in(user, token, password)
                device_token = await drive_async(signing_in, transport.send, self._thread)
            await self.sign_out()
        except BaseException:
            await _close(transport)
            raise
        self._transport, self._token = transport, device_token

    async def sign_out(self) -> None:
        """Stop the background loop and forget the token; the data stays, and further edits are captured."""
        try:
            await self.stop()
        finally:
            transport, self._transport, self._token = self._transport, None, None
            for sending in self._sending:
                sending.cancel()
            if transport is not None:
                await _close(transport)

    async def wipe(self) -> None:
        """Empty the file for another user, and sign out; as `Device.wipe`."""
        await self.stop()
        async with self._exchange:
            await self._thread.run(self._installation.wipe)
        await self.sign_out()

    async def upload(self) -> UploadReport:
        """Send what is pending, batch by batch."""
        return await self._run(self._installation.upload)

    async def download(self) -> DownloadReport:
        """Fetch what others changed since the last time."""
        return await self._run(self._installation.download)

    async def hydrate(self, page_rows: int = PAGE_ROWS) -> HydrateReport:
        """Fetch everything, in pages of `page_rows` rows; goes on where an interrupted hydration stopped."""
        return await self._run(lambda: self._installation.hydrate(page_rows))

    async def sync(self) -> SyncReport:
        """Hydrate if needed, upload, download."""
        return await self._run(self._installation.sync)

    async def start(self) -> None:
        """Sync in the background from now on; as `Device.start`."""
        transport, token = self._signed_in()
        if self.is_running:
            return
        await self.stop()
        if self.is_running:
            # Another task was faster.
            return
        background = Background(self._installation, self._pace, self._now, self._chance)
        self._loop = Tasks(
            background,
            Watch(background, self._pace, self._now, self._chance),
            sync=self.sync,
            open_stream=_opener(transport, token, self._pace),
            thread=self._thread,
            now=self._now,
        )
        self._loop.start()

    async def stop(self) -> None:
        """End the background loop and wait until it has ended; a round under way is cut short."""
        loop, self._loop = self._loop, None
        if loop is not None:
            await loop.stop()

    @property
    def is_running(self) -> bool:
        """True while there is a background loop."""
        return self._loop is not None and self._loop.is_running

    async def wait_until_synced(self, timeout_s: float | None = None) -> None:
        """Wait until what is pending now is acknowledged, and what the server has now is here.

        As `Device.wait_until_synced`, but a request that is under way at the end of the time is cancelled.
        """
        self._signed_in()
        steps = until_synced(
            self._installation, self._pace, now=self._now, chance=self._chance, timeout_s=timeout_s
        )
        failure: Exception | None = None
        while not isinstance(step := await self._thread.run(partial(proceed, steps, failure)), Done):
            failure = await self._perform(step)

    async def pending(self) -> list[PendingChange]:
        """What waits for upload, in the order of the edits."""
        return await self._thread.run(self._installation.pending)

    async def status(self) -> DeviceStatus:
        """Where the file stands; costs a few counts."""
        is_signed_in, is_running = self._token is not None, self.is_running
        return await self._thread.run(
            lambda: self._installation.status(is_signed_in=is_signed_in, is_running=is_running)
        )

    async def retry_refused(self) -> int:
        """Let the next upload try all quarantined changes again; return how many there are."""
        async with self._exchange:
            return await self._thread.run(self._installation.retry_refused)

    async def discard(self, table: str, key: str) -> bool:
        """Give up the quarantined change of a row; the row is again what the server had last."""
        async with self._exchange:
            return await self._thread.run(lambda: self._installation.discard(table, key))

    async def close(self) -> None:
        """Sign out, close both connections and end the thread; a call under way elsewhere is waited for."""
        await self.sign_out()
        async with self._exchange:
            self.connection.close()
            if not self._thread.is_closed:
                await self._thread.run(self._installation.close)
                self._thread.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _run(self, begin: Callable[[], Exchange[T]]) -> T:
        async with self._exchange:
            return await drive_async(begin(), self._send, self._thread)

    async def _send(self, request: Request) -> Response:
        transport, token = self._signed_in()
        sending = asyncio.ensure_future(transport.send(replace(request, token=token)))
        self._sending.add(sending)
        try:
            await asyncio.wait([sending])
        finally:
            self._sending.discard(sending)
            sending.cancel()
        if sending.cancelled():
            raise Unreachable("signed out while the request was under way")
        return sending.result()

    def _signed_in(self) -> tuple[AsyncTransport, str]:
        if self._transport is None or self._token is None:
            raise NotSignedIn("sign in before syncing; until then edits are captured")
        return self._transport, self._token

    async def _perform(self, step: Round | Pause) -> Exception | None:
        match step:
            case Pause():
                await asyncio.sleep(step.seconds)
                return None
            case Round():
                if self._loop is not None and self._loop.is_running:
                    return await self._loop.ask(step.until_s)
                return await self._sync_until(step.until_s)

    async def _sync_until(self, until_s: float | None) -> Exception | None:
        left_s = None if until_s is None else max(until_s - self._now(), 0.0)
        try:
            async with asyncio.timeout(left_s):
                await self.sync()
        except Unreachable as failure:
            return failure
        except TimeoutError:
            return NotSynced("the round has not ended")
        return None


class Opening(Awaitable[AsyncDevice]):
    """A device that is about to be opened: `async with` opens and closes it, `await` only opens it."""

    def __init__(self, begin: Callable[[FileThread], AsyncDevice]) -> None:
        self._begin = begin
        self._device: AsyncDevice | None = None

    def __await__(self) -> Generator[Any, Any, AsyncDevice]:
        return self._open().__await__()

    async def __aenter__(self) -> AsyncDevice:
        self._device = await self._open()
        return self._device

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._device is not None, "entered before it is left"
        await self._device.close()

    async def _open(self) -> AsyncDevice:
        thread = FileThread()
        opened: list[AsyncDevice] = []
        try:
            await thread.run(lambda: opened.append(self._begin(thread)))
        except BaseException:
            # A cancelled caller never sees what was opened meanwhile.
            for device in opened:
                await device.close()
            thread.close()
            raise
        return opened[0]


async def _close(transport: AsyncTransport) -> None:
    closing = asyncio.ensure_future(transport.close())
    await outlast(closing)
    closing.result()


def _opener(transport: AsyncTransport, token: str, pace: Pace) -> OpenAsyncStream | None:
    if not isinstance(transport, AsyncStreamTransport):
        return None

    def open_stream(request: Request) -> AsyncStream:
        return transport.stream(replace(request, token=token), pace.watch_silence_s)

    return open_stream
