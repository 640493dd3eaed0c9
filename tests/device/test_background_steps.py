"""The decisions of the background loop, one step after the other on a clock that is moved by hand."""

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from upwell.device import NotSynced, Pace, RequestRefused, Unreachable
from upwell.device.background import Background, Loop, Round, until_synced
from upwell.device.drive import drive, proceed
from upwell.device.file import connect
from upwell.device.installation import Installation
from upwell.device.pace import Pause
from upwell.testing.sync_server import FakeServer

PACE = Pace(edit_poll_s=0.25, poll_s=60.0, backoff_min_s=1.0, backoff_max_s=60.0)
GONE = Unreachable("no answer")


class World:
    """One installation, its server, and a loop that is driven by hand."""

    def __init__(self, path: Path) -> None:
        self.time_s = 1000.0
        self.chance = 0.0
        self.server = FakeServer()
        self.app = connect(str(path), has_foreign_keys=True)
        self.app.execute("CREATE TABLE users (id TEXT PRIMARY KEY, name TEXT NOT NULL)")
        self.installation = Installation.open(str(path), schema="app", tables=["users"], source="phone")
        self.background = Background(self.installation, PACE, self.now, lambda: self.chance)
        self.steps = self.background.steps()

    def now(self) -> float:
        return self.time_s

    def next(self, failure: Exception | None = None) -> Round | Pause:
        """The next step of the loop, which is told how the one before ended."""
        return self.steps.send(failure)

    def round(self) -> Round | Pause:
        """Make the round that the loop asked for."""
        wire = self.server.transport("phone")
        drive(self.installation.sync(), wire.send, nullcontext())
        return self.next()

    def pause(self, step: Round | Pause) -> Round | Pause:
        """Let the time of a pause go by."""
        assert isinstance(step, Pause)
        self.time_s += step.seconds
        return self.next()

    def edit(self, key: str) -> None:
        self.app.execute("INSERT INTO users VALUES (?, 'x')", (key,))


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path / "app.sqlite")
    yield world
    world.app.close()
    world.installation.close()


def test_a_round_at_once_then_each_poll(world: World) -> None:
    assert world.next() == Round()
    step = world.round()
    assert step == Pause(0.25)
    began_s = world.time_s
    while isinstance(step, Pause):
        step = world.pause(step)
    assert world.time_s - began_s == 60.0


def test_failures_double_the_pause_and_a_success_resets_it(world: World) -> None:
    world.next()
    pauses = []
    for _ in range(9):
        step = world.next(GONE)
        assert isinstance(step, Pause)
        pauses.append(step.seconds)
        assert world.pause(step) == Round()
    assert pauses == [1, 2, 4, 8, 16, 30, 30, 30, 30]
    assert world.round() == Pause(0.25)
    world.time_s += 60
    assert world.next() == Round()
    assert world.next(GONE) == Pause(1.0)


def test_chance_spreads_the_pauses_up_to_the_bound(world: World) -> None:
    world.chance = 0.5
    world.next()
    pauses = []
    for _ in range(7):
        step = world.next(RequestRefused(401, "token_expired", "expired"))
        assert isinstance(step, Pause)
        pauses.append(step.seconds)
        world.pause(step)
    assert pauses == [1.5, 3, 6, 12, 24, 45, 45]
    assert world.installation.last_error == "401 token_expired: expired"


def test_edits_and_growth_do_not_shorten_a_pause_after_a_failure(world: World) -> None:
    world.next()
    assert world.next(GONE) == Pause(1.0)
    world.edit("a")
    world.background.announce(7)
    assert world.next() == Pause(1.0)
    world.time_s += 0.5
    assert world.next() == Pause(0.5)


def test_who_asks_need_not_wait_for_the_pause(world: World) -> None:
    world.next()
    assert world.next(GONE) == Pause(1.0)
    assert world.background.ask() == 2
    assert world.next() == Round()
    # The round that is under way began before this.
    assert world.background.ask() == 3
    assert world.round() == Round()
    assert world.round() == Pause(0.25)
    assert world.background.succeeded == 3


def test_a_reachable_server_ends_the_pause_after_no_answer_only(world: World) -> None:
    world.next()
    world.next(RequestRefused(503, "busy", "later"))
    world.background.reach()
    assert isinstance(world.next(), Pause)
    world.time_s += 1
    assert world.next() == Round()
    world.next(GONE)
    world.background.reach()
    assert world.next() == Round()


def test_an_edit_is_a_reason_once(world: World) -> None:
    world.next()
    world.round()
    world.edit("a")
    assert world.next() == Round()
    assert world.round() == Pause(0.25)
    assert set(world.server.live("users")) == {"a"}


def test_an_edit_right_after_a_round_is_a_reason(world: World) -> None:
    world.next()
    drive(world.installation.sync(), world.server.transport("phone").send, nullcontext())
    world.edit("late")
    assert world.next() == Round()
    assert world.round() == Pause(0.25)
    assert set(world.server.live("users")) == {"late"}


def test_commits_of_others_do_not_retry_what_was_refused(world: World) -> None:
    world.server.known_tables = set()
    world.edit("a")
    world.next()
    assert world.round() == Pause(0.25)
    world.app.execute("CREATE TABLE diary (line TEXT)")
    world.app.execute("INSERT INTO diary VALUES ('x')")
    assert world.next() == Pause(0.25)
    world.app.execute("UPDATE users SET name = 'y'")
    assert world.next() == Round()


def test_growth_is_a_reason_until_a_round_has_covered_it(world: World) -> None:
    world.next()
    world.round()
    world.server.write("users", "b", {"id": "b", "name": "web"})
    world.background.announce(1)
    assert world.next() == Round()
    assert world.round() == Pause(0.25)
    world.background.announce(1)
    assert world.next() == Pause(0.25)
    assert world.background.cursor() == 1


def test_a_log_that_begins_anew_is_a_reason(world: World) -> None:
    world.background.announce(50)
    world.next()
    assert world.round() == Pause(0.25)
    world.background.announce(3)
    assert world.next() == Round()
    assert world.round() == Pause(0.25)


def test_own_uploads_end_in_quiet(world: World) -> None:
    world.edit("a")
    assert world.next() == Round()
    # The stream tells of the upload while the round goes on, or after it: one more round at most.
    world.background.announce(1)
    step, rounds = world.round(), 1
    while isinstance(step, Round):
        world.background.announce(1)
        step, rounds = world.round(), rounds + 1
    assert rounds <= 2
    assert world.next() == Pause(0.25)


def wait(world: World, timeout_s: float | None) -> Loop:
    return until_synced(world.installation, PACE, now=world.now, chance=lambda: 0.0, timeout_s=timeout_s)


def give_up(world: World, steps: Loop, pauses: list[float]) -> None:
    """Fail each round and let the pauses go by, until the waiting ends."""
    failure: Exception | None = None
    while True:
        step = proceed(steps, failure)
        failure = GONE if isinstance(step, Round) else None
        if isinstance(step, Pause):
            pauses.append(step.seconds)
            world.time_s += step.seconds


def test_waiting_ends_exactly_at_its_time(world: World) -> None:
    world.edit("a")
    pauses: list[float] = []
    wanted = r"^not synced after 10 s: no answer; pending: users a \(not answered\)$"
    with pytest.raises(NotSynced, match=wanted) as raised:
        give_up(world, wait(world, 10.0), pauses)
    assert raised.value.__cause__ is GONE
    assert pauses == [1, 2, 4, 3]
