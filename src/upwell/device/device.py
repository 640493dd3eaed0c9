"""The device: an app's own SQLite file that works offline and syncs with an Upwell server.

Law: the app reads and writes through `connection` (or any other connection to the file) as it likes; every
call here may be interrupted at any point and made again, and no local edit is lost by it.
"""

import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Self, TypeAlias, TypeVar, Unpack

from upwell.device.background import Background, Loop, Round, until_synced
from upwell.device.drive import Done, Send, drive, proceed
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
from upwell.device.threads import OpenStream, Threads
from upwell.device.transport import HttpTransport, Request, Response, Stream, StreamTransport, Transport
from upwell.device.watch import Watch

T = TypeVar("T")

# From the URL of `sign_in` to a transport.
Dial: TypeAlias = Callable[[str], Transport]


class Device:
    """One installation of an app; made by `Device.open`. Threads may share it."""

    def __init__(
        self,
        path: str,
        installation: Installation,
        *,
        dial: Dial,
        pace: Pace,
        now: Callable[[], float],
        chance: Callable[[], float],
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.connection = connect(path, has_foreign_keys=True)
        self._installation = installation
        self._dial = dial
        self._pace = pace
        self._now = now
        self._chance = chance
        self._sleep = sleep
        self._transport: Transport | None = None
        self._token: str | None = None
        self._loop: Threads | None = None
        self._loop_lock = threading.Lock()
        # One exchange at a time; the app's own connection is not concerned.
        self._exchange = threading.Lock()
        # Held while the file is worked on, not while the network is; callbacks may ask for `status`.
        self._file_lock = threading.RLock()

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        schema: str,
        tables: Sequence[str],
        dial: Dial = HttpTransport,
        pace: Pace = PACE,
        now: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
        **options: Unpack[Options],
    ) -> Self:
        """Open or create the file at `path` and capture `tables` (which must exist) for namespace `schema`.

        `dial` makes the transport from the URL of `sign_in`; `pace`, `now` (monotonic, in seconds) and
        `chance` are of the background loop. Raises `TableRefused` and `FileRefused`.
        """
        installation = Installation.open(str(path), schema=schema, tables=tables, **options)
        try:
            return cls(str(path), installation, dial=dial, pace=pace, now=now, chance=chance)
        except BaseException:
            installation.close()
            raise

    def register(self, tables: Sequence[str]) -> None:
        """Capture more tables; rows that they have are queued. Without any, rebuild stale triggers."""
        with self._exchange, self._file_lock:
            self._installation.register(tables)
        meet_triggers(self.connection)

    def sign_in(self, url: str, user: str, *, token: str | None = None, password: str | None = None) -> None:
        """Connect the file with `user` on the server at `url`.

        `token` is a device token of this source, or an access token that is exchanged for one; `password`
        logs in first. Raises `FileRefused` when the file is another user's. Stops the background loop.
        """
        transport = self._dial(url)
        try:
            with self._exchange:
                signing_in = self._installation.sign_in(user, token, password)
                device_token = drive(signing_in, transport.send, self._file_lock)
        except BaseException:
            transport.close()
            raise
        self.sign_out()
        self._transport, self._token = transport, device_token

    def sign_out(self) -> None:
        """Stop the background loop and forget the token; the data stays, and further edits are captured."""
        self.stop()
        if self._transport is not None:
            self._transport.close()
        self._transport = self._token = None

    def wipe(self) -> None:
        """Empty the file for another user, and sign out; raises `PendingChanges` if an edit would be lost.

        Stops the background loop in any case.
        """
        self.stop()
        with self._exchange, self._file_lock:
            self._installation.wipe()
        self.sign_out()

    def upload(self) -> UploadReport:
        """Send what is pending, batch by batch."""
        return self._run(self._installation.upload)

    def download(self) -> DownloadReport:
        """Fetch what others changed since the last time."""
        return self._run(self._installation.download)

    def hydrate(self, page_rows: int = PAGE_ROWS) -> HydrateReport:
        """Fetch everything, in pages of `page_rows` rows; goes on where an interrupted hydration stopped."""
        return self._run(lambda: self._installation.hydrate(page_rows))

    def sync(self) -> SyncReport:
        """Hydrate if needed, upload, download."""
        return self._run(self._installation.sync)

    def start(self) -> None:
        """Sync in the background from now on: after edits, when the server's log grew, and now and then.

        Failures are told by `status` and tried again, ever more slowly. Raises `NotSignedIn`.
        """
        transport, token = self._signed_in()
        if self.is_running:
            return
        self.stop()
        with self._loop_lock:
            if not self.is_running:
                self._loop = self._begin_loop(transport, token)
                self._loop.start()

    def _begin_loop(self, transport: Transport, token: str) -> Threads:
        background = Background(self._installation, self._pace, self._now, self._chance)
        return Threads(
            background,
            Watch(background, self._pace, self._now, self._chance),
            sync=self._sync_in_background,
            open_stream=_opener(transport, token, self._pace),
            abort=transport.abort if isinstance(transport, StreamTransport) else _do_nothing,
            file_lock=self._file_lock,
            grace_s=self._pace.grace_s,
            now=self._now,
        )

    def stop(self) -> None:
        """End the background loop and wait until it has ended; a round under way may be cut short."""
        loop = self._loop
        if loop is None:
            return
        loop.stop()
        with self._loop_lock:
            if self._loop is loop:
                self._loop = None

    @property
    def is_running(self) -> bool:
        """True while there is a background loop."""
        return self._loop is not None and self._loop.is_running

    def wait_until_synced(self, timeout_s: float | None = None) -> None:
        """Wait until what is pending now is acknowledged, and what the server has now is here.

        Quarantined changes don't count. Without the background loop rounds are made here, with pauses while
        the server is unreachable; other failures are raised. Raises `NotSynced` after `timeout_s`; without
        the loop a request that is under way then is waited for.
        """
        self._signed_in()
        steps = until_synced(
            self._installation, self._pace, now=self._now, chance=self._chance, timeout_s=timeout_s
        )
        failure: Exception | None = None
        while not isinstance(step := self._proceed(steps, failure), Done):
            failure = self._perform(step)

    def pending(self) -> list[PendingChange]:
        """What waits for upload, in the order of the edits."""
        with self._file_lock:
            return self._installation.pending()

    def status(self) -> DeviceStatus:
        """Where the file stands; costs a few counts."""
        with self._file_lock:
            return self._installation.status(is_signed_in=self._token is not None, is_running=self.is_running)

    def retry_refused(self) -> int:
        """Let the next upload try all quarantined changes again; return how many there are.

        For when what the server refused them for is mended; an edit of the row does it for that row alone.
        """
        with self._exchange, self._file_lock:
            return self._installation.retry_refused()

    def discard(self, table: str, key: str) -> bool:
        """Give up the quarantined change of a row, for what the server will never take.

        The row is again what the server had last (a new one goes); what was written stays readable in
        `_sync_conflicts`. Returns whether there was such a change; see `pending` for table and key.
        """
        with self._exchange, self._file_lock:
            return self._installation.discard(table, key)

    def close(self) -> None:
        """Sign out and close both connections."""
        self.sign_out()
        # Never while another thread is in the middle of a statement.
        with self._file_lock:
            self.connection.close()
            self._installation.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, begin: Callable[[], Exchange[T]], send: Send | None = None) -> T:
        with self._exchange:
            return drive(begin(), send or self._send, self._file_lock)

    def _send(self, request: Request) -> Response:
        transport, token = self._signed_in()
        return transport.send(replace(request, token=token))

    def _signed_in(self) -> tuple[Transport, str]:
        if self._transport is None or self._token is None:
            raise NotSignedIn("sign in before syncing; until then edits are captured")
        return self._transport, self._token

    def _sync_in_background(self) -> None:
        loop = self._loop
        assert loop is not None, "the loop that calls has been started"

        def send(request: Request) -> Response:
            if loop.is_cut:
                raise Unreachable("the background loop was stopped")
            return self._send(request)

        self._run(self._installation.sync, send)

    def _send_until(self, until_s: float | None) -> Send:
        def send(request: Request) -> Response:
            if until_s is not None and self._now() >= until_s:
                raise NotSynced("the round has not ended")
            return self._send(request)

        return send

    def _proceed(self, steps: Loop, failure: Exception | None) -> Round | Pause | Done[None]:
        with self._file_lock:
            return proceed(steps, failure)

    def _perform(self, step: Round | Pause) -> Exception | None:
        match step:
            case Pause():
                self._sleep(step.seconds)
                return None
            case Round():
                loop = self._loop
                if loop is not None and loop.is_running:
                    return loop.ask(step.until_s)
                try:
                    self._run(self._installation.sync, self._send_until(step.until_s))
                except (Unreachable, NotSynced) as failure:
                    return failure
                return None


def _opener(transport: Transport, token: str, pace: Pace) -> OpenStream | None:
    if not isinstance(transport, StreamTransport):
        return None

    def open_stream(request: Request) -> Stream:
        return transport.stream(replace(request, token=token), pace.watch_silence_s)

    return open_stream


def _do_nothing() -> None:
    """There is nothing to break."""
