"""Part 1: a phone without a network. 330 operations become 180 pending changes.

Law: what waits for upload is exactly one change per row that was touched, with what the row is (or was).
"""

import logging
from collections import Counter
from dataclasses import replace

from upwell.demo.expected import TABLES, Post, Row, User, device_payload, parsed, renamed
from upwell.demo.phone import App
from upwell.demo.world import SOURCE, Counts, World
from upwell.logs import fields

log = logging.getLogger("upwell.demo")

USERS_CREATED = 60
POSTS_PER_USER = 2
USERS_UPDATED = 30
UPDATES_PER_USER = 4
USERS_DELETED = 10


def work_offline(world: World) -> Counts:
    """Run the operations of the document's phase 1 and look at what they queued."""
    world.phone = phone = world.install("phone", source=SOURCE)
    with world.timed("offline_s"):
        _operate(world, phone)
    pending = _check_pending(world, phone)
    for table in TABLES:
        found = phone.contents()[table]
        world.checks.equal(f"{table} on the phone", world.expected.on_device(table), found)
    world.checks.equal("operations", 330, phone.edit_count)
    world.checks.equal("broken references on the phone", [], phone.run("PRAGMA foreign_key_check"))
    log.info(
        "Complex offline operations finished",
        extra=fields(
            total_users_created=USERS_CREATED,
            users_updated_multiple_times=USERS_UPDATED,
            users_deleted=len(world.expected.deleted["users"]),
            posts_deleted=len(world.expected.deleted["posts"]),
            expected_final_users=world.expected.count("users"),
            expected_final_posts=world.expected.count("posts"),
        ),
    )
    return {"operations": phone.edit_count, "pending": pending}


def _operate(world: World, phone: App) -> None:
    """Do the operations, one statement each."""
    expected = world.expected
    for number in range(1, USERS_CREATED + 1):
        now = expected.tick()
        name, email = f"Complex User {number}", f"complex.user.{number}@example.com"
        phone.insert(User(expected.new_id(), name, email, now, now))
    for number in range(1, USERS_CREATED + 1):
        for copy in range(1, POSTS_PER_USER + 1):
            phone.insert(_post(world, number, copy))
    for number in range(1, USERS_UPDATED + 1):
        for round_ in range(1, UPDATES_PER_USER + 1):
            name, email = f"Updated User {number} (Update #{round_})", f"update{round_}.{number}@example.com"
            phone.update(replace(renamed(expected.user(number), name, expected.tick()), email=email))
    leavers = [
        expected.user(number) for number in range(USERS_CREATED - USERS_DELETED + 1, USERS_CREATED + 1)
    ]
    for user in leavers:
        for post in expected.posts_of(user):
            phone.delete(post)
    for user in leavers:
        phone.delete(user)


def _post(world: World, number: int, copy: int) -> Post:
    author, now = world.expected.user(number), world.expected.tick()
    title = f"Post {copy} of user {number}"
    return Post(world.expected.new_id(), title, f"What user {number} thinks: “{copy}”", author.id, now, now)


def _check_pending(world: World, phone: App) -> int:
    expected, pending = world.expected, phone.device.pending()
    counts = Counter(f"{change.op} {change.table}" for change in pending)
    world.checks.equal(
        "pending changes",
        {"INSERT users": 50, "INSERT posts": 100, "DELETE users": 10, "DELETE posts": 20},
        dict(counts),
    )
    rows: list[tuple[str, str, Row]] = [
        *(("INSERT", table, row) for table in TABLES for row in expected.rows[table].values()),
        *(("DELETE", table, row) for table in TABLES for row in expected.deleted[table].values()),
    ]
    world.checks.equal(
        "their payloads: the row as it is, of a DELETE as it was",
        {(table, row.id): (op, device_payload(row)) for op, table, row in rows},
        {(change.table, change.key): (change.op, parsed(change.payload)) for change in pending},
    )
    world.checks.equal(
        "rows in _sync_pending",
        [(180,)],
        phone.run("SELECT count(*) FROM _sync_pending WHERE base_version = 0"),
    )
    return len(pending)
