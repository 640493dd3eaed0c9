"""Connections: one live socket each, what it negotiated, how fast it may ask, and its subscriptions.

Law: what is in force is decided once, at the sign-in, and told by `auth_success`; this frame and errors are
JSON text whatever was negotiated, because every client reads those (reference contract, 2.1 and 2.2).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl

from upwell.edge.allowance import Allowance
from upwell.edge.wire import Scope, Send, Wire
from upwell.feeds.subscription import Subscription
from upwell.protocol.codec import PLAIN, encode
from upwell.protocol.messages import AuthError, AuthSuccess, Error, Protocol
from upwell.session.policy import Principal

ASKED_AHEAD_MAX = 16


@dataclass(eq=False, slots=True)
class Connection:
    """One socket: who it is, and its subscriptions by id. While `is_busy` its silence is our doing, unless
    its wire is full.

    `asked_ahead` counts the frames that may have been answered since its wire was last seen with room.
    """

    id: str
    wire: Wire
    send: Send
    allowance: Allowance
    query: Mapping[str, str]
    loop_s: Callable[[], float]
    """The time by which the wire notes when something was heard."""
    epoch_s: Callable[[], float]
    protocol: Protocol = PLAIN
    principal: Principal | None = None
    life: tuple[int, int] = (0, 0)
    """Of the account, when the socket signed in."""
    subscriptions: dict[str, Subscription] = field(default_factory=dict)
    asked_ahead: int = 0
    is_busy: bool = False
    is_closing: bool = False

    def say(self, frame: AuthSuccess | AuthError | Error) -> None:
        self.wire.write([encode(frame)])

    def negotiate(self, asked: Protocol | None) -> None:
        """Settle how frames are written: as a message asked, or (None) as the address of a header sign-in."""
        if asked is None:
            is_packed = self.query.get("serialization") == "msgpack"
            is_plain = self.query.get("compression") == "none"
            asked = Protocol("msgpack" if is_packed else "json", "none" if is_plain else "gzip")
        if self.query.get("compress") == "false":
            asked = Protocol(asked.serialization, "none")
        self.protocol = asked

    async def heeded(self) -> None:
        """Wait for one who asks on and on but doesn't read; pings, which nothing answers, don't count."""
        if not self.wire.is_full:
            self.asked_ahead = 0
        elif self.asked_ahead >= ASKED_AHEAD_MAX:
            await self.wire.drained()

    def live(self) -> dict[str, Subscription]:
        """Return the subscriptions without those that the feed has ended."""
        for name in [name for name, subscription in self.subscriptions.items() if subscription.is_ended]:
            del self.subscriptions[name]
        return self.subscriptions

    def silent_s(self) -> float:
        """Return how long nothing was heard; any thread may call it."""
        return self.loop_s() - self.wire.heard_at

    def heard_at_us(self) -> int:
        """Return when something was last heard, since the epoch; any thread may call it."""
        return int((self.epoch_s() - self.silent_s()) * 1_000_000)


def query_of(scope: Scope) -> dict[str, str]:
    """Return the options in the address of a handshake."""
    return dict(parse_qsl(scope.get("query_string", b"").decode("latin-1")))
