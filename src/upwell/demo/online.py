"""Parts 2 and 3: the phone finds the network. One upload; answers that get lost; edits in between.

Law: what was uploaded is on the server once, at once, for its user alone; no edit is lost by anything that
happens to an answer; each uploaded state of a row stays readable.
"""

import logging
from collections import Counter
from dataclasses import replace

from upwell.demo.expected import (
    NAMESPACE,
    TABLES,
    Post,
    User,
    renamed,
    sql_values,
)
from upwell.demo.sql import Entry, read_count, read_log, read_rows
from upwell.demo.watch import check_arrivals, check_fold
from upwell.demo.world import SOURCE, Counts, World
from upwell.device import Unreachable
from upwell.logs import fields
from upwell.protocol import sync

log = logging.getLogger("upwell.demo")

USERS, POSTS = f"{NAMESPACE}.users", f"{NAMESPACE}.posts"
ORPHANS = f"{POSTS} AS p LEFT JOIN {USERS} AS u ON p.author_id = u.id WHERE u.id IS NULL"
SAVES = 4


def go_online(world: World) -> Counts:
    """Upload all 180 changes with one request; look at server, phone, log and live queries."""
    for table in TABLES:
        world.watch(table)
    world.sign_in(world.phone)
    with world.timed("upload_180_s"):
        report = world.phone.device.upload()
    checks, uploads = world.checks, world.phone.wire.uploads
    checks.equal("upload requests", 1, report.requests)
    checks.equal("changes of each request on the wire", [180], [len(upload.changes) for upload in uploads])
    checks.equal(
        "statuses",
        {"applied as version 1": 150, "applied, nothing to delete": 30},
        dict(Counter(_said(status) for upload in uploads for status in upload.statuses)),
    )
    checks.equal(
        "applied, conflicts, invalid, pending",
        (180, 0, 0, 0),
        (report.applied, report.conflicts, report.invalid, report.pending),
    )
    checks.equal(
        "operations with a payload on the wire",
        {"INSERT": 150},
        dict(Counter(change["op"] for change in uploads[0].changes if "payload" in change)),
    )
    checks.equal("rows in _sync_pending", [(0,)], world.phone.run("SELECT count(*) FROM _sync_pending"))
    _check_metadata(world)
    _check_server(world)
    _check_first_log(world)
    check_live(world)
    return {"changes": 180, "statuses": sum(len(upload.statuses) for upload in uploads)}


def check_live(world: World) -> None:
    """Compare both live queries with the log and with the SELECT, exactly and from their begin."""
    for table in TABLES:
        check_arrivals(world.checks, world.watches[table], read_log(world.owner, table), world.gaps)
        check_fold(world.checks, world.watches[table], table, read_rows(world.owner, table))


def check_rows(world: World, when: str) -> None:
    """Compare the tables on the server with what is expected, for the owner and for a stranger."""
    for table in TABLES:
        found = read_rows(world.owner, table)
        world.checks.equal(f"{table} on the server {when}", world.expected.in_sql(table), found)
        theirs = read_rows(world.stranger, table)
        world.checks.equal(f"{table} that another user sees {when}", world.stranger_rows[table], theirs)
    world.checks.equal(f"posts without their author {when}", 0, read_count(world.owner, ORPHANS))


def _said(status: sync.Status) -> str:
    if status.new_server_version is not None:
        return f"{status.status} as version {status.new_server_version}"
    return f"{status.status}, a repetition" if status.duplicate else f"{status.status}, nothing to delete"


def _check_metadata(world: World) -> None:
    meta = world.phone.meta()
    world.checks.equal(
        "_sync_row_meta: (version, deleted)", {(1, 0): 150, (0, 1): 30}, dict(Counter(meta.values()))
    )
    gone = {key for table in TABLES for key in world.expected.deleted[table]}
    world.checks.equal(
        "_sync_row_meta: the deleted rows", gone, {key for key, (_, deleted) in meta.items() if deleted}
    )


def _check_server(world: World) -> None:
    checks, owner = world.checks, world.owner
    counts = [read_count(owner, USERS), read_count(owner, POSTS)]
    checks.equal("users and posts on the server", [50, 100], counts)
    updated = read_count(owner, f"{USERS} WHERE name LIKE '%(Update #4)'")
    checks.equal("users whose name ends in (Update #4)", 30, updated)
    check_rows(world, "after the upload")
    checks.equal("changes that another user sees", [], read_log(world.stranger))
    log.info("Database state verification passed", extra=fields(users=counts[0], posts=counts[1]))


def _check_first_log(world: World) -> None:
    rows = {row.id: row for table in TABLES for row in world.expected.rows[table].values()}
    found = read_log(world.owner)
    world.checks.equal("changes in the log", 150, len(found))
    world.checks.equal(
        "the log: one INSERT for each row, from this device",
        {key: ("INSERT", sql_values(row), 1, SOURCE) for key, row in rows.items()},
        {e.key: (e.operation, e.values, e.version, e.device) for e in found},
    )


