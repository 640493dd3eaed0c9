"""One app after the other: fresh-install, normal-usage, reinstall, device-replacement, user-switch.

Law: an edit that was made before, between or after exchanges is on the server and on every later
installation, once; what one user wrote, another never sees.
"""

import sqlite3

from upwell.device import FileRefused, PendingChanges
from upwell.simulate.app import App
from upwell.simulate.stage import Person, Stage
from upwell.simulate.table import USERS
from upwell.simulate.wire import said

PAGE_ROWS = 25


def fresh_install(stage: Stage) -> None:
    """Rows from before the SDK, rows from before the first sign-in, then one round."""
    person = stage.person("fresh-ada")
    old = [stage.rows.user(f"Before the SDK {number}") for number in (1, 2)]
    with stage.group("four rows before the first sign-in"):
        phone = stage.install(person, "phone", seed=lambda connection: _insert_users(connection, old))
        for row in old:
            phone.book.put(("users", row["id"]), row)
        for number, author in enumerate(old, start=1):
            phone.insert("posts", stage.rows.post(f"Offline {number}", author["id"]))
        stage.checks.equal("pending", 4, phone.pending_count())
        status = phone.device.status()
        stage.checks.equal(
            "user, signed in, hydrated",
            ("", False, False),
            (status.user, status.is_signed_in, status.is_hydrated),
        )
    with stage.group("the first round"):
        stage.sign_in(phone, person)
        phone.sync()
        stage.checks.equal("changes of each upload", [4], phone.wire.sizes())
        stage.checks.equal("statuses", {"applied as version 1": 4}, said(phone.wire.statuses()))
        stage.check_all(person, phone)
    with stage.group("a round without edits sends nothing"):
        phone.sync()
        stage.checks.equal("changes of each upload", [4], phone.wire.sizes())
        stage.check_all(person, phone)


def _insert_users(connection: sqlite3.Connection, rows: list[dict[str, object]]) -> None:
    places = ", ".join("?" * len(USERS.columns))
    connection.executemany(f"INSERT INTO users VALUES ({places})", [USERS.device_cells(row) for row in rows])


def normal_usage(stage: Stage) -> None:
    """Three days of an app: writing, restarting, editing, a back end beside it, a save while one is sent."""
    person = stage.person("usual-ada")
    phone = stage.signed_in(person, "phone")
    with stage.group("day 1: writing"):
        users, posts = _write(stage, phone, users=5, posts_each=2)
        phone.sync()
        stage.checks.equal("changes of each upload", [15], phone.wire.sizes())
        stage.check_all(person, phone)
    with stage.group("day 2: the app is started again, edits of before are kept"):
        phone.update("users", users[0], name="Renamed before the restart", updated_at=stage.rows.tick())
        phone.delete("posts", posts[0])
        phone.reopen()
        stage.checks.equal("pending after the restart", 2, phone.pending_count())
        phone.update("posts", posts[1], title="Edited after the restart")
        stage.sign_in(phone, person)
        phone.sync()
        stage.checks.equal("statuses of the last upload", {"applied as version 2": 3}, _last_said(phone))
        stage.check_all(person, phone)
    with stage.group("day 3: the back end writes too"):
        stage.sql_update(person, "users", users[1], "name", "Renamed by the back end")
        stage.sql_delete(person, "posts", posts[2])
        phone.update("users", users[2], email="new@example.com")
        phone.sync()
        stage.checks.equal("statuses of the last upload", {"applied as version 2": 1}, _last_said(phone))
        stage.check_all(person, phone)
    with stage.group("a save while the one before is being sent"):
        _save_in_flight(stage, phone, users[3])
        stage.check_all(person, phone)
    with stage.group("delete, write again, delete again"):
        row = dict(phone.book.rows["posts", posts[4]])
        phone.delete("posts", posts[4])
        phone.insert("posts", row)
        phone.delete("posts", posts[4])
        phone.sync()
        stage.checks.equal("statuses of the last upload", {"applied as version 2": 1}, _last_said(phone))
        stage.check_all(person, phone)


