"""The rows that the scenarios write: new ids by chance, times by a clock of their own.

Law: the same chance gives the same rows, in every run.
"""

import random
import uuid

from upwell.simulate.table import Row

# 2025-10-09T08:53:20Z
TIME_FIRST = 1_760_000_000


class Rows:
    """Makes rows as the app does."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._now = TIME_FIRST

    def tick(self) -> int:
        """The next second of the app's clock."""
        self._now += 1
        return self._now

    def new_id(self) -> str:
        """A random UUID as text."""
        return str(self._new_uuid())

    def user(self, name: str) -> Row:
        """A row of `users`."""
        now, email = self.tick(), f"{name.lower().replace(' ', '.')}@example.com"
        return {"id": self.new_id(), "name": name, "email": email, "created_at": now, "updated_at": now}

    def post(self, title: str, author: str) -> Row:
        """A row of `posts`."""
        now = self.tick()
        words = {"title": title, "content": f"What “{title}” says", "author_id": author}
        return {"id": self.new_id(), **words, "created_at": now, "updated_at": now}

    def node(self, label: str, up: str | None) -> Row:
        """A row of `nodes`."""
        return {"id": self.new_id(), "label": label, "up": up}

    def file(self, name: str, data: bytes | None, size: int | None) -> Row:
        """A row of `files`, whose key is a BLOB."""
        return {"id": self._new_uuid().bytes, "name": name, "size": size, "data": data}

    def review(self, review: str, file: bytes | None) -> Row:
        """A row of `file_reviews`."""
        return {"id": self._new_uuid().bytes, "review": review, "file_id": file}

    def data(self, size_bytes: int) -> bytes:
        """Random bytes."""
        return self._chance.randbytes(size_bytes)

    def _new_uuid(self) -> uuid.UUID:
        return uuid.UUID(int=self._chance.getrandbits(128), version=4)
