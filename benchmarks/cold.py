"""SELECTs and inserts over both tiers, over HTTP, beside DuckDB: medians in ms; one JSON line.

    segments    --rows rows in --segments segments: COUNT(*), a filter, a group with its top 10, a row by
                key; the last again after 1,000 rows were changed and flushed
    random      single inserts of random UUID keys into a table with as many segments, and into an empty one
    both tiers  --hot rows, a tenth of which supersede cold ones, over --cold rows: count, group and filter;
                DuckDB reads the manifest's files, without the same superseded `_seq`s, and the hot rows

    .venv/bin/python benchmarks/cold.py [--rows 200000] [--segments 20] [--hot 100000] [--cold 5000000]

The data is made by the engine in this process, so that no compaction merges the segments meanwhile; a server
of its own then serves each part. Both sides are asked in turns; their answers must be the same.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import duckdb
import pyarrow as pa

from upwell.engine.catalog import Table
from upwell.storage.hot import Batch, RowWrite
from upwell.testing import ServerProcess
from upwell.testing.embedded import Embedded
from upwell.types import SHARED, Op, Row
from wire import Connection

BATCH_ROWS = 1_000
CHANGED_ROWS = 1_000
SEGMENT_ROWS = 250_000
CATEGORIES = 100
TABLE = "bench.items"
COLUMNS = "id BIGINT PRIMARY KEY, category TEXT, amount INT, description TEXT"
WITH = "WITH (TYPE = 'SHARED', FLUSH_POLICY = 'rows:1000000000')"
COUNT = "SELECT COUNT(*) AS n FROM {}"
ROWS = "SELECT * FROM {} WHERE category = 'cat_42'"
FILTER = "SELECT COUNT(*) AS n, SUM(amount) AS s FROM {} WHERE category = 'cat_42'"
GROUP = "SELECT category, SUM(amount) AS s FROM {} GROUP BY category ORDER BY s DESC, category LIMIT 10"


def item(key: int) -> Row:
    return [key, f"cat_{key % CATEGORIES}", key * 7919 % 10_000, f"what is told of item {key}"]


def load(db: Embedded, table: Table, rows: Iterable[Row]) -> None:
    """Insert new rows, past SQL: nothing is checked."""
    batch: list[RowWrite] = []
    for row in rows:
        batch.append(RowWrite(table.id, SHARED, row[0], Op.INSERT, table.version, None, row, 1, 0))  # type: ignore[arg-type]
        if len(batch) == BATCH_ROWS:
            db.committer.apply(Batch(rows=batch))
            batch = []
    db.committer.publication.wait(db.committer.apply(Batch(rows=batch)))


def load_segments(db: Embedded, name: str, rows: Iterator[Row], segments: int, segment_rows: int) -> None:
    for _ in range(segments):
        load(db, db.table(name), (next(rows) for _ in range(segment_rows)))
        db.flush(name)


@contextmanager
def served(make: Callable[[Embedded], None], *tables: str) -> Iterator[tuple[Connection, Path]]:
    """Make tables in this process, serve them by another; yield a connection and the directory."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name) / "data"
        with Embedded(directory) as db:
            db.run("CREATE NAMESPACE bench")
            for table in tables:
                db.run(f"CREATE TABLE {table} {WITH}")
            make(db)
        with ServerProcess(directory, ready_s_max=60) as server:
            yield Connection(server.url, "root", server.root_password), directory


