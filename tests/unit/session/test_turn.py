"""A long write ends, however often a row of it is changed meanwhile, and so do those that change it."""

import asyncio
from pathlib import Path

from upwell.session.outcome import Changed
from upwell.session.turn import Turns
from upwell.session.write import OVERTAKEN_MAX
from upwell.testing.embedded import Embedded, memory_store
from upwell.types import TableId

ROWS = 5_000
WRITERS = 3
ONE = TableId(1)
OTHER = TableId(2)


async def _changed(db: Embedded, sql: str) -> int:
    result = (await db.outcomes(sql))[-1].result
    assert isinstance(result, Changed)
    return result.count


def test_a_long_write_beside_constant_short_ones_ends(tmp_path: Path) -> None:
    with Embedded(tmp_path, store=memory_store()) as db:
        db.run("CREATE TABLE t (id INT PRIMARY KEY, n BIGINT NOT NULL)")
        db.run(f"INSERT INTO t VALUES {', '.join(f'({key}, 0)' for key in range(ROWS))}")
        long, short = db.runner.get_loop().run_until_complete(_raced(db))
        assert long == [ROWS, ROWS]
        assert min(short) > OVERTAKEN_MAX
        assert db.rows("SELECT n, COUNT(*) FROM t GROUP BY n ORDER BY n") == [
            (2, ROWS - 1),
            (2 + 1_000_000 * sum(short), 1),
        ]


async def _raced(db: Embedded) -> tuple[list[int], list[int]]:
    """Change all rows twice while others change one of them; return how many were changed by whom."""
    is_over = False

    async def add_to_one() -> int:
        count = 0
        while not is_over:
            count += await _changed(db, "UPDATE t SET n = n + 1000000 WHERE id = 7")
        return count

    short = [asyncio.create_task(add_to_one()) for _ in range(WRITERS)]
    long = [await _changed(db, "UPDATE t SET n = n + 1") for _ in range(2)]
    is_over = True
    return long, list(await asyncio.gather(*short))


async def test_others_of_the_table_wait_for_a_turn() -> None:
    turns, order = Turns(), list[str]()

    async def write(table: TableId, name: str) -> None:
        await turns.wait(table)
        order.append(name)

    async def write_long(name: str) -> None:
        async with turns.taken(ONE):
            order.append(f"{name} begins")
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            order.append(f"{name} ends")

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(write_long("long"))
        tasks.create_task(write(ONE, "same"))
        tasks.create_task(write(OTHER, "other"))
        tasks.create_task(write_long("next"))
    assert order.index("other") < order.index("long ends") < order.index("same")
    assert order.index("long ends") < order.index("next begins")
    await write(ONE, "later")
    assert order[-1] == "later"
