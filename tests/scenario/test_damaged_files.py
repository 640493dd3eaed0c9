"""Damaged cold files on a real server, stopped or running: cut off, a bit flipped, gone, or that of another
table. What can be made again is; else the query fails and names the file. Never fewer rows, nor others, and
other tables answer as ever.
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
FEW = "id < 1000"
"""The rows that are asked for; others are there because a key filter of few keys is no file."""
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
    beside = path.with_name("beside")
    beside.write_bytes(other.read_bytes())
    beside.rename(path)


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
        make(site, name)
    site.server.kill()
    for name, (kind, damage) in names.items():
        damage(newest(storage / name, KINDS[kind]), newest(storage / "other", KINDS[kind]))
    site.server.start()
    told = {name: _asked(root, name) for name in names}
    print(told)
    assert [
        [int(key), v] for key, v in root.run(f"SELECT id, v FROM app.sound WHERE {FEW} ORDER BY id").rows
    ] == EXPECTED
    failing = {name for name, answer in told.items() if answer != "whole"}
    assert failing <= {name for name, (kind, _) in names.items() if kind in ("segment", "manifest")}, told


def test_no_damage_under_a_running_server_makes_rows_disappear(site: Site) -> None:
    """Each file is damaged after it was read, and put back: the next query says so, or knows better."""
    root, storage = site.root, site.server.data_dir / "storage" / "run"
    root.run("CREATE NAMESPACE run")
    make(site, "other", "run")
    root.run("SELECT * FROM run.other")
    for damage in DAMAGES:
        name = f"t_{damage.__name__}"
        make(site, name, "run")
        assert _asked(root, name, "run") == "whole"
        for kind, files in {**KINDS, "copy": "manifest.json", "link": ".links/*/batch-*"}.items():
            path = newest(storage / name, files)
            content = path.read_bytes()
            damage(path, newest(storage / "other", files))
            told = _asked(root, name, "run")
            # What is written to a link is written to its file.
            may_fail = kind == "segment" or (kind == "link" and damage in (cut, flip))
            assert told != "whole" if may_fail else told == "whole", (name, kind, told)
            assert root.run("SELECT COUNT(v) FROM run.other").cell == "4"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
            assert _asked(root, name, "run") == "whole", (name, kind)
        root.run(f"INSERT INTO run.{name} VALUES (6, 'last')")
        site.flush(f"run.{name}")
        assert root.run(f"SELECT COUNT(v) FROM run.{name}").cell == "5"


def make(site: Site, name: str, namespace: str = "app") -> None:
    """Create a table with rows in two segments, of which the newer one supersedes some of the older."""
    table, text = f"{namespace}.{name}", "other" if name == "other" else "new"
    site.root.run(f"CREATE TABLE {table} (id INT PRIMARY KEY, v TEXT) WITH (TYPE = 'SHARED')")
    site.root.run(f"INSERT INTO {table} VALUES (1, '{text}'), (2, '{text}'), (3, '{text}'), {_others(1000)}")
    site.flush(table)
    site.root.run(f"UPDATE {table} SET v = 'changed' WHERE id = 1; DELETE FROM {table} WHERE id = 2")
    site.root.run(f"INSERT INTO {table} VALUES (4, '{text}'), (5, '{text}'), {_others(2000)}")
    site.flush(table)


def _others(first: int) -> str:
    return ", ".join(f"({key}, NULL)" for key in range(first, first + 150))


def newest(directory: Path, pattern: str) -> Path:
    return max(directory.glob(pattern), key=lambda path: path.stat().st_mtime_ns)


def _asked(root: Wire, name: str, namespace: str = "app") -> str:
    """Return 'whole', or the error, which names a file of the table; by scan and by key."""
    outcomes = []
    for sql in (
        f"SELECT id, v FROM {namespace}.{name} WHERE {FEW} ORDER BY id",
        f"SELECT id, v FROM {namespace}.{name} WHERE id IN (1, 3, 4, 5, 2) ORDER BY id",
        f"SELECT COUNT(*), COUNT(v) FROM {namespace}.{name} WHERE {FEW}",
        *(f"SELECT id, v FROM {namespace}.{name} WHERE id = {key}" for key in range(1, 6)),
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
