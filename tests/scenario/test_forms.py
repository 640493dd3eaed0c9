"""The extremes of every type, in by every way (literal, parameter, `rows`) and out in every form, hot and
cold: JSON, NDJSON, CSV, Arrow, and the frames of a live query as JSON and as MessagePack.

What has to come out is written down here, value by value: nothing is lost on any way.
"""

import csv
import io
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any

import msgspec
import pyarrow as pa
import pytest
from websockets.sync.client import connect

from upwell.testing.wire import SQL, Site, Wire

WAIT_S = 20.0
NASTY = "'\"\\ \t\n,;:\u2028 é 日本 \U0001f600 \u200b \x7f"


@dataclass(frozen=True)
class Extremes:
    """A type, its values as parameters, the cells of JSON, the fields of CSV, and the values of Arrow."""

    sql: str
    sent: tuple[Any, Any]
    cells: tuple[Any, Any]
    csv: tuple[str, str]
    arrow: tuple[Any, Any]
    literal: Callable[[Any], str] = str


def quoted(value: object) -> str:
    return "'" + str(value).replace("'", "''") + "'"


def whole(sql: str, bits: int) -> Extremes:
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    cells = (str(low), str(high)) if bits == 64 else (low, high)
    return Extremes(sql, (low, high), cells, (str(low), str(high)), (low, high))


FLOAT_MAX = struct.unpack("<f", b"\xff\xff\x7f\x7f")[0]
NINES = "9" * 28 + "." + "9" * 10
FIRST, LAST = datetime(1, 1, 1), datetime(9999, 12, 31, 23, 59, 59, 999999)
FIRST_US, LAST_US = -62_135_596_800_000_000, 253_402_300_799_999_999
MOMENTS = (FIRST.isoformat() + "Z", LAST.isoformat() + "Z")
PRINTED = ("0001-01-01 00:00:00.000000Z", "9999-12-31 23:59:59.999999Z")
IDS = ("00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff")
DOCUMENTS = (json.dumps({"a": [NASTY, None, 2**53, 1.5]}), "[]")
TYPES = (
    Extremes("BOOLEAN", (False, True), (False, True), ("false", "true"), (False, True)),
    whole("SMALLINT", 16),
    whole("INT", 32),
    whole("BIGINT", 64),
    Extremes("FLOAT", (-FLOAT_MAX, 1e-45), (-FLOAT_MAX, 1.401298464324817e-45), ("-3.4028235e+38", "1e-45"),
             (-FLOAT_MAX, 1.401298464324817e-45)),
    Extremes("DOUBLE", (1.7976931348623157e308, 5e-324), (1.7976931348623157e308, 5e-324),
             ("1.7976931348623157e+308", "5e-324"), (1.7976931348623157e308, 5e-324)),
    Extremes("DECIMAL(38,10)", ("-" + NINES, "0.0000000001"), ("-" + NINES, "0.0000000001"),
             ("-" + NINES, "0.0000000001"), (Decimal("-" + NINES), Decimal("0.0000000001"))),
    Extremes("TEXT", ("", NASTY), ("", NASTY), ("", NASTY), ("", NASTY), quoted),
    Extremes("TIMESTAMP", MOMENTS, (FIRST_US, LAST_US), PRINTED, (FIRST, LAST), quoted),
    Extremes("DATETIME", MOMENTS, (FIRST_US, LAST_US), PRINTED,
             (FIRST.replace(tzinfo=UTC), LAST.replace(tzinfo=UTC)), quoted),
    Extremes("DATE", ("0001-01-01", "9999-12-31"), (-719_162, 2_932_896), ("0001-01-01", "9999-12-31"),
             (date.min, date.max), quoted),
    Extremes("TIME", ("00:00:00", "23:59:59.999999"), (0, 86_399_999_999),
             ("00:00:00.000000", "23:59:59.999999"), (time.min, time.max), quoted),
    Extremes("UUID", IDS, IDS, IDS, IDS, quoted),
    Extremes("JSON", DOCUMENTS, DOCUMENTS, DOCUMENTS, DOCUMENTS, quoted),
    Extremes("BYTES", ("\\x", "\\x00ff7f80"), ([], [0, 255, 127, 128]), ("", "00ff7f80"),
             (b"", b"\x00\xff\x7f\x80"), quoted),
)  # fmt: skip
NAMES = [f"c{number}" for number in range(len(TYPES))]
LISTED = ", ".join(NAMES)


@pytest.fixture(scope="module", params=["hot", "cold"])
def table(site: Site, request: pytest.FixtureRequest) -> str:
    """Rows 1 and 2 by literals, 3 and 4 by parameters, 5 and 6 as `rows`; 7 has nothing but NULL."""
    name = f"{site.namespace()}.wide"
    columns = ", ".join(f"{column} {each.sql}" for column, each in zip(NAMES, TYPES, strict=True))
    site.root.run(f"CREATE USER TABLE {name} (id INT PRIMARY KEY, {columns})")
    fill(site.root, name)
    if request.param == "cold":
        site.flush(name)
    return name


