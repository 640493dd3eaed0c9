"""Device sync inside a test's process: the real endpoints over an `Embedded`, a line that fails as asked, and
apps that can be killed between any two SQL statements.

Law: a crash leaves what the disk held, and nothing else: the server goes on with what its store has, an app
with a copy of its file as it was at the moment of the kill.
"""

import asyncio
import enum
import shutil
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, TypeVar, TypeVarTuple, Unpack
from urllib.parse import urlencode

from upwell.device.device import Device
from upwell.device.failures import Unreachable
from upwell.device.installation import Installation, Options
from upwell.device.pace import PACE
from upwell.device.transport import Request, Response
from upwell.edge.devices import BodyLimits, DeviceEndpoints
from upwell.edge.stream import LogStreams
from upwell.engine.history import stream_id
from upwell.errors import ReadOnly
from upwell.feeds.download import Downloads
from upwell.feeds.failures import Failures
from upwell.feeds.hydrate import Hydrations
from upwell.feeds.stock import StockDownloads
from upwell.feeds.upload import UploadLimits, Uploads
from upwell.protocol import sync
from upwell.session.auth import Authenticator
from upwell.storage.hot import Batch
from upwell.testing.embedded import Embedded

SECRET = "a-secret-of-device-tokens-with-more-than-32-bytes"
BODY_LIMITS = BodyLimits(1 << 22, 1 << 22)
LIMITS = UploadLimits(changes_max=1_000, payload_bytes_max=1 << 20)

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class ServerCrashed(ReadOnly):
    """The server's process ended here."""


class Killed(BaseException):
    """The app's process ended here; nothing of it may catch this."""


class CrashPoints:
    """`Points` of a server that crashes at the point that was armed; a dead server does nothing more."""

    def __init__(self) -> None:
        self.armed: str | None = None
        self.is_crashed = False

    def reach(self, name: str) -> None:
        """Crash if this is the point, or if the server has crashed already."""
        is_dead = self.is_crashed
        self.is_crashed = is_dead or name == self.armed
        # Who has written waits for the sync: the thread that syncs is to find out, and to tell.
        if is_dead or (self.is_crashed and name != "commit:after-write"):
            raise ServerCrashed(f"the server crashed at {name} (injected)")


class OneThread(asyncio.SelectorEventLoop):
    """Does at once what is to be done in threads: one request at a time needs no others."""

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[Unpack[Ts]], T], *args: *Ts
    ) -> asyncio.Future[T]:
        """Return the future of what is done already."""
        future: asyncio.Future[T] = self.create_future()
        # In a thread of its own it would not see that a loop is running, and may run one itself.
        asyncio._set_running_loop(None)
        try:
            future.set_result(func(*args))
        finally:
            asyncio._set_running_loop(self)
        return future


class SyncServer:
    """The device endpoints of an `Embedded` that has `CrashPoints`; one request at a time, any thread.

    Other `limits` hold from the next `restart` on.
    """

    def __init__(self, db: Embedded, points: CrashPoints) -> None:
        self.db = db
        self.points = points
        self.limits = LIMITS
        self._lock = threading.Lock()
        self._loop = OneThread()
        self._open()

    def _open(self) -> None:
        db, committer, rows = self.db, self.db.committer, self.db.rows_by_key
        self._authenticator = Authenticator(
            secret=SECRET,
            clock=db.clock,
            expiry_hours=1,
            device_expiry_hours=24 * 365 * 100,
            bcrypt_cost=4,
        )
        history = stream_id(db.store)
        # The name of the history was written past the committer: its next commit publishes it.
        committer.publication.wait(committer.apply(Batch()))
        uploads = Uploads(committer, rows, db.query, db.engine.defaults, self.limits)
        self._endpoints = DeviceEndpoints(
            uploads,
            StockDownloads(committer, rows, Downloads(committer, stream_id=history), db.registry),
            Hydrations(committer, rows, db.registry, stream_id=history),
            Failures(committer.publication, uploads),
            LogStreams(db.growth, committer.changelog, self._authenticator, streams_max=1),
            db.registry,
            self._authenticator,
            committer.publication,
            db.threads,
            limits=BODY_LIMITS,
            schema_version=1,
        )

    def close(self) -> None:
        """Close the loop; the engine is its owner's."""
        self._loop.close()

    def token(self, user: str, source: str) -> str:
        """Return a device token."""
        return self._authenticator.device_token(user, source).text

    def restart(self) -> None:
        """Go on as a new process, with what the store and the files hold."""
        self.points = self.db.points = CrashPoints()
        self.db.reopen()
        self._open()

    def recover(self) -> bool:
        """Disarm the points, and restart if the server has crashed; return whether it had."""
        is_crashed = self.points.is_crashed
        self.points.armed = None
        if is_crashed:
            self.restart()
        return is_crashed

    def answer(self, request: Request) -> Response:
        """Serve one request; raise `Unreachable` if the server crashed meanwhile."""
        with self._lock:
            response = self._loop.run_until_complete(_served(self._endpoints, request))
            if self.points.is_crashed:
                self.recover()
                raise Unreachable("the server crashed")
            return response


class Crashing:
    """A crash of the server inside is survived: it goes on with what it has."""

    def __init__(self, server: SyncServer, point: str | None) -> None:
        self._server = server
        self._point = point

    def __enter__(self) -> None:
        self._server.db.settle()
        self._server.points.armed = self._point

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        self._server.recover()
        return kind is not None and issubclass(kind, ServerCrashed)


