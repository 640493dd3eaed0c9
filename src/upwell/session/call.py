"""A call: what one statement runs with."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from upwell.engine.expression import Context
from upwell.session.policy import Principal
from upwell.types import Value


@dataclass(frozen=True, slots=True)
class Call:
    """Who runs the statement, with which parameters, in which namespace, and what it knows of its session.

    `context` reads the clock anew each time.
    """

    principal: Principal
    values: Sequence[Value]
    namespace: str
    context: Callable[[], Context]
