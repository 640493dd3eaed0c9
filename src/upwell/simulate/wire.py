"""A device's way to the server: real HTTP, recorded, on which answers get lost and children travel first.

Law: the server gets every request, in full; what is changed on the way is the order of an upload's changes
(and of the statuses, back again), never their content.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import msgspec

from upwell.demo.phone import Upload
from upwell.device import HttpTransport, Request, Response, Transport, Unreachable
from upwell.protocol import sync


@dataclass
class Wire:
    """`before` is called before each request; `in_flight` once, when the server has answered an upload;
    `loses_answer` is asked after each such answer.
    """

    client: httpx.Client
    is_children_first: bool = False
    before: Callable[[Request], object] = lambda _: None
    loses_answer: Callable[[], bool] = lambda: False
    in_flight: Callable[[], object] | None = None
    uploads: list[Upload] = field(default_factory=list)
    lost_count: int = 0
    _line: Transport | None = None

    def dial(self, url: str) -> Transport:
        """Connect to the server at `url`."""
        self._line = HttpTransport(url, self.client)
        return self

    def send(self, request: Request) -> Response:
        """Send a request; return the answer unless it is to be lost."""
        assert self._line is not None, "the device signs in before it sends"
        self.before(request)
        if request.path != sync.UPLOAD_PATH:
            return self._line.send(request)
        response = self._upload(request)
        action, self.in_flight = self.in_flight, None
        if action is not None:
            action()
        if self.loses_answer():
            self.lost_count += 1
            raise Unreachable("the answer was lost on the way (by the scenario, on purpose)")
        return response

    def close(self) -> None:
        """The connections belong to whoever made the client."""

    def sizes(self) -> list[int]:
        """How many changes each upload had."""
        return [len(upload.changes) for upload in self.uploads]

    def statuses(self) -> list[sync.Status]:
        """All statuses of all uploads."""
        return [status for upload in self.uploads for status in upload.statuses]

    def _upload(self, request: Request) -> Response:
        assert self._line is not None
        body: dict[str, Any] = msgspec.json.decode(request.body or b"")
        if self.is_children_first:
            reverse = body | {"changes": body["changes"][::-1]}
            response = self._line.send(replace(request, body=msgspec.json.encode(reverse)))
            response = _turned(response)
        else:
            response = self._line.send(request)
        if response.status == 200:
            statuses = sync.decode_upload_response(response.body).statuses
            self.uploads.append(Upload(request, body["changes"], statuses))
        return response


def _turned(response: Response) -> Response:
    if response.status != 200:
        return response
    answer: dict[str, Any] = msgspec.json.decode(response.body)
    answer["statuses"].reverse()
    return Response(response.status, msgspec.json.encode(answer))


def said(statuses: list[sync.Status]) -> dict[str, int]:
    """How often each answer was given."""
    return dict(Counter(map(_said, statuses)))


def _said(status: sync.Status) -> str:
    if status.new_server_version is not None:
        return f"{status.status} as version {status.new_server_version}"
    if status.invalid is not None:
        return status.invalid.reason
    return f"{status.status}, repeated" if status.duplicate else status.status