def lose_answers(world: World) -> Counts:
    """Repeat the big upload, lose an answer, edit a row while its upload is in flight."""
    repeated = _repeat_upload(world)
    lost = _lose_answer(world)
    in_flight = _edit_in_flight(world)
    check_rows(world, "after the lost answer")
    check_live(world)
    return {"repeated": repeated, "lost_answers": lost, "edits_in_flight": in_flight}


def _repeat_upload(world: World) -> int:
    """Send the very request once more, as a network does that repeats itself."""
    wire, before = world.phone.wire, read_log(world.owner)
    wire.send(wire.uploads[0].request)
    statuses = wire.uploads[-1].statuses
    world.checks.equal(
        "the same 180 changes again: statuses",
        {"applied, a repetition": 180},
        dict(Counter(_said(status) for status in statuses)),
    )
    world.checks.equal("the same 180 changes again: the log", before, read_log(world.owner))
    return len(statuses)


def _lose_answer(world: World) -> int:
    checks, phone, expected = world.checks, world.phone, world.expected
    log_before = len(read_log(world.owner))
    edited = [renamed(expected.user(n), f"Edited User {n}", expected.tick()) for n in (32, 33, 34)]
    now = expected.tick()
    created = User(expected.new_id(), "Complex User 61", "complex.user.61@example.com", now, now)
    dropped = expected.posts_of(expected.user(35))[0]
    for user in edited:
        phone.update(user)
    phone.insert(created)
    phone.delete(dropped)
    phone.wire.is_losing = True
    try:
        phone.device.upload()
        checks.fail("the lost answer is noticed", "the upload didn't raise")
    except Unreachable:
        checks.equal("pending after a lost answer", 5, len(phone.device.pending()))
    checks.equal("changes in the log before the retry", log_before + 5, len(read_log(world.owner)))
    report = phone.device.upload()
    first, second = phone.wire.uploads[-2:]
    checks.equal("the retry is the same request", first.body, second.body)
    checks.equal(
        "retry: requests, applied, of these known already, pending",
        (1, 5, 5, 0),
        (report.requests, report.applied, report.duplicates, report.pending),
    )
    checks.equal("changes in the log after the retry", log_before + 5, len(read_log(world.owner)))
    touched = {**{user.id: (2, 0) for user in edited}, created.id: (1, 0), dropped.id: (2, 1)}
    meta = phone.meta()
    checks.equal("versions after the retry", touched, {key: meta.get(key) for key in touched})
    return 1


def _edit_in_flight(world: World) -> int:
    phone, expected = world.phone, world.expected
    first = renamed(expected.user(36), "Sent User 36", expected.tick())
    then = replace(renamed(first, "User 36, edited in flight", expected.tick()), email="flight@example.com")
    phone.update(first)
    phone.wire.in_flight = lambda: phone.update(then)
    report = phone.device.upload()
    world.checks.equal(
        "edit in flight: requests, applied, pending",
        (2, 2, 0),
        (report.requests, report.applied, report.pending),
    )
    name = phone.run("SELECT name, email FROM users WHERE id = ?", first.id)
    world.checks.equal("edit in flight: the row on the phone", [(then.name, then.email)], name)
    history = [(e.version, e.operation, e.values["name"]) for e in _history(world, first.id)]
    world.checks.equal(
        "edit in flight: the row's history",
        [(1, "INSERT", "Complex User 36"), (2, "UPDATE", first.name), (3, "UPDATE", then.name)],
        history,
    )
    return 1


def save_four_times(world: World) -> Counts:
    """Part 3: four uploads of one row; each state stays readable."""
    phone, expected, checks = world.phone, world.expected, world.checks
    states = [expected.user(37)]
    requests = 0
    for number in range(1, SAVES + 1):
        states.append(renamed(states[-1], f"Saved User 37 (Save #{number})", expected.tick()))
        phone.update(states[-1])
        requests += phone.device.upload().requests
    checks.equal("upload requests", SAVES, requests)
    found = _history(world, states[0].id)
    checks.equal(
        "system.changes: every uploaded state",
        [
            (USERS, state.id, "UPDATE" if version > 1 else "INSERT", sql_values(state), version, SOURCE)
            for version, state in enumerate(states, start=1)
        ],
        [(e.table, e.key, e.operation, e.values, e.version, e.device) for e in found],
    )
    ids = [change["source_change_id"] for u in phone.wire.uploads[-SAVES:] for change in u.changes]
    checks.equal("their change ids are the device's", ids, [entry.change_id for entry in found[1:]])
    checks.equal("their seqs ascend", sorted({e.seq for e in found}), [entry.seq for entry in found])
    check_live(world)
    return {"uploads": requests, "states": len(found)}


def _history(world: World, key: str) -> list[Entry]:
    return [entry for entry in read_log(world.owner) if entry.key == key]


def newest_version(world: World, key: str) -> int:
    """Return the version of a row's newest change."""
    return _history(world, key)[-1].version


def reviewed(post: Post, now: int) -> Post:
    """Return a post under the title that a back end gives it."""
    return replace(post, title=f"Reviewed: {post.title}", updated_at=now)
