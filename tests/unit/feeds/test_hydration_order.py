"""References that come or go while a device is filled give its tables another order: it misses no row."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from upwell.clock import ManualClock
from upwell.engine.names import source_name
from upwell.errors import SeqTrimmed
from upwell.feeds.hydrate import Hydrations
from upwell.storage.hot import Batch, Kind, RecordWrite
from upwell.storage.memory import MemoryStore
from upwell.testing.embedded import Embedded
from upwell.testing.pages import USER, Phone, create_tables, server_rows, trim

TABLES = {
    "areas": "id TEXT PRIMARY KEY, head TEXT",
    "boxes": "id TEXT PRIMARY KEY, head TEXT",
    "crates": "id TEXT PRIMARY KEY, head TEXT",
}
ROWS = 2
REFERENCES = [
    ["areas (head) REFERENCES crates (id)"],
    ["areas (head) REFERENCES boxes (id)", "boxes (head) REFERENCES crates (id)"],
    ["areas (head) REFERENCES areas (id)"],
    ["areas (head) REFERENCES crates (id)", "crates (head) REFERENCES areas (id)"],
]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def db(tmp_path: Path, clock: ManualClock) -> Iterator[Embedded]:
    with Embedded(tmp_path, store=MemoryStore(clock=clock), clock=clock) as opened:
        create_tables(opened, tables=TABLES)
        for name in TABLES:
            rows = ", ".join(f"('{name[0]}{number}', NULL)" for number in range(ROWS))
            opened.run(f"INSERT INTO app.{name} VALUES {rows}", user=USER)
        yield opened


def refer(db: Embedded, references: list[str], *, is_added: bool) -> None:
    for reference in references:
        table, rest = reference.split(" ", 1)
        column, parent = rest.split(" REFERENCES ")
        action = (
            f"ADD FOREIGN KEY {column} REFERENCES app.{parent}" if is_added else f"DROP FOREIGN KEY {column}"
        )
        db.run(f"ALTER TABLE app.{table} {action}")


class Filling:
    """A device that is filled page by page, and begins again when it is told to."""

    def __init__(self, db: Embedded, limit: int) -> None:
        self._hydrations = Hydrations(db.committer, db.rows_by_key, db.registry, stream_id="s")
        self._limit = limit
        self.cursor: str | None = None
        self.has_more, self.begun = True, 1
        self.keys: dict[str, list[object]] = {name: [] for name in TABLES}

    def step(self) -> None:
        try:
            page = self._hydrations.hydrate(
                USER, "phone", cursor=self.cursor, limit=self._limit, schema="app"
            )
        except SeqTrimmed:
            self.cursor, self.keys = None, {name: [] for name in TABLES}
            self.begun += 1
            return
        self.cursor, self.has_more = page.cursor, page.has_more
        for table in page.tables:
            self.keys[table.table] += [row[0] for row in table.rows]


@pytest.mark.parametrize("references", REFERENCES)
@pytest.mark.parametrize("is_added", [True, False])
@pytest.mark.parametrize("at", range(1, 6))
def test_a_device_is_filled_with_all_rows(
    db: Embedded, references: list[str], is_added: bool, at: int
) -> None:
    if not is_added:
        refer(db, references, is_added=True)
    device, steps = Filling(db, limit=1), 0
    while device.has_more:
        if steps == at:
            refer(db, references, is_added=is_added)
        device.step()
        steps += 1
    assert device.keys == {name: [f"{name[0]}{number}" for number in range(ROWS)] for name in TABLES}


@pytest.mark.parametrize("references", REFERENCES)
@pytest.mark.parametrize("is_added", [True, False])
@pytest.mark.parametrize("at", range(1, 6))
def test_a_stock_client_reads_all_rows(
    db: Embedded, clock: ManualClock, references: list[str], is_added: bool, at: int
) -> None:
    if not is_added:
        refer(db, references, is_added=True)
    trim(db, clock)
    phone, steps, has_more = Phone(db, 1, tables=TABLES), 0, True
    while has_more:
        if steps == at:
            refer(db, references, is_added=is_added)
        steps += 1
        try:
            page = phone.fetch()
        except SeqTrimmed:
            phone.cursor = 0
            continue
        phone.store(page)
        has_more = page.has_more
    assert phone.rows() == server_rows(db, TABLES)


def test_what_changes_no_order_makes_nobody_begin_again(db: Embedded) -> None:
    device = Filling(db, limit=1)
    for number in range(4):
        device.step()
        db.run(f"CREATE TABLE app.later{number} (id TEXT PRIMARY KEY) WITH (TYPE='USER', SYNC=TRUE)")
        db.run(f"ALTER TABLE app.boxes ADD COLUMN c{number} INT")
    while device.has_more:
        device.step()
    assert device.begun == 1
    assert {name: len(keys) for name, keys in device.keys.items()} == dict.fromkeys(TABLES, ROWS)


def test_pages_of_a_server_that_noted_no_order_lead_nowhere(db: Embedded, clock: ManualClock) -> None:
    """The release before wrote such records, and gave rows of circles other places."""
    trim(db, clock)
    phone, name = Phone(db, 1, tables=TABLES), source_name(USER, "phone")
    phone.store(phone.fetch())
    record = db.view.hot.find_record(Kind.HYDRATION, name)
    assert record is not None
    floor, places, last, until, _ = msgspec.msgpack.decode(record)
    older = msgspec.msgpack.encode([floor, places, last, until])
    db.committer.apply(Batch(records=[RecordWrite(Kind.HYDRATION, name, older)]))
    db.settle()
    with pytest.raises(SeqTrimmed):
        phone.fetch()
    phone.cursor = 0
    phone.read()
    assert phone.rows() == server_rows(db, TABLES)
