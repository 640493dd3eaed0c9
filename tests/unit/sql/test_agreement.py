"""Agreement: a tree that decides a live query's rows says of each what the query engine says.

Predicates of the whole grammar over rows of every type, with NULLs and extremes; the engine is asked of the
same rows. Run it for longer with UPWELL_AGREEMENT_EXAMPLES=20000.
"""

import os
import random
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from upwell.engine.catalog import Table
from upwell.engine.condition import Condition
from upwell.engine.expression import Context, Node, freeze, predicate
from upwell.session.exact import with_exact_literals
from upwell.sql.agreement import agreed_condition
from upwell.sql.condition import with_moment
from upwell.sql.lex import Fragment, tokenize
from upwell.sql.query import Query
from upwell.sql.render import literal, render
from upwell.sql.scalar import Scope
from upwell.testing.embedded import Embedded, memory_store
from upwell.types import Row, Value, coerce

EXAMPLES = int(os.environ.get("UPWELL_AGREEMENT_EXAMPLES", "250"))
CONTEXT = Context("ann", "user", 1_700_000_000_000_000, lambda: 1, lambda: "u", lambda: "u")
UUIDS = ["a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "00000000-0000-0000-0000-000000000000"]
TEXTS = [
    "",
    "a",
    "Abc",
    "7",
    "a%_b",
    "ÄÖß",
    "\u017ftraße",
    "K",
    "İ",
    "ΑΣ",
    "é",
    "e\u0301",
    "😀",
    "-1.5",
    "true",
    "a\nb",
]
MOMENTS = [0, -1, 1_700_000_000_000_000, 253_402_300_799_999_999]
CELLS: dict[str, list[Value]] = {
    "id": [0, 1, 7],
    "b": [True, False],
    "s": [0, 1, -1, 7, 2**15 - 1, -(2**15)],
    "i": [0, 1, -1, 7, 2**31 - 1, -(2**31)],
    "n": [0, 1, -1, 7, 2**63 - 1, -(2**63), 2**53 + 1],
    "f": [0.0, -0.0, 1.5, -2.25, 3.4e38, 0.1],
    "d": [0.0, -0.0, 1.5, -2.25, 1e308, 0.1, 2.0**53],
    "m": ["0", "1.50", "-2.25", "9999999999.99", "0.01", "7"],
    "w": ["0", "1", "-1", "9" * 38, "7"],
    "t": [*TEXTS, "x\\y", "ǅ", "a\\"],
    "v": [*TEXTS],
    "u": [*UUIDS],
    "j": ['{"a":1}', '{"a":"x","b":[1,2,{"c":null}]}', "[1,2]", '"text"', "null", '{"a": 1.50,"ä":[]}', "7"],
    "y": [b"", b"\x00\xff", b"abc"],
    "dt": [0, -1, 20_000, 2_932_896],
    "tm": [0, 86_399_999_999, 3_600_000_000],
    "ts": [*MOMENTS],
    "dz": [*MOMENTS],
}
COLUMNS = (
    "id BIGINT PRIMARY KEY, b BOOLEAN, s SMALLINT, i INT, n BIGINT, f FLOAT, d DOUBLE, m DECIMAL(12,2),"
    " w DECIMAL(38,0), t TEXT, v TEXT, u UUID, j JSON, y BYTES, dt DATE, tm TIME, ts TIMESTAMP, dz DATETIME"
)
NUMBERS = [
    "0",
    "1",
    "-1",
    "7",
    "2.5",
    "1e3",
    "0.0",
    "-0.0",
    "1.50",
    "0.1",
    "NULL",
    "32767",
    "2147483647",
    "16777217",
]
NUMBERS += [
    "9007199254740993",
    "9007199254740993.0",
    "9223372036854775807",
    "-9223372036854775808",
    "1e38",
    "-2.250",
]
MOMENT_TEXTS = [
    "1970-01-01T00:00:00Z",
    "1970-01-01",
    "1970-01-01 00:00:00.0000001",
    "1970-01-01 02:00:00+02:00",
]
MOMENT_TEXTS += ["9999-12-31", "2023-11-14T22:13:20Z", "12:00:00", "01:00", "1600-01-01", "x"]
TESTS = ["IS NULL", "IS NOT NULL", "IS TRUE", "IS NOT TRUE", "IS FALSE", "IS NOT FALSE"]

COMPARED = ["=", "<>", "!=", "<", "<=", ">", ">=", "IS DISTINCT FROM", "IS NOT DISTINCT FROM"]
STEPS = ["'a'", "'b'", "0", "1", "'ä'", "-1", "'0'", "v", "'a' -> 0", "'b' -> 2 ->> 'c'"]


class Author:
    """Writes predicates; `depth` is how deep they may still nest."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)
        self._pick = self._chance.choice

    def rows(self) -> list[tuple[Value, ...]]:
        cells = CELLS.values()
        return [tuple(self._pick([*each, None]) for each in cells) for _ in range(self._chance.randint(3, 8))]

    def predicate(self, depth: int = 2) -> str:
        if not depth or self._chance.random() < 0.4:
            return self._condition(depth)
        a, b, c = (self.predicate(depth - 1) for _ in range(3))
        return self._pick(
            [f"({a} AND {b})", f"({a} OR {b})", f"NOT ({a})", f"({a}) = b", f"({a}) {self._pick(TESTS)}"] * 2
            + [f"CASE WHEN {a} THEN {b} ELSE {c} END", f"COALESCE(({a}), ({b}))"]
        )

    def _condition(self, depth: int) -> str:
        of = self._pick([self._number, self._text, self._text])
        a, b, c = (of(depth) for _ in range(3))
        no = self._pick(["", "NOT "])
        return self._pick(
            [f"{a} {self._pick(COMPARED)} {b}"] * 4
            + [f"{self._moment()} {self._pick(COMPARED)} {self._moment()}", self._boolean(), self._typed()]
            + [f"{a} {no}IN ({b}, {c}, {self._pick(NUMBERS)})", f"{a} {no}IN ({b}, {c})"]
            + [f"{a} {no}BETWEEN {b} AND {c}", f"{a} {self._pick(TESTS[:2])}", f"j ? {self._word()}"]
            + [f"{self._text(depth)} {no}LIKE {self._text(0)}", f"({self._boolean()}) {self._pick(TESTS)}"]
        )

    def _boolean(self) -> str:
        return self._pick(["b", "b", "TRUE", "FALSE", "NULL", "_deleted", "id = 1"])

    def _typed(self) -> str:
        name = self._pick(list(CELLS))
        value = self._pick(CELLS[name])
        written = value if isinstance(value, bytes) or self._chance.random() < 0.5 else str(value)
        return f"{name} {self._pick(COMPARED)} {literal(written)}"

    def _number(self, depth: int) -> str:
        if not depth or self._chance.random() < 0.6:
            return self._pick(["s", "i", "n", "f", "d", "m", "w", "_seq", *NUMBERS])
        a, b = self._number(depth - 1), self._number(depth - 1)
        case = f"CASE WHEN {self._boolean()} THEN {a} ELSE {b} END"
        return self._pick([f"({a} + {b})", f"({a} / {b})", f"COALESCE({a}, {b})", case, f"ABS({a})"])

    def _text(self, depth: int) -> str:
        if not depth or self._chance.random() < 0.5:
            return self._pick(["t", "t", "v", "u", "j", self._word()])
        a, b = self._text(depth - 1), self._text(depth - 1)
        path = f"({self._pick(['j', 'j', 't'])} {self._pick(['->', '->>'])} {self._pick(STEPS)})"
        case = f"CASE {a} WHEN {b} THEN {a} WHEN {a} THEN {b} END"
        return self._pick([f"COALESCE({a}, {b})", f"LOWER({a})", f"({a} || {b})", case, path, path])

    def _word(self) -> str:
        return literal(self._pick([*TEXTS, "%", "_", "a%", "%b", "\\%", "a\\", "ss", "b"]))

    def _moment(self) -> str:
        return self._pick(["ts", "ts", "dz", "dt", "tm", "NOW()", "NULL", *map(literal, MOMENT_TEXTS)])


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    with Embedded(tmp_path_factory.mktemp("agreement"), store=memory_store()) as db:
        db.run(f"CREATE NAMESPACE a; CREATE TABLE a.t ({COLUMNS}) WITH (TYPE='SHARED')")
        yield db


def tree(where: str, table: Table) -> Node | None:
    node = agreed_condition(Fragment(tuple(tokenize(where)), where), Scope(table))
    return None if node is None else freeze(node, (), CONTEXT)


def answers(db: Embedded, where: str, table: Table, given: Sequence[Row]) -> list[object]:
    """Return what SELECT finds of each row, had it been alone."""
    text = with_moment(render(where, (), CONTEXT), CONTEXT.now_us)
    text = with_exact_literals(Query(text), [table.columns]).text
    verdicts = Condition(db.query, table, text, frozenset()).decide(db.view, dict(enumerate(given, 1)))
    return [verdicts[seq] for seq in range(1, len(given) + 1)]


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.integers(0, 2**64))
def test_a_tree_says_what_the_query_engine_says(db: Embedded, seed: int) -> None:
    table, author = db.table("a.t"), Author(seed)
    where = author.predicate()
    node = tree(where, table)
    assume(node is not None)
    assert node is not None
    drawn = [[coerce(cell, at) for cell, at in zip(row, table.columns, strict=True)] for row in author.rows()]
    test = predicate(node)
    found = [test([*row, False, seq], (), CONTEXT) for seq, row in enumerate(drawn, 1)]
    assert (where, found) == (where, answers(db, where, table, drawn)), drawn
