"""The registry on a store in memory: notes, records behind them, and what a crash leaves."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest

from upwell.clock import ManualClock
from upwell.effects import NoPoints
from upwell.engine.commit import Committer
from upwell.engine.names import source_name
from upwell.feeds import registry as registry_module
from upwell.feeds.registry import ANY_NUMBER, DeviceRecord, Registry, load_devices
from upwell.storage.hot import Batch, Kind, RecordWrite
from upwell.storage.memory import MemoryStore
from upwell.testing import wait_until

START_US = 1_800_000_000_000_000
SECOND_US = 1_000_000


class Desk:
    """A committer that can be asked for a registry anew, as after a crash."""

    def __init__(self) -> None:
        self.clock = ManualClock(START_US)
        self.committer = Committer(MemoryStore(clock=self.clock), points=NoPoints())

    def registry(self) -> Registry:
        return Registry(self.committer, self.clock)

    def recorded(self, user: str | None = None) -> list[DeviceRecord]:
        return load_devices(self.committer.newest, user)


@pytest.fixture
def desk() -> Iterator[Desk]:
    desk = Desk()
    yield desk
    desk.committer.close()


def test_a_note_costs_no_commit(desk: Desk) -> None:
    registry = desk.registry()
    before = desk.committer.last_seq
    for cursor in range(100):
        registry.note("u", "s", cursor)
    assert desk.committer.last_seq == before
    assert registry.devices() == [DeviceRecord("u", "s", 99, START_US, START_US, given=0)]
    assert desk.recorded() == []


def test_what_changed_is_recorded_in_one_commit_and_only_once(desk: Desk) -> None:
    registry = desk.registry()
    for user in ("u", "v"):
        for source in ("s", "t"):
            registry.note(user, source, 1)
    registry.write()
    assert desk.recorded() == registry.devices()
    assert [(d.user, d.source) for d in desk.recorded("v")] == [("v", "s"), ("v", "t")]
    after_first = desk.committer.last_seq
    registry.write()
    assert desk.committer.last_seq == after_first
    registry.note("u", "s", 2)
    registry.write()
    assert desk.committer.last_seq > after_first
    assert {d.cursor for d in desk.recorded()} == {1, 2}


def test_more_than_fit_into_one_commit_are_all_recorded(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_module, "COMMIT_RECORDS_MAX", 3)
    registry = desk.registry()
    for number in range(10):
        registry.note("u", f"s{number}", number)
    registry.write()
    assert [device.cursor for device in desk.recorded()] == list(range(10))


def test_a_crash_makes_a_cursor_older_never_newer(desk: Desk) -> None:
    registry = desk.registry()
    registry.note("u", "s", 5)
    registry.write()
    desk.clock.advance(1)
    registry.note("u", "s", 9)
    registry.note("u", "t", 9)
    again = desk.registry()
    assert again.devices("u") == [DeviceRecord("u", "s", 5, START_US, START_US, given=0)]
    # Whoever comes without a cursor keeps the recorded one, and the time it was first seen.
    again.note("u", "s", None)
    assert again.devices("u") == [DeviceRecord("u", "s", 5, START_US, START_US + SECOND_US, given=0)]


def test_a_crash_forgets_no_number_that_a_device_may_hold(desk: Desk) -> None:
    registry = desk.registry()
    registry.give("u", "s", 10, asked=0)
    assert desk.registry().find("u", "s").given == 15, "half as much again is recorded"
    commits = desk.committer.last_seq
    registry.give("u", "s", 14, asked=10)
    assert desk.committer.last_seq == commits
    assert (registry.find("u", "s").asked, desk.registry().find("u", "s").asked) == (10, 0)
    registry.write()
    registry.give("u", "s", 12, asked=3)
    assert desk.registry().find("u", "s").asked == 3, "an earlier number is recorded at once"
    registry.give("u", "s", 12, asked=10)
    registry.give("u", "s", 2, asked=None)
    assert desk.registry().find("u", "s").asked == 2, "a hydration may have begun before"


def test_a_record_of_a_version_that_kept_no_numbers_says_any(desk: Desk) -> None:
    old = msgspec.msgpack.encode(("u", "s", 5, START_US, START_US))
    desk.committer.apply(Batch(records=[RecordWrite(Kind.DEVICE, source_name("u", "s"), old)]))
    device = desk.registry().find("u", "s")
    assert (device.cursor, device.asked, device.given) == (5, 0, ANY_NUMBER)


def test_the_slowest_cursor_is_that_of_the_devices_seen_since(desk: Desk) -> None:
    registry = desk.registry()
    registry.note("u", "old", 1)
    registry.write()
    desk.clock.advance(10)
    registry.note("u", "new", 7)
    registry.note("other", "s", 3)
    assert registry.slowest_cursor("u", START_US) == 1
    assert registry.slowest_cursor("u", START_US + SECOND_US) == 7
    assert registry.slowest_cursor("u", START_US + 20 * SECOND_US) is None
    assert registry.slowest_cursor("nobody", 0) is None
    registry.note("u", "fresh", None)
    assert registry.slowest_cursor("u", START_US) == 1, "one that only uploads holds nothing"


def test_notes_of_many_threads_and_their_recording_lose_nothing(desk: Desk) -> None:
    registry = desk.registry()

    def notes(thread: int) -> None:
        for cursor in range(200):
            registry.note("u", f"s{thread}", cursor)
            registry.note("u", f"t{thread}-{cursor}", cursor)
            if cursor % 7 == thread:
                registry.write()

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(notes, range(4)))
    registry.write()
    expected = {f"s{t}": 199 for t in range(4)} | {f"t{t}-{c}": c for t in range(4) for c in range(200)}
    assert {device.source: device.cursor for device in desk.recorded()} == expected


async def test_the_loop_records_by_itself(desk: Desk) -> None:
    registry = desk.registry()
    with ThreadPoolExecutor(1) as threads:
        task = asyncio.create_task(registry.run(threads, interval_s=0.001))
        registry.note("u", "s", 1)
        await asyncio.to_thread(wait_until, desk.recorded, timeout_s=20, what="a record")
        task.cancel()
    assert [device.cursor for device in desk.recorded()] == [1]
