"""What must be there: the rows that the demo wrote, kept in plain Python beside the product.

Law: nothing in here asks the server or the device; each kind of reader is compared with the same rows.
Times are Unix seconds. A row that SQL inserted shows its times on devices as text, because no device ever
said that it keeps them as numbers.
"""

import json
import random
import uuid
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from typing import Any, TypeAlias

NAMESPACE = "business"
TABLES = ("users", "posts")
MICROSECONDS = 1_000_000
# 2025-10-09T08:53:20Z
TIME_FIRST = 1_760_000_000
_TIMES = ("created_at", "updated_at")

Cells: TypeAlias = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class User:
    """A row of `users`."""

    id: str
    name: str
    email: str
    created_at: int
    updated_at: int
    is_from_sql: bool = False


@dataclass(frozen=True, slots=True)
class Post:
    """A row of `posts`; its author is a user."""

    id: str
    title: str
    content: str
    author_id: str
    created_at: int
    updated_at: int
    is_from_sql: bool = False


Row: TypeAlias = User | Post


class Expected:
    """Live rows by table and id, and the ids in the order in which they were first created."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, Row]] = {table: {} for table in TABLES}
        self.user_ids: list[str] = []
        self.deleted: dict[str, dict[str, Row]] = {table: {} for table in TABLES}
        self._now = TIME_FIRST
        self._chance = random.Random(20251009)

    def new_id(self) -> str:
        """Return a random UUID, the same in every run."""
        return str(uuid.UUID(int=self._chance.getrandbits(128), version=4))

    def tick(self) -> int:
        """Return the next second of the app's clock."""
        self._now += 1
        return self._now

    def user(self, number: int) -> User:
        """Return the `number`-th user that was created, counted from 1."""
        found = self.rows["users"][self.user_ids[number - 1]]
        assert isinstance(found, User)
        return found

    def posts_of(self, user: User) -> list[Post]:
        """Return a user's posts, by id."""
        posts = [row for row in self.rows["posts"].values() if isinstance(row, Post)]
        return sorted((post for post in posts if post.author_id == user.id), key=lambda post: post.id)

    def put(self, row: Row) -> None:
        """Note that a row was inserted or updated."""
        table = table_of(row)
        if isinstance(row, User) and row.id not in self.rows[table]:
            self.user_ids.append(row.id)
        self.rows[table][row.id] = row

    def delete(self, row: Row) -> None:
        """Note that a row was deleted."""
        table = table_of(row)
        self.deleted[table][row.id] = self.rows[table].pop(row.id)

    def count(self, table: str) -> int:
        """Return how many rows are live."""
        return len(self.rows[table])

    def in_order(self, table: str) -> list[Row]:
        """Return the live rows, by id."""
        return [row for _, row in sorted(self.rows[table].items())]

    def on_device(self, table: str) -> list[Cells]:
        """Return the rows as a device's SQLite has them."""
        return [device_cells(row) for row in self.in_order(table)]

    def in_sql(self, table: str) -> list[Cells]:
        """Return the rows as the SQL wire has them: times in microseconds."""
        return [sql_cells(row) for row in self.in_order(table)]


def table_of(row: Row) -> str:
    """Return the table that a row belongs to."""
    return "users" if isinstance(row, User) else "posts"


def columns(table: str) -> tuple[str, ...]:
    """Return a table's columns in order."""
    kind = User if table == "users" else Post
    return tuple(field.name for field in fields(kind) if field.name != "is_from_sql")


def device_cells(row: Row) -> Cells:
    """Return a row as SQLite has it."""
    named = _named(row)
    if row.is_from_sql:
        named |= {name: _iso(named[name]) for name in _TIMES}
    return tuple(named.values())


def device_payload(row: Row) -> dict[str, Any]:
    """Return a row as the payload of a device's change."""
    return dict(zip(columns(table_of(row)), device_cells(row), strict=True))


def sql_values(row: Row) -> dict[str, Any]:
    """Return a row as the SQL wire has it, by column name."""
    named = _named(row)
    return named | {name: named[name] * MICROSECONDS for name in _TIMES}


def sql_cells(row: Row) -> Cells:
    """Return a row as the SQL wire has it."""
    return tuple(sql_values(row).values())


def cold_values(row: Row) -> dict[str, Any]:
    """Return a row as pyarrow reads it from Parquet: times without a zone, in UTC."""
    named = _named(row)
    return named | {name: datetime.fromtimestamp(named[name], UTC).replace(tzinfo=None) for name in _TIMES}


def renamed(user: User, name: str, now: int) -> User:
    """Return the user under another name."""
    return replace(user, name=name, updated_at=now)


def parsed(payload: str | None) -> object:
    """Return the content of a JSON text, or what is wrong with it."""
    try:
        return json.loads(payload or "")
    except ValueError as error:
        return f"not JSON: {error}"


def _named(row: Row) -> dict[str, Any]:
    return {name: getattr(row, name) for name in columns(table_of(row))}


def _iso(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
