"""The WebSocket of live queries: sign-in, frames in, subscriptions of one socket (reference contract, 2).

Law: nothing is subscribed before the sign-in, and a socket lives no longer than the rights it was opened
with. What a client did wrong is answered by a frame; a socket is only closed where the contract says so.
Who doesn't read its answers isn't listened to, so that they don't pile up.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from itertools import count
from typing import assert_never

from upwell.config import Config
from upwell.edge.allowance import Allowance
from upwell.edge.connection import Connection, query_of
from upwell.edge.fault import live_error
from upwell.edge.http import header
from upwell.edge.wire import Receive, Scope, Send, find_wire
from upwell.engine.catalog import Catalog
from upwell.engine.expression import Context
from upwell.errors import (
    AuthenticationFailed,
    InvalidOperation,
    ReadOnly,
    RequestRefused,
    UpwellError,
)
from upwell.feeds.cursor import Follower, Growth
from upwell.feeds.live import LiveFeed
from upwell.feeds.lookout import Lookouts
from upwell.feeds.subscription import Origin, Subscription
from upwell.logs import fields
from upwell.protocol import messages
from upwell.protocol.codec import (
    BadSubscription,
    FrameMalformed,
    FrameTooLarge,
    decode_client_frame,
    unpack_client_frame,
)
from upwell.protocol.messages import AuthError, AuthSuccess, ClientFrame, Error
from upwell.session.auth import Authenticator
from upwell.session.policy import Principal
from upwell.session.threads import QueryThreads
from upwell.session.watch import Look, bind_watch, find_question

log = logging.getLogger("upwell.live")

LIVE_PATH = "/v1/ws"
CLOSE_S_MAX = 2.0
REASON_BYTES_MAX = 123
SUBSCRIPTION_ID_CHARS_MAX = 256
INVALID_ID = "invalid_subscription"
NORMAL, GOING_AWAY, POLICY, INTERNAL = 1000, 1001, 1008, 1011

_Begin = Callable[..., Awaitable[Subscription]]

ContextFor = Callable[[Principal], Context]
"""What CURRENT_USER() and NOW() are for somebody, now."""


class _Closing(Exception):
    """The socket has to be closed with a code and a reason."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class _Gone(Exception):
    """The client has left."""


