"""Promise: identifiers sort by time, never repeat, and never go back with the clock."""

import uuid

from upwell.clock import ManualClock
from upwell.ids import Snowflakes, entries_between, job_id, snowflake_floor, snowflake_ms, ulid, uuid7

MS = 1_767_225_600_000


def test_a_snowflake_carries_time_worker_and_sequence() -> None:
    number = Snowflakes(ManualClock(MS * 1000), worker=5).next()
    assert number == (MS - 1_704_067_200_000) << 22 | 5 << 12
    assert snowflake_ms(number) == MS
    assert snowflake_floor(MS) == (MS - 1_704_067_200_000) << 22


def test_snowflakes_grow_although_the_clock_steps_back_or_stands_still() -> None:
    clock = ManualClock(MS * 1000)
    ids = Snowflakes(clock)
    numbers = [ids.next() for _ in range(5_000)]
    clock.advance(-3600)
    numbers += [ids.next() for _ in range(10)]
    assert numbers == sorted(set(numbers))


def test_snowflakes_start_above_what_was_given_before() -> None:
    later = snowflake_floor(MS + 60_000)
    assert Snowflakes(ManualClock(MS * 1000), after=later).next() == later + 1


def test_uuid7_is_a_version_7_uuid_of_its_time() -> None:
    made = uuid.UUID(uuid7(ManualClock(MS * 1000), lambda count: b"\xff" * count))
    assert (made.version, made.variant) == (7, uuid.RFC_4122)
    assert made.int >> 80 == MS


def test_ulid_is_26_characters_that_sort_by_time() -> None:
    clock = ManualClock(MS * 1000)
    first = ulid(clock, lambda count: b"\x00" * count)
    clock.advance(0.001)
    second = ulid(clock, lambda count: b"\x00" * count)
    assert len(first) == 26
    assert first < second
    assert first[10:] == "0" * 16


def test_a_job_id_is_a_prefix_and_twelve_digits() -> None:
    assert job_id("FL", lambda count: bytes(range(count))) == "FL-000102030405"


def test_entries_between_two_counters_also_over_an_epoch() -> None:
    assert [entries_between(*pair) for pair in ((0, 0), (3, 10), (10, 3))] == [0, 7, 0]
    assert entries_between(900, (1 << 32) + 4) == 4
    assert entries_between((1 << 32) + 1, (1 << 32) + 4) == 3
