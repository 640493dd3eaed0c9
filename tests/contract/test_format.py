"""A data directory that release 0.1 wrote is opened, read and written by this one."""

import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from upwell.errors import AlreadyExists
from upwell.testing import ServerProcess
from upwell.testing.embedded import Embedded
from upwell.testing.wire import Site
from upwell.types import user_owner

ARCHIVE = Path(__file__).parents[1] / "data" / "format-1.tar.gz"
MOMENT_US = 1_767_323_045_678_901


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


@pytest.fixture
def db(directory: Path) -> Iterator[Embedded]:
    with Embedded(directory) as db:
        yield db


def check(db: Embedded) -> None:
    """What it holds, in both tiers."""
    assert db.rows("SELECT id, n, s, added FROM app.ours ORDER BY id") == [
        (2, 21, "two", 7),
        (4, 9007199254740993, None, None),
    ]
    whole = ("k", MOMENT_US, True, -1.5, b"\x00\xff", '{"a": [1, null]}')
    names = "id, at, ok, x, raw, doc"
    for user, x in (("ann", 2.5), ("böb/..", None)):
        assert db.rows(f"SELECT {names} FROM app.mine ORDER BY id", user=user) == [
            whole,
            ("l", None, None, x, None, None),
        ]
    assert db.rows("SELECT id, title FROM app.todo", user="ann") == [("a", "buy milk")]
    assert db.rows("SELECT count(*) FROM app.todo", user="böb/..") == [(2,)]


def test_what_an_older_release_wrote_is_all_there(db: Embedded) -> None:
    check(db)
    table = db.table("app.todo")
    gone = db.rows_by_key.find(db.view.hot, table, user_owner("ann"), "b", may_block=True).version
    assert gone is not None
    assert (gone.row, gone.count) == (None, 2)
    log = db.view.hot.read_owner_log(user_owner("ann"), 0, None, 99)
    assert [change.counter for change in log] == list(range(1, 7))


def test_its_key_filters_are_of_the_first_version_and_made_again(db: Embedded) -> None:
    """They don't say whose they are: every key is found, and the next one who asks finds them as they are."""
    filters = sorted(db.cold_root.rglob("*.filter"))
    before = {path: path.read_bytes() for path in filters}
    assert {data[4] for data in before.values()} == {1}
    for table, user, keys in (("ours", "root", (2, 4)), ("mine", "ann", ("k", "l")), ("todo", "ann", ("a",))):
        for key in keys:
            assert db.rows(f"SELECT id FROM app.{table} WHERE id = $1", [key], user=user) == [(key,)]
            with pytest.raises(AlreadyExists):
                db.change(f"INSERT INTO app.{table} (id) VALUES ($1)", [key], user=user)
    made = {path for path in filters if path.read_bytes() != before[path]}
    assert {path.parent.name for path in made} >= {"ours", "ann"}
    assert {path.read_bytes()[4] for path in made} == {3}


def test_it_goes_on_from_there(db: Embedded) -> None:
    """Flushed, compacted, opened again: the same rows; and what is new gets a later seq."""
    for table in ("app.ours", "app.mine", "app.todo"):
        db.flush(table)
        db.compact(table)
    check(db)
    assert db.cold_problems() == []
    before = db.store.last_seq
    db.run("INSERT INTO app.ours (id, n) VALUES (5, 50)")
    assert db.rows("SELECT added, _seq > $1 FROM app.ours WHERE id = 5", [before]) == [(7, True)]
    db.run("DELETE FROM app.ours WHERE id = 5")
    db.reopen()
    check(db)


def test_a_server_serves_it(directory: Path) -> None:
    with ServerProcess(directory, env={"UPWELL_BCRYPT_COST": "4"}) as server:
        site = Site(server)
        assert site.root.run("SELECT id, n FROM app.ours ORDER BY id").rows == [
            [2, "21"],
            [4, "9007199254740993"],
        ]
        ann = site.wire(site.login("ann", "a-password-of-a-test")["access_token"])
        assert ann.run("SELECT COUNT(*) FROM app.mine").cell == "2"
        site.close()