class LiveSocket:
    """`GET /v1/ws`, as a bare ASGI handler; `run` watches over all sockets beside it."""

    def __init__(
        self,
        feed: LiveFeed,
        growth: Growth,
        authenticator: Authenticator,
        context_for: ContextFor,
        lookouts: Lookouts,
        look: Look,
        threads: QueryThreads,
        config: Config,
    ) -> None:
        self._feed = feed
        self._growth = growth
        self._follower = Follower(growth)
        self._authenticator = authenticator
        self._context_for = context_for
        self._look = look
        self._threads = threads
        self._lookouts = lookouts
        self._config = config
        self._sockets: dict[Connection, None] = {}
        self._numbers = count(1)
        self._closing: set[asyncio.Task[None]] = set()
        self._is_shut = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.serve(scope, receive, send)

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one socket until it is closed."""
        await receive()
        if scope["path"] != LIVE_PATH:
            await _refuse(send, 404, b"live queries are at " + LIVE_PATH.encode())
            return
        if self._is_shut:
            await _refuse(send, 503, b"the server is shutting down")
            return
        await send({"type": "websocket.accept"})
        socket = self._connection(scope, send)
        self._follower.begin(self._growth.view.seq)
        self._sockets[socket] = None
        self._feed.sockets.enter()
        try:
            await self._sign_in(socket, header(scope, b"authorization"), receive)
            while True:
                frame = await self._next_frame(socket, receive)
                if frame is not None:
                    await self._handle(socket, frame)
        except _Closing as closing:
            if not socket.is_closing:
                await self._close(socket, closing.code, closing.reason)
        except _Gone:
            pass
        finally:
            del self._sockets[socket]
            if not self._sockets:
                self._follower.rest()
            self._feed.sockets.leave()
            for subscription in socket.subscriptions.values():
                self._feed.unsubscribe(subscription)
            await socket.wire.close()

    def _connection(self, scope: Scope, send: Send) -> Connection:
        loop_s = asyncio.get_running_loop().time
        now = loop_s()
        wire = find_wire(scope, send, lag_bytes_max=self._config.ws_lag_bytes_max)
        wire.hear(now)
        allowance = Allowance(self._config.ws_messages_per_s_max, now)
        name, epoch_s = f"c{next(self._numbers)}", self._authenticator.now_s
        return Connection(name, wire, send, allowance, query_of(scope), loop_s, epoch_s)

    @property
    def count(self) -> int:
        """How many sockets are open."""
        return len(self._sockets)

    async def run(self) -> None:
        """Close sockets that are silent or whose token or account isn't what it was; until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch_sockets())
            tasks.create_task(self._watch_accounts())
            tasks.create_task(self._lookouts.run())

    async def close(self) -> None:
        """Close all sockets, since the server goes away, and accept no more."""
        self._is_shut = True
        for socket in list(self._sockets):
            self._begin_closing(socket, GOING_AWAY, "server is shutting down")
        await asyncio.gather(*self._closing, return_exceptions=True)

    # Sign-in

    async def _sign_in(self, socket: Connection, authorization: str | None, receive: Receive) -> None:
        asked = None
        if authorization is None:
            seconds = self._config.ws_auth_timeout_s
            try:
                async with asyncio.timeout(seconds):
                    message = await self._await_authenticate(socket, receive)
                authorization, asked = f"Bearer {message.token}", message.protocol
            except TimeoutError as error:
                text = f"Authentication timeout - no auth message received within {seconds:g} seconds"
                socket.say(AuthError(text))
                raise _Closing(POLICY, "Authentication timeout") from error
        try:
            catalog = self._growth.view.catalog
            socket.principal = self._authenticator.principal(authorization, catalog)
        except AuthenticationFailed as error:
            socket.say(AuthError(str(error)))
            raise _Closing(POLICY, "Authentication failed") from error
        account = catalog.users.get(socket.principal.user)
        socket.life = account.life if account is not None else (0, 0)
        socket.negotiate(asked)
        socket.say(_welcome(socket))

    async def _await_authenticate(self, socket: Connection, receive: Receive) -> messages.Authenticate:
        while True:
            frame = await self._next_frame(socket, receive)
            match frame:
                case messages.Authenticate():
                    return frame
                case messages.Subscribe(subscription):
                    socket.say(_auth_required(subscription.id))
                case messages.NextBatch(id) | messages.Unsubscribe(id) | BadSubscription(id):
                    socket.say(_auth_required(id))
                case messages.Ping() | None:
                    pass
                case _:
                    assert_never(frame)

    # Frames

    async def _next_frame(self, socket: Connection, receive: Receive) -> ClientFrame | BadSubscription | None:
        """Return the next frame; None if it was refused with an answer, or nobody is there to answer."""
        await socket.heeded()
        message = await receive()
        if message["type"] != "websocket.receive":
            raise _Gone
        if socket.is_closing or socket.wire.is_gone:
            return None
        now = asyncio.get_running_loop().time()
        socket.wire.hear(now)
        if socket.allowance.take(now):
            frame = self._read(socket, message.get("text"), message.get("bytes"))
        else:
            frame = None
            socket.say(Error("rate_limit", "RATE_LIMIT_EXCEEDED", "Too many messages"))
        if not isinstance(frame, messages.Ping):
            socket.asked_ahead += 1
        return frame

    def _read(
        self, socket: Connection, text: str | None, packed: bytes | None
    ) -> ClientFrame | BadSubscription | None:
        try:
            if text is not None:
                return decode_client_frame(text)
            if packed is not None and socket.protocol.serialization == "msgpack":
                return unpack_client_frame(packed)
            socket.say(Error("protocol", "UNSUPPORTED_DATA", "Binary not supported"))
            return None
        except FrameTooLarge as error:
            socket.say(Error("protocol", "MESSAGE_TOO_LARGE", str(error)))
            return None
        except FrameMalformed as error:
            raise _Closing(INTERNAL, str(error)) from error

    async def _handle(self, socket: Connection, frame: ClientFrame | BadSubscription) -> None:
        socket.is_busy = True
        try:
            match frame:
                case messages.Authenticate():
                    socket.say(_welcome(socket))
                case messages.Subscribe(subscription):
                    await self._subscribe(socket, subscription)
                case messages.NextBatch(id):
                    await self._next_batch(socket, id)
                case messages.Unsubscribe(id):
                    self._unsubscribe(socket, id)
                case BadSubscription(id, reason):
                    # As with other refusals: an error with its id ends what was there before.
                    self._unsubscribe(socket, id)
                    socket.say(Error(_echoed(id), "UNSUPPORTED", f"Bad subscription: {reason}"))
                case messages.Ping():
                    pass
                case _:
                    assert_never(frame)
        finally:
            socket.is_busy = False
            socket.wire.hear(asyncio.get_running_loop().time())

    async def _subscribe(self, socket: Connection, asked: messages.Subscription) -> None:
        if _echoed(asked.id) is INVALID_ID:
            text = f"Subscription id must not be empty, or longer than {SUBSCRIPTION_ID_CHARS_MAX} characters"
            socket.say(Error(INVALID_ID, "INVALID_SUBSCRIPTION_ID", text))
            return
        try:
            assert socket.principal is not None, "nothing is subscribed before the sign-in"
            self._expect_room(socket, socket.principal.user, asked.id)
            context = self._context_for(socket.principal)
            # Whatever becomes of this one: its errors have the same id.
            self._unsubscribe(socket, asked.id)
            bind = partial(self._bind, asked, socket.principal, context)
            begin = await self._threads.read(len(asked.sql), bind)
            socket.subscriptions[asked.id] = await begin(
                subscription_id=asked.id,
                outlet=socket.wire,
                options=asked.options,
                protocol=socket.protocol,
                origin=_origin(socket, asked, context),
            )
            if socket.is_closing:
                self._feed.unsubscribe(socket.subscriptions[asked.id])
        except UpwellError as error:
            socket.say(live_error(asked.id, error, asked.sql))
        except Exception:  # noqa: BLE001 — one live query must not take the others of its socket with it
            socket.say(_unexpected(asked))

    def _bind(self, asked: messages.Subscription, principal: Principal, context: Context) -> _Begin:
        """Return what begins a subscription; any thread may call it."""
        question = find_question(asked, principal, self._look)
        if question is not None:
            return partial(self._lookouts.subscribe, question)
        watch = bind_watch(asked, principal, self._growth.view.catalog, context, self._feed)
        return partial(self._feed.subscribe, watch)

    def _unsubscribe(self, socket: Connection, id: str) -> None:  # noqa: A002
        found = socket.subscriptions.pop(id, None)
        if found is not None:
            self._feed.unsubscribe(found)

    async def _next_batch(self, socket: Connection, id: str) -> None:  # noqa: A002
        try:
            subscription = socket.subscriptions.get(id)
            if subscription is None:
                raise InvalidOperation("there is no such subscription")
            await self._feed.next_batch(subscription)
        except UpwellError as error:
            socket.say(Error(_echoed(id), "BATCH_FETCH_FAILED", str(error)))

    def _expect_room(self, socket: Connection, user: str, id: str) -> None:  # noqa: A002
        if id in socket.live():
            return  # it is replaced
        limit = self._config.ws_subscriptions_max
        if len(socket.subscriptions) >= limit:
            raise InvalidOperation(f"Maximum subscriptions ({limit}) per connection exceeded")
        if self._feed.count(user) >= self._config.ws_subscriptions_per_user_max:
            raise RequestRefused("SUBSCRIPTION_LIMIT_EXCEEDED", "Maximum subscriptions reached")

    # Watching over sockets

    async def _watch_sockets(self) -> None:
        limit = self._config.ws_client_timeout_s
        while True:
            await asyncio.sleep(min(limit / 4, 5.0))
            now_s = self._authenticator.now_s()
            self._for_each_socket(self._close_forsaken)
            self._for_each_socket(partial(self._close_expired, now_s=now_s))

    def _for_each_socket(self, act: Callable[[Connection], None]) -> None:
        """Do something for all sockets; one for which it fails is cut off, and nobody else is."""
        for socket in list(self._sockets):
            try:
                act(socket)
            except Exception:
                log.exception("a live socket failed unexpectedly")
                socket.wire.abort()

    def _close_forsaken(self, socket: Connection) -> None:
        if self._is_forsaken(socket):
            self._begin_closing(socket, NORMAL, "Heartbeat timeout")

    def _is_forsaken(self, socket: Connection) -> bool:
        """Whether a client was silent for too long; not because of us, unless we wait for it to read."""
        limit = self._config.ws_client_timeout_s
        if socket.is_busy:
            if not socket.wire.is_full:
                return False
            limit = max(limit, self._config.ws_lag_s_max)
        return socket.silent_s() > limit

    def _close_expired(self, socket: Connection, *, now_s: float) -> None:
        until_s = socket.principal.expires_at_s if socket.principal is not None else None
        if until_s is not None and until_s < now_s and not socket.is_closing:
            socket.say(AuthError("the token has expired; sign in again"))
            self._begin_closing(socket, POLICY, "Token expired")

    async def _watch_accounts(self) -> None:
        known: Catalog | None = None
        try:
            while True:
                await self._follower.grown()
                self._follower.seq, catalog = self._growth.view.seq, self._growth.view.catalog
                if catalog is not known:
                    known = catalog
                    self._for_each_socket(partial(self._close_changed, catalog=catalog))
        except ReadOnly:
            # No account can change any more.
            return

    def _close_changed(self, socket: Connection, *, catalog: Catalog) -> None:
        if socket.principal is not None:
            user = catalog.users.get(socket.principal.user)
            if user is None or (user.role, user.life) != (socket.principal.role, socket.life):
                socket.say(AuthError("the account was changed; sign in again"))
                self._begin_closing(socket, POLICY, "Authentication failed")

    def _begin_closing(self, socket: Connection, code: int, reason: str) -> None:
        if not socket.is_closing:
            socket.is_closing = True
            for subscription in socket.subscriptions.values():
                self._feed.unsubscribe(subscription)
            task = asyncio.create_task(self._close(socket, code, reason))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def _close(self, socket: Connection, code: int, reason: str) -> None:
        """Send the close frame; a reader that doesn't take it in time is cut off."""
        socket.is_closing = True
        try:
            async with asyncio.timeout(CLOSE_S_MAX):
                await socket.wire.handed_over()
                await socket.send({"type": "websocket.close", "code": code, "reason": _bounded(reason)})
        except (TimeoutError, OSError):
            socket.wire.abort()


