"""A payload comes back as it was uploaded, whatever SQL, other columns and the tiers do to its row.

The model is a dictionary of JSON members a row. After each step the newest entry of the log, a hydration, the
row of a conflict and SELECT have to say what it says: numbers exact, integers as integers.
"""

import base64
import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from upwell.clock import ManualClock
from upwell.feeds.download import Downloads
from upwell.feeds.hydrate import Hydrations
from upwell.feeds.stock import StockDownloads
from upwell.feeds.upload import UploadLimits, Uploads
from upwell.protocol import sync
from upwell.storage.memory import MemoryStore
from upwell.testing.embedded import RETENTION_S, Embedded

KINDS = ["BOOLEAN", "SMALLINT", "INT", "BIGINT", "DOUBLE", "TEXT", "TIMESTAMP", "UUID", "JSON", "BYTES"]
BITS = {"SMALLINT": 16, "INT": 32, "BIGINT": 64}
NAMES = ["order", "select", "1st", "_", "__x", "user", "0", "null", "id_2", "when", "n" * 60]
ADDED = ["added", "group", "9"]
KEY_NAMES = ["id", "key", "_pk", "0id"]
DEFAULTS: dict[str, Any] = {"INT": 7, "TEXT": "it's", "BOOLEAN": True}
UNKNOWN = {
    "extra": "36893488147419103232",
    "Ünï\U0001f600": '{"n": 1.10, "deep": [null, -0.5e-7, {"": "\\u0000"}]}',
    "": "-9223372036854775809",
    'a "b"\n': "0.1000000000000000055511151231257827",
    "deleted": "true",
    "server_version": "9007199254740993",
}
WORDS = st.sampled_from(sorted(UNKNOWN))
SPACE = st.sampled_from(["", "", " ", "\n\t"])
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
SECONDS, MILLISECONDS = 1_000_000, 1_000
MOMENTS_US = st.integers(-2_000_000_000_000_000, 7_000_000_000_000_000)
DOUBLES = st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from([5.0, 0.1, 1e22, -2.5e-9])
TEXTS = st.sampled_from(["", "plain", "it's", "Grüße \U0001f600", 'q"\\/\u2028\x00', "42", "null"]) | st.text(
    st.characters(exclude_categories=["Cs"]), max_size=6
)
DOCUMENTS = st.sampled_from(
    [
        "{}",
        '{"a":[1,2.50,{"b":null}]}',
        '{ "a" : 9007199254740993 ,\n "\\u00e9": "\\ud83d\\ude00" }',
        "[0.1000000000000000055511151231257827, 1e300]",
        "[ ]",
    ]
)


@dataclass(frozen=True)
class Column:
    name: str
    kind: str
    nullable: bool = True
    default: Any = None
    is_added: bool = False

    @property
    def sql(self) -> str:
        default = self.default
        text = f"'{default.replace(chr(39), chr(39) * 2)}'" if isinstance(default, str) else str(default)
        rules = ("" if self.nullable else " NOT NULL") + ("" if default is None else f" DEFAULT {text}")
        return f'"{self.name}" {self.kind}{rules}'


@dataclass(frozen=True)
class Sent:
    """A member's JSON text, the value that SQL sees, and what a device's form is told by."""

    text: str
    value: Any
    form: str = ""


@dataclass(frozen=True)
class Member:
    """What a payload says under a key, and in which form."""

    exact: Any
    form: str = ""


@dataclass
class Row:
    members: dict[str, Member] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    version: int = 0
    is_live: bool = False

    def spelling(self, name: str) -> str:
        """The key that stands for a column."""
        return next((key for key in self.members if key.lower() == name), name)

    def merge(self, sent: dict[str, Member]) -> None:
        """What a device names replaces what stood under that key, in whatever case; the rest stays."""
        named = {key.lower() for key in sent}
        kept = {key: member for key, member in self.members.items() if key.lower() not in named}
        self.members = kept | sent


def exact(text: str) -> Any:
    """JSON with its numbers exact, and told from each other: 1, 1.0 and true are three things."""
    return json.loads(text, parse_int=lambda n: ("int", int(n)), parse_float=lambda n: ("real", Decimal(n)))