async def _served(endpoints: DeviceEndpoints, request: Request) -> Response:
    headers = [] if request.token is None else [(b"authorization", f"Bearer {request.token}".encode())]
    scope: dict[str, Any] = {
        "type": "http",
        "method": request.method,
        "path": request.path,
        "query_string": urlencode(request.query).encode(),
        "headers": headers,
    }
    answered: dict[str, Any] = {}

    async def receive() -> Any:
        return {"type": "http.request", "body": request.body or b"", "more_body": False}

    async def send(message: Any) -> None:
        answered.update(message)

    await endpoints(scope, receive, send)
    return Response(answered["status"], answered["body"])


class Fault(enum.Enum):
    """What happens to one request on its way."""

    NONE = "none"
    REQUEST_LOST = "request lost"
    ANSWER_LOST = "answer lost"
    DOUBLED_FIRST = "doubled, the first answer arrives"
    DOUBLED_SECOND = "doubled, the second answer arrives"
    REFUSED_401 = "401"
    REFUSED_413 = "413"
    REFUSED_500 = "500"


_REFUSALS = {
    Fault.REFUSED_401: Response(401, sync.encode(sync.SyncError(error="authentication_failed"))),
    Fault.REFUSED_413: Response(413, sync.encode(sync.SyncError(error="invalid_request"))),
    Fault.REFUSED_500: Response(500, sync.encode(sync.SyncError(error="upload_failed"))),
}


class Line:
    """A device's way to the server. `faults` are used up one per request, `on_send` and `on_answer` at once.

    `sent` is what may have reached the server, and may do so again much later.
    """

    def __init__(self, server: SyncServer, sent: list[Request]) -> None:
        self._server = server
        self.sent = sent
        self.faults: deque[Fault] = deque()
        self.on_send: Callable[[], None] | None = None
        self.on_answer: Callable[[], None] | None = None
        self.is_dead = False

    def send(self, request: Request) -> Response:
        """Send, as the next fault has it."""
        self._check_alive()
        hook, self.on_send = self.on_send, None
        _call(hook)
        fault = self.faults.popleft() if self.faults else Fault.NONE
        if fault in _REFUSALS:
            return _REFUSALS[fault]
        self.sent.append(request)
        if fault is Fault.REQUEST_LOST:
            raise Unreachable("the request was lost (injected)")
        response = self._server.answer(request)
        if fault in (Fault.DOUBLED_FIRST, Fault.DOUBLED_SECOND):
            again = self._server.answer(request)
            response = again if fault is Fault.DOUBLED_SECOND else response
        self._check_alive()
        hook, self.on_answer = self.on_answer, None
        _call(hook)
        if fault is Fault.ANSWER_LOST:
            raise Unreachable("the answer was lost (injected)")
        return response

    def close(self) -> None:
        """There is nothing to close."""

    def clear(self) -> None:
        """Forget what was to happen to the next requests."""
        self.faults.clear()
        self.on_send = self.on_answer = None

    def _check_alive(self) -> None:
        if self.is_dead:
            raise Killed


def _call(hook: Callable[[], None] | None) -> None:
    if hook is not None:
        hook()


class App:
    """An installed app: its file, its device, its line. It may be killed and started again."""

    def __init__(
        self,
        path: Path,
        server: SyncServer,
        *,
        user: str,
        schema: str,
        tables: list[str],
        **options: Unpack[Options],
    ) -> None:
        self.path = path
        self._server = server
        self._user = user
        self._schema = schema
        self._tables = tables
        self._options = options
        self._statements_left: int | None = None
        self._sent: list[Request] = []
        self._start()

    def _start(self) -> None:
        self.line = Line(self._server, self._sent)
        installation = Installation.open(
            str(self.path), schema=self._schema, tables=self._tables, **self._options
        )
        self._file = installation.file.connection
        self.device = Device(
            str(self.path),
            installation,
            dial=lambda _: self.line,
            pace=PACE,
            now=lambda: 0.0,
            chance=lambda: 0.5,
        )
        self.source = self.device.status().source
        self.device.sign_in("inprocess:", self._user, token=self._server.token(self._user, self.source))

    def kill_at(self, statement: int) -> None:
        """End the process before the `statement`-th SQL statement of the sync from now, counted from 1."""
        self._statements_left = statement
        self._file.set_trace_callback(self._count)

    def kill(self) -> None:
        """End the process now: the disk keeps what it has, whatever is still done here has no effect."""
        self._statements_left = None
        if self.line.is_dead:
            return
        self.line.is_dead = True
        copy = self._copy()
        shutil.copyfile(self.path, copy)
        log = Path(f"{self.path}-wal")
        if log.exists():
            shutil.copyfile(log, f"{copy}-wal")

    def _copy(self) -> Path:
        name = self.path.name
        return self.path.with_name(name.removesuffix("+") if name.endswith("+") else f"{name}+")

    @property
    def is_dead(self) -> bool:
        """Whether the process has ended."""
        return self.line.is_dead

    def restart(self) -> None:
        """Start again: after a kill on what the disk held then, else after an orderly end."""
        self._statements_left = None
        self.device.close()
        if self.line.is_dead:
            copy = self._copy()
            self.remove()
            self.path = copy
        self._start()

    def remove(self) -> None:
        """Delete the closed file."""
        for suffix in ("", "-wal", "-shm"):
            Path(f"{self.path}{suffix}").unlink(missing_ok=True)

    def _count(self, _: str) -> None:
        if self._statements_left is not None:
            self._statements_left -= 1
            if self._statements_left == 0:
                self.kill()
