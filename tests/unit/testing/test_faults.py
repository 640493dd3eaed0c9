"""Each fault fires once, at its call; a loop over all faults leaves none out and can't pass by accident."""

import errno
from pathlib import Path

import pytest

from upwell.testing import DroppingTransport, FailingFiles, FailOnce, PointActions, each_fault


def test_the_nth_step_fails_and_no_other() -> None:
    fault = FailOnce(2, ValueError("now"))
    fault.step()
    assert not fault.fired
    with pytest.raises(ValueError, match="now"):
        fault.step()
    fault.step()
    assert (fault.fired, fault.count) == (True, 3)


def test_a_failing_call_is_not_made(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    files = FailingFiles(1, OSError(errno.EIO, "broken"))
    with pytest.raises(OSError, match="broken"):
        files.remove(tmp_path / "a")
    assert files.trace == [("unlink", tmp_path / "a")]
    assert (tmp_path / "a").exists()


def test_an_armed_fault_counts_from_there(tmp_path: Path) -> None:
    files = FailingFiles(1_000)
    files.write_new(tmp_path / "a", b"x")
    files.arm(2)
    assert files.read(tmp_path / "a") == b"x"
    with pytest.raises(OSError, match="No space left"):
        files.read(tmp_path / "a")
    assert files.fired


def test_every_call_is_failed_once() -> None:
    failed: list[str] = []

    def run(n: int) -> bool:
        fault = FailOnce(n, KeyError())
        for step in "abc":
            try:
                fault.step()
            except KeyError:
                failed.append(step)
        return fault.fired

    assert each_fault(run) == 3
    assert failed == ["a", "b", "c"]


def test_a_failing_run_says_which_call_failed() -> None:
    def run(n: int) -> bool:
        assert n < 3, "broken"
        return True

    with pytest.raises(AssertionError, match="broken") as caught:
        each_fault(run)
    assert caught.value.__notes__ == ["in the run whose call number 3 fails"]


def test_a_loop_in_which_no_fault_fires_is_a_mistake() -> None:
    with pytest.raises(AssertionError, match="no fault fired"):
        each_fault(lambda n: False)


def test_a_loop_without_end_is_a_mistake() -> None:
    with pytest.raises(AssertionError, match="after 5 runs"):
        each_fault(lambda n: True, runs_max=5)


class Doubler:
    def __init__(self) -> None:
        self.requests: list[int] = []

    def send(self, request: int) -> int:
        self.requests.append(request)
        return request * 2

    def close(self) -> None:
        self.requests.append(0)


@pytest.mark.parametrize(("before", "received"), [(False, [1, 2, 3]), (True, [1, 3])])
def test_one_answer_is_lost_after_or_before_the_work(before: bool, received: list[int]) -> None:
    inner = Doubler()
    transport = DroppingTransport(inner, drop_at=2, before=before)
    assert transport.send(1) == 2
    with pytest.raises(ConnectionResetError):
        transport.send(2)
    assert transport.send(3) == 6
    transport.close()
    assert (inner.requests, transport.fired) == ([*received, 0], True)


def test_actions_run_at_their_points() -> None:
    done: list[str] = []
    points = PointActions({"flush:begin": lambda: done.append("begin")})
    points.reach("flush:begin")
    points.reach("flush:after-commit")
    assert (done, points.reached) == (["begin"], ["flush:begin", "flush:after-commit"])


def test_actions_at_unknown_points_are_refused() -> None:
    with pytest.raises(AssertionError, match="flush:nowhere"):
        PointActions({"flush:nowhere": lambda: None})
