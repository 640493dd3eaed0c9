"""An exchange: what the sync loop asks of its driver, one request after the other.

Law: the loop does no network I/O; a driver, blocking or asynchronous, sends what is yielded and sends the
answer back in. A prefetched request is answered when the loop yields that very request.
"""

from collections.abc import Generator
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from upwell.device.transport import Request, Response

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Prefetch:
    """Begin to send `request` and go on at once (the driver sends None back in)."""

    request: Request


Step: TypeAlias = Request | Prefetch
Exchange: TypeAlias = Generator[Step, Response | None, T]


def answer_to(request: Request) -> Exchange[Response]:
    """Yield the request and return its answer; for `yield from`."""
    response = yield request
    assert response is not None, "a driver answers each request"
    return response