def in_form(kind: str, value: Any, form: str) -> Member:
    """The member that SQL's value becomes where a device used `form` ("": none that is kept)."""
    match kind, value, form:
        case _, None, _:
            return Member(None)
        case "BOOLEAN", _, "bool":
            return Member(value, form)
        case "BOOLEAN", _, _:
            return Member(("int", int(value)))
        case "SMALLINT" | "INT" | "BIGINT", _, "text":
            return Member(str(value), form)
        case "SMALLINT" | "INT" | "BIGINT", _, _:
            return Member(("int", value))
        case "DOUBLE", _, _:
            return Member(("real", Decimal(repr(value))))
        case "TIMESTAMP", _, "":
            return Member((EPOCH + timedelta(microseconds=value)).isoformat("T", "microseconds")[:26] + "Z")
        case "TIMESTAMP", _, _ if form.startswith("@"):
            return _as_moment(value, form[1:])
        case "TIMESTAMP", _, _:
            return _as_number(value, form)
        case "UUID", _, "base64":
            return Member(base64.b64encode(uuid.UUID(value).bytes).decode(), form)
        case "JSON", _, "raw":
            return Member(exact(value), form)
        case "BYTES", _, _:
            return Member(base64.b64encode(value).decode())
        case _:
            return Member(value)


def _as_moment(value_us: int, example: str) -> Member:
    """A timestamp as text with the separator and zone of `example`, and no fewer digits."""
    micros, digits = value_us % SECONDS, len(example.partition(".")[2].rstrip("Z"))
    precision = (
        "microseconds" if micros % 1000 or digits == 6 else "milliseconds" if micros or digits else "seconds"
    )
    moment = EPOCH + timedelta(microseconds=value_us)
    if example.endswith("+02:00"):
        try:
            text = moment.astimezone(timezone_of(2)).isoformat(example[10], precision)
        except OverflowError:
            return in_form("TIMESTAMP", value_us, "")
    else:
        text = moment.replace(tzinfo=None).isoformat(example[10], precision)
        text += "Z" if example.endswith("Z") else ""
    return Member(text, "@" + text)


def _as_number(value_us: int, form: str) -> Member:
    """A timestamp in the device's unit; a number tells its unit by its size, one that can't becomes text."""
    unit_us = {"s": SECONDS, "m": MILLISECONDS, "u": 1}[form[0]]
    number = value_us / unit_us if form.endswith(".") else value_us // unit_us
    size = abs(number)
    told_us = SECONDS if size < 10**11 else MILLISECONDS if size < 10**14 else 1
    if told_us != unit_us:
        return in_form("TIMESTAMP", value_us, "")
    return Member(("real", Decimal(repr(number))) if form.endswith(".") else ("int", number), form)


@cache
def written(kind: str) -> st.SearchStrategy[Any]:
    """Values that SQL writes."""
    match kind:
        case "BOOLEAN":
            return st.booleans()
        case "SMALLINT" | "INT" | "BIGINT":
            limit = 1 << (BITS[kind] - 1)
            return st.integers(-limit, limit - 1) | st.sampled_from([0, 1, limit - 1])
        case "DOUBLE":
            return DOUBLES
        case "TEXT":
            return TEXTS
        case "TIMESTAMP":
            return MOMENTS_US
        case "UUID":
            return st.integers(0, (1 << 128) - 1).map(lambda n: str(uuid.UUID(int=n)))
        case "JSON":
            return DOCUMENTS
        case _:
            return st.binary(max_size=6)


@st.composite
def sent_values(draw: st.DrawFn, kind: str) -> Sent:
    """Values in any form that a device may use."""
    value = draw(written(kind))
    match kind:
        case "BOOLEAN":
            form = draw(st.sampled_from(["bool", "", "text"]))
            text = {"bool": str(value).lower(), "": str(int(value)), "text": f'"{str(value).lower()}"'}[form]
            return Sent(text, value, form if form == "bool" else "")
        case "SMALLINT" | "INT" | "BIGINT":
            form = draw(st.sampled_from(["", "", "text", "real"]))
            if form == "real":
                return Sent(f"{value % 100}.0", value % 100)
            return Sent(f'"{value}"' if form else str(value), value, form)
        case "DOUBLE":
            return draw(st.just(Sent(repr(value), value)) | st.sampled_from(ODD_DOUBLES))
        case "TEXT":
            text = json.dumps(value, ensure_ascii=draw(st.booleans()))
            return draw(st.just(Sent(text, value)) | st.sampled_from(ODD_TEXTS))
        case "TIMESTAMP":
            return draw(_timestamps(value))
        case "UUID":
            dashed = uuid.UUID(value)
            encoded = base64.b64encode(dashed.bytes).decode()
            forms = [(value, ""), (value.upper(), ""), (dashed.hex, ""), (encoded, "base64")]
            text, form = draw(st.sampled_from(forms))
            return Sent(json.dumps(text), value, form)
        case "JSON":
            is_raw = draw(st.booleans())
            return Sent(value if is_raw else json.dumps(value), value, "raw" if is_raw else "")
        case _:
            return Sent(json.dumps(base64.b64encode(value).decode()), value)