def _save_in_flight(stage: Stage, phone: App, key: str) -> None:
    first = len(phone.wire.uploads)
    phone.update("users", key, name="Sent")

    def save_again() -> None:
        # What was sent is on the server from here on; the second save comes on top of it.
        phone.book.upload(phone.account)
        phone.update("users", key, name="Saved while it was sent")

    phone.wire.in_flight = save_again
    phone.sync()
    sent = phone.wire.uploads[first:]
    stage.checks.equal("one upload for each save", [1, 1], [len(upload.changes) for upload in sent])
    ids = {change["source_change_id"] for upload in sent for change in upload.changes}
    stage.checks.equal("change ids", 2, len(ids))


def reinstall(stage: Stage) -> None:
    """The app is deleted and installed again, under its old source and under a new one."""
    person = stage.person("again-ada")
    with stage.group("the first installation"):
        phone = stage.install(person, "phone", source="device-reinstall-001", limit=40)
        stage.sign_in(phone, person)
        users, posts = _write(stage, phone, users=30, posts_each=2)
        phone.upload()
        for key in posts[:10]:
            phone.delete("posts", key)
        for key in users[10:20]:
            phone.update("users", key, name=f"Renamed {key[:8]}", updated_at=stage.rows.tick())
        phone.sync()
        stage.checks.equal("changes of each upload", [40, 40, 10, 20], phone.wire.sizes())
        stage.check_all(person, phone)
        phone.device.close()
    with stage.group("everything goes to Parquet"):
        stage.flush()
        stage.check_server(person)
    with stage.group("the same source: restored from Parquet, then new rows"):
        same = stage.install(person, "phone-same", source="device-reinstall-001")
        stage.sign_in(same, person)
        same.hydrate(PAGE_ROWS)
        stage.check_all(person, same)
        _check_work_goes_on(stage, person, same, users[0])
    with stage.group("the same source: written before it was restored"):
        hasty = stage.install(person, "phone-hasty", source="device-reinstall-001")
        hasty.insert("users", stage.rows.user("Before the restore"))
        stage.sign_in(hasty, person)
        report = hasty.upload()
        stage.checks.equal("applied, repeated", (1, 0), (report.applied, report.duplicates))
        stage.checks.equal("statuses", {"applied as version 1": 1}, said(hasty.wire.statuses()))
        hasty.download()
        stage.check_all(person, hasty)
    with stage.group("a new source: restored, then new rows"):
        new = stage.signed_in(person, "phone-new")
        new.sync()
        stage.check_all(person, new)
        _check_work_goes_on(stage, person, new, users[1])


def _check_work_goes_on(stage: Stage, person: Person, phone: App, key: str) -> None:
    version = person.account.version(("users", key))
    phone.update("users", key, name=f"Edited on {phone.path.stem}", updated_at=stage.rows.tick())
    phone.insert("posts", stage.rows.post("Back again", key))
    report = phone.upload()
    stage.checks.equal(
        "new edits: applied, repeated, conflicts",
        (2, 0, 0),
        (report.applied, report.duplicates, report.conflicts),
    )
    stage.checks.equal(
        "new edits: statuses",
        {f"applied as version {version + 1}": 1, "applied as version 1": 1},
        said(phone.wire.statuses()),
    )
    phone.download()
    stage.check_all(person, phone)


