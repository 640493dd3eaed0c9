"""The watch stream: server-sent events that say up to which entry the user's log has grown, and no data.

Law: whatever goes wrong with the stream costs promptness only; the loop polls meanwhile.
The format is that of the WHATWG HTML standard, section "Server-sent events".
"""

from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import msgspec

from upwell.decodable import decodable
from upwell.device.failures import AnswerRefused, DeviceError
from upwell.device.pace import Pace, Pause
from upwell.device.transport import Request
from upwell.protocol.sync import WATCH_PATH

LINE_BYTES_MAX = 65_536
LOG_EVENT = "log"


@dataclass(frozen=True, slots=True)
class Event:
    """One event with its data lines joined by newlines."""

    name: str
    data: str


@dataclass(frozen=True, slots=True)
class Open:
    """Open the stream of `request`; the driver sends None in."""

    request: Request


@dataclass(frozen=True, slots=True)
class Read:
    """Wait for bytes of the open stream; the driver sends them in, empty at its end."""


WatchStep: TypeAlias = Open | Read | Pause


class EventParser:
    """Bytes in any pieces → events; an event that isn't closed by an empty line is never told."""

    def __init__(self) -> None:
        self._rest = b""
        self._name = ""
        self._data: list[str] = []
        self._is_first = True

    def feed(self, chunk: bytes) -> list[Event]:
        """Return the events that `chunk` completes; raise `AnswerRefused` for a line without end."""
        events = []
        for line in self._lines(chunk):
            if line:
                self._read_field(line)
            elif self._data:
                events.append(Event(self._name or "message", "\n".join(self._data)))
            if not line:
                self._name, self._data = "", []
        return events

    def _lines(self, chunk: bytes) -> list[str]:
        text = self._rest + chunk
        # A CR at the end may be the first half of a CRLF.
        held = b"\r" if text.endswith(b"\r") else b""
        *lines, rest = text.removesuffix(held).replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        self._rest = rest + held
        if len(self._rest) > LINE_BYTES_MAX:
            raise AnswerRefused(f"the watch stream has a line of more than {LINE_BYTES_MAX} bytes")
        if lines and self._is_first:
            self._is_first = False
            lines[0] = lines[0].removeprefix(b"\xef\xbb\xbf")
        return [line.decode("utf-8", "replace") for line in lines]

    def _read_field(self, line: str) -> None:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            self._name = value
        elif name == "data":
            self._data.append(value)


@decodable
class _Log(msgspec.Struct):
    max_server_id: int


def head_of(event: Event) -> int | None:
    """The last entry of the log that `event` tells of; None for events of other kinds."""
    if event.name != LOG_EVENT:
        return None
    try:
        return msgspec.json.decode(event.data, type=_Log).max_server_id
    except msgspec.MsgspecError as cause:
        raise AnswerRefused(f"not an event of the log: {cause}") from cause


class Watched(Protocol):
    """Whom a watch tells."""

    def cursor(self) -> int:
        """What the stream need not tell any more."""

    def reach(self) -> None:
        """A stream has been opened."""

    def announce(self, head: int) -> None:
        """The log has grown to `head`."""


class Watch:
    """Follows the stream for ever."""

    def __init__(
        self, watched: Watched, pace: Pace, now: Callable[[], float], chance: Callable[[], float]
    ) -> None:
        self._watched = watched
        self._pace = pace
        self._now = now
        self._chance = chance

    def steps(self) -> Generator[WatchStep, bytes | None, None]:
        """Open, read, and after a failure or the stream's end pause and open again."""
        failures, pause_s = 0, 0.0
        while True:
            began = self._now()
            # Not told to anybody: rounds meet the same server, and theirs are told.
            with suppress(DeviceError):
                yield from self._follow()
            # A stream that breaks at once, each time, must not be opened ever faster.
            failures = failures + 1 if self._now() - began <= pause_s else 1
            pause_s = self._pace.backoff_s(failures, self._chance())
            yield Pause(pause_s)

    def _follow(self) -> Generator[WatchStep, bytes | None, None]:
        yield Open(Request("GET", WATCH_PATH, (("after", str(self._watched.cursor())),)))
        self._watched.reach()
        parser = EventParser()
        while chunk := (yield Read()):
            for event in parser.feed(chunk):
                head = head_of(event)
                if head is not None:
                    self._watched.announce(head)