def timed_ms(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return (time.perf_counter() - began) * 1000


def median_ms(call: Callable[[], object], count: int) -> float:
    call()
    return round(statistics.median(timed_ms(call) for _ in range(count)), 3)


def in_turns_ms(first: Callable[[], object], second: Callable[[], object], count: int) -> tuple[float, float]:
    """Return the medians of two calls that are made in turns."""
    first(), second()
    pairs = [(timed_ms(first), timed_ms(second)) for _ in range(count)]
    one, other = (round(statistics.median(times), 3) for times in zip(*pairs, strict=True))
    return one, other


def asked(connection: Connection, text: str) -> Callable[[], object]:
    request = connection.request(text)
    return lambda: connection.send(request)


def by_key_ms(connection: Connection, rows: int, count: int) -> float:
    keys = iter(range(1, 1_000_000_000, 7919))
    return median_ms(lambda: connection.sql(f"SELECT * FROM {TABLE} WHERE id = {next(keys) % rows}"), count)


def measure_segments(rows: int, segments: int, count: int) -> dict[str, object]:
    def make(db: Embedded) -> None:
        load_segments(db, TABLE, map(item, iter(range(rows))), segments, rows // segments)

    def make_changed(db: Embedded) -> None:
        make(db)
        step = rows // CHANGED_ROWS
        db.change(f"UPDATE {TABLE} SET amount = -1 WHERE id % {step} = 0")
        db.flush(TABLE)

    with served(make, f"{TABLE} ({COLUMNS})") as (connection, _):
        found: dict[str, object] = {
            "rows": rows,
            "segments": segments,
            "count_ms": median_ms(asked(connection, COUNT.format(TABLE)), count),
            "filter_ms": median_ms(
                asked(connection, f"SELECT * FROM {TABLE} WHERE category = 'cat_42'"), count
            ),
            "group_top10_ms": median_ms(asked(connection, GROUP.format(TABLE)), count),
            "key_ms": by_key_ms(connection, rows, count),
        }
    with served(make_changed, f"{TABLE} ({COLUMNS})") as (connection, _):
        found["key_1000_hidden_ms"] = by_key_ms(connection, rows, count)
    return found


def measure_random(rows: int, segments: int, count: int) -> dict[str, object]:
    full, empty = "bench.full", "bench.empty"
    columns = "(id UUID PRIMARY KEY, n INT)"

    def make(db: Embedded) -> None:
        table_rows = sorted(str(uuid.uuid4()) for _ in range(rows))
        spread = (key for start in range(segments) for key in table_rows[start::segments])
        load_segments(db, full, ([key, 1] for key in spread), segments, rows // segments)

    with served(make, f"{full} {columns}", f"{empty} {columns}") as (connection, _):

        def insert(table: str) -> object:
            return connection.sql(f"INSERT INTO {table} (id, n) VALUES ('{uuid.uuid4()}', 2)")

        into_full, into_empty = in_turns_ms(partial(insert, full), partial(insert, empty), count)
    return {
        "random_insert_ms": into_full,
        "random_insert_empty_ms": into_empty,
        "random_insert_ratio": round(into_full / into_empty, 2),
    }


def hot_rows(hot: int, cold: int) -> list[Row]:
    """Return the rows that are hot: of each ten, nine are new and one was cold."""
    old = [[key, category, -1, text] for key, category, _, text in map(item, changed_keys(hot, cold))]
    return [*old, *map(item, range(cold, cold + hot - len(old)))]


def changed_keys(hot: int, cold: int) -> range:
    return range(0, cold, max(1, cold * 10 // hot))


class Duck:
    """DuckDB over the files that the manifest names and the hot rows, resolved by the same `_seq`s."""

    def __init__(self, directory: Path, hot: int, cold: int) -> None:
        (copy,) = (directory / "storage").rglob("manifest.json")
        names = [str(copy.parent / each["path"]) for each in json.loads(copy.read_bytes())["segments"]]
        self._db = duckdb.connect()
        step = changed_keys(hot, cold).step
        self._db.execute(
            f"CREATE TABLE hidden AS SELECT _seq FROM read_parquet({names}) WHERE id % {step} = 0"
        )
        columns = "id, category, amount, description"
        self._db.register("made", pa.table(list(zip(*hot_rows(hot, cold), strict=True)), columns.split(", ")))
        self._db.execute("CREATE TABLE hot AS SELECT * FROM made")
        self._db.execute(
            f"CREATE VIEW items AS SELECT {columns} FROM hot UNION ALL SELECT {columns} FROM "
            f"read_parquet({names}) AS cold ANTI JOIN hidden USING (_seq) WHERE NOT _deleted"
        )

    def rows(self, text: str) -> list[list[object]]:
        return [list(row) for row in self._db.execute(text.format("items")).fetchall()]


def measure_both(hot: int, cold: int, count: int) -> dict[str, object]:
    segment_rows = min(cold, SEGMENT_ROWS)
    old = changed_keys(hot, cold)

    def make(db: Embedded) -> None:
        load_segments(db, TABLE, map(item, iter(range(cold))), cold // segment_rows, segment_rows)
        db.change(f"UPDATE {TABLE} SET amount = -1 WHERE id % {old.step} = 0")
        load(db, db.table(TABLE), hot_rows(hot, cold)[len(old) :])

    found: dict[str, object] = {"hot": hot, "cold": cold}
    with served(make, f"{TABLE} ({COLUMNS})") as (connection, directory):
        duck = Duck(directory, hot, cold)
        for name, text in (("count", COUNT), ("group", GROUP), ("filter", FILTER)):
            (result,) = connection.sql(text.format(TABLE))["results"]  # type: ignore[attr-defined]
            ours = [[int(cell) if str(cell).isdigit() else cell for cell in row] for row in result["rows"]]
            assert ours == duck.rows(text), (name, ours, duck.rows(text))
            own, its = in_turns_ms(asked(connection, text.format(TABLE)), partial(duck.rows, text), count)
            found |= {f"both_{name}_ms": own, f"duckdb_{name}_ms": its}
            found[f"both_{name}_ratio"] = round(own / its, 2)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--segments", type=int, default=20)
    parser.add_argument("--hot", type=int, default=100_000)
    parser.add_argument("--cold", type=int, default=5_000_000)
    parser.add_argument("--requests", type=int, default=50)
    options = parser.parse_args()
    found = measure_segments(options.rows, options.segments, options.requests)
    found |= measure_random(options.rows, options.segments, options.requests * 10)
    found |= measure_both(options.hot, options.cold, options.requests)
    print(json.dumps({"benchmark": "cold", "cores": os.cpu_count(), **found}))


if __name__ == "__main__":
    main()