def fill(root: Wire, name: str) -> None:
    marks = ", ".join(f"${number + 2}" for number in range(len(TYPES)))
    insert = f"INSERT INTO {name} (id, {LISTED}) VALUES"
    for which in (0, 1):
        literals = ", ".join(each.literal(each.sent[which]) for each in TYPES)
        root.run(f"{insert} ({1 + which}, {literals})")
        root.run(f"{insert} ($1, {marks})", 3 + which, *(each.sent[which] for each in TYPES))
    rows = [[5 + which, *(each.sent[which] for each in TYPES)] for which in (0, 1)]
    answer = root.call("POST", SQL, {"sql": f"{insert} ($1, {marks})", "rows": rows})
    assert answer.count == 2
    root.run(f"INSERT INTO {name} (id) VALUES (7)")


def asked(wire: Wire, table: str, accept: str) -> bytes:
    body = {"sql": f"SELECT id, {LISTED} FROM {table} ORDER BY id"}
    answer = wire.call("POST", SQL, body, headers={"Accept": accept})
    assert answer.headers["content-type"] == accept
    return answer.body


def expected(values: Callable[[Extremes], tuple[Any, Any]], nothing: Any = None) -> list[list[Any]]:
    pairs = [[values(each)[which] for each in TYPES] for which in (0, 1)]
    return [*pairs * 3, [nothing] * len(TYPES)]


def exactly(rows: list[list[Any]]) -> str:
    return repr(rows)  # which tells 1 from 1.0 and True, and -0.0 from 0.0


def test_json(site: Site, table: str) -> None:
    found = json.loads(asked(site.root, table, "application/json"))["results"][0]["rows"]
    assert exactly([row[1:] for row in found]) == exactly(expected(lambda each: each.cells))
    for key in range(1, 8):
        ((_, *by_key),) = site.root.run(f"SELECT id, {LISTED} FROM {table} WHERE id = {key}").rows
        assert exactly(by_key) == exactly(expected(lambda each: each.cells)[key - 1])


def test_ndjson(site: Site, table: str) -> None:
    lines = [json.loads(line) for line in asked(site.root, table, "application/x-ndjson").splitlines()]
    found = [[line[name] for name in NAMES] for line in lines]
    assert exactly(found) == exactly(expected(lambda each: each.cells))


def test_csv(site: Site, table: str) -> None:
    text = asked(site.root, table, "text/csv").decode()
    head, *found = csv.reader(io.StringIO(text, newline=""))
    assert head == ["id", *NAMES]
    assert [row[1:] for row in found] == expected(lambda each: each.csv, "")


def test_arrow(site: Site, table: str) -> None:
    found = pa.ipc.open_stream(asked(site.root, table, "application/vnd.apache.arrow.stream")).read_all()
    rows = [[row[name] for name in NAMES] for row in found.to_pylist()]
    assert rows == expected(lambda each: each.arrow)


@pytest.mark.parametrize("form", ["json", "msgpack"])
def test_live(site: Site, table: str, form: str) -> None:
    """The snapshot has them, and so have the changes when the same rows come again."""
    root = site.root
    url = f"ws://127.0.0.1:{root.port}/v1/ws?serialization={form}&compression=none"
    headers = {"Authorization": f"Bearer {root.token}"}
    with connect(
        url, additional_headers=headers, compression=None, ping_interval=None, legacy=True
    ) as socket:

        def frame() -> dict[str, Any]:
            data = socket.recv(WAIT_S)
            found: dict[str, Any] = (
                json.loads(data) if isinstance(data, str) else msgspec.msgpack.decode(data)
            )
            return found

        assert frame()["type"] == "auth_success"
        subscription = {"id": "s", "sql": f"SELECT * FROM {table}", "options": {}}
        socket.send(json.dumps({"type": "subscribe", "subscription": subscription}))
        assert frame()["type"] == "subscription_ack"
        shown = {row["id"]: row for row in frame()["rows"]}
        check_live(shown)
        root.run(f"DELETE FROM {table}")
        fill(root, table)
        came: dict[int, dict[str, Any]] = {}
        while len(came) < 7:
            change = frame()
            if change["change_type"] == "insert":
                came |= {row["id"]: row for row in change["rows"]}
        check_live(came)


def check_live(rows: dict[int, dict[str, Any]]) -> None:
    found = [[rows[key].get(name) for name in NAMES] for key in range(1, 8)]
    assert exactly(found) == exactly(expected(lambda each: each.cells))