def _origin(socket: Connection, asked: messages.Subscription, context: Context) -> Origin:
    assert socket.principal is not None, "nothing is subscribed before the sign-in"
    return Origin(
        socket.principal.user, socket.id, asked.sql, asked.options, context.now_us, socket.heard_at_us
    )


def _welcome(socket: Connection) -> AuthSuccess:
    principal = socket.principal
    assert principal is not None, "a welcome comes after the sign-in"
    return AuthSuccess(principal.user, principal.role.value, socket.protocol)


def _auth_required(id: str) -> Error:  # noqa: A002
    text = "Authentication required: send an authenticate message first"
    return Error(_echoed(id), "AUTH_REQUIRED", text)


def _unexpected(asked: messages.Subscription) -> Error:
    """Log the exception that is being handled; return what the client is told of it."""
    log.exception("a subscription failed unexpectedly", extra=fields(sql=asked.sql))
    text = "the subscription failed unexpectedly; the server's log says why"
    return Error(asked.id, "SUBSCRIPTION_FAILED", text)


def _is_long(id: str) -> bool:  # noqa: A002
    return len(id) > SUBSCRIPTION_ID_CHARS_MAX


def _echoed(id: str) -> str:  # noqa: A002
    """Return the id that an error frame names: never one that no subscription has."""
    return INVALID_ID if _is_long(id) or not id.strip() else id


def _bounded(reason: str) -> str:
    return reason.encode()[:REASON_BYTES_MAX].decode(errors="ignore")


async def _refuse(send: Send, status: int, text: bytes) -> None:
    headers = [(b"content-type", b"text/plain")]
    await send({"type": "websocket.http.response.start", "status": status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": text})
