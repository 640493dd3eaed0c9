"""The sync loop as generators: they yield requests and receive answers, and do no I/O but on the SQLite file.

Laws: the cursor moves only in the transaction that stores what it covers; an answer that isn't complete and
well-formed changes nothing; a file with a given source hydrates before its first upload, so that change ids
aren't used twice.
"""

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from upwell.device.answers import (
    FINAL_REASONS,
    added,
    decoded,
    is_pruned,
    reason_of,
    too_large,
    upload_answer,
)
from upwell.device.apply import Applier, Outcome
from upwell.device.attempts import Attempts
from upwell.device.capture import Capture, queue_unknown
from upwell.device.codec import Undecodable
from upwell.device.conflict import Resolver, Settlement
from upwell.device.exchange import Exchange, Prefetch, answer_to
from upwell.device.failures import AnswerRefused
from upwell.device.file import Reading, SyncFile
from upwell.device.groups import apart_from, groups_of
from upwell.device.history import History
from upwell.device.load import Loader, check_page
from upwell.device.orphans import Orphans
from upwell.device.outbox import Outbox, Outgoing, acknowledged_version, is_repeated, upload_change
from upwell.device.report import DownloadReport, HydrateReport, Phase, Progress, SyncReport, UploadReport
from upwell.device.transport import Request
from upwell.logs import fields
from upwell.protocol import sync as wire

log = logging.getLogger("upwell.device")

HYDRATE_RESTARTS_MAX = 3
PAGE_ROWS = 5_000


