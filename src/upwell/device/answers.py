"""Answers: what the server said, as the sync loop takes it; what isn't whole and well-formed is refused."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import msgspec

from upwell.device.failures import AnswerRefused
from upwell.device.outbox import Outgoing
from upwell.device.report import UploadReport
from upwell.device.transport import Response, refusal
from upwell.protocol import sync as wire

T = TypeVar("T")

FINAL_REASONS = (wire.BAD_PAYLOAD, wire.BATCH_TOO_LARGE)
"""These stay wrong until the app edits the row; a table that the server doesn't know may be created later."""


def upload_answer(response: Response, batch: Sequence[Outgoing]) -> wire.UploadResponse | None:
    """Return the answer to an upload; None if the whole batch was refused as too large."""
    if response.status == 413:
        return None
    answer = decoded(response, wire.decode_upload_response)
    if [status.source_change_id for status in answer.statuses] != [sent.change_id for sent in batch]:
        raise AnswerRefused(f"{len(batch)} changes were sent, the statuses that came back are of others")
    is_too_large = any(reason_of(status)[0] == wire.BATCH_TOO_LARGE for status in answer.statuses)
    return None if is_too_large and not answer.accepted else answer


def too_large(sent: Outgoing) -> wire.Status:
    """Return the status of a change that is too large by itself."""
    invalid = wire.Invalid(reason=wire.BATCH_TOO_LARGE)
    return wire.Status(source_change_id=sent.change_id, status="invalid", invalid=invalid)


def reason_of(status: wire.Status) -> tuple[str, str]:
    """Return why a change was not applied: a reason of the protocol, and a text."""
    if status.invalid is None:
        return status.status, status.message or ""
    return status.invalid.reason, status.message or bytes(status.invalid.details).decode()


def is_pruned(response: Response) -> bool:
    """Whether the server can't go on from where it was asked to."""
    return response.status in (409, 410) and refusal(response).code == wire.HISTORY_PRUNED


def decoded(response: Response, decode: Callable[[bytes], T]) -> T:
    """Return the body of a 200; raise what any other answer is."""
    if response.status != 200:
        raise refusal(response)
    try:
        return decode(response.body)
    except msgspec.MsgspecError as cause:
        raise AnswerRefused(f"not the protocol's answer: {cause}") from cause


def added(first: UploadReport, then: UploadReport) -> UploadReport:
    """Return what two uploads did together; what is left is what the later one left."""
    counted = ("requests", "sent", "applied", "duplicates", "conflicts", "invalid")
    return replace(then, **{name: getattr(first, name) + getattr(then, name) for name in counted})
