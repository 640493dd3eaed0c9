"""Pauses after failures: between one and two times the doubled first one, never more than the bound."""

from hypothesis import given
from hypothesis import strategies as st

from upwell.device import Pace


@given(st.integers(1, 10_000), st.floats(0, 1, exclude_max=True))
def test_a_pause_is_within_its_bounds(failures: int, chance: float) -> None:
    pause_s = Pace(backoff_min_s=1.0, backoff_max_s=60.0).backoff_s(failures, chance)
    assert min(2.0 ** min(failures - 1, 10), 30.0) <= pause_s <= 60.0


def test_no_two_devices_keep_step() -> None:
    pace = Pace()
    assert [pace.backoff_s(1, chance) for chance in (0.0, 0.25, 0.5)] == [1.0, 1.25, 1.5]