class Syncer:
    """One file against one server, one exchange at a time."""

    def __init__(
        self,
        file: SyncFile,
        capture: Capture,
        *,
        schema: str,
        upload_limit: int,
        download_limit: int,
        resolver: Resolver,
        on_progress: Callable[[Progress], None] | None,
    ) -> None:
        self._file = file
        self._capture = capture
        self._schema = schema
        self._upload_limit = upload_limit
        self._download_limit = download_limit
        self._on_progress = on_progress
        self._applier = Applier(file)
        self._loader = Loader(file, self._applier)
        self._orphans = Orphans(file, self._applier)
        self._outbox = Outbox(file)
        self._history = History(file, capture)
        self._settlement = Settlement(file, self._applier, self._outbox, resolver)

    # --- one round

    def sync(self) -> Exchange[SyncReport]:
        """Hydrate if the file never was, upload, download."""
        hydrated = None if self.is_hydrated() else (yield from self.hydrate(PAGE_ROWS))
        uploaded = yield from self.upload()
        downloaded = yield from self.download()
        if self._file.count("attempts = 0 AND quarantined = 0", "_sync_pending"):
            # The download revived parents of rows that were refused, or told that a table was made anew.
            again = yield from self.upload()
            uploaded = added(uploaded, again)
        return SyncReport(hydrated, uploaded, downloaded)

    def is_hydrated(self) -> bool:
        """True when the file holds everything up to its cursor."""
        return bool(self._file.find("hydrated"))

    def _prepare(self) -> Exchange[None]:
        self.refresh()
        must_hydrate = self._file.identity().is_source_forced or self._file.find("must_hydrate")
        if must_hydrate and not self.is_hydrated():
            yield from self.hydrate(PAGE_ROWS)

    def refresh(self) -> None:
        """Follow a change of the app's tables, if the file still is of whom has signed in."""
        self._file.require_owner()
        if self._capture.refresh():
            with self._file.applying():
                self._applier.adopt_extra(self._capture.tables)
        self._capture.sweep()

    # --- upload

    def upload(self) -> Exchange[UploadReport]:
        """Upload until nothing is pending, or nothing of what is left gets through."""
        yield from self._prepare()
        report, total = UploadReport(), self._file.pending_count()
        attempts = Attempts(self._upload_limit, partial(groups_of, self._file, self._capture.tables))
        while batch := self._next_batch(attempts):
            response = yield from answer_to(self._upload_request(batch))
            report = replace(report, requests=report.requests + 1, sent=report.sent + len(batch))
            answer = upload_answer(response, batch)
            if answer is None and len(batch) > 1:
                self._outbox.shorten(batch, (len(batch) + 1) // 2 if attempts.halve(len(batch)) else 0)
                continue
            statuses = answer.statuses if answer else [too_large(batch[0])]
            stored = self._store(batch, statuses, report, head=answer.highest_server_seq if answer else 0)
            if stored is None:
                continue
            report = stored
            attempts.note(batch, statuses)
            self._tell("upload", min(report.applied + report.invalid, total), total)
        return self._uploaded(report, oversized=attempts.oversized)

    def _next_batch(self, attempts: Attempts) -> list[Outgoing]:
        batch = self._freeze(attempts)
        while not batch and attempts.widen():
            batch = self._freeze(attempts)
        return batch

    def _freeze(self, attempts: Attempts) -> list[Outgoing]:
        return self._outbox.freeze(self._capture.tables, attempts.limit, attempts.skip)

    def _uploaded(self, report: UploadReport, *, oversized: int) -> UploadReport:
        with self._file.applying():
            self._file.put("oversized", str(oversized or ""))
            is_settling = self._applier.settle_withheld(self._capture.tables)
            # Rows of conflicts, or of a pass that was cut off between two pages, may have come before their
            # parents.
            if is_settling or self._file.find("pass"):
                self._orphans.settle(self._capture.tables)
        pending = self._file.pending_count()
        deferred = self._file.count("attempts > 0 AND quarantined = 0", "_sync_pending")
        report = replace(report, pending=pending, deferred=deferred)
        if report.requests and not pending:
            log.info(
                "All changes uploaded successfully", extra=fields(uploaded=report.applied, sent=report.sent)
            )
        return report

    def _upload_request(self, batch: list[Outgoing]) -> Request:
        changes = [upload_change(self._schema, self._capture.tables, sent) for sent in batch]
        body = wire.encode(wire.UploadRequest(changes=changes, last_server_seq_seen=self._file.cursor()))
        return Request("POST", wire.UPLOAD_PATH, body=body)

    def _store(
        self, batch: list[Outgoing], statuses: list[wire.Status], report: UploadReport, *, head: int
    ) -> UploadReport | None:
        """Store an answer; None if another process has stored one to this batch before."""
        with self._file.applying():
            if self._outbox.outstanding() != batch:
                return None
            self._file.note_head(head)
            answered = list(zip(batch, statuses, strict=True))
            applied = [(sent, status) for sent, status in answered if status.status == "applied"]
            self._outbox.acknowledge([(sent, acknowledged_version(sent, s)) for sent, s in applied])
            for sent, status in applied:
                if status.current_deleted and (status.current_server_version or 0) > 0:
                    # Repeated, and deleted since: a hydration in between may have stepped over that.
                    self._applier.await_deletion(sent.row, status.current_server_version or 0)
            refused = [(sent, status) for sent, status in answered if status.status != "applied"]
            held = {sent.row for sent, status in refused if reason_of(status)[0] == wire.HAS_CHILDREN}
            elsewhere = self._outbox.deletions_elsewhere() if held else set()
            held_by_others = apart_from(self._file, self._capture.tables, held, elsewhere)
            conflicts = report.conflicts
            for sent, status in refused:
                report = self._settle(sent, status, report, may_undelete=sent.row in held_by_others)
            if report.conflicts > conflicts:
                self._file.put("pass", "open")
            self._outbox.clear()
        repeated = sum(is_repeated(sent, status) for sent, status in applied)
        return replace(report, applied=report.applied + len(applied), duplicates=report.duplicates + repeated)

    def _settle(
        self, sent: Outgoing, status: wire.Status, report: UploadReport, *, may_undelete: bool
    ) -> UploadReport:
        match status:
            case wire.Status(status="conflict", server_row=wire.ServerRow() as found):
                try:
                    self._settlement.resolve(self._capture.tables, sent, found)
                except Undecodable as cause:
                    raise AnswerRefused(f"the server's row of a conflict can't be read: {cause}") from cause
                return replace(report, conflicts=report.conflicts + 1)
            case wire.Status(invalid=wire.Invalid(reason=wire.HAS_CHILDREN)) if (
                may_undelete and self._settlement.undelete(self._capture.tables, sent)
            ):
                return replace(report, conflicts=report.conflicts + 1)
            case _:
                reason, detail = reason_of(status)
                is_final = reason in FINAL_REASONS
                self._outbox.refuse(sent, reason, detail, is_final=is_final)
                is_invalid = is_final or reason == wire.UNREGISTERED_TABLE
                return replace(report, invalid=report.invalid + is_invalid)

    def retry_refused(self) -> int:
        """Queue all quarantined changes again; return how many."""
        return self._outbox.retry_refused()

    def discard(self, table: str, key: str) -> bool:
        """Give up the quarantined change of a row; tell whether there was one."""
        with self._file.applying():
            return self._settlement.discard(self._capture.tables, (table.lower(), key))

    def waiting(self) -> str | None:
        """Say which changes wait for the server to be set up otherwise; None if none does."""
        waiting, oversized = self._outbox.unregistered(), self._file.find("oversized")
        if oversized:
            return (
                f"{oversized} changes refer to each other and only go together; the server takes fewer in one"
                " upload: raise its upload_changes_max, or let the app write their references afterwards"
            )
        if not waiting:
            return None
        tables = ", ".join(f"{self._schema}.{table} ({count} pending)" for table, count in waiting)
        return f"the server doesn't know, or doesn't sync, {tables}; each upload tries again"

    # --- download

    def download(self) -> Exchange[DownloadReport]:
        """Read the log from the cursor to its end, as it was at the first page."""
        yield from self._prepare()
        report, until = DownloadReport(cursor=self._file.cursor()), 0
        while True:
            asked = self._file.reading()
            page = (yield from self._page(asked, until)) if not asked.is_hydrating else None
            if page is None:
                hydrated = yield from self.hydrate(PAGE_ROWS)
                received = report.received + hydrated.rows + hydrated.entries
                return replace(report, received=received, applied=received, cursor=self._file.cursor())
            outcomes = self._store_page(page, asked)
            until = page.window_until
            if outcomes is None:
                continue
            report = DownloadReport(
                requests=report.requests + 1,
                received=report.received + len(page.changes),
                applied=report.applied + outcomes[Outcome.APPLIED],
                withheld=report.withheld + outcomes[Outcome.WITHHELD],
                cursor=self._file.cursor(),
            )
            self._tell("download", report.received, None)
            if not page.has_more:
                self._close_pass()
                return report

    def _page(
        self, asked: Reading, until: int, *, is_self_included: bool = False
    ) -> Exchange[wire.DownloadResponse | None]:
        """Fetch one page after the cursor; None if the server can't go on from there."""
        after = asked.cursor
        query = [("after", str(after)), ("limit", str(self._download_limit)), ("schema", self._schema)]
        if is_self_included:
            query.append(("include_self", "true"))
        if until:
            query.append(("until", str(until)))
        response = yield from answer_to(Request("GET", wire.DOWNLOAD_PATH, tuple(query)))
        if is_pruned(response):
            self._history.restart(asked)
            return None
        page = decoded(response, wire.decode_download_response)
        if page.has_more and page.next_after <= after:
            raise AnswerRefused(f"the server has more after {after} but doesn't move the cursor")
        if self._history.is_other(page.stream_id, asked):
            return None
        return page

    def _store_page(
        self, page: wire.DownloadResponse, asked: Reading, hydration: int = 0
    ) -> Counter[Outcome] | None:
        """Store a page of the log; None if another process was faster."""
        with self._file.applying():
            if self._file.reading() != asked:
                return None
            self._history.note(page.stream_id, page.table_numbers)
            outcomes = Counter(
                self._applier.receive(self._capture.tables, c, hydration) for c in page.changes
            )
            self._file.set_cursor(max(page.next_after, self._file.cursor()))
            self._file.note_head(page.max_server_id or page.window_until)
            if page.changes:
                self._file.put("pass", "open")
        return outcomes

    def _close_pass(self) -> None:
        with self._file.applying():
            # A whole log, read from its beginning by a source that never wrote before, is a hydration too.
            if not self._file.reading().is_hydrating:
                self._file.put("hydrated", "1")
            if self._file.find("pass"):
                self._applier.settle_withheld(self._capture.tables)
                self._orphans.settle(self._capture.tables)
                self._file.put("pass", "")

    # --- hydration

    def hydrate(self, page_rows: int = PAGE_ROWS) -> Exchange[HydrateReport]:
        """Read all live rows, then the log from where that began; goes on where an interruption was."""
        self.refresh()
        report = HydrateReport()
        with self._file.loading():
            for _ in range(HYDRATE_RESTARTS_MAX):
                if self._file.find("hydration_phase") != "log":
                    report = yield from self._hydrate_rows(page_rows, report)
                if self._file.find("hydration_phase") == "log":
                    report = yield from self._hydrate_log(report)
                if self.is_hydrated():
                    return self._hydrated(report)
        raise AnswerRefused("the server's history changed during each hydration")

    def _hydrate_rows(self, page_rows: int, report: HydrateReport) -> Exchange[HydrateReport]:
        self._begin_hydration()
        while self._file.find("hydration_phase") == "rows":
            asked = self._file.reading()
            response = yield from answer_to(self._hydrate_request(page_rows, asked.hydration_cursor))
            if is_pruned(response):
                self._history.restart(asked)
                return report
            page = decoded(response, wire.decode_hydrate_response)
            if self._history.is_other(page.stream_id, asked):
                return report
            if page.has_more and page.cursor in ("", asked.hydration_cursor):
                raise AnswerRefused("the server has more rows but doesn't move the hydration cursor")
            for table in page.tables:
                check_page(table)
            if page.has_more:
                # The server makes the next page while this one is stored.
                yield Prefetch(self._hydrate_request(page_rows, page.cursor))
            if not self._store_rows(page, asked):
                continue
            rows = report.rows + sum(len(table.rows) for table in page.tables)
            report = replace(
                report, requests=report.requests + 1, rows=rows, next_change_id=page.next_change_id
            )
            self._tell("hydrate", rows, None)
        return report

    def _hydrate_request(self, page_rows: int, cursor: str) -> Request:
        query = (("schema", self._schema), ("limit", str(page_rows)), ("cursor", cursor))
        return Request("GET", wire.HYDRATE_PATH, query if cursor else query[:2])

    def _begin_hydration(self) -> None:
        with self._file.transaction():
            reading = self._file.reading()
            if reading.phase != "rows":
                self._file.put("hydration", str(reading.hydration + 1))
                self._file.put("hydration_phase", "rows")
                self._file.put("hydration_cursor", "")
                self._file.put("hydrated", "")
                self._file.put("must_hydrate", "1")

    def _store_rows(self, page: wire.HydrateResponse, asked: Reading) -> bool:
        """Store a page of rows; False if another process was faster."""
        with self._file.applying():
            if self._file.reading() != asked:
                return False
            self._history.note(page.stream_id, page.table_numbers)
            for table in page.tables:
                self._loader.load(self._capture.tables, table, asked.hydration)
            self._file.put("hydration_cursor", page.cursor)
            self._file.learn_change_id(page.next_change_id)
            self._file.note_head(page.max_server_id or page.next_after)
            if not page.has_more:
                self._file.put("hydration_phase", "log")
                self._file.set_cursor(page.next_after)
        self._file.checkpoint_if_large()
        return True

    def _hydrate_log(self, report: HydrateReport) -> Exchange[HydrateReport]:
        source, until = self._file.identity().source, 0
        while self._file.find("hydration_phase") == "log":
            asked = self._file.reading()
            page = yield from self._page(asked, until, is_self_included=True)
            if page is None:
                return report
            until = page.window_until
            if self._store_page(page, asked, asked.hydration) is None:
                continue
            own = max((c.source_change_id for c in page.changes if c.source_id == source), default=0)
            self._learn(own + 1)
            entries = report.entries + len(page.changes)
            report = replace(
                report,
                requests=report.requests + 1,
                entries=entries,
                next_change_id=max(report.next_change_id, own + 1),
            )
            self._tell("hydrate", report.rows + entries, None)
            if not page.has_more:
                self._end_hydration()
        return report

    def _learn(self, least: int) -> None:
        if least > 1:
            with self._file.transaction():
                self._file.learn_change_id(least)

    def _end_hydration(self) -> None:
        tables = self._capture.tables
        with self._file.applying() as connection:
            if self._file.find("hydration_phase") != "log":
                return
            self._applier.settle_withheld(tables)
            self._applier.drop_unseen(tables, self._file.reading().hydration)
            self._orphans.settle(tables)
            for shape in tables:
                if self._applier.has_unknown(shape):
                    queue_unknown(connection, shape)
            self._file.put("hydration_phase", "done")
            self._file.put("hydrated", "1")
            self._file.put("pass", "")

    def _hydrated(self, report: HydrateReport) -> HydrateReport:
        with self._file.transaction():
            if not self._file.reading().is_hydrating:
                self._file.put("hydration_phase", "")
        log.info(
            "Fresh install and hydration finished",
            extra=fields(rows=report.rows, entries=report.entries, requests=report.requests),
        )
        return report

    def _tell(self, phase: Phase, done: int, total: int | None) -> None:
        if self._on_progress is not None:
            self._on_progress(Progress(phase, done, total))
