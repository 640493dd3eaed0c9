"""A server that ends anywhere in CREATE or DROP STORAGE has the place after its next start, or nobody has."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from upwell.effects import Call, OsFiles
from upwell.errors import StorageFailed, UpwellError
from upwell.storage.hot import Kind
from upwell.testing import PointActions, each_fault
from upwell.testing.embedded import Embedded, memory_store

T = TypeVar("T")
MARKER = "upwell-storage.json"


class Mortal(OsFiles):
    """Files of a server that ends at the n-th call or commit: neither that one nor any after it is made."""

    def __init__(self) -> None:
        self.left: int | None = None

    @property
    def is_dead(self) -> bool:
        return self.left is not None and self.left <= 0

    def step(self) -> None:
        if self.left is not None:
            self.left -= 1
            if self.left <= 0:
                raise StorageFailed("the server has ended: injected")

    def _call(self, name: Call, path: Path, fn: Callable[[], T]) -> T:
        self.step()
        return fn()


@pytest.mark.parametrize("verb", ["CREATE", "DROP"])
def test_a_place_is_never_marked_for_nobody(tmp_path: Path, verb: str) -> None:
    def make_run(fail_at: int) -> bool:
        base, files = tmp_path / f"base{fail_at}", Mortal()
        create = f"CREATE STORAGE far TYPE filesystem PATH '{base}'"
        points = PointActions({"commit:before-write": files.step})
        data = tmp_path / f"data{fail_at}"
        with Embedded(data, store=memory_store(), files=files, points=points) as db:
            if verb == "DROP":
                db.run(create)
            files.left = fail_at
            try:
                db.run(create if verb == "CREATE" else "DROP STORAGE far")
            except UpwellError:
                assert files.is_dead
            fired, files.left = files.is_dead, None
            db.reopen()
            db.runner.run(db.sessions.resume())
            is_there = "far" in db.view.catalog.storages
            assert is_there == (base / MARKER).exists()
            db.run("DROP STORAGE IF EXISTS far")
            db.run(create)
            (check,) = db.rows("STORAGE CHECK far")
            assert check[1] == "healthy"
        return fired

    assert each_fault(make_run) > 2


def test_a_place_that_is_away_is_given_up_when_it_is_back(tmp_path: Path) -> None:
    """By the next start, or by another DROP; who has it by then keeps it."""
    base, away = tmp_path / "disk", tmp_path / "away"
    create = f"CREATE STORAGE far TYPE filesystem PATH '{base}'"
    with Embedded(tmp_path / "data", store=memory_store()) as db:
        ways: list[Callable[[], object]] = [
            lambda: db.runner.run(db.sessions.resume()),
            lambda: db.run("DROP STORAGE IF EXISTS far"),
        ]
        for again in ways:
            db.run(create)
            base.rename(away)
            db.run("DROP STORAGE far")
            again()
            away.rename(base)
            assert (base / MARKER).exists()
            again()
            assert list(base.iterdir()) == []
        db.run(create)
        base.rename(away)
        db.run("DROP STORAGE far")
        away.rename(base)
        db.run(create)
        db.runner.run(db.sessions.resume())
        assert (base / MARKER).exists(), "it has come back as a storage"
        base.rename(away)
        db.run("DROP STORAGE far")
        away.rename(base)
        (base / MARKER).write_bytes(b'{"server":"another","format":1}')
        db.runner.run(db.sessions.resume())
        assert b"another" in (base / MARKER).read_bytes()
        assert not [name for name in db.record_names(Kind.META) if name.startswith("vacant/")]
