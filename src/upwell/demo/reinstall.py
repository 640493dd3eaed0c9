"""Part 7: the app is deleted and installed again; everything comes back, and work goes on.

Law: a new SQLite file of the same user and source ends row for row like the old one, without what was
deleted, and its next change is a new change to the server.
"""

import logging
import math

from upwell.demo.expected import TABLES, Post, renamed
from upwell.demo.online import check_live, check_rows, newest_version
from upwell.demo.phone import App
from upwell.demo.sql import Entry, read_log
from upwell.demo.world import SOURCE, Counts, World
from upwell.logs import fields

log = logging.getLogger("upwell.demo")

PAGE_ROWS = 50


def reinstall(world: World) -> Counts:
    """Close the old phone, hydrate a new file in pages, compare, edit and upload."""
    checks, old = world.checks, world.phone
    old.device.sync()
    before = old.contents()
    for table in TABLES:
        checks.equal(f"{table} on the old phone", world.expected.on_device(table), before[table])
    id_max = max(entry.change_id or 0 for entry in read_log(world.owner) if entry.device == SOURCE)
    checks.equal("pending on the old phone", 0, len(old.device.pending()))
    old.device.sign_out()
    old.device.close()

    new = world.install("phone-reinstalled", source=SOURCE)
    checks.equal("rows in the fresh file", {table: [] for table in TABLES}, new.contents())
    world.sign_in(new)
    rows = sum(world.expected.count(table) for table in TABLES)
    with world.timed("hydration_s"):
        report = new.device.hydrate(page_rows=PAGE_ROWS)
    checks.equal("hydrated rows", rows, report.rows)
    checks.equal("pages of at most 50 rows", _pages(rows), new.wire.pages)
    _check_restored(world, new, before)
    checks.equal("the next change id is above the old one's", id_max + 1, new.device.status().next_change_id)
    uploaded = _edit_again(world, new)
    check_rows(world, "after the reinstallation")
    check_live(world)
    return {"rows_restored": rows, "pages": len(new.wire.pages), "uploaded": uploaded}


def _pages(rows: int) -> list[int]:
    count = math.ceil(rows / PAGE_ROWS)
    return [min(PAGE_ROWS, rows - PAGE_ROWS * page) for page in range(count)]


def _check_restored(world: World, new: App, before: dict[str, list[tuple[object, ...]]]) -> None:
    checks, found = world.checks, new.contents()
    for table in TABLES:
        checks.equal(f"{table}, row for row as on the old phone", before[table], found[table])
        gone = world.expected.deleted[table].keys() & {row[0] for row in found[table]}
        checks.equal(f"{table}: deleted rows that came back", set(), gone)
    checks.equal("broken references", [], new.run("PRAGMA foreign_key_check"))
    checks.equal("pending after hydration", 0, len(new.device.pending()))
    newest: dict[str, Entry] = {entry.key: entry for entry in read_log(world.owner)}
    live = [key for table in TABLES for key in world.expected.rows[table]]
    checks.equal(
        "_sync_row_meta: the server's versions",
        {key: (newest[key].version, 0) for key in live},
        {key: meta for key, meta in new.meta().items() if not meta[1]},
    )
    log.info(
        "Database state verification passed",
        extra=fields(users=len(found["users"]), posts=len(found["posts"]), after="hydration"),
    )


def _edit_again(world: World, new: App) -> int:
    expected, checks = world.expected, world.checks
    log_before = len(read_log(world.owner))
    edited = renamed(expected.user(40), "Edited after the reinstallation", expected.tick())
    version = newest_version(world, edited.id)
    now = expected.tick()
    created = Post(expected.new_id(), "Back again", "Nothing was lost", edited.id, now, now)
    new.update(edited)
    new.insert(created)
    report = new.device.upload()
    checks.equal(
        "new edits: applied, repetitions, conflicts, pending",
        (2, 0, 0, 0),
        (report.applied, report.duplicates, report.conflicts, report.pending),
    )
    statuses = {
        change["pk"]: (status.status, status.new_server_version)
        for upload in new.wire.uploads
        for change, status in zip(upload.changes, upload.statuses, strict=True)
    }
    checks.equal(
        "new edits: their statuses and versions",
        {edited.id: ("applied", version + 1), created.id: ("applied", 1)},
        statuses,
    )
    checks.equal("new edits in the log", log_before + 2, len(read_log(world.owner)))
    return report.applied
