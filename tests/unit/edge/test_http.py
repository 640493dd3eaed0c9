"""The parameters of a request: their number is judged before any of them is looked at."""

import pytest

from upwell.edge.http import _params
from upwell.errors import ParameterError, RequestRefused


def test_too_many_parameters_are_refused_before_any_is_looked_at() -> None:
    message = "Parameter count exceeded: maximum 50 parameters allowed, got 51"
    with pytest.raises(ParameterError, match=message):
        _params([[]] * 51)
    with pytest.raises(RequestRefused, match=r"Parameter \$50 invalid: Array"):
        _params([1] * 49 + [[]])
    assert _params([1] * 50) == [1] * 50
