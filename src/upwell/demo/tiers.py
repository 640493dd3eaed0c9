"""Part 5: flush to Parquet. The same questions, the same answers; an independent reader; a missing file.

Law: an answer depends on what was written, never on the tier that it lies in; a cold row that can't be read
is an error that names its file, never a missing row.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

from upwell.client import Client, ServerError
from upwell.demo.expected import NAMESPACE, TABLES, Expected, Post, User, cold_values, renamed, sql_cells
from upwell.demo.online import POSTS, USERS, check_live, check_rows, newest_version, reviewed
from upwell.demo.sql import flush, read_log, read_rows, select_all
from upwell.demo.world import STRANGER, USER, Counts, World
from upwell.testing import cold

Answers: TypeAlias = dict[str, list[tuple[Any, ...]]]

_BY_AUTHOR = (
    f"SELECT u.id, u.name, COUNT(*) AS n FROM {POSTS} AS p JOIN {USERS} AS u ON p.author_id = u.id"
    " GROUP BY u.id, u.name ORDER BY u.id"
)
_QUESTIONS = {
    "all users": select_all("users"),
    "all posts": select_all("posts"),
    "count of users": f"SELECT COUNT(*) AS n FROM {USERS}",
    "count of posts": f"SELECT COUNT(*) AS n FROM {POSTS}",
    "posts by author": _BY_AUTHOR,
    "names like": f"SELECT id FROM {USERS} WHERE name LIKE '%(Update #4)' ORDER BY id",
    "newest three": f"SELECT id FROM {USERS} ORDER BY updated_at DESC, id LIMIT 3",
    "sum of times": f"SELECT MIN(created_at) AS a, MAX(updated_at) AS b FROM {POSTS}",
}


def go_cold(world: World) -> Counts:
    """Flush both tables, ask again, take the files away, write on top, flush once more."""
    root = world.server.data_dir / "storage"
    expected = world.expected
    _check_answers(world, "before the flush")
    with world.timed("flush_s"):
        _flush_all(world, "first flush")
    _check_answers(world, "after the flush")
    _check_reader(world, root, "after the flush")
    first_rows = {table: expected.count(table) for table in TABLES}
    deletes = {table: _deletes(world, table) for table in TABLES}
    world.checks.equal(
        "rows and tombstones in the Parquet files",
        {table: (first_rows[table], deletes[table]) for table in TABLES},
        {table: _row_counts(root, table) for table in TABLES},
    )
    for table in TABLES:
        _check_missing(world, root, table)
    _check_answers(world, "with the files back")
    written = _write_on_top(world)
    _check_answers(world, "over both tiers")
    check_rows(world, "over both tiers")
    _check_reader_is_behind(world, root)
    _flush_all(world, "second flush")
    _check_answers(world, "after the second flush")
    _check_reader(world, root, "after the second flush")
    check_live(world)
    return {"rows_flushed": sum(first_rows.values()), "written_on_top": written}


def _flush_all(world: World, when: str) -> None:
    for table in TABLES:
        status, message = flush(world.root, table)
        what = f"{when} of {table}"
        world.checks.equal(f"{what}: status ({message})", "completed", status)


def _check_answers(world: World, when: str) -> None:
    world.checks.equal(f"answers {when}", expected_answers(world.expected), answers(world.owner))
    theirs = {table: read_rows(world.stranger, table) for table in TABLES}
    world.checks.equal(f"what another user sees {when}", world.stranger_rows, theirs)


def answers(client: Client) -> Answers:
    """Ask every question; return rows as the wire has them."""
    return {name: list(client.execute(sql, raw=True).rows) for name, sql in _QUESTIONS.items()}


def expected_answers(expected: Expected) -> Answers:
    """Answer every question in Python."""
    users = [row for row in expected.in_order("users") if isinstance(row, User)]
    posts = [row for row in expected.in_order("posts") if isinstance(row, Post)]
    per_author = Counter(post.author_id for post in posts)
    newest = sorted(users, key=lambda user: (-user.updated_at, user.id))[:3]
    bounds = (min(post.created_at for post in posts), max(post.updated_at for post in posts))
    return {
        "all users": [sql_cells(user) for user in users],
        "all posts": [sql_cells(post) for post in posts],
        "count of users": [(str(len(users)),)],
        "count of posts": [(str(len(posts)),)],
        "posts by author": [(u.id, u.name, str(per_author[u.id])) for u in users if per_author[u.id]],
        "names like": [(user.id,) for user in users if user.name.endswith("(Update #4)")],
        "newest three": [(user.id,) for user in newest],
        "sum of times": [tuple(second * 1_000_000 for second in bounds)],
    }


def _partition(root: Path, table: str) -> cold.Partition:
    found = cold.find_partition(root, f"{NAMESPACE}.{table}", USER)
    assert found is not None, f"no manifest of {NAMESPACE}.{table} and {USER} below {root}"
    return found


def _row_counts(root: Path, table: str) -> tuple[int, int]:
    """Count the live rows and the tombstones of all segments."""
    deleted = [bool(row["_deleted"]) for row in cold.versions(_partition(root, table))]
    return len(deleted) - sum(deleted), sum(deleted)


def _deletes(world: World, table: str) -> int:
    return sum(entry.operation == "DELETE" for entry in read_log(world.owner, table))


def _check_reader(world: World, root: Path, when: str) -> None:
    """Compare what an independent reader finds in the files with what is expected."""
    for table in TABLES:
        partition = _partition(root, table)
        expected = [cold_values(row) for row in world.expected.in_order(table)]
        world.checks.equal(f"independent reader: {table} {when}", expected, cold.rows(partition, "id"))
        world.checks.equal(
            f"independent reader: hidden rows of {table} {when}", [], cold.audit_hidden(partition, "id")
        )
    world.checks.equal(f"files and manifests {when}", [], cold.audit(root))
    owners = {partition.user_id for partition in cold.partitions(root)}
    world.checks.equal(f"owners of cold files {when}", {USER, STRANGER}, owners)


def _check_reader_is_behind(world: World, root: Path) -> None:
    """What was written on top isn't in the files yet: so the answers did come from both tiers."""
    for table in TABLES:
        on_top = {tuple(cold_values(row).values()) for row in world.expected.in_order(table)}
        in_files = {tuple(row.values()) for row in cold.rows(_partition(root, table), "id")}
        new = sum(
            row.name.startswith("On top")
            if isinstance(row, User)
            else row.title.startswith(("On top", "Reviewed: On"))
            for row in world.expected.in_order(table)
        )
        world.checks.equal(f"{table} that only the hot tier has", new, len(on_top - in_files))


