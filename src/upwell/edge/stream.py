"""Event streams: `GET /sync/watch` tells a device that its user's log grew, by server-sent events.

Law: an event carries no data but the number to which the log grew; numbers that come faster than they can
be sent become one. A stream costs no thread and nothing while others write.

Format: HTML Living Standard, section 9.2 (server-sent events).
"""

import asyncio
import logging
from dataclasses import dataclass, field

from upwell.edge.http import Receive, Scope, Send, header
from upwell.engine.changelog import Changelog
from upwell.engine.view import View
from upwell.errors import AuthenticationFailed, ReadOnly, RequestRefused
from upwell.feeds.cursor import Follower, Growth
from upwell.logs import fields
from upwell.session.auth import Authenticator
from upwell.session.policy import Principal
from upwell.types import Owner, user_owner

log = logging.getLogger("upwell.sync")

HEARTBEAT_S = 25.0
_HEARTBEAT = b": \n\n"
_HEADERS = [
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # a proxy that collects an answer before it passes it on would stop it
]


@dataclass(slots=True, eq=False)
class _Stream:
    """One open answer: `newest` is the owner's counter, `told` what the device knows."""

    owner: Owner
    newest: int
    told: int
    is_ended: bool = False
    wake: asyncio.Event = field(default_factory=asyncio.Event)

    def grow(self, counter: int) -> None:
        if counter > self.newest:
            self.newest = counter
            self.wake.set()

    def end(self) -> None:
        self.is_ended = True
        self.wake.set()


STREAMS_PER_USER_MAX = 100
"""So that nobody takes the room of all."""


class LogStreams:
    """All open streams; `run` watches the log for them."""

    def __init__(
        self,
        growth: Growth,
        changelog: Changelog,
        authenticator: Authenticator,
        *,
        streams_max: int,
        heartbeat_s: float = HEARTBEAT_S,
    ) -> None:
        self._growth = growth
        self._follower = Follower(growth)
        self._changelog = changelog
        self._authenticator = authenticator
        self._streams_max = streams_max
        self._heartbeat_s = heartbeat_s
        self._streams: dict[Owner, list[_Stream]] = {}
        self._count = 0
        self._is_shut = False

    async def run(self) -> None:
        """Wake the streams whose owners' logs grew, until cancelled or the server is read-only."""
        try:
            while True:
                await self._follower.grown()
                # Answers to requests of the same group go out first.
                await asyncio.sleep(0)
                self._advance()
        except ReadOnly as failure:
            log.warning("watch streams stand still", extra=fields(cause=str(failure)))

    def close(self) -> None:
        """End all streams, and let no more begin."""
        self._is_shut = True
        for streams in self._streams.values():
            for stream in streams:
                stream.end()

    async def serve(
        self, device: Principal, scope: Scope, receive: Receive, send: Send, *, after: int | None
    ) -> None:
        """Send events until the device goes, its token ends or the server stops.

        Raises `RequestRefused` before anything is sent if there is no room.
        """
        if self._is_shut:
            raise RequestRefused("shutting_down", "the server is shutting down; try again")
        if self._count >= self._streams_max:
            raise RequestRefused(
                "too_many_streams", f"there are {self._streams_max} streams; try again later"
            )
        owner = user_owner(device.user)
        if len(self._streams.get(owner, ())) >= STREAMS_PER_USER_MAX:
            raise RequestRefused(
                "too_many_streams", f"this user has {STREAMS_PER_USER_MAX} streams; close some of them"
            )
        stream = self._open(owner, after)
        try:
            async with asyncio.TaskGroup() as group:
                leaving = group.create_task(_wait_gone(receive, stream))
                await self._send(stream, header(scope, b"authorization"), send)
                leaving.cancel()
        finally:
            self._close(stream)

    def _open(self, owner: Owner, after: int | None) -> _Stream:
        view = self._growth.view
        self._follower.begin(view.seq)
        newest = view.hot.owner_counter(owner)
        stream = _Stream(owner, newest, -1 if after is None else after)
        self._streams.setdefault(owner, []).append(stream)
        self._count += 1
        return stream

    def _close(self, stream: _Stream) -> None:
        self._count -= 1
        streams = self._streams[stream.owner]
        streams.remove(stream)
        if not streams:
            del self._streams[stream.owner]
        if not self._streams:
            self._follower.rest()

    async def _send(self, stream: _Stream, authorization: str | None, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        while not stream.is_ended and (pause_s := self._accepted_s(authorization)) > 0:
            if stream.newest > stream.told:
                stream.told = stream.newest
                await _say(send, b'event: log\ndata: {"max_server_id": %d}\n\n' % stream.told)
            elif not await _is_woken(stream, min(pause_s, self._heartbeat_s)):
                await _say(send, _HEARTBEAT)
        await send({"type": "http.response.body", "body": b""})

    def _accepted_s(self, authorization: str | None) -> float:
        """Return for how long the token is still accepted, 0 if it no longer is."""
        try:
            device = self._authenticator.device(authorization, self._growth.view.catalog)
        except AuthenticationFailed:
            return 0.0
        if device.expires_at_s is None:
            return self._heartbeat_s
        return device.expires_at_s - self._authenticator.now_s() + 1

    def _advance(self) -> None:
        """Tell the streams to which counter the log grew."""
        view = self._growth.view
        changes = self._changelog.tail(view, after=self._follower.seq)
        self._follower.seq = view.seq
        if changes is None:
            self._look_up(view)
            return
        for change in changes:
            for stream in self._streams.get(Owner(change.owner), ()):
                stream.grow(change.counter)

    def _look_up(self, view: View) -> None:
        """Ask for each owner: too much came at once for the tail that is kept in memory."""
        for owner, streams in self._streams.items():
            counter = view.hot.owner_counter(owner)
            for stream in streams:
                stream.grow(counter)


async def _say(send: Send, text: bytes) -> None:
    await send({"type": "http.response.body", "body": text, "more_body": True})


async def _is_woken(stream: _Stream, timeout_s: float) -> bool:
    stream.wake.clear()
    try:
        async with asyncio.timeout(timeout_s):
            await stream.wake.wait()
    except TimeoutError:
        return False
    return True


async def _wait_gone(receive: Receive, stream: _Stream) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    stream.end()
