"""complex-multi-batch: 330 operations offline, uploaded in batches of any size, and everything back again.

Law: 60 users, 120 posts, 120 updates, 30 deletions are 180 pending changes; they arrive once, whatever the
batch limit, the order on the wire, a second device or lost answers do to them.
"""

import json
from collections import Counter
from dataclasses import dataclass

from upwell.demo.offline import (
    POSTS_PER_USER,
    UPDATES_PER_USER,
    USERS_CREATED,
    USERS_DELETED,
    USERS_UPDATED,
)
from upwell.demo.world import SOURCE, USER
from upwell.device import UploadReport
from upwell.simulate.app import App
from upwell.simulate.model import Place
from upwell.simulate.stage import Person, Stage
from upwell.simulate.table import Row
from upwell.simulate.wire import said

LIMITS = (200, 50, 7, 1)
PENDING = 180
PAGE_ROWS = 50
LOSS_SHARE = 0.5
EDITED_LOSSES = 12


@dataclass
class Work:
    """What was written offline, in order; `deleted` has the rows as they were."""

    users: list[str]
    posts: dict[str, list[str]]
    deleted: dict[Place, Row]


def complex_multi_batch(stage: Stage) -> None:
    """Each batch limit for a user of its own, then two devices, then lost answers."""
    for limit in LIMITS:
        _play(stage, limit)
    _two_devices(stage)
    _lose_answers(stage)


def _play(stage: Stage, limit: int) -> None:
    person = stage.person(USER if limit == LIMITS[0] else f"{USER}-{limit}")
    with stage.group(f"limit {limit}: 330 operations offline, 180 pending"):
        phone = stage.install(person, "phone", source=SOURCE, limit=limit)
        work = work_offline(stage, phone)
        _check_pending(stage, phone, work)
    with stage.group(f"limit {limit}: the upload, children first on the wire"):
        stage.sign_in(phone, person)
        phone.wire.is_children_first = True
        _check_upload(stage, phone, limit)
    with stage.group(f"limit {limit}: every place after the upload"):
        _check_state(stage, person, phone)
    with stage.group(f"limit {limit}: installed again, hydrated"):
        again = _reinstall(stage, person, phone)
    with stage.group(f"limit {limit}: deletions of what the server knows"):
        _delete_known(stage, person, again, work)


def work_offline(stage: Stage, app: App) -> Work:
    """Do the 330 operations, one statement each."""
    rows, work = stage.rows, Work([], {}, {})
    for number in range(1, USERS_CREATED + 1):
        user = rows.user(f"Complex User {number}")
        app.insert("users", user)
        work.users.append(user["id"])
    for number, author in enumerate(work.users, start=1):
        posts = [rows.post(f"Post {copy} of user {number}", author) for copy in range(1, POSTS_PER_USER + 1)]
        for post in posts:
            app.insert("posts", post)
        work.posts[author] = [post["id"] for post in posts]
    for number, key in enumerate(work.users[:USERS_UPDATED], start=1):
        for round_ in range(1, UPDATES_PER_USER + 1):
            name, email = f"Updated User {number} (Update #{round_})", f"update{round_}.{number}@example.com"
            app.update("users", key, name=name, email=email, updated_at=rows.tick())
    leavers = work.users[-USERS_DELETED:]
    gone = [("posts", post) for user in leavers for post in work.posts[user]]
    for place in gone + [("users", user) for user in leavers]:
        work.deleted[place] = app.book.rows[place]
        app.delete(*place)
    return work


def _check_pending(stage: Stage, phone: App, work: Work) -> None:
    checks, pending = stage.checks, phone.device.pending()
    checks.equal("operations", 330, phone.edit_count)
    checks.equal(
        "pending changes",
        {"INSERT users": 50, "INSERT posts": 100, "DELETE users": 10, "DELETE posts": 20},
        dict(Counter(f"{change.op} {change.table}" for change in pending)),
    )
    expected = {place: ("INSERT", 0, row) for place, row in phone.book.rows.items()}
    expected |= {place: ("DELETE", 0, row) for place, row in work.deleted.items()}
    checks.equal(
        "each payload: the row as it is, of a DELETE as it was",
        expected,
        {(c.table, c.key): (c.op, c.base_version, json.loads(c.payload or "null")) for c in pending},
    )
    checks.equal("broken references", [], phone.run("PRAGMA foreign_key_check"))


def _check_upload(stage: Stage, phone: App, limit: int) -> None:
    checks, report, uploads = stage.checks, phone.upload(), phone.wire.uploads
    full, rest = divmod(PENDING, limit)
    checks.equal("changes of each request", [limit] * full + ([rest] if rest else []), phone.wire.sizes())
    checks.equal("requests", len(uploads), report.requests)
    checks.equal(
        "statuses",
        {"applied as version 1": 150, "applied": 30},
        said(phone.wire.statuses()),
    )
    checks.equal(
        "applied, repeated, conflicts, invalid, pending",
        (PENDING, 0, 0, 0, 0),
        (report.applied, report.duplicates, report.conflicts, report.invalid, report.pending),
    )


