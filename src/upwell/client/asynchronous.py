"""The asynchronous client: performs what the core asks for, on the running event loop.

Law: no decision is taken here; the synchronous client differs only in how it waits.
"""

import asyncio
import contextlib
import copy
import random
import weakref
from collections.abc import AsyncIterator, Callable, Generator, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as open_socket

from upwell.client.core import Account, HttpAnswer, HttpRequest
from upwell.client.failures import AuthenticationFailed, ClientError, ConnectionLost, ServerError
from upwell.client.follow import Follow, Patience
from upwell.client.steps import (
    Act,
    Answered,
    Change,
    Deliver,
    Event,
    Open,
    Outcome,
    Pause,
    Probe,
    Receive,
    Send,
    Walk,
)
from upwell.client.stream import ARROW, NDJSON, SCHEMA_HEADER, Lines, read_arrow
from upwell.client.table import AsyncLiveRows
from upwell.client.transaction import Transaction, many, one
from upwell.client.transport import (
    SOCKET_FAILURES,
    http_failure,
    http_timeout,
    socket_failure,
    socket_settings,
)
from upwell.client.values import Argument, Result, read_results
from upwell.protocol.messages import FieldSchema, SqlResponse, batch_size_default

_Value = TypeVar("_Value")


class AsyncClient:
    """A connection to a server, for one user. Tasks may share it; a live query belongs to one task."""

    def __init__(
        self, account: Account, *, request_s: float, chance: Callable[[], float] = random.random
    ) -> None:
        self._account = account
        self._user: str | None = None
        self._chance = chance
        self._http = httpx.AsyncClient(timeout=http_timeout(request_s))
        self._lives: weakref.WeakSet[AsyncLive] = weakref.WeakSet()

    async def execute(self, sql: str, params: Sequence[Argument] = (), *, raw: bool = False) -> Result:
        """Run SQL and return its result; of a batch the last one, with all in `results`.

        `params` are the values of `$1`, `$2`, …; `raw` leaves cells as the wire has them.
        Raises `ServerError`, or `ConnectionLost` if nobody knows whether it took effect.
        """
        return read_results(await self.request(sql, params), raw=raw)

    async def query(
        self, sql: str, params: Sequence[Argument] = (), *, raw: bool = False
    ) -> list[dict[str, Any]]:
        """Run a SELECT and return its rows as dicts."""
        return (await self.execute(sql, params, raw=raw)).dicts()

    async def request(self, sql: str, params: Sequence[Argument] = ()) -> SqlResponse:
        """Run SQL and return the server's answer as it is."""
        request = one(sql, params, self._account.namespace, self._user)
        return await self._run(self._account.request(request))

    async def rows(
        self, sql: str, params: Sequence[Argument] = (), *, raw: bool = False
    ) -> AsyncIterator[dict[str, Any]]:
        """Yield the rows of a query of any size as dicts, as they arrive.

        Raises `ConnectionLost` if the stream is cut: what came before is a part then.
        """
        async with self._streamed(sql, params, NDJSON) as answer:
            lines = Lines(answer.headers.get(SCHEMA_HEADER), raw=raw)
            async for piece in answer.aiter_bytes():
                for row in lines.feed(piece):
                    yield row
            lines.end()

    async def arrow(self, sql: str, params: Sequence[Argument] = ()) -> Any:
        """Return the rows of a query as a `pyarrow.Table`; needs pyarrow."""
        async with self._streamed(sql, params, ARROW) as answer:
            return read_arrow(await answer.aread())

    async def executemany(self, sql: str, rows: Sequence[Sequence[Argument]]) -> Result:
        """Run an INSERT, UPDATE or DELETE once for each list of parameters: all of them, or none.

        It is read once, however many rows there are, and is one commit.
        """
        request = many(sql, rows, self._account.namespace, self._user)
        return read_results(await self._run(self._account.request(request)))

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """Collect the statements of a `async with` block and run them as one transaction when it ends.

        Nothing is sent if the block raises. Raises `ServerError`, with nothing done, if one of them fails
        or if another commit was faster ("Conflict: …": run the block again).
        """
        transaction = Transaction(self._user)
        yield transaction
        if len(transaction):
            request = transaction.request(self._account.namespace)
            transaction.settle(await self._run(self._account.request(request)))

    def use(self, namespace: str) -> None:
        """Let table names without a namespace mean tables of `namespace` from now on."""
        self._account.namespace = namespace

    def as_user(self, user: str) -> Self:
        """Return a client that runs each statement in the place of `user`, over this one's connection.

        It is for SELECT, INSERT, UPDATE and DELETE on USER tables, and needs a role that may do so.
        """
        acting = copy.copy(self)
        acting._user = user
        return acting

    async def login(self) -> str:
        """Exchange user and password for an access token now, and return it; else the first request does."""
        await self._run(self._account.login())
        assert self._account.token is not None, "a login that didn't raise gave a token"
        return self._account.token

    def live(
        self,
        sql: str,
        *,
        from_seq: int | None = None,
        batch_size: int = batch_size_default,
        last_rows: int | None = None,
        view: bool = False,
        raw: bool = False,
        patience: Patience | None = None,
    ) -> "AsyncLive":
        """Return an iterator over the rows of `SELECT … FROM namespace.table WHERE …` and all their changes.

        `from_seq` starts after a stored `cursor`, `last_rows` with the newest rows only; `view` also tells of
        rows that enter or leave the filter.
        """
        follow = Follow(
            self._account,
            sql,
            from_seq=from_seq,
            batch_size=batch_size,
            last_rows=last_rows,
            view=view,
            raw=raw,
            patience=patience,
            chance=self._chance,
        )
        return self._followed(follow)

    def live_table(
        self, sql: str, *, batch_size: int = batch_size_default, patience: Patience | None = None
    ) -> AsyncLiveRows:
        """Return the rows of `SELECT … FROM namespace.table WHERE …`, kept up to date while open.

        Open it by `async with`. The query needs the table's primary key among its columns.
        """
        follow = Follow(
            self._account,
            sql,
            batch_size=batch_size,
            view=True,
            whole=True,
            patience=patience,
            chance=self._chance,
        )
        return AsyncLiveRows(self._followed(follow))

    def _followed(self, follow: Follow) -> "AsyncLive":
        if self._user is not None:
            raise ValueError("a live query shows one's own rows; sign in as the user to follow theirs")
        live = AsyncLive(follow, self)
        self._lives.add(live)
        return live

    async def close(self) -> None:
        """End the live queries of this client and its connection."""
        for live in list(self._lives):
            await live.close()
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def post(self, request: HttpRequest) -> HttpAnswer:
        """Make one HTTP request; raise `ConnectionLost` if there is no answer."""
        try:
            answer = await self._http.post(request.url, content=request.body, headers=request.headers)
        except httpx.TransportError as error:
            raise http_failure(error) from error
        return HttpAnswer(answer.status_code, answer.content)

    @contextlib.asynccontextmanager
    async def _streamed(
        self, sql: str, params: Sequence[Argument], media_type: str
    ) -> AsyncIterator[httpx.Response]:
        request = one(sql, params, self._account.namespace, self._user)
        await self._run(self._account.ensure_token())
        try:
            for _ in range(2):
                asked = self._account.stream(request, media_type)
                async with self._http.stream(
                    "POST", asked.url, content=asked.body, headers=asked.headers
                ) as answer:
                    if answer.status_code == 200:
                        yield answer
                        return
                    refused = HttpAnswer(answer.status_code, await answer.aread())
                await self._run(self._account.renew(refused))
        except httpx.TransportError as error:
            raise http_failure(error) from error
        raise AuthenticationFailed(
            refused.status, "TOKEN_EXPIRED", "the server takes no new token", refused.body
        )

    async def _run(self, flow: Generator[HttpRequest, HttpAnswer, _Value]) -> _Value:
        try:
            request = next(flow)
            while True:
                request = flow.send(await self.post(request))
        except StopIteration as end:
            value: _Value = end.value
            return value


