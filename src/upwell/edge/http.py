"""HTTP: the SQL endpoint as a bare ASGI handler, and the exchange of bodies that other handlers share.

Law: a body is read once, bounded, and parsed into a struct; every answer is one JSON document, also that
to a failure, and a traceback never leaves the process.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import Any, TypeVar

import msgspec

from upwell.edge.allowance import RateLimit
from upwell.edge.export import Format, StreamCut, find_format, send_stream
from upwell.edge.fault import Fault, fault_of, masked, public
from upwell.edge.packet import Exchange, exchange_of
from upwell.edge.render import render_outcomes, row_count
from upwell.edge.turn import Turns
from upwell.engine.view import Publication
from upwell.errors import (
    InvalidInput,
    InvalidSql,
    RateExceeded,
    RequestRefused,
    TooLarge,
    UpwellError,
)
from upwell.logs import fields
from upwell.protocol.messages import ErrorBody, SqlRequest, SqlResponse, SqlStatement
from upwell.session.auth import Authenticator
from upwell.session.outcome import Outcome, StatementFailed
from upwell.session.policy import Principal
from upwell.session.request import Asked
from upwell.session.session import Sessions
from upwell.session.threads import Client, client
from upwell.sql.advice import advised
from upwell.sql.place import pointed
from upwell.sql.prepare import check_parameter_count
from upwell.types import Value

log = logging.getLogger("upwell.http")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Header = tuple[bytes, bytes]
T = TypeVar("T")

SQL_PATH = "/v1/api/sql"
TURN_ROWS_MIN = 50
"""Answers of so many rows are rendered one in a turn of the event loop."""
RENDER_INLINE_ROWS_MAX = 1_000
BODY_S_MAX = 30
LOOK_S = 0.5
"""How often somebody looks whether a client is still there that has sent further requests ahead."""
_JSON = (b"content-type", b"application/json")
_HEADERS = "upwell.headers"
_error_encoder = msgspec.json.Encoder()
_decode_request = msgspec.json.Decoder(SqlRequest).decode


def header(scope: Scope, name: bytes) -> str | None:
    """Return a request header (lower-case name) as text, the first of several."""
    value = headers_of(scope).get(name)
    return None if value is None else value.decode("latin-1")


def headers_of(scope: Scope) -> Mapping[bytes, bytes]:
    """Return the request's headers by name; they are gone through once."""
    found: Mapping[bytes, bytes] | None = scope.get(_HEADERS)
    if found is None:
        found = scope[_HEADERS] = dict(reversed(scope.get("headers", ())))
    return found


async def read_body(scope: Scope, receive: Receive, *, bytes_max: int) -> bytes:
    """Return the whole body; raise `TooLarge` beyond the limit."""
    declared = header(scope, b"content-length")
    if declared and declared.isdigit() and int(declared) > bytes_max:
        raise TooLarge(f"request body has {declared} bytes, at most {bytes_max} are allowed")
    exchange = exchange_of(scope)
    body = None if exchange is None or declared is None else exchange.take_body()
    if body is not None:
        return body
    try:
        async with asyncio.timeout(BODY_S_MAX):
            return await _received(receive, bytes_max)
    except TimeoutError as error:
        raise InvalidInput(f"the request body did not arrive within {BODY_S_MAX} s") from error


async def _received(receive: Receive, bytes_max: int) -> bytes:
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise InvalidInput("the client went away")
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > bytes_max:
            raise TooLarge(f"request body has more than {bytes_max} bytes")
        chunks.append(chunk)
        if not message.get("more_body"):
            return chunks[0] if len(chunks) == 1 else b"".join(chunks)


async def _hung_up(receive: Receive, exchange: Exchange | None) -> None:
    """Return when the client of a request whose body was read has gone."""
    told = asyncio.ensure_future(_disconnected(receive))
    try:
        while not told.done() and not (exchange is not None and exchange.is_hung_up()):
            # Who has sent more requests ahead isn't listened to: nobody tells that they went.
            await asyncio.wait([told], timeout=LOOK_S)
    finally:
        told.cancel()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class Reply:
    """The `send` of a request: remembers the status of the answer, and adds what headers every one has."""

    def __init__(self, send: Send, exchange: Exchange | None, headers: Sequence[Header]) -> None:
        self._send = send
        self._exchange = exchange
        self._headers = headers
        self.status = 0

    async def __call__(self, message: MutableMapping[str, Any]) -> None:
        if not self.status:
            self.status = message["status"]
            message["headers"] = [*message.get("headers", ()), *self._headers]
        await self._send(message)

    def answer(self, status: int, headers: Sequence[Header], body: bytes) -> bool:
        """Send a whole answer past ASGI; whether that could be done."""
        exchange = self._exchange
        if exchange is None or not exchange.answer(status, [*headers, *self._headers], body):
            return False
        self.status = status
        return True


