"""Whole engines in memory."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from upwell.testing import FailingFiles, PointActions
from upwell.testing.embedded import Embedded, memory_store

NEVER = 1_000_000


@pytest.fixture
def points() -> PointActions:
    return PointActions()


@pytest.fixture
def files() -> FailingFiles:
    """Files that work until a test says otherwise."""
    return FailingFiles(NEVER)


@pytest.fixture
def db(tmp_path: Path, files: FailingFiles, points: PointActions) -> Iterator[Embedded]:
    """An engine with a SHARED table `app.ours` of two rows."""
    with Embedded(tmp_path, store=memory_store(), files=files, points=points) as db:
        db.run(
            "CREATE NAMESPACE app;"
            "CREATE TABLE app.ours (id INT PRIMARY KEY, n INT) WITH (TYPE = 'SHARED');"
            "INSERT INTO app.ours VALUES (1, 1), (2, 2)"
        )
        yield db
