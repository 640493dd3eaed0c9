"""The watch stream: events come out of bytes in any pieces, and a stream that breaks is opened again."""

import itertools
from collections.abc import Generator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upwell.device import AnswerRefused, Pace, Request, RequestRefused, Unreachable
from upwell.device.pace import Pause
from upwell.device.watch import LINE_BYTES_MAX, Event, EventParser, Open, Read, Watch, WatchStep, head_of

PACE = Pace(backoff_min_s=1.0, backoff_max_s=60.0)
LOG = b'event: log\ndata: {"max_server_id": %d}\n\n'


def test_a_stream_as_the_server_sends_it() -> None:
    parser = EventParser()
    assert parser.feed(LOG % 5 + b": \n\n") == [Event("log", '{"max_server_id": 5}')]
    assert parser.feed(LOG % 6) == [Event("log", '{"max_server_id": 6}')]


# From the examples of the HTML standard: https://html.spec.whatwg.org/multipage/server-sent-events.html
@pytest.mark.parametrize(
    ("text", "events"),
    [
        (b"data: This is the first message.\n\ndata: This\ndata: has two lines.\n\n",
         [Event("message", "This is the first message."), Event("message", "This\nhas two lines.")]),
        (b"event: add\ndata: 73857293\n\nevent: remove\ndata: 2153\n\n",
         [Event("add", "73857293"), Event("remove", "2153")]),
        (b"data: YHOO\ndata: +2\ndata: 10\n\n", [Event("message", "YHOO\n+2\n10")]),
        (b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n",
         [Event("message", text) for text in ("first event", "second event", " third event")]),
        (b"data\n\ndata\ndata\n\ndata:", [Event("message", ""), Event("message", "\n")]),
        (b"data:test\n\ndata: test\n\n", [Event("message", "test"), Event("message", "test")]),
        (b"event: log\n\ndata: of no name\n\n", [Event("message", "of no name")]),
        (b"\xef\xbb\xbfdata: after a byte order mark\n\n", [Event("message", "after a byte order mark")]),
        (b"retry: 5\ndata: unfinished", []),
    ],
)  # fmt: skip
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_the_format(text: bytes, events: list[Event], end: bytes) -> None:
    # A lone CR is known to end a line only when another byte follows.
    assert EventParser().feed(text.replace(b"\n", end) + b":") == events


@given(
    st.lists(st.sampled_from([1, 22, 333]), max_size=5),
    st.lists(st.integers(0, 200), max_size=8),
    st.booleans(),
)
def test_any_pieces_give_the_same_events(heads: list[int], cuts: list[int], is_crlf: bool) -> None:
    text = b"".join(b": \n\n" + LOG % head for head in heads)
    text = text.replace(b"\n", b"\r\n") if is_crlf else text
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    parser, events = EventParser(), []
    for start, end in itertools.pairwise(edges):
        events += parser.feed(text[start:end])
    assert [head_of(event) for event in events] == heads


def test_a_line_without_end_is_refused() -> None:
    parser = EventParser()
    assert parser.feed(b"x" * LINE_BYTES_MAX) == []
    with pytest.raises(AnswerRefused, match="line of more than"):
        parser.feed(b"x")


def test_other_events_are_passed_over_and_malformed_ones_refused() -> None:
    assert head_of(Event("message", "x")) is None
    for data in ("", "null", "[]", '{"max_server_id": "5"}', "{}"):
        with pytest.raises(AnswerRefused):
            head_of(Event("log", data))


class World:
    """A watch on a clock that is moved by hand, and what it told."""

    def __init__(self) -> None:
        self.time_s = 0.0
        self.told: list[int | str] = []
        watch = Watch(self, PACE, lambda: self.time_s, lambda: 0.0)
        self.steps: Generator[WatchStep, bytes | None, None] = watch.steps()

    def cursor(self) -> int:
        return 41 + len(self.told)

    def reach(self) -> None:
        self.told.append("reached")

    def announce(self, head: int) -> None:
        self.told.append(head)

    def fail(self, failure: Exception) -> float:
        """Break what the watch waits for; return its pause."""
        step = self.steps.throw(failure)
        assert isinstance(step, Pause)
        return step.seconds


@pytest.fixture
def world() -> World:
    return World()


def test_it_opens_after_the_cursor_and_tells(world: World) -> None:
    assert next(world.steps) == Open(Request("GET", "/sync/watch", (("after", "41"),)))
    assert world.steps.send(None) == Read()
    assert world.steps.send(LOG % 42 + LOG % 43) == Read()
    assert world.steps.send(b": \n\n") == Read()
    assert world.told == ["reached", 42, 43]
    assert isinstance(world.steps.send(b""), Pause)
    assert world.steps.send(None) == Open(Request("GET", "/sync/watch", (("after", "44"),)))


@pytest.mark.parametrize(
    "failure",
    [Unreachable("gone"), RequestRefused(404, "not_found", "x"), RequestRefused(401, "expired", "x")],
)
def test_pauses_double_while_it_cannot_be_opened(world: World, failure: Exception) -> None:
    pauses = []
    assert isinstance(next(world.steps), Open)
    for _ in range(8):
        pauses.append(world.fail(failure))
        world.time_s += pauses[-1]
        assert isinstance(world.steps.send(None), Open)
    assert pauses == [1, 2, 4, 8, 16, 30, 30, 30]
    assert world.told == []


def test_a_stream_that_breaks_at_once_is_opened_ever_more_slowly(world: World) -> None:
    pauses = []
    next(world.steps)
    for _ in range(4):
        world.steps.send(None)
        world.steps.send(LOG % 1)
        pauses.append(world.fail(Unreachable("gone")))
        world.time_s += pauses[-1]
        world.steps.send(None)
    assert pauses == [1, 2, 4, 8]
    world.steps.send(None)
    world.time_s += 9
    assert world.fail(Unreachable("gone")) == 1


def test_what_is_not_the_protocol_breaks_the_stream(world: World) -> None:
    next(world.steps)
    world.steps.send(None)
    assert isinstance(world.steps.send(b"event: log\ndata: 5\n\n"), Pause)
