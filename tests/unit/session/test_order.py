"""Promise: a plain query of one table gets the ORDER BY of its key, any other stays as it is written."""

from collections.abc import Sequence

import pyarrow as pa
import pytest

from upwell.engine.catalog import Access, Table, TableKind
from upwell.engine.source import Source
from upwell.errors import QueryFailure
from upwell.session.order import ORDERED_ROWS_MAX, ordered
from upwell.storage.arrow import FLAGS_METADATA, TYPE_METADATA
from upwell.types import SHARED, Column, SqlType, TableId

TABLE = Table(
    id=TableId(1),
    namespace="n",
    name="t",
    kind=TableKind.SHARED,
    columns=(Column(1, "v", SqlType.TEXT), Column(2, "id", SqlType.INT, False, True)),
    synced=False,
    references=(),
    access=Access.PRIVATE,
    options={},
)
SOURCE = Source(TABLE, SHARED)


def _texts(
    text: str, *, cold: int = 1, sources: Sequence[Source] = (SOURCE,), fail: bool = False
) -> list[str]:
    """Return the texts that are run."""
    texts: list[str] = []

    def run(final: str) -> pa.Table:
        texts.append(final)
        if fail and len(texts) == 1:
            raise QueryFailure("no")
        return pa.table({"x": [1]})

    ordered(text, sources, run, rows_unordered=lambda source: cold)
    return texts


@pytest.mark.parametrize(
    ("text", "order"),
    [
        ("SELECT v FROM t", 't."id"'),
        ("SELECT v FROM n.t", 't."id"'),
        ('SELECT v FROM "n"."t" AS x WHERE v > (SELECT MAX(v) FROM t)', 'x."id"'),
        ("SELECT upper(v) FROM n.t x WHERE v = 'ORDER BY'", 'x."id"'),
        ("SELECT x.order, x.limit FROM n.t x WHERE x.group = 1", 'x."id"'),
    ],
)
def test_plain_queries_are_ordered_by_key(text: str, order: str) -> None:
    assert _texts(text) == [f"{text}\nORDER BY {order} "]


def test_the_order_comes_before_the_limit() -> None:
    text = "SELECT v FROM t WHERE v IN (SELECT v FROM t LIMIT 1) LIMIT 2 OFFSET 3 -- end"
    (final,) = _texts(text)
    assert final.replace('\nORDER BY t."id" ', "") == text
    assert final.endswith('\nORDER BY t."id" LIMIT 2 OFFSET 3 -- end')


@pytest.mark.parametrize(
    "text",
    [
        "SELECT v FROM t ORDER BY v",
        "SELECT COUNT(*) FROM t",
        "SELECT COALESCE(SUM(id), 0) FROM t",
        "SELECT DISTINCT v FROM t",
        "SELECT v FROM t UNION ALL SELECT v FROM t",
        "SELECT v FROM t GROUP BY v",
        "SELECT a.v FROM t a, t b",
        "SELECT v FROM (SELECT v FROM t) AS x",
        "SELECT x FROM t AS y (x, z)",
        "WITH t AS (SELECT 1) SELECT * FROM t",
    ],
)
def test_other_queries_stay_as_they_are(text: str) -> None:
    assert _texts(text) == [text]


def test_hot_rows_come_by_key_and_very_many_rows_in_any_order() -> None:
    assert _texts("SELECT v FROM t", cold=0) == ["SELECT v FROM t"]
    assert _texts("SELECT v FROM t", cold=ORDERED_ROWS_MAX + 1) == ["SELECT v FROM t"]
    assert _texts("SELECT v FROM t", sources=(SOURCE, SOURCE)) == ["SELECT v FROM t"]
    assert "ORDER BY" in _texts("SELECT v FROM t WHERE v = 'x'", cold=ORDERED_ROWS_MAX + 1)[0]


def test_a_query_that_fails_with_the_order_is_run_without_it() -> None:
    assert _texts("SELECT median(id) FROM t", fail=True)[1] == "SELECT median(id) FROM t"


def test_what_is_not_plain_is_ordered_by_a_key_in_its_result() -> None:
    field = pa.field("id", pa.int32(), metadata={TYPE_METADATA: b"Int", FLAGS_METADATA: b"nn,pk,uq"})
    unsorted = pa.table([pa.array([3, 1, 2], pa.int32())], schema=pa.schema([field]))
    found = ordered(
        "SELECT DISTINCT id FROM t", (SOURCE,), lambda text: unsorted, rows_unordered=lambda source: 1
    )
    assert found.column(0).to_pylist() == [1, 2, 3]


def test_texts_as_an_expression_gives_them_are_ordered_by_a_key() -> None:
    """DataFusion's texts are views, also in a key: PyArrow takes no rows from these."""
    field = pa.field("id", pa.string_view(), metadata={TYPE_METADATA: b"Text", FLAGS_METADATA: b"nn,pk,uq"})
    columns = [pa.array(["c", "a", "b"], pa.string_view()), pa.array([b"3", b"1", None], pa.binary_view())]
    unsorted = pa.table(columns, schema=pa.schema([field, pa.field("v", pa.binary_view())]))
    found = ordered(
        "WITH x AS (SELECT 1) SELECT id FROM t",
        (SOURCE,),
        lambda text: unsorted,
        rows_unordered=lambda source: 1,
    )
    assert [column.to_pylist() for column in found.columns] == [["a", "b", "c"], [b"1", None, b"3"]]
    assert found.schema.field("id").metadata == field.metadata