ODD_DOUBLES = [
    Sent("5", 5.0),
    Sent("9007199254740993", 9007199254740992.0),
    Sent("1E+5", 1e5),
    Sent("0.50", 0.5),
    Sent("0.1000000000000000055511151231257827", 0.1),
    Sent("3.14159265358979323846", 3.141592653589793),
]
ODD_TEXTS = [Sent("5", "5"), Sent("true", "true"), Sent('"\\u0041\\/"', "A/"), Sent("1.5", "1.5")]


def _timestamps(value_us: int) -> st.SearchStrategy[Sent]:
    seconds = value_us // SECONDS
    thousandths = abs(value_us) // MILLISECONDS + 10**11
    moment = EPOCH + timedelta(seconds=seconds)
    plain = moment.replace(tzinfo=None).isoformat()
    east = moment.astimezone(timezone_of(2)).isoformat(" ")
    return st.sampled_from(
        [
            Sent(str(seconds), seconds * SECONDS, "s"),
            Sent(f"{seconds}.0", seconds * SECONDS, "s."),
            Sent(f"{abs(seconds)}.25", abs(seconds) * SECONDS + 250_000, "s."),
            Sent(str(thousandths), thousandths * MILLISECONDS, "m"),
            Sent(f"{thousandths}.5", thousandths * MILLISECONDS + 500, "m."),
            Sent(str(abs(value_us) + 10**14), abs(value_us) + 10**14, "u"),
            Sent(f'"{plain}Z"', seconds * SECONDS, f"@{plain}Z"),
            Sent(f'"{plain}"', seconds * SECONDS, f"@{plain}"),
            Sent(f'"{plain}.123456Z"', seconds * SECONDS + 123_456, f"@{plain}.123456Z"),
            Sent(f'"{east}"', seconds * SECONDS, f"@{east}"),
        ]
    )


def timezone_of(hours: int) -> Any:
    return datetime.fromisoformat(f"2000-01-01T00:00:00+{hours:02}:00").tzinfo


@contextmanager
def opened() -> Iterator["Site"]:
    """An engine of an example's own."""
    clock = ManualClock()
    with (
        TemporaryDirectory() as directory,
        Embedded(Path(directory), store=MemoryStore(clock=clock), clock=clock) as db,
    ):
        yield Site(db, clock)


class Site:
    """An engine and its device feeds."""

    def __init__(self, db: Embedded, clock: ManualClock) -> None:
        self.db, self.clock = db, clock
        committer, rows = db.committer, db.rows_by_key
        defaults = db.engine.defaults
        self.uploads = Uploads(committer, rows, db.query, defaults, UploadLimits(100, 1 << 20))
        self.downloads = Downloads(committer, stream_id="s")
        self.stock = StockDownloads(committer, rows, self.downloads, db.registry)
        self.hydrations = Hydrations(committer, rows, db.registry, stream_id="s")
        db.run("CREATE NAMESPACE app")


