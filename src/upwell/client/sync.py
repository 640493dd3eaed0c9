"""The synchronous client: performs what the core asks for, with blocking calls.

Law: no decision is taken here; the asynchronous client differs only in how it waits.
"""

import copy
import random
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
from websockets.sync.client import ClientConnection
from websockets.sync.client import connect as open_socket

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
from upwell.client.table import LiveRows
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


class Client:
    """A connection to a server, for one user. Threads may share it; a live query belongs to one thread."""

    def __init__(
        self, account: Account, *, request_s: float, chance: Callable[[], float] = random.random
    ) -> None:
        self._account = account
        self._user: str | None = None
        self._chance = chance
        self._http = httpx.Client(timeout=http_timeout(request_s))
        self._lives: weakref.WeakSet[Live] = weakref.WeakSet()

    def execute(self, sql: str, params: Sequence[Argument] = (), *, raw: bool = False) -> Result:
        """Run SQL and return its result; of a batch the last one, with all in `results`.

        `params` are the values of `$1`, `$2`, …; `raw` leaves cells as the wire has them.
        Raises `ServerError`, or `ConnectionLost` if nobody knows whether it took effect.
        """
        return read_results(self.request(sql, params), raw=raw)

    def query(self, sql: str, params: Sequence[Argument] = (), *, raw: bool = False) -> list[dict[str, Any]]:
        """Run a SELECT and return its rows as dicts."""
        return self.execute(sql, params, raw=raw).dicts()

    def request(self, sql: str, params: Sequence[Argument] = ()) -> SqlResponse:
        """Run SQL and return the server's answer as it is."""
        request = one(sql, params, self._account.namespace, self._user)
        return self._run(self._account.request(request))

    def rows(
        self, sql: str, params: Sequence[Argument] = (), *, raw: bool = False
    ) -> Iterator[dict[str, Any]]:
        """Yield the rows of a query of any size as dicts, as they arrive.

        Raises `ConnectionLost` if the stream is cut: what came before is a part then.
        """
        with self._streamed(sql, params, NDJSON) as answer:
            lines = Lines(answer.headers.get(SCHEMA_HEADER), raw=raw)
            for piece in answer.iter_bytes():
                yield from lines.feed(piece)
            lines.end()

    def arrow(self, sql: str, params: Sequence[Argument] = ()) -> Any:
        """Return the rows of a query as a `pyarrow.Table`; needs pyarrow."""
        with self._streamed(sql, params, ARROW) as answer:
            return read_arrow(answer.read())

    def executemany(self, sql: str, rows: Sequence[Sequence[Argument]]) -> Result:
        """Run an INSERT, UPDATE or DELETE once for each list of parameters: all of them, or none.

        It is read once, however many rows there are, and is one commit.
        """
        request = many(sql, rows, self._account.namespace, self._user)
        return read_results(self._run(self._account.request(request)))

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """Collect the statements of a `with` block and run them as one transaction when it ends.

        Nothing is sent if the block raises. Raises `ServerError`, with nothing done, if one of them fails
        or if another commit was faster ("Conflict: …": run the block again).
        """
        transaction = Transaction(self._user)
        yield transaction
        if len(transaction):
            request = transaction.request(self._account.namespace)
            transaction.settle(self._run(self._account.request(request)))

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

    def login(self) -> str:
        """Exchange user and password for an access token now, and return it; else the first request does."""
        self._run(self._account.login())
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
    ) -> "Live":
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
    ) -> LiveRows:
        """Return the rows of `SELECT … FROM namespace.table WHERE …`, kept up to date while open.

        Open it by `with`. The query needs the table's primary key among its columns.
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
        return LiveRows(self._followed(follow))

    def _followed(self, follow: Follow) -> "Live":
        if self._user is not None:
            raise ValueError("a live query shows one's own rows; sign in as the user to follow theirs")
        live = Live(follow, self)
        self._lives.add(live)
        return live

    def close(self) -> None:
        """End the live queries of this client and its connection."""
        for live in list(self._lives):
            live.close()
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def post(self, request: HttpRequest) -> HttpAnswer:
        """Make one HTTP request; raise `ConnectionLost` if there is no answer."""
        try:
            answer = self._http.post(request.url, content=request.body, headers=request.headers)
        except httpx.TransportError as error:
            raise http_failure(error) from error
        return HttpAnswer(answer.status_code, answer.content)

    @contextmanager
    def _streamed(self, sql: str, params: Sequence[Argument], media_type: str) -> Iterator[httpx.Response]:
        request = one(sql, params, self._account.namespace, self._user)
        self._run(self._account.ensure_token())
        try:
            for _ in range(2):
                asked = self._account.stream(request, media_type)
                with self._http.stream(
                    "POST", asked.url, content=asked.body, headers=asked.headers
                ) as answer:
                    if answer.status_code == 200:
                        yield answer
                        return
                    refused = HttpAnswer(answer.status_code, answer.read())
                self._run(self._account.renew(refused))
        except httpx.TransportError as error:
            raise http_failure(error) from error
        raise AuthenticationFailed(
            refused.status, "TOKEN_EXPIRED", "the server takes no new token", refused.body
        )

    def _run(self, flow: Generator[HttpRequest, HttpAnswer, _Value]) -> _Value:
        try:
            request = next(flow)
            while True:
                request = flow.send(self.post(request))
        except StopIteration as end:
            value: _Value = end.value
            return value


class Live:
    """A live query: iterate it, or `receive` with a time-out. `close` may be called from another thread."""

    def __init__(self, follow: Follow, client: Client) -> None:
        self._follow = follow
        self._client = client
        self._walk = Walk(follow.steps())
        self._socket: ClientConnection | None = None
        self._pong: threading.Event | None = None
        self._heart: tuple[threading.Thread, threading.Event] | None = None
        self._act_until: float | None = None
        self._closed = threading.Event()

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

    def open(self) -> None:
        """Return when the server has accepted the query; else the first change asked for does this."""
        if not self.schema and self.next_event() is None:
            raise ConnectionLost("the live query is closed")

    def snapshot(self) -> list[Change]:
        """Return the changes up to the end of the snapshot, those of it that weren't received before."""
        changes = []
        while not self.snapshot_complete:
            event = self.next_event()
            if event is None:
                raise ConnectionLost("the live query is closed")
            if isinstance(event, Deliver):
                changes.append(event.change)
        return changes

    def receive(self, timeout_s: float | None = None) -> Change | None:
        """Return the next change, None if there is none within `timeout_s` or the query was closed."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            event = self.next_event(deadline)
            if event is None or isinstance(event, Deliver):
                return None if event is None else event.change

    def close(self) -> None:
        """End the live query; an iteration over it ends."""
        self._closed.set()
        self._disconnect()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Change:
        change = self.receive()
        if change is None:
            raise StopIteration
        return change

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def next_event(self, deadline: float | None = None) -> Event | None:
        """Perform steps until one is for the user, and return it; None at the deadline or after `close`."""
        while not self._closed.is_set():
            try:
                step = self._walk.step()
                if isinstance(step, Event):
                    self._walk.take()
                    return step
                self._advance(step, deadline)
            except _DeadlinePassed:
                return None
            except ClientError:
                self._disconnect()
                if self._closed.is_set():
                    return None
                raise
        return None

    def _advance(self, step: Act, deadline: float | None) -> None:
        try:
            outcome = self._perform(step, deadline)
        except (ConnectionLost, ServerError) as failure:
            self._act_until = None
            self._disconnect()
            if not self._closed.is_set():
                self._walk.failed(failure)
        else:
            self._act_until = None
            self._walk.done(outcome)

    def _perform(self, step: Act, deadline: float | None) -> Outcome:
        match step:
            case HttpRequest():
                return self._client.post(step)
            case Pause(seconds):
                self._closed.wait(self._wait_s(seconds, deadline))
                self._check(deadline)
                return None
            case Receive(timeout_s):
                return self._receive(timeout_s, deadline)
            case Open() | Send() | Probe() | Answered():
                try:
                    return self._perform_on_socket(step)
                except SOCKET_FAILURES as error:
                    raise socket_failure(error) from error

    def _receive(self, timeout_s: float, deadline: float | None) -> str | bytes | None:
        try:
            return self._connected().recv(timeout=self._wait_s(timeout_s, deadline))
        except TimeoutError:
            self._check(deadline)
            return None
        except SOCKET_FAILURES as error:
            raise socket_failure(error) from error

    def _perform_on_socket(self, step: Open | Send | Probe | Answered) -> bool | None:
        match step:
            case Open():
                self._connect(step)
            case Send(text):
                self._connected().send(text)
            case Probe():
                self._pong = self._connected().ping()
            case Answered():
                return self._pong is not None and self._pong.is_set()
        return None

    def _wait_s(self, seconds: float, deadline: float | None) -> float:
        """Return how long to wait now: `seconds` since the step began, at most until the deadline."""
        now = time.monotonic()
        if self._act_until is None:
            self._act_until = now + seconds
        until = self._act_until if deadline is None else min(self._act_until, deadline)
        return max(0.0, until - now)

    def _check(self, deadline: float | None) -> None:
        """After a wait: raise `_DeadlinePassed` if the user's patience ended before the step's."""
        assert self._act_until is not None, "a wait was begun"
        if deadline is not None and deadline < self._act_until:
            raise _DeadlinePassed

    def _connected(self) -> ClientConnection:
        if self._socket is None:
            raise ConnectionLost("not connected")
        return self._socket

    def _connect(self, step: Open) -> None:
        self._disconnect()
        socket = open_socket(step.url, legacy=True, **socket_settings(step.headers))
        stop = threading.Event()
        thread = threading.Thread(
            target=_beat,
            args=(socket, stop, step.heartbeat, step.heartbeat_s),
            name="upwell-live",
            daemon=True,
        )
        self._socket, self._heart = socket, (thread, stop)
        # A live query that is dropped without `close` must not be kept alive by its own heart.
        weakref.finalize(self, stop.set)
        thread.start()
        if self._closed.is_set():
            self._disconnect()

    def _disconnect(self) -> None:
        socket, heart = self._socket, self._heart
        self._socket = self._heart = None
        if heart is not None:
            heart[1].set()
        if socket is not None:
            socket.close()
        if heart is not None:
            heart[0].join()


class _DeadlinePassed(Exception):
    """The user's time-out ended before the step did."""


def _beat(socket: ClientConnection, stop: threading.Event, text: str, interval_s: float) -> None:
    """Tell the server that we live, however long the user takes over a change."""
    while not stop.wait(interval_s):
        try:
            socket.send(text)
        except SOCKET_FAILURES:
            return  # whoever receives next meets the same failure, and handles it
    socket.close()
