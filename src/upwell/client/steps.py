"""The steps of a live query: what its core asks of a driver, and the changes that it hands out.

Law: a driver knows how to perform each step and nothing of their order; a core knows their order and no I/O.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Literal

from upwell.client.core import HttpAnswer, HttpRequest
from upwell.client.failures import ClientError

Kind = Literal["snapshot", "insert", "update", "delete"]


@dataclass(frozen=True, slots=True)
class Change:
    """One changed row. `row` is its content (of a delete: the last), `old` what it was, as far as known.

    A row that a resume finds newer than the cursor is of kind `snapshot` too: its content is complete.
    `old` of an update has the primary key, the old `_seq` and the columns whose value changed.
    """

    kind: Kind
    row: dict[str, Any]
    old: dict[str, Any] | None
    seq: int


@dataclass(frozen=True, slots=True)
class Open:
    """Connect, closing what was open, and from then on send `heartbeat` every `heartbeat_s`. → None"""

    url: str
    headers: dict[str, str]
    heartbeat: str
    heartbeat_s: float


@dataclass(frozen=True, slots=True)
class Send:
    """Send a text frame. → None"""

    text: str


@dataclass(frozen=True, slots=True)
class Receive:
    """Wait for the next frame. → its text or bytes, None after `timeout_s`"""

    timeout_s: float


@dataclass(frozen=True, slots=True)
class Probe:
    """Send a WebSocket ping. → None"""


@dataclass(frozen=True, slots=True)
class Answered:
    """Ask whether the last WebSocket ping was answered. → bool"""


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait, with nothing connected. → None"""

    seconds: float


@dataclass(frozen=True, slots=True)
class Deliver:
    """Hand a change to the user. → None"""

    change: Change


@dataclass(frozen=True, slots=True)
class Subscribed:
    """The server has accepted the query. → None"""


@dataclass(frozen=True, slots=True)
class SnapshotDone:
    """The snapshot, or what was missed, has been delivered. → None"""


@dataclass(frozen=True, slots=True)
class Anew:
    """What was delivered can't be continued: a whole snapshot follows, in place of it all. → None"""


Event = Deliver | Subscribed | SnapshotDone | Anew
Act = HttpRequest | Open | Send | Receive | Probe | Answered | Pause
Step = Act | Event
Outcome = HttpAnswer | str | bytes | bool | None
Steps = Generator[Step, Outcome, None]


class Walk:
    """The walk through a live query's steps, one at a time.

    Law: a step stays the current one until it is done or has failed, so an interrupted driver (a time-out, a
    cancelled task) just performs it again; and the step after an event isn't looked for before it is wanted,
    so the live query never counts as delivered what its user hasn't got.
    """

    def __init__(self, steps: Steps) -> None:
        self._steps = steps
        self._step: Step | None = None
        self._failure: ClientError | None = None

    def step(self) -> Step:
        """Return the current step; raise what ended the walk, again and again."""
        if self._failure is not None:
            raise self._failure
        if self._step is None:
            self._move(lambda: next(self._steps))
        assert self._step is not None, "a live query ends only by an error"
        return self._step

    def take(self) -> None:
        """Count the current event as received by the user."""
        self._step = None

    def done(self, outcome: Outcome) -> None:
        """Go on with what the current step gave."""
        self._move(lambda: self._steps.send(outcome))

    def failed(self, failure: ClientError) -> None:
        """Go on from the current step's failure; raise it if the live query can't."""
        self._move(lambda: self._steps.throw(failure))

    def _move(self, advance: Callable[[], Step]) -> None:
        try:
            self._step = advance()
        except ClientError as failure:
            self._failure = failure
            raise