class Story:
    """One table, its rows as the product has them and as the model has them."""

    def __init__(self, site: Site, key: Column, columns: list[Column], key_at: int) -> None:
        self.site, self.db = site, site.db
        self.key, self.columns = key, columns
        self.user, self.name, self.table = "ann", "things", "app.things"
        self.rows: dict[str, Row] = {}
        self.counter, self.change_id = 0, 0
        declared = [column.sql for column in columns]
        declared.insert(key_at, f'"{key.name}" {key.kind} PRIMARY KEY')
        self.db.run(f"CREATE TABLE {self.table} ({', '.join(declared)}) WITH (TYPE='USER', SYNC=TRUE)")

    def row(self, key: str) -> Row:
        return self.rows.setdefault(key, Row())

    def upload(self, key: str, op: str, base: int, text: str | None) -> sync.Status:
        self.change_id += 1
        change = sync.UploadChange(
            source_change_id=self.change_id,
            schema="app",
            table=self.name,
            op=op,
            pk=key,
            server_version=base,
            payload=msgspec.UNSET if text is None else msgspec.Raw(text.encode()),
        )
        request = sync.UploadRequest(changes=[change])
        (status,) = self.site.uploads.upload(self.user, "phone", request).statuses
        return status

    def device_writes(self, key: str, members: dict[str, Sent], text: str) -> None:
        """A device inserts a row or, if it is there, updates it; `members` are in `text`."""
        row = self.row(key)
        op = "UPDATE" if row.is_live else "INSERT"
        status = self.upload(key, op, row.version, text)
        assert (status.status, status.new_server_version) == ("applied", row.version + 1), status
        if not row.is_live:
            row.members = {}
            row.values = {column.name: column.default for column in self.columns}
        row.merge({name: Member(exact(sent.text), sent.form) for name, sent in members.items()})
        for name, sent in members.items():
            if name.lower() in row.values:
                row.values[name.lower()] = sent.value
        self.wrote(key, op)

    def device_deletes(self, key: str) -> None:
        assert self.upload(key, "DELETE", self.row(key).version, None).status == "applied"
        self.wrote(key, "DELETE")

    def sql_inserts(self, key: str, values: dict[str, Any]) -> None:
        """The back end inserts a row: all columns show but one that was added and isn't named."""
        row = self.row(key)
        names = [self.key.name, *values]
        marks = ", ".join(f"${index}" for index in range(1, len(names) + 1))
        listed = ", ".join(f'"{name}"' for name in names)
        sql = f"INSERT INTO {self.table} ({listed}) VALUES ({marks})"
        assert self.db.change(sql, [key, *values.values()], self.user) == 1
        row.values = {column.name: values.get(column.name, column.default) for column in self.columns}
        row.members = {self.key.name: Member(key)}
        for column in self.columns:
            if column.name in values or not column.is_added:
                row.members[column.name] = in_form(column.kind, row.values[column.name], "")
        self.wrote(key, "INSERT")

    def sql_updates(self, key: str, column: Column, value: Any) -> None:
        """The back end sets one column: only its key changes, in its form; the same value is no change."""
        row = self.row(key)
        sql = f'UPDATE {self.table} SET "{column.name}" = $1 WHERE "{self.key.name}" = $2'
        changed = self.db.change(sql, [value, key], self.user)
        if row.values[column.name] == value:
            assert changed == 0
            return
        assert changed == 1
        row.values[column.name] = value
        name = row.spelling(column.name)
        form = row.members[name].form if name in row.members else ""
        row.members[name] = in_form(column.kind, value, form)
        self.wrote(key, "UPDATE")

    def sql_deletes(self, key: str) -> None:
        assert self.db.change(f'DELETE FROM {self.table} WHERE "{self.key.name}" = $1', [key], self.user) == 1
        self.wrote(key, "DELETE")

    def add_column(self, column: Column) -> None:
        self.db.run(f"ALTER TABLE {self.table} ADD COLUMN {column.sql}")
        self.columns.append(column)
        for row in self.rows.values():
            row.values[column.name] = column.default

    def wrote(self, key: str, op: str) -> None:
        """The write is one entry of the log, and that says what the model says."""
        row = self.rows[key]
        row.version, row.is_live = row.version + 1, op != "DELETE"
        page = self.site.downloads.download(
            self.user, "phone", after=self.counter, until=0, limit=10, schema="app", include_self=True
        )
        (change,) = page.changes
        assert (change.op, change.pk, change.server_version) == (op, key, row.version)
        assert exact(bytes(change.payload).decode()) == self.expected(key)
        self.counter = page.next_after

    def expected(self, key: str) -> dict[str, Any] | None:
        row = self.rows[key]
        return {name: member.exact for name, member in row.members.items()} if row.is_live else None

    def check(self) -> None:
        """Hydration, the row of a conflict and SELECT say what the model says."""
        live = {key for key, row in self.rows.items() if row.is_live}
        hydrated = self.hydrated()
        assert hydrated == {key: (self.expected(key), self.rows[key].version) for key in live}
        for key, row in self.rows.items():
            if row.version == 0:
                continue
            theirs = self.upload(key, "UPDATE", row.version + 5, "{}").server_row
            assert theirs is not None
            assert (theirs.server_version, theirs.deleted) == (row.version, not row.is_live)
            assert exact(bytes(theirs.payload).decode()) == self.expected(key)
            self.check_select(key, row)

    def hydrated(self) -> dict[str, tuple[Any, int]]:
        answer = self.site.hydrations.hydrate(self.user, "tablet", cursor=None, limit=100, schema="app")
        found: dict[str, tuple[Any, int]] = {}
        for page in answer.tables:
            for index, (cells, version) in enumerate(zip(page.rows, page.versions, strict=True)):
                built = sync.encode(dict(zip(page.columns, cells, strict=False)))
                shown = page.exact.get(index, built)
                found[str(cells[0])] = exact(bytes(shown).decode()), version
        return found

    def check_select(self, key: str, row: Row) -> None:
        names = ", ".join(f'"{column.name}"' for column in self.columns)
        sql = f'SELECT {names} FROM {self.table} WHERE "{self.key.name}" = $1'
        expected = [tuple(row.values[column.name] for column in self.columns)] if row.is_live else []
        assert self.db.rows(sql, [key], self.user) == expected

    def check_stock(self) -> None:
        """When the log is trimmed, a stock client that starts anew gets the same payloads."""
        self.site.clock.advance(RETENTION_S + 1)
        self.db.trim.run()
        page = self.site.stock.download(
            self.user, "new", after=0, until=0, limit=100, schema="app", include_self=True
        )
        found = {change.pk: exact(bytes(change.payload).decode()) for change in page.changes}
        written = {key for key, row in self.rows.items() if row.version}
        assert found == {key: self.expected(key) for key in written}


