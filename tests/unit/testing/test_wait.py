"""A wait ends as soon as its condition holds, and a failed one says what for."""

import pytest

from upwell.testing import WaitFailed, wait_until


class Time:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.s = 0.0

    def now(self) -> float:
        return self.s

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.s += seconds


def test_a_true_condition_is_not_waited_for() -> None:
    time = Time()
    assert wait_until(lambda: "it", timeout_s=1, what="it", now=time.now, sleep=time.sleep) == "it"
    assert time.s == 0


def test_the_first_true_result_is_returned() -> None:
    time = Time()
    answers = iter([[], None, 0, [7], [8]])
    assert wait_until(lambda: next(answers), timeout_s=1, what="it", now=time.now, sleep=time.sleep) == [7]


def test_a_failed_wait_names_its_condition_and_its_last_result() -> None:
    time = Time()
    with pytest.raises(WaitFailed, match=r"waited 2 s for three rows; last seen: \[\]"):
        wait_until(list, timeout_s=2, what="three rows", now=time.now, sleep=time.sleep)
    assert time.s == pytest.approx(2)


def test_the_condition_is_asked_once_more_at_the_end() -> None:
    time = Time()
    assert wait_until(lambda: time.s >= 2, timeout_s=2, what="it", now=time.now, sleep=time.sleep)
