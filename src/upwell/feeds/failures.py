"""Failures: a user's dead letters as devices see them, and their second chance.

Law: a retry does what an upload of the same change would do now; one letter is retried once at a time.

Protocol: device sync contract, section 1.10.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import msgspec

from upwell.engine.view import Publication
from upwell.errors import RequestRefused
from upwell.feeds.letters import DeadLetter, load_dead_letters
from upwell.feeds.upload import Uploads
from upwell.protocol import sync

LIMIT_DEFAULT = 100
LIMIT_MAX = 1_000
STALE = "failure was stale; removed"


class Failures:
    """Lists and retries dead letters; blocks its thread."""

    def __init__(self, publication: Publication, uploads: Uploads) -> None:
        self._publication = publication
        self._uploads = uploads
        self._retried: set[int] = set()
        self._lock = threading.Lock()

    def newest(
        self, user: str, *, schema: str | None, table: str | None, limit: int
    ) -> list[sync.MaterializeFailure]:
        """Return a user's dead letters, newest first."""
        found = [
            letter
            for letter in self._letters(user)
            if schema in (None, letter.schema) and table in (None, letter.table)
        ]
        found.sort(key=lambda letter: (letter.first_seen_us, letter.id), reverse=True)
        return [_shown(letter) for letter in found[: limit if 0 < limit <= LIMIT_MAX else LIMIT_DEFAULT]]

    def retry(self, user: str, letter_id: int) -> sync.Status:
        """Apply a dead letter if that is possible by now; say what became of it."""
        with self._alone(letter_id):
            letter = next((each for each in self._letters(user) if each.id == letter_id), None)
            if letter is None:
                raise RequestRefused("not_found", f"there is no failure {letter_id}")
            if not letter.is_whole:
                return _failed(letter.reason, letter.error)
            return _outcome(self._uploads.retry(letter))

    def _letters(self, user: str) -> list[DeadLetter]:
        return load_dead_letters(self._publication.view.hot, user)

    @contextmanager
    def _alone(self, letter_id: int) -> Iterator[None]:
        with self._lock:
            if letter_id in self._retried:
                raise RequestRefused("retry_in_progress", f"failure {letter_id} is being retried")
            self._retried.add(letter_id)
        try:
            yield
        finally:
            self._retried.discard(letter_id)


def _outcome(status: sync.Status) -> sync.Status:
    """Return the answer to a retry whose change was answered by `status`."""
    if status.server_row is not None:
        return sync.Status(
            source_change_id=0,
            status="applied",
            new_server_version=status.server_row.server_version,
            message=STALE,
        )
    if status.invalid is not None:
        return _failed(status.invalid.reason, status.message or bytes(status.invalid.details).decode())
    version = status.new_server_version
    version = status.current_server_version if version is None else version
    return sync.Status(source_change_id=0, status="applied", new_server_version=version)


def _failed(reason: str, message: str) -> sync.Status:
    return sync.Status(source_change_id=0, status="materialize_error", message=f"{reason}: {message}")


def _shown(letter: DeadLetter) -> sync.MaterializeFailure:
    return sync.MaterializeFailure(
        id=letter.id,
        user_id=letter.user,
        schema=letter.schema,
        table=letter.table,
        pk=letter.pk,
        attempted_version=letter.attempted_version,
        op=letter.op,
        payload=msgspec.UNSET if letter.payload is None else _json(letter.payload),
        error=f"{letter.reason}: {letter.error}",
        first_seen=_moment(letter.first_seen_us),
        retry_count=letter.retry_count,
        source_id=letter.source,
        source_change_id=letter.change_id,
    )


def _json(payload: bytes) -> msgspec.Raw:
    """Return the payload as it came; one that is no proper JSON as a text."""
    try:
        msgspec.json.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return msgspec.Raw(msgspec.json.encode(payload.decode(errors="replace")))
    return msgspec.Raw(payload)


def _moment(time_us: int) -> str:
    return datetime.fromtimestamp(time_us / 1_000_000, UTC).isoformat(timespec="milliseconds")