@st.composite
def columns(draw: st.DrawFn, name: str, *, is_added: bool = False) -> Column:
    kind = draw(st.sampled_from(KINDS))
    default = DEFAULTS.get(kind) if draw(st.booleans()) else None
    nullable = draw(st.booleans()) or (is_added and default is None)
    return Column(name, kind, nullable, default, is_added)


class Author:
    """Draws a table and what happens to it."""

    def __init__(self, data: st.DataObject) -> None:
        self.draw = data.draw

    def story(self, site: Site) -> Story:
        names = self.draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=5, unique=True))
        key = Column(self.draw(st.sampled_from(KEY_NAMES)), self.draw(st.sampled_from(["UUID", "TEXT"])))
        made = [self.draw(columns(name)) for name in names]
        return Story(site, key, made, self.draw(st.integers(0, len(made))))

    def step(self, story: Story) -> None:
        is_uuid = story.key.kind == "UUID"
        keys = [str(uuid.UUID(int=0xABC << 70 | n)) for n in (1, 2)] if is_uuid else ["a", "Ä 'b'"]
        key = self.draw(st.sampled_from([keys[0], *keys]))
        row = story.row(key)
        step = self.draw(st.sampled_from("UUUUSSSSDQFA"))
        match step:
            case "U":
                story.device_writes(key, *self.payload(story, row, key))
            case "S" if row.is_live:
                column = self.draw(st.sampled_from(story.columns))
                story.sql_updates(key, column, self.value(column))
            case "S":
                story.sql_inserts(key, self.values(story))
            case "D" if row.is_live:
                story.device_deletes(key)
            case "Q" if row.is_live:
                story.sql_deletes(key)
            case "F":
                story.db.flush(story.table)
            case "A":
                unused = [name for name in ADDED if all(name != column.name for column in story.columns)]
                if unused:
                    story.add_column(self.draw(columns(unused[0], is_added=True)))
            case _:
                pass

    def payload(self, story: Story, row: Row, key: str) -> tuple[dict[str, Sent], str]:
        members: dict[str, Sent] = {}
        # Most apps send all columns and nothing else: only then the columns alone may give a payload back.
        is_whole = self.draw(st.booleans())
        if is_whole or self.draw(st.booleans()):
            members[story.key.name] = self.sent_key(story, key)
        for column in story.columns:
            needed = not column.nullable and column.default is None and not row.is_live
            if is_whole or needed or self.draw(st.booleans()):
                name = self.draw(st.sampled_from([column.name] * 4 + [column.name.upper()]))
                members[name] = self.sent(column)
        for name in [] if is_whole else self.draw(st.lists(WORDS, max_size=2, unique=True)):
            members[name] = Sent(UNKNOWN[name], None)
        order = self.draw(st.permutations(list(members)))
        space = self.draw(SPACE)
        parts = [f"{json.dumps(name)}{space}:{space}{members[name].text}{space}" for name in order]
        return members, space + "{" + space + f",{space}".join(parts) + "}"

    def sent_key(self, story: Story, key: str) -> Sent:
        forms = [key] * 3
        if story.key.kind == "UUID":
            forms += [key.upper(), base64.b64encode(uuid.UUID(key).bytes).decode()]
        return Sent(json.dumps(self.draw(st.sampled_from(forms))), key)

    def sent(self, column: Column) -> Sent:
        if column.nullable and self.draw(st.integers(0, 5)) == 0:
            return Sent('""' if column.kind == "UUID" and self.draw(st.booleans()) else "null", None)
        return self.draw(sent_values(column.kind))

    def value(self, column: Column) -> Any:
        if column.nullable and self.draw(st.integers(0, 5)) == 0:
            return None
        return self.draw(written(column.kind))

    def values(self, story: Story) -> dict[str, Any]:
        needed = [column for column in story.columns if not column.nullable and column.default is None]
        named = [column for column in story.columns if column in needed or self.draw(st.booleans())]
        return {column.name: self.value(column) for column in named}


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_payloads_come_back_through_any_mixture_of_edits(data: st.DataObject) -> None:
    author = Author(data)
    with opened() as site:
        story = author.story(site)
        for _ in range(data.draw(st.integers(5, 20))):
            author.step(story)
            story.check()
        story.check_stock()