class AsyncLive:
    """A live query: iterate it, or `receive` with a time-out. Cancelling a wait loses nothing.

    An iteration that is left early is ended with `close`, or by `async with`.
    """

    def __init__(self, follow: Follow, client: AsyncClient) -> None:
        self._follow = follow
        self._client = client
        self._walk = Walk(follow.steps())
        self._socket: ClientConnection | None = None
        self._pong: asyncio.Future[float] | None = None
        self._heart: asyncio.Task[None] | None = None
        self._act_until: float | None = None
        self._closed = asyncio.Event()

    @property
    def cursor(self) -> int | None:
        """The `_seq` up to which everything was delivered: what to give as `from_seq` later."""
        return self._follow.progress.cursor

    @property
    def schema(self) -> tuple[FieldSchema, ...]:
        """The columns of the query; empty until it is open."""
        return self._follow.schema

    @property
    def snapshot_complete(self) -> bool:
        """Whether all rows that existed at the start have been delivered."""
        return self._follow.snapshot_complete

    async def open(self) -> None:
        """Return when the server has accepted the query; else the first change asked for does this."""
        if not self.schema and await self.next_event() is None:
            raise ConnectionLost("the live query is closed")

    async def snapshot(self) -> list[Change]:
        """Return the changes up to the end of the snapshot, those of it that weren't received before."""
        changes = []
        while not self.snapshot_complete:
            event = await self.next_event()
            if event is None:
                raise ConnectionLost("the live query is closed")
            if isinstance(event, Deliver):
                changes.append(event.change)
        return changes

    async def receive(self, timeout_s: float | None = None) -> Change | None:
        """Return the next change, None if there is none within `timeout_s` or the query was closed."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while (event := await self.next_event()) is not None:
                    if isinstance(event, Deliver):
                        return event.change
        return None

    async def close(self) -> None:
        """End the live query; an iteration over it ends."""
        self._closed.set()
        await self._disconnect()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Change:
        change = await self.receive()
        if change is None:
            raise StopAsyncIteration
        return change

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def next_event(self) -> Event | None:
        """Perform steps until one is for the user, and return it; None after `close`."""
        while not self._closed.is_set():
            try:
                step = self._walk.step()
                if isinstance(step, Event):
                    self._walk.take()
                    return step
                await self._advance(step)
            except ClientError:
                await self._disconnect()
                if self._closed.is_set():
                    return None
                raise
        return None

    async def _advance(self, step: Act) -> None:
        try:
            outcome = await self._perform(step)
        except (ConnectionLost, ServerError) as failure:
            self._act_until = None
            await self._disconnect()
            if not self._closed.is_set():
                self._walk.failed(failure)
        else:
            self._act_until = None
            self._walk.done(outcome)

    async def _perform(self, step: Act) -> Outcome:
        match step:
            case HttpRequest():
                return await self._client.post(step)
            case Pause(seconds):
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(self._until(seconds)):
                        await self._closed.wait()
                return None
            case Receive(timeout_s):
                return await self._receive_within(timeout_s)
            case Open() | Send() | Probe() | Answered():
                try:
                    return await self._perform_on_socket(step)
                except SOCKET_FAILURES as error:
                    raise socket_failure(error) from error

    async def _receive_within(self, timeout_s: float) -> str | bytes | None:
        socket = self._connected()
        try:
            async with asyncio.timeout_at(self._until(timeout_s)):
                return await socket.recv()
        except TimeoutError:
            return None
        except SOCKET_FAILURES as error:
            raise socket_failure(error) from error

    async def _perform_on_socket(self, step: Open | Send | Probe | Answered) -> bool | None:
        match step:
            case Open():
                await self._connect(step)
            case Send(text):
                await self._connected().send(text)
            case Probe():
                self._pong = asyncio.ensure_future(await self._connected().ping())
            case Answered():
                return self._pong is not None and self._pong.done() and not self._pong.cancelled()
        return None

    def _until(self, seconds: float) -> float:
        """Return when the current step, which takes `seconds`, ends; an interruption doesn't prolong it."""
        if self._act_until is None:
            self._act_until = asyncio.get_running_loop().time() + seconds
        return self._act_until

    def _connected(self) -> ClientConnection:
        if self._socket is None:
            raise ConnectionLost("not connected")
        return self._socket

    async def _connect(self, step: Open) -> None:
        await self._disconnect()
        self._socket = await open_socket(step.url, **socket_settings(step.headers))
        self._heart = asyncio.create_task(_beat(self._socket, step.heartbeat, step.heartbeat_s))
        # A live query that is dropped without `close` must not be kept alive by its own heart.
        weakref.finalize(self, _stop, asyncio.get_running_loop(), self._heart)
        if self._closed.is_set():
            await self._disconnect()

    async def _disconnect(self) -> None:
        socket, heart = self._socket, self._heart
        self._socket = self._heart = None
        if heart is not None:
            heart.cancel()
        if socket is not None:
            await socket.close()
        if heart is not None:
            await asyncio.wait({heart})


async def _beat(socket: ClientConnection, text: str, interval_s: float) -> None:
    """Tell the server that we live, however long the user takes over a change."""
    try:
        while True:
            await asyncio.sleep(interval_s)
            await socket.send(text)
    except SOCKET_FAILURES:
        pass  # whoever receives next meets the same failure, and handles it
    except asyncio.CancelledError:
        await socket.close()
        raise


def _stop(loop: asyncio.AbstractEventLoop, heart: asyncio.Task[None]) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(heart.cancel)
