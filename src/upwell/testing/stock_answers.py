"""The answers that a stock client takes: the types of their members are those that Go decodes them to.

Law: what a member of another type would break there is refused here; members that it doesn't know are not.
"""

from datetime import datetime
from typing import Annotated, Any

import httpx
import msgspec
from msgspec import Meta, Raw, Struct

Json = dict[str, Any]
Int64 = Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
Instant = Annotated[datetime, Meta(tz=True)]


class StockError(Exception):
    """A request that the stock client gives up: its status is not 200, or its body is not the protocol."""

    def __init__(self, message: str, status: int = 200) -> None:
        super().__init__(message)
        self.status = status


class _Status(Struct):
    source_change_id: Int64
    status: str
    new_server_version: Int64 | None = None
    server_row: Raw = Raw(b"null")
    message: str = ""
    invalid: Json | None = None


class UploadAnswer(Struct):
    """One status per change."""

    accepted: bool
    highest_server_seq: Int64
    statuses: list[_Status]


class _Change(Struct):
    server_id: Int64
    schema: str
    table: str
    op: str
    pk: str
    server_version: Int64
    deleted: bool
    source_id: str
    source_change_id: Int64
    ts: Instant
    payload: Raw = Raw(b"null")


class DownloadAnswer(Struct):
    """One page of the log."""

    changes: list[_Change]
    has_more: bool
    next_after: Int64
    window_until: Int64


def checked(response: httpx.Response, kind: type[Struct]) -> Json:
    """Return the body of an answer; raise `StockError` if it isn't a 200 with one of this kind."""
    if response.status_code != 200:
        raise StockError(f"status {response.status_code}: {response.text}", response.status_code)
    try:
        msgspec.json.decode(response.content, type=kind)
    except msgspec.MsgspecError as cause:
        raise StockError(f"not the protocol's answer: {cause}") from cause
    found: Json = response.json()
    return found