def _check_missing(world: World, root: Path, table: str) -> None:
    """Move a partition's directory away: its rows must not come from anywhere else."""
    partition = _partition(root, table)
    names: Sequence[str] = [segment.path for segment in partition.segments]
    aside = partition.directory.with_name(partition.directory.name + "-moved-away")
    partition.directory.rename(aside)
    try:
        # Asked by an administrator: others aren't told the names of files.
        found = world.root.execute(f"EXECUTE AS USER '{USER}' ({select_all(table)})", raw=True)
        world.checks.fail(
            f"{table} without their files", f"answered with {len(found.rows)} rows instead of an error"
        )
    except ServerError as error:
        named = [name for name in names if name in error.message]
        world.checks.equal(f"{table} without their files: the error names one", 1, len(named))
        world.checks.equal(f"{table} without their files: HTTP status", 500, error.status)
        theirs = read_rows(world.stranger, table)
        world.checks.equal(f"{table} of another user meanwhile", world.stranger_rows[table], theirs)
    finally:
        aside.rename(partition.directory)


def _write_on_top(world: World) -> int:
    """Update, insert and delete by SQL and from the phone; return how many changes that made."""
    expected, back_end, phone = world.expected, world.back_end, world.phone
    for number in range(14, 19):
        back_end.update(renamed(expected.user(number), f"On top of cold {number}", expected.tick()))
    for post in expected.posts_of(expected.user(19)):
        back_end.delete(post)
    now = expected.tick()
    author = User(expected.new_id(), "On top, by SQL", "on.top@example.com", now, now, is_from_sql=True)
    back_end.insert(author)
    post = Post(
        expected.new_id(), "On top", "Hot child of a cold parent", expected.user(20).id, now, now, True
    )
    back_end.insert(post)
    phone.device.sync()
    edited = renamed(expected.user(21), "On top, from the phone", expected.tick())
    phone.update(edited)
    phone.insert(Post(expected.new_id(), "On top, from the phone", "…", edited.id, now, now))
    removed = expected.posts_of(expected.user(22))[0]
    phone.delete(removed)
    before = newest_version(world, edited.id)
    report = phone.device.upload()
    world.checks.equal(
        "the phone's changes of cold rows", (3, 0, 0), (report.applied, report.conflicts, report.pending)
    )
    world.checks.equal("the version after a change of a cold row", before + 1, phone.meta()[edited.id][0])
    for table in TABLES:
        world.checks.equal(
            f"{table} on the phone, on top", expected.on_device(table), phone.contents()[table]
        )
    back_end.update(reviewed(post, expected.tick()))
    return 5 + 2 + 1 + 1 + 3 + 1