def notes(site: Site, *kinds: str) -> Story:
    """A table of columns a, b, …, and rows with TEXT keys."""
    made = [Column(name, kind) for name, kind in zip("abc", kinds, strict=False)]
    return Story(site, Column("id", "TEXT"), made, 0)


def test_sql_keeps_the_form_that_the_device_used() -> None:
    """A document stays one, a base64 UUID base64, a number that was sent as text stays text."""
    ours, theirs = uuid.UUID(int=1), uuid.UUID(int=2)
    encoded = base64.b64encode(ours.bytes).decode()
    members = {
        "a": Sent('{"n":1}', '{"n":1}', "raw"),
        "b": Sent(f'"{encoded}"', str(ours), "base64"),
        "c": Sent('"9007199254740993"', 9007199254740993, "text"),
    }
    text = ",".join(f'"{name}":{sent.text}' for name, sent in members.items())
    with opened() as site:
        story = notes(site, "JSON", "UUID", "BIGINT")
        story.device_writes("k", members, "{" + text + "}")
        for column, value in zip(story.columns, ("[2.50]", str(theirs), -5), strict=True):
            story.sql_updates("k", column, value)
        assert story.expected("k") == {
            "a": [("real", Decimal("2.5"))],
            "b": base64.b64encode(theirs.bytes).decode(),
            "c": "-5",
        }
        story.check()


@pytest.mark.parametrize("text", ["null", '"text"', "NaN", "[1e400]"])
def test_json_that_a_device_would_read_as_something_else_is_sent_as_text(text: str) -> None:
    with opened() as site:
        story = notes(site, "JSON")
        story.device_writes("k", {"a": Sent("[1]", "[1]", "raw")}, '{"a":[1]}')
        story.db.change(f"UPDATE {story.table} SET a = $1 WHERE id = 'k'", [text], story.user)
        ((shown, version),) = story.hydrated().values()
        assert (shown, version) == ({"a": text}, 2)


@pytest.mark.parametrize(
    "number", ["3.14159265358979323846", "0.1000000000000000055511151231257827", "1e-400"]
)
def test_a_number_keeps_digits_that_a_double_does_not_have(number: str) -> None:
    with opened() as site:
        story = notes(site, "DOUBLE")
        sent = {"id": Sent('"k"', "k"), "a": Sent(number, float(number))}
        story.device_writes("k", sent, f'{{"id":"k","a":{number}}}')
        story.check()