def device_replacement(stage: Stage) -> None:
    """A new phone goes on with the account; then the old one is found, with edits that nobody ever saw."""
    person = stage.person("replaced-ada")
    old = stage.signed_in(person, "old-phone")
    with stage.group("the old phone: synced, then edits that stay on it"):
        users, posts = _write(stage, old, users=10, posts_each=2)
        old.sync()
        stage.check_all(person, old)
        old.update("users", users[0], name="Only on the old phone")
        old.update("users", users[1], name="The old phone's name")
        old.delete("posts", posts[0])
        old.insert("posts", stage.rows.post("Never sent", users[2]))
        stage.checks.equal("pending on the old phone", 4, old.pending_count())
        old.device.sign_out()
    with stage.group("the new phone: everything that was synced, and new work"):
        new = stage.signed_in(person, "new-phone")
        new.sync()
        stage.check_all(person, new)
        new.update("users", users[1], name="The new phone's name")
        new.delete("posts", posts[5])
        new.insert("users", stage.rows.user("Born on the new phone"))
        new.sync()
        stage.check_all(person, new)
    with stage.group("the old phone is found again"):
        stage.sign_in(old, person)
        report = old.sync()
        stage.checks.equal(
            "applied, conflicts, pending", (3, 1, 0),
            (report.upload.applied, report.upload.conflicts, report.upload.pending),
        )  # fmt: skip
        new.sync()
        stage.checks.equal(
            "the conflict is on record",
            [("users", users[1], "server")],
            old.run("SELECT table_name, pk_uuid, decision FROM _sync_conflicts"),
        )
        stage.check_all(person, old, new)


def user_switch(stage: Stage) -> None:
    """Two users of one phone: no edit is lost by the switch, and nobody sees the other's rows."""
    ada, bob = stage.person("switch-ada"), stage.person("switch-bob")
    phone = stage.signed_in(ada, "phone")
    with stage.group("ada writes"):
        users, _ = _write(stage, phone, users=4, posts_each=1)
        phone.sync()
        phone.update("users", users[0], name="Not sent yet")
        stage.check_server(bob)
    with stage.group("bob can't take the file while it is ada's"):
        _check_refused(stage, phone, bob)
        stage.checks.equal("pending", 1, phone.pending_count())
        stage.sign_in(phone, ada)
        phone.sync()
        stage.check_all(ada, phone)
    with stage.group("ada leaves, bob comes"):
        phone.device.wipe()
        phone.change_account(bob.account)
        stage.check_device(phone)
        stage.sign_in(phone, bob)
        phone.sync()
        stage.check_all(bob, phone)
        _write(stage, phone, users=3, posts_each=2)
        phone.sync()
        stage.check_all(bob, phone)
        stage.check_server(ada)
    with stage.group("bob leaves, ada is back"):
        phone.device.wipe()
        phone.change_account(ada.account)
        stage.sign_in(phone, ada)
        phone.sync()
        phone.update("users", users[1], name="Ada is back")
        phone.sync()
        stage.check_all(ada, phone)
        stage.check_server(bob)


def _check_refused(stage: Stage, phone: App, stranger: Person) -> None:
    phone.device.sign_out()
    try:
        stage.sign_in(phone, stranger)
        stage.checks.fail("the sign-in is refused", "it wasn't")
    except FileRefused as refusal:
        stage.checks.equal("whose file it is", True, "switch-ada" in str(refusal))
    try:
        phone.device.wipe()
        stage.checks.fail("wiping is refused", "it wasn't")
    except PendingChanges as refusal:
        stage.checks.equal("why it isn't wiped", True, str(refusal).startswith("1 changes were not uploaded"))


def _write(stage: Stage, app: App, *, users: int, posts_each: int) -> tuple[list[str], list[str]]:
    """Create users, and posts of each; return their ids."""
    authors = [stage.rows.user(f"User {number}") for number in range(1, users + 1)]
    for author in authors:
        app.insert("users", author)
    posts = [
        stage.rows.post(f"Post {copy} of {author['name']}", author["id"])
        for author in authors
        for copy in range(1, posts_each + 1)
    ]
    for post in posts:
        app.insert("posts", post)
    return [author["id"] for author in authors], [post["id"] for post in posts]


def _last_said(app: App) -> dict[str, int]:
    return said(app.wire.uploads[-1].statuses)
