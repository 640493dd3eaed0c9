"""Acknowledged ⊆ recovered ⊆ attempted, each once; each kind of loss is seen."""

import threading

import pytest

from upwell.testing import ABSENT, AckLog


def written(log: AckLog, key: object, *values: object) -> None:
    for value in values:
        log.attempt(key, value)
        log.acknowledge(key, value)


def test_what_was_acknowledged_is_there() -> None:
    log = AckLog()
    written(log, 1, "a")
    written(log, 2, "b", "c")
    written(log, 3, "d", ABSENT)
    assert log.check({1: "a", 2: "c"}) == []
    assert (log.attempted_count, log.acknowledged_count) == (5, 5)


def test_a_lost_insert_update_and_delete_are_each_reported() -> None:
    log = AckLog()
    written(log, "insert", 1)
    written(log, "update", 1, 2)
    written(log, "delete", 1, ABSENT)
    assert log.check({"update": 1, "delete": 1}) == [
        "'insert': lost: found absent, possible are [1]",
        "'update': stale: found 1, possible are [2]",
        "'delete': stale: found 1, possible are [absent]",
    ]


def test_a_write_without_an_answer_may_be_there_or_not() -> None:
    log = AckLog()
    log.attempt(1, "a")
    assert log.check({}) == []
    assert log.check({1: "a"}) == []
    written(log, 2, "b")
    log.attempt(2, "c")
    assert log.check({2: "b"}) == log.check({2: "c"}) == []
    log.attempt(2, ABSENT)
    assert log.check({}) == []


def test_an_unanswered_write_that_a_later_acknowledged_one_replaced_is_stale() -> None:
    log = AckLog()
    log.attempt(1, "a")
    written(log, 1, "b")
    assert log.check({1: "b"}) == []
    assert log.check({1: "a"}) == ["1: stale: found 'a', possible are ['b']"]


def test_what_nobody_wrote_is_reported() -> None:
    log = AckLog()
    written(log, 1, "a")
    assert log.check({1: "x", 2: "y"}) == [
        "1: invented: found 'x', possible are ['a']",
        "2: invented: nobody wrote ['y']",
    ]


def test_a_row_found_twice_is_reported() -> None:
    log = AckLog()
    written(log, 1, "a")
    assert log.check([(1, "a"), (1, "a")]) == ["1: 2 rows for one key: ['a', 'a']"]


def test_a_refused_write_must_have_had_no_effect() -> None:
    log = AckLog()
    log.attempt(1, "a")
    log.refuse(1, "a")
    assert log.check({}) == []
    assert log.check({1: "a"}) == ["1: invented: nobody wrote ['a']"]


def test_writes_that_overlap_may_end_in_either_order() -> None:
    log = AckLog()
    log.attempt(1, "a", writer="x")
    log.attempt(1, "b", writer="y")
    log.acknowledge(1, "b")
    log.acknowledge(1, "a")
    assert log.check({1: "a"}) == log.check({1: "b"}) == []
    log.attempt(1, "c", writer="x")
    log.acknowledge(1, "c")
    assert log.check({1: "b"}) == ["1: stale: found 'b', possible are ['c']"]


def test_what_was_recovered_once_may_not_vanish_at_the_next_crash() -> None:
    log = AckLog()
    log.attempt(1, "a")
    log.attempt(2, "b")
    log.settle({1: "a"})
    assert log.check({1: "a"}) == []
    assert log.check({2: "b"}) == [
        "1: lost: found absent, possible are ['a']",
        "2: invented: nobody wrote ['b']",
    ]
    written(log, 1, "c")
    assert log.check({1: "c"}) == []


def test_an_answer_to_what_was_never_sent_is_a_mistake_of_the_test() -> None:
    with pytest.raises(AssertionError, match="never attempted"):
        AckLog().acknowledge(1, "a")


def test_many_threads_write_into_one_log() -> None:
    log = AckLog()
    threads = [
        threading.Thread(target=lambda t=t: [written(log, (t, n), n) for n in range(200)]) for t in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert log.acknowledged_count == 1_600
    assert log.check({(t, n): n for t in range(8) for n in range(200)}) == []
