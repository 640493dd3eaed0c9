"""Many at once: no update is lost, no transaction is seen in part, no key is taken twice, whatever else runs.

Every form of a change takes part (by key, by condition, by the query engine, in transactions, upserts), while
tables are flushed, altered and dropped.
"""

import itertools
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from upwell.testing.wire import Answer, Site, Wire

CLIENTS = 50
ROUNDS = 4
INCREMENTS = (
    "UPDATE {t} SET n = n + 1 WHERE id = 1",
    "UPDATE {t} SET n = n + 1 WHERE name = 'one'",
    "UPDATE {t} SET n = CASE WHEN n >= 0 THEN n + 1 ELSE n END WHERE id = 1",
    "UPDATE {t} SET n = (SELECT MAX(n) FROM {t} WHERE id = 1) + 1 WHERE id = 1",
    "BEGIN; UPDATE {t} SET n = n + 1 WHERE id = 1; COMMIT",
    "INSERT INTO {t} VALUES (1, 'one', 0) ON CONFLICT (id) DO UPDATE SET n = t.n + 1",
    "UPDATE {t} SET n = n + 1 WHERE id = 1 RETURNING n",
)


@pytest.fixture(params=["hot", "flushed"])
def tiers(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@contextmanager
def meanwhile(*works: Callable[[], object]) -> Iterator[None]:
    """Do each of `works` again and again beside the block, at least once, and see that none fails."""
    ended = threading.Event()

    def go_on(work: Callable[[], object]) -> None:
        work()
        while not ended.is_set():
            work()

    with ThreadPoolExecutor(len(works) or 1) as threads:
        running = [threads.submit(go_on, work) for work in works]
        try:
            yield
        finally:
            ended.set()
        for each in running:
            each.result()


def together(wires: list[Wire], work: Callable[[Wire, int], object]) -> None:
    """Let each wire do its work at the same time."""
    start = threading.Barrier(len(wires))

    def run(number: int) -> None:
        start.wait()
        work(wires[number], number)

    with ThreadPoolExecutor(len(wires)) as threads:
        list(threads.map(run, range(len(wires))))


def until_done(wire: Wire, text: str) -> Answer:
    """Run a statement, again while somebody else was faster."""
    while True:
        answer = wire.sql(text)
        if answer.status == 200:
            return answer
        assert "Conflict: " in answer.refused(400, "SQL_EXECUTION_ERROR"), text


def test_no_update_is_lost(site: Site, namespace: str, tiers: str) -> None:
    table = f"{namespace}.t"
    site.root.run(f"CREATE SHARED TABLE {table} (id INT PRIMARY KEY, name TEXT, n INT)")
    site.root.run(f"INSERT INTO {table} VALUES (1, 'one', 0), (2, 'two', 0)")
    wires = [site.wire(site.root.token) for _ in range(CLIENTS)]

    def add(wire: Wire, number: int) -> None:
        # What the query engine has to evaluate is slow and overtaken often: two clients of fifty do it.
        form = INCREMENTS[number] if number < len(INCREMENTS) else INCREMENTS[number % 2]
        for _ in range(ROUNDS):
            until_done(wire, form.replace("{t}", table))

    with meanwhile(*[lambda: site.flush(table)] * (tiers == "flushed")):
        together(wires, add)
    assert site.root.run(f"SELECT n FROM {table} ORDER BY id").rows == [[CLIENTS * ROUNDS], [0]]


def test_money_is_moved_and_never_made(site: Site, namespace: str, tiers: str) -> None:
    """Readers see the same sum at every moment, in one query and over two in a transaction."""
    table = f"{namespace}.account"
    site.root.run(f"CREATE SHARED TABLE {table} (id INT PRIMARY KEY, n BIGINT NOT NULL)")
    site.root.run(f"INSERT INTO {table} VALUES {', '.join(f'({number}, 100)' for number in range(10))}")
    wires = [site.wire(site.root.token) for _ in range(8)]
    reader = site.wire(site.root.token)
    half = f"SELECT SUM(n) FROM {table} WHERE id {{}} 5"
    both = f"BEGIN; {half.format('<')}; {half.format('>=')}; COMMIT"

    def look() -> None:
        assert reader.run(f"SELECT SUM(n), COUNT(*) FROM {table}").rows == [["1000", "10"]]
        sums = [each["rows"][0][0] for each in reader.run(both).results if "rows" in each]
        assert sum(map(int, sums)) == 1000, sums

    def move(wire: Wire, number: int) -> None:
        for turn in range(12):
            here, there = (number * 3 + turn) % 10, (number + turn * 7 + 1) % 10
            take, give = f"SET n = n - 7 WHERE id = {here}", f"SET n = n + 7 WHERE id = {there}"
            until_done(wire, f"BEGIN; UPDATE {table} {take}; UPDATE {table} {give}; COMMIT")

    with meanwhile(look, *[lambda: site.flush(table)] * (tiers == "flushed")):
        together(wires, move)
    look()


def test_a_key_is_taken_once(site: Site, namespace: str, tiers: str) -> None:
    table = f"{namespace}.t"
    site.root.run(f"CREATE SHARED TABLE {table} (id INT PRIMARY KEY, by INT)")
    wires = [site.wire(site.root.token) for _ in range(10)]
    taken: list[tuple[int, int]] = []
    forms = ("VALUES ({k}, {n})", "SELECT {k} AS a, {n} AS b", "VALUES ({k}, {n}) RETURNING id")

    def take(wire: Wire, number: int) -> None:
        for key in range(30):
            form = forms[(number + key) % 3].replace("{k}", str(key)).replace("{n}", str(number))
            answer = wire.sql(f"INSERT INTO {table} {form}")
            if answer.status == 200:
                taken.append((key, number))
            else:
                message = answer.refused(400, "SQL_EXECUTION_ERROR")
                assert f"Primary key violation: value '{key}' already exists" in message

    with meanwhile(*[lambda: site.flush(table)] * (tiers == "flushed")):
        together(wires, take)
    assert [key for key, _ in sorted(taken)] == list(range(30))
    assert site.root.run(f"SELECT id, by FROM {table} ORDER BY id").rows == [
        list(each) for each in sorted(taken)
    ]


def test_columns_come_and_go_beside_writers(site: Site, namespace: str) -> None:
    """Each write is done or refused with its reason; what was acknowledged is there, nothing else."""
    table = f"{namespace}.t"
    site.root.run(f"CREATE SHARED TABLE {table} (id INT PRIMARY KEY, n INT)")
    wires = [site.wire(site.root.token) for _ in range(6)]
    definer, reader = site.wire(site.root.token), site.wire(site.root.token)
    numbers = itertools.count()
    done: list[int] = []

    def alter() -> None:
        name = f"c{next(numbers) % 3}"
        definer.run(f"ALTER TABLE {table} ADD COLUMN {name} INT NOT NULL DEFAULT 7")
        site.flush(table)
        definer.run(f"ALTER TABLE {table} RENAME COLUMN {name} TO d; ALTER TABLE {table} DROP COLUMN d")

    def look() -> None:
        names = [name for name, _ in reader.run(f"SELECT * FROM {table}").columns]
        assert re.fullmatch(r"id,n,((c\d|d),)?_seq,_deleted", ",".join(names)), names

    def write(wire: Wire, number: int) -> None:
        for turn in range(20):
            key = number * 100 + turn
            wire.run(f"INSERT INTO {table} (id, n) VALUES ({key}, {key})")
            done.append(key)
            named = wire.sql(f"UPDATE {table} SET n = n + 1, c1 = 8 WHERE id = {key}")
            assert named.status == 200 or "c1" in named.refused(400, "SQL_EXECUTION_ERROR"), named
            assert wire.run(f"UPDATE {table} SET n = {key} + 1 WHERE id = {key}").count == (
                named.status != 200
            )

    with meanwhile(alter, look):
        together(wires, write)
    expected = [[key, key + 1] for key in sorted(done)]
    assert site.root.run(f"SELECT id, n FROM {table} ORDER BY id").rows == expected


def test_a_table_goes_while_it_is_read_and_written(site: Site, namespace: str) -> None:
    """A statement is about the one table or the other, or there is none: rows of both are never mixed."""
    table = f"{namespace}.t"
    definer = site.wire(site.root.token)
    wires = [site.wire(site.root.token) for _ in range(6)]
    generations = itertools.count(1)

    def make() -> None:
        number = next(generations)
        definer.run(f"CREATE SHARED TABLE {table} (id INT PRIMARY KEY, of INT NOT NULL DEFAULT {number})")
        definer.run(f"INSERT INTO {table} (id) VALUES (1), (2), (3)")
        site.flush(table)
        definer.run(f"DROP TABLE {table}")

    def use(wire: Wire, number: int) -> None:
        for turn in range(20):
            for text in (
                f"SELECT of FROM {table}",
                f"SELECT of, COUNT(*) FROM {table} GROUP BY of",
                f"INSERT INTO {table} (id) VALUES ({100 + number * 100 + turn})",
            ):
                answer = wire.sql(text)
                if answer.status != 200:
                    assert "not found" in answer.refused(400, "SQL_EXECUTION_ERROR").lower()
                elif text.startswith("SELECT"):
                    assert len({row[0] for row in answer.rows}) <= 1, answer.rows

    with meanwhile(make):
        together(wires, use)
