"""Whole engines in memory."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from upwell.testing.embedded import Embedded, memory_store


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Embedded]:
    """An engine with a USER table `app.mine` and a SHARED table `app.ours`."""
    with Embedded(tmp_path, store=memory_store()) as db:
        db.run(
            "CREATE NAMESPACE app;"
            "CREATE TABLE app.mine (id INT PRIMARY KEY, n INT, s TEXT NOT NULL DEFAULT '-')"
            " WITH (TYPE = 'USER');"
            "CREATE TABLE app.ours (id INT PRIMARY KEY, n INT) WITH (TYPE = 'SHARED')"
        )
        yield db
