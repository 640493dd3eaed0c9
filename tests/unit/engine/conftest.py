"""These tests open whole engines in memory: `embedded` lies in the root of the tests."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from embedded import Embedded, memory_store


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
