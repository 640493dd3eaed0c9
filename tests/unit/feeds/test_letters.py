"""Letters: how many are kept, which go first, and a retry that is under way."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import msgspec
import pytest

from upwell.clock import ManualClock
from upwell.engine.commit import Committer
from upwell.errors import RequestRefused
from upwell.feeds import letters as letters_module
from upwell.feeds.failures import Failures
from upwell.feeds.letters import Answered, Letters, load_conflicts, load_dead_letters
from upwell.feeds.upload import UploadLimits, Uploads
from upwell.protocol import sync
from upwell.storage.hot import Batch, Kind
from upwell.testing import wait_until
from upwell.testing.embedded import Embedded, memory_store


@pytest.fixture
def embedded(tmp_path: Path) -> Iterator[Embedded]:
    with Embedded(tmp_path, store=memory_store()) as embedded:
        embedded.run("CREATE NAMESPACE app")
        embedded.run(
            "CREATE TABLE app.notes (id TEXT PRIMARY KEY, body TEXT NOT NULL) WITH (TYPE='USER', SYNC=TRUE)"
        )
        yield embedded


class Desk:
    """Letters that are written as a wave writes them, at times of a clock of their own."""

    def __init__(self, committer: Committer) -> None:
        self.committer = committer
        self.clock = ManualClock()
        self._ids = count(1)

    def keep(self, *answers: Answered, user: str = "u", source: str = "s", is_retry: bool = False) -> None:
        letters = Letters(
            user,
            source,
            now_us=self.clock.now_us,
            next_id=lambda: next(self._ids),
            payload_bytes_max=100,
            is_retry=is_retry,
        )
        records = letters.records(self.committer.newest, answers)
        assert len({(record.kind, record.name) for record in records}) == len(records)
        self.committer.publication.wait(self.committer.apply(Batch(records=records)))
        self.clock.advance(1)

    def dead(self, user: str | None = None) -> list[int]:
        return sorted(letter.change_id for letter in load_dead_letters(self.committer.newest, user))

    def conflicts(self, user: str | None = None) -> list[int]:
        return sorted(conflict.change_id for conflict in load_conflicts(self.committer.newest, user))


def sent(number: int) -> sync.UploadChange:
    return sync.UploadChange(source_change_id=number, table="t", op="INSERT", pk="k", server_version=0)


def refused(number: int, reason: str = "bad_payload") -> Answered:
    status = sync.Status(
        source_change_id=number, status="invalid", message="m", invalid=sync.Invalid(reason=reason)
    )
    return Answered(sent(number), status)


def behind(number: int) -> Answered:
    row = sync.ServerRow(schema_name="s", table_name="t", id="k", server_version=7, deleted=True)
    return Answered(sent(number), sync.Status(source_change_id=number, status="conflict", server_row=row))


def done(number: int) -> Answered:
    return Answered(sent(number), sync.Status(source_change_id=number, status="applied"))


@pytest.fixture
def desk(embedded: Embedded, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.setattr(letters_module, "LETTERS_PER_USER_MAX", 5)
    return Desk(embedded.committer)


def test_the_oldest_letters_of_a_user_go(desk: Desk) -> None:
    for number in range(1, 8):
        desk.keep(refused(number), source="s" if number % 2 else "t")
    assert desk.dead() == [3, 4, 5, 6, 7]
    # What comes again is no new letter, and stays as old as it was.
    desk.keep(refused(3), source="s")
    assert desk.dead() == [3, 4, 5, 6, 7]
    desk.keep(refused(8))
    assert desk.dead() == [4, 5, 6, 7, 8]
    desk.keep(refused(9), user="other")
    assert (desk.dead("u"), desk.dead("other")) == ([4, 5, 6, 7, 8], [9])


def test_the_oldest_conflicts_of_a_user_go(desk: Desk) -> None:
    for number in range(1, 8):
        desk.keep(behind(number))
    assert desk.conflicts() == [3, 4, 5, 6, 7]
    # Answered again, a conflict is as new as its last answer.
    desk.keep(behind(3))
    desk.keep(behind(8))
    assert desk.conflicts() == [3, 5, 6, 7, 8]
    assert desk.dead() == []


def test_one_upload_with_more_than_are_kept_leaves_as_many_as_are_kept(desk: Desk) -> None:
    desk.keep(refused(100), behind(100))
    desk.keep(*[refused(number) for number in range(1, 10)], *[behind(number) for number in range(1, 10)])
    assert (len(desk.dead()), len(desk.conflicts())) == (5, 5)
    assert 100 not in desk.dead()
    assert 100 not in desk.conflicts()


def test_letters_are_bounded_in_bytes_too(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.keep(refused(1))
    ((_, record),) = desk.committer.newest.scan_records(Kind.DEAD_LETTER)
    monkeypatch.setattr(letters_module, "LETTERS_BYTES_PER_USER_MAX", 3 * len(record))
    for number in range(2, 6):
        desk.keep(refused(number))
    assert desk.dead() == [3, 4, 5]
    monkeypatch.setattr(letters_module, "LETTERS_BYTES_PER_USER_MAX", 1)
    desk.keep(refused(6))
    assert desk.dead() == [6]


def test_what_devices_keep_themselves_is_kept_in_a_retry_only(desk: Desk) -> None:
    desk.keep(refused(1, "fk_missing"), refused(2, "batch_too_large"))
    assert desk.dead() == []
    desk.keep(refused(1))
    desk.keep(refused(1, "fk_missing"), is_retry=True)
    (letter,) = load_dead_letters(desk.committer.newest)
    assert (letter.reason, letter.retry_count) == ("fk_missing", 1)
    desk.keep(behind(1), is_retry=True)
    assert (desk.dead(), desk.conflicts()) == ([], [])


def test_only_the_letter_of_the_applied_change_goes(desk: Desk) -> None:
    desk.keep(refused(1), refused(2), source="s")
    desk.keep(refused(1), source="t")
    desk.keep(done(1), done(3), source="s")
    left = [(letter.source, letter.change_id) for letter in load_dead_letters(desk.committer.newest)]
    assert left == [("s", 2), ("t", 1)]


def test_a_letter_is_retried_once_at_a_time(embedded: Embedded) -> None:
    defaults = embedded.engine.defaults
    uploads = Uploads(
        embedded.committer, embedded.rows_by_key, embedded.query, defaults, UploadLimits(100, 1000)
    )
    failures = Failures(embedded.committer.publication, uploads)
    payload = msgspec.Raw(b'{"id":"k","body":null}')
    change = sync.UploadChange(
        source_change_id=1,
        schema="app",
        table="notes",
        op="INSERT",
        pk="k",
        server_version=0,
        payload=payload,
    )
    uploads.upload("u", "s", sync.UploadRequest(changes=[change]))
    ((failure, retries),) = [(f.id, f.retry_count) for f in listed(failures)]
    assert retries == 0
    with ThreadPoolExecutor(1) as threads:
        with embedded.committer.lock:
            under_way = threads.submit(failures.retry, "u", failure)
            wait_until(lambda: is_refused(failures, failure), timeout_s=20, what="the retry to begin")
        assert under_way.result().status == "materialize_error"
    # The one that waited for nothing is counted, and afterwards it may be tried again.
    assert [f.retry_count for f in listed(failures)] == [1]
    embedded.run("SELECT 1")
    assert failures.retry("u", failure).status == "materialize_error"
    assert embedded.record_names(Kind.DEAD_LETTER) == ["u/s/1"]


def listed(failures: Failures) -> list[sync.MaterializeFailure]:
    return failures.newest("u", schema=None, table=None, limit=10)


def is_refused(failures: Failures, failure: int) -> bool:
    """Whether a retry of another thread keeps us from retrying; asked for a letter of nobody."""
    try:
        failures.retry("nobody", failure)
    except RequestRefused as refusal:
        return refusal.code == "retry_in_progress"
    raise AssertionError("nobody has letters")