async def respond(send: Send, status: int, body: bytes) -> None:
    """Send one JSON answer."""
    headers = [_JSON, (b"content-length", b"%d" % len(body))]
    if not (isinstance(send, Reply) and send.answer(status, headers, body)):
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class SqlEndpoint:
    """`POST /v1/api/sql`."""

    def __init__(
        self,
        sessions: Sessions,
        authenticator: Authenticator,
        publication: Publication,
        threads: Executor,
        *,
        body_bytes_max: int,
        sql_bytes_max: int,
        rate: RateLimit,
        error_details: bool,
    ) -> None:
        self._error_details = error_details
        self._rate = rate
        self._sessions = sessions
        self._authenticator = authenticator
        self._publication = publication
        self._threads = threads
        self._body_bytes_max = body_bytes_max
        self._sql_bytes_max = sql_bytes_max
        self._turns = Turns()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = time.perf_counter()
        principal: Principal | None = None
        who = Client(partial(_hung_up, receive, exchange_of(scope)))
        before = client.set(who)
        try:
            principal = self._authenticator.principal(
                header(scope, b"authorization"), self._publication.view.catalog
            )
            if not self._rate.take(principal.user):
                raise RateExceeded("Too many queries per second. Please slow down.")
            if (header(scope, b"content-type") or "").startswith("multipart/"):
                raise InvalidInput("multipart/form-data carries files, which aren't supported yet; send JSON")
            body = await read_body(scope, receive, bytes_max=self._body_bytes_max)
            form = find_format(header(scope, b"accept"))
            if form is not None:
                await self._stream(principal, self._parsed(body), form, send)
                return
            answer = await self._answer(principal, body, began)
        except StatementFailed as failed:
            await self._refuse(send, principal, failed, began)
        except UpwellError as error:
            await respond(send, *_error_body(fault_of(error, is_admin=False), None, began))
        else:
            await respond(send, 200, answer)
        finally:
            client.reset(before)
            who.close()

    async def _stream(self, principal: Principal, request: SqlRequest, form: Format, send: Send) -> None:
        if request.sql is None or request.statements is not None or request.rows is not None:
            raise InvalidInput(f"{form.media_type} is for one query in `sql`; ask for application/json")
        params = _params(request.params or [])
        streamed = await self._sessions.stream(
            principal, self._bounded(request.sql), params, request.namespace_id
        )
        try:
            await send_stream(streamed, form, self._sessions.threads, send)
        except UpwellError as error:
            raise StatementFailed(1, request.sql, error) from error
        except StreamCut as cut:
            # Without its end the answer is no answer: the server closes the connection.
            log.warning("A stream of rows was cut", extra=fields(user=principal.user, reason=str(cut)))

    async def _answer(self, principal: Principal, body: bytes, began: float) -> bytes:
        request = self._parsed(body)
        outcomes = await self._outcomes(principal, request)
        if not outcomes:
            raise RequestRefused("EMPTY_SQL", "No SQL statements provided")
        rows = row_count(outcomes)
        if TURN_ROWS_MIN <= rows <= RENDER_INLINE_ROWS_MAX:
            await self._turns.take()
        took_ms = (time.perf_counter() - began) * 1000
        render = partial(render_outcomes, outcomes, took_ms=took_ms, each=request.statements is not None)
        if rows <= RENDER_INLINE_ROWS_MAX:
            return render()
        return await asyncio.get_running_loop().run_in_executor(self._threads, render)

    async def _outcomes(self, principal: Principal, request: SqlRequest) -> list[Outcome]:
        namespace = request.namespace_id
        if request.statements is not None:
            if request.sql is not None or request.params or request.rows is not None:
                raise InvalidInput("give either `sql`, with `params` or `rows`, or `statements`")
            asked = [self._asked(one) for one in request.statements]
            return await self._sessions.run_each(principal, asked, namespace, atomic=request.atomic)
        if request.sql is None:
            raise InvalidInput("Invalid JSON payload: Object missing required field `sql`")
        if request.atomic:
            raise InvalidInput("`atomic` goes with `statements`; in `sql` say BEGIN; …; COMMIT")
        if request.rows is not None:
            asked = [self._asked(SqlStatement(request.sql, request.params, request.rows))]
            return await self._sessions.run_each(principal, asked, namespace, atomic=False)
        sql = self._bounded(request.sql)
        return await self._sessions.execute(principal, sql, _params(request.params or []), namespace)

    def _asked(self, statement: SqlStatement) -> Asked:
        sql = self._bounded(statement.sql)
        if statement.rows is None:
            return Asked(sql, _params(statement.params or []))
        if statement.params:
            raise InvalidInput("give either `params` or `rows`; each row has all the parameters")
        return Asked(sql, rows=[_params(row) for row in statement.rows])

    def _parsed(self, body: bytes) -> SqlRequest:
        try:
            return _decode_request(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InvalidInput(f"Invalid JSON payload: {error}") from error

    def _bounded(self, sql: str) -> str:
        if len(sql) * 4 > self._sql_bytes_max:
            size = len(sql.encode())
            if size > self._sql_bytes_max:
                raise InvalidSql(f"SQL query too long: {size} bytes (maximum {self._sql_bytes_max} bytes)")
        return sql

    async def _refuse(
        self, send: Send, principal: Principal | None, failed: StatementFailed, began: float
    ) -> None:
        is_admin = principal is not None and principal.is_admin
        assert isinstance(failed.cause, UpwellError), "only domain errors fail a statement"
        fault = fault_of(failed.cause, is_admin=is_admin)
        is_grammar = fault.code == "INVALID_SQL"
        told = advised(pointed(fault.message, failed.sql), failed.sql, is_grammar=is_grammar)
        fault = Fault(fault.status, fault.code, f"Statement {failed.number} failed: {told}")
        if not is_admin and not self._error_details:
            fault = public(fault, failed.cause, failed.sql)
        await respond(send, *_error_body(fault, masked(failed.sql) if is_admin else None, began))


def _params(params: list[Any]) -> list[Value]:
    check_parameter_count(len(params))
    for number, value in enumerate(params, 1):
        if isinstance(value, (list, dict)):
            kind = "Array" if isinstance(value, list) else "Object"
            message = f"Parameter ${number} invalid: {kind} parameters not yet supported"
            raise RequestRefused("INVALID_PARAMETER", message)
    return params


def _error_body(fault: Fault, details: str | None, began: float) -> tuple[int, bytes]:
    took_ms = round((time.perf_counter() - began) * 1000, 3)
    body = ErrorBody(fault.code, fault.message, details if details is not None else msgspec.UNSET)
    return fault.status, _error_encoder.encode(SqlResponse("error", [], took_ms, body))
