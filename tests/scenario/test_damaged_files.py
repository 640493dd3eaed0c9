"""Damaged cold files on a real server: cut off, a bit flipped, gone, or that of another table. What can be
made again is; else the query fails and names the file. Never fewer rows, and other tables answer as ever.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from upwell.testing import ServerProcess
from upwell.testing.wire import Site, Wire

KINDS = {
    "segment": "batch-*.parquet",
    "filter": "batch-*.filter",
    "hidden": "hidden-*",
    "manifest": "manifest-*",
}
EXPECTED = [[1, "changed"], *[[key, "new"] for key in (3, 4, 5)]]


def cut(path: Path, other: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path, other: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def remove(path: Path, other: Path) -> None:
    path.unlink()


def swap(path: Path, other: Path) -> None:
    path.write_bytes(other.read_bytes())


DAMAGES: tuple[Callable[[Path, Path], None], ...] = (cut, flip, remove, swap)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("damaged") / "data"
    with ServerProcess(directory, env={"UPWELL_BCRYPT_COST": "4", "UPWELL_COLD_GRACE_S": "0"}) as server:
        site = Site(server)
        yield site
        site.close()


def test_no_damage_makes_rows_disappear(site: Site) -> None:
    root, storage = site.root, site.server.data_dir / "storage" / "app"
    root.run("CREATE NAMESPACE app")
    names = {f"{kind}_{damage.__name__}": (kind, damage) for kind in KINDS for damage in DAMAGES}
    for name in [*names, "sound", "other"]:
        root.run(f"CREATE TABLE app.{name} (id INT PRIMARY KEY, v TEXT) WITH (TYPE = 'SHARED')")
        text = "other" if name == "other" else "new"
        root.run(f"INSERT INTO app.{name} VALUES (1, '{text}'), (2, '{text}'), (3, '{text}')")
        site.flush(f"app.{name}")
        root.run(f"UPDATE app.{name} SET v = 'changed' WHERE id = 1; DELETE FROM app.{name} WHERE id = 2")
        root.run(f"INSERT INTO app.{name} VALUES (4, '{text}'), (5, '{text}')")
        site.flush(f"app.{name}")
    site.server.kill()
    for name, (kind, damage) in names.items():
        newest = sorted((storage / name).glob(KINDS[kind]), key=lambda path: path.stat().st_mtime_ns)[-1]
        others = sorted((storage / "other").glob(KINDS[kind]), key=lambda path: path.stat().st_mtime_ns)
        damage(newest, others[-1])
    site.server.start()
    told = {name: _asked(root, name) for name in names}
    print(told)
    assert [[int(key), v] for key, v in root.run("SELECT id, v FROM app.sound ORDER BY id").rows] == EXPECTED
    failing = {name for name, answer in told.items() if answer != "whole"}
    assert failing <= {name for name, (kind, _) in names.items() if kind in ("segment", "manifest")}, told


def _asked(root: Wire, name: str) -> str:
    """Return 'whole', or the error, which names a file of the table; by scan and by key."""
    outcomes = []
    for sql in (
        f"SELECT id, v FROM app.{name} ORDER BY id",
        f"SELECT id, v FROM app.{name} WHERE id IN (1, 3, 4, 5, 2) ORDER BY id",
        f"SELECT COUNT(*), COUNT(v) FROM app.{name}",
        *(f"SELECT id, v FROM app.{name} WHERE id = {key}" for key in range(1, 6)),
    ):
        answer = root.sql(sql)
        if answer.status != 200:
            message = answer.json["error"]["message"]
            assert "cold file" in message, message
            outcomes.append(message)
            continue
        rows = answer.rows
        if "COUNT" in sql:
            assert [[int(cell) for cell in row] for row in rows] == [[4, 4]], (name, sql, rows)
        elif " = " in sql:
            key = int(sql.rsplit(" ", 1)[1])
            assert [[int(k), v] for k, v in rows] == [row for row in EXPECTED if row[0] == key], (
                name,
                sql,
                rows,
            )
        else:
            assert [[int(k), v] for k, v in rows] == EXPECTED, (name, sql, rows)
    return outcomes[0] if outcomes else "whole"