def _check_state(stage: Stage, person: Person, phone: App) -> None:
    checks = stage.checks
    stage.check_all(person, phone)
    counts = [len(phone.cells(table)) for table in ("users", "posts")]
    checks.equal("users and posts on the phone", [50, 100], counts)
    names = [cells[1] for cells in phone.cells("users")]
    checks.equal("names that end in (Update #4)", 30, sum(name.endswith("(Update #4)") for name in names))
    checks.equal("names in between", [], [name for name in names if name.endswith(("#1)", "#2)", "#3)"))])
    checks.equal("versions", {(1, 0): 150, (0, 1): 30}, dict(Counter(phone.meta().values())))


def _reinstall(stage: Stage, person: Person, phone: App) -> App:
    checks = stage.checks
    before = {table: phone.cells(table) for table in ("users", "posts")}
    id_max = max(change["source_change_id"] for upload in phone.wire.uploads for change in upload.changes)
    phone.device.sign_out()
    phone.device.close()
    again = stage.install(person, "phone-again", source=SOURCE)
    checks.equal("rows in the fresh file", [[], []], [again.cells(table) for table in before])
    stage.sign_in(again, person)
    again.hydrate(PAGE_ROWS)
    checks.equal("everything is back", before, {table: again.cells(table) for table in before})
    stage.check_all(person, again)
    checks.equal("the next change id is a new one", id_max + 1, again.device.status().next_change_id)
    again.insert("users", stage.rows.user("Back Again"))
    report = again.upload()
    checks.equal("a new row: applied, repeated, pending", (1, 0, 0), _numbers(report))
    checks.equal("a new row: its status", {"applied as version 1": 1}, said(again.wire.statuses()))
    return again


def _delete_known(stage: Stage, person: Person, phone: App, work: Work) -> None:
    leavers = work.users[40:50]
    gone = [("posts", post) for user in leavers for post in work.posts[user]]
    gone += [("users", user) for user in leavers]
    for place in gone:
        phone.delete(*place)
    report = phone.upload()
    stage.checks.equal("applied, repeated, pending", (30, 0, 0), _numbers(report))
    meta = phone.meta()
    stage.checks.equal(
        "deleted rows: version and mark", dict.fromkeys(gone, (2, 1)), {p: meta.get(p) for p in gone}
    )
    stage.check_all(person, phone)


def _two_devices(stage: Stage) -> None:
    person = stage.person(f"{USER}-two")
    phone = stage.signed_in(person, "phone", limit=50)
    laptop = stage.signed_in(person, "laptop", limit=50)
    phone.wire.is_children_first = laptop.wire.is_children_first = True
    with stage.group("two devices: both have everything"):
        work = work_offline(stage, phone)
        phone.sync()
        laptop.sync()
        stage.check_all(person, phone, laptop)
    with stage.group("two devices: conflicts in batches"):
        phone.wire.uploads.clear()
        for key in work.users[:20]:
            phone.update("users", key, name="Edited on the phone", updated_at=stage.rows.tick())
            laptop.update("users", key, name="Edited on the laptop", updated_at=stage.rows.tick())
        for key in work.users[20:25]:
            laptop.update("users", key, email=f"laptop-{key[:8]}@example.com")
        for number, key in enumerate(work.users[25:30]):
            laptop.insert("posts", stage.rows.post(f"From the laptop {number}", key))
            phone.delete("posts", work.posts[key][0])
        phone.sync()
        laptop.sync()
        phone.sync()
        stage.checks.equal("phone: statuses", {"applied as version 2": 25}, said(phone.wire.statuses()))
        stage.checks.equal(
            "laptop: statuses",
            {"conflict": 20, "applied as version 2": 5, "applied as version 1": 5},
            said(laptop.wire.statuses()),
        )
        names = [row[0] for row in laptop.run("SELECT name FROM users WHERE name LIKE 'Edited on%'")]
        stage.checks.equal("names that stand", ["Edited on the phone"] * 20, names)
        stage.check_all(person, phone, laptop)


def _lose_answers(stage: Stage) -> None:
    person = stage.person(f"{USER}-lossy")
    phone = stage.install(person, "phone", source=SOURCE, limit=50)
    with stage.group("answers get lost, rows are edited before the next try"):
        work_offline(stage, phone)
        stage.sign_in(phone, person)
        phone.wire.loses_answer = lambda: stage.chance.random() < LOSS_SHARE
        edits = iter(range(EDITED_LOSSES))
        lost = phone.upload_through(lambda: _edit_anything(stage, phone, next(edits, None)))
        stage.checks.equal("answers were lost", phone.wire.lost_count, lost)
        stage.checks.equal("at least one", True, lost > 0)
        stage.check_all(person, phone)
    with stage.group("answers were lost: installed again, hydrated"):
        phone.wire.loses_answer = lambda: False
        _reinstall(stage, person, phone)


def _edit_anything(stage: Stage, phone: App, number: int | None) -> None:
    """Update rows that may have arrived or not, delete one, create one."""
    if number is None:
        return
    users = [key for table, key in phone.book.rows if table == "users"]
    posts = [key for table, key in phone.book.rows if table == "posts"]
    for key in stage.chance.sample(users, 5):
        phone.update("users", key, name=f"Edited after loss {number}", updated_at=stage.rows.tick())
    phone.delete("posts", stage.chance.choice(posts))
    phone.insert("posts", stage.rows.post(f"Written after loss {number}", stage.chance.choice(users)))


def _numbers(report: UploadReport) -> tuple[int, int, int]:
    return report.applied, report.duplicates, report.pending
