"""Part 4: a back end writes by SQL, a laptop downloads everything, live queries are cut off in the middle.

Law: every reader of the log, by whatever wire and after whatever interruption, ends with the same rows.
"""

from dataclasses import replace

from upwell.client import ServerError
from upwell.demo.expected import TABLES, Expected, Post, User, renamed
from upwell.demo.online import check_live, check_rows, reviewed
from upwell.demo.sql import BackEnd, read_log
from upwell.demo.world import STRANGER, Counts, World
from upwell.testing import wait_until

RECONNECT_S_MAX = 10.0


def work_from_all_sides(world: World) -> Counts:
    """Write before, during and after a cut of the live queries; then sync phone and laptop."""
    _write_as_stranger(world)
    log_before = read_log(world.owner)
    messages = _write_connected(world)
    for watch in world.watches.values():
        watch.wait_for([entry.seq for entry in read_log(world.owner, watch.table.split(".")[1])])
    with world.timed("cut_off_s"):
        messages += _write_while_cut_off(world)
    messages += _write_again(world)
    log = read_log(world.owner)
    written = len(log) - len(log_before)
    world.checks.equal("SQL writes, one change each", len(messages), written)
    world.checks.equal("their messages", {"Inserted", "Updated", "Deleted"}, {m.split()[0] for m in messages})
    world.checks.equal("each of one row", {"1 row(s)"}, {message.split(" ", 1)[1] for message in messages})
    world.checks.equal("they came from no device", {None}, {entry.device for entry in log[len(log_before) :]})
    check_rows(world, "after the back end")
    check_live(world)
    _sync_devices(world, downloads_phone=written, downloads_laptop=len(log))
    return {"sql_writes": written, "log_entries": len(log), "live_queries_cut": len(world.watches)}


def _write_as_stranger(world: World) -> None:
    """Another user writes rows with the very same keys by SQL, and alone gets them on a phone."""
    checks, stranger, log_before = world.checks, world.stranger, read_log(world.owner)
    now = world.expected.tick()
    user = User(world.expected.user(1).id, "The same key", "stranger@example.com", now, now, is_from_sql=True)
    model = world.expected.posts_of(world.expected.user(1))[0]
    post = replace(model, title="The same key, too", created_at=now, updated_at=now, is_from_sql=True)
    apart = Expected()
    back_end = BackEnd(stranger, apart)
    try:
        back_end.insert(post)
        checks.fail("a reference to another user's row", "was taken instead of refused")
    except ServerError as refusal:
        checks.equal("a reference to another user's row is refused", 400, refusal.status)
    for row in (user, post):
        back_end.insert(row)
    world.stranger_rows = {table: apart.in_sql(table) for table in TABLES}
    log = [(entry.operation, entry.key) for entry in read_log(stranger)]
    checks.equal("the other user's log", [("INSERT", user.id), ("INSERT", post.id)], log)
    checks.equal("the owner's log after another user wrote", log_before, read_log(world.owner))
    phone = world.install("phone-of-another-user")
    world.sign_in(phone, STRANGER)
    phone.device.sync()
    checks.equal("the other user's phone", {t: apart.on_device(t) for t in TABLES}, phone.contents())


def _write_connected(world: World) -> list[str]:
    expected, back_end = world.expected, world.back_end
    messages = [
        back_end.update(renamed(expected.user(n), f"User {n}, by SQL", expected.tick())) for n in range(1, 6)
    ]
    for post in expected.posts_of(expected.user(6)):
        messages.append(back_end.update(reviewed(post, expected.tick())))
    author = _new_user(world, "Server User 1")
    messages.append(back_end.insert(author))
    messages.append(back_end.insert(_new_post(world, author)))
    messages.append(back_end.delete(expected.posts_of(expected.user(7))[0]))
    return [message or "" for message in messages]


def _write_while_cut_off(world: World) -> list[str]:
    """Cut the line of the live queries, write, mend it; note the gap in the log."""
    expected, back_end, checks = world.expected, world.back_end, world.checks
    begin = read_log(world.owner)[-1].seq + 1
    checks.equal("live queries whose line was cut", len(world.watches), world.cable.cut())
    delivered = {table: len(watch.changes) for table, watch in world.watches.items()}
    leaver, *leaver_posts = expected.user(8), *expected.posts_of(expected.user(8))
    messages = [back_end.delete(leaver_posts[0])]
    messages += [
        back_end.update(renamed(expected.user(n), f"User {n}, cut off", expected.tick())) for n in (9, 10)
    ]
    messages.append(back_end.delete(leaver_posts[1]))
    messages.append(back_end.insert(_new_user(world, "Server User 2")))
    messages.append(back_end.delete(leaver))
    messages.append(back_end.update(reviewed(expected.posts_of(expected.user(9))[0], expected.tick())))
    world.gaps.append(range(begin, read_log(world.owner)[-1].seq + 1))
    found = {table: len(watch.changes) for table, watch in world.watches.items()}
    checks.equal("changes that came through the cut line", delivered, found)
    world.cable.mend()
    wait_until(
        lambda: world.cable.line_count == len(world.watches),
        timeout_s=RECONNECT_S_MAX,
        what="the live queries to connect again",
    )
    for table, watch in world.watches.items():
        watch.wait_for([entry.seq for entry in read_log(world.owner, table)])
    return [message or "" for message in messages]


def _write_again(world: World) -> list[str]:
    expected, back_end = world.expected, world.back_end
    messages = [
        back_end.update(renamed(expected.user(n), f"User {n}, after", expected.tick())) for n in (9, 11, 12)
    ]
    messages.append(back_end.delete(expected.posts_of(expected.user(13))[1]))
    return [message or "" for message in messages]


def _sync_devices(world: World, *, downloads_phone: int, downloads_laptop: int) -> None:
    checks = world.checks
    laptop = world.install("laptop")
    world.sign_in(laptop)
    with world.timed("laptop_download_s"):
        report = laptop.device.download()
    checks.equal("changes that the laptop downloads", downloads_laptop, report.received)
    phone_report = world.phone.device.sync()
    checks.equal("changes that the phone downloads", downloads_phone, phone_report.download.received)
    for table in TABLES:
        expected = world.expected.on_device(table)
        checks.equal(f"{table} on the laptop", expected, laptop.contents()[table])
        checks.equal(f"{table} on the phone", expected, world.phone.contents()[table])
    for name, app in (("laptop", laptop), ("phone", world.phone)):
        status = app.device.status()
        checks.equal(
            f"{name}: pending, withheld, conflicts",
            (0, 0, 0),
            (status.pending, status.withheld, status.conflicts),
        )
        checks.equal(f"broken references on the {name}", [], app.run("PRAGMA foreign_key_check"))


def _new_user(world: World, name: str) -> User:
    now = world.expected.tick()
    email = f"{name.lower().replace(' ', '.')}@example.com"
    return User(world.expected.new_id(), name, email, now, now, is_from_sql=True)


def _new_post(world: World, author: User) -> Post:
    now = world.expected.tick()
    title = f"By {author.name}"
    return Post(world.expected.new_id(), title, "Written by SQL", author.id, now, now, is_from_sql=True)
