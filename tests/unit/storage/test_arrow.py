"""What goes into Arrow comes back exactly, and every field knows its wire type."""

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from upwell.storage.arrow import (
    arrow_type,
    cells,
    column_array,
    column_type,
    record_batch,
    table_schema,
    values,
)
from upwell.storage.hot import Version
from upwell.types import Column, Row, SqlType, Value

INT64 = st.integers(-(2**63), 2**63 - 1)
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
VALUES: dict[SqlType, st.SearchStrategy[Value]] = {
    SqlType.BOOLEAN: st.booleans(),
    SqlType.SMALLINT: st.integers(-(2**15), 2**15 - 1),
    SqlType.INT: st.integers(-(2**31), 2**31 - 1),
    SqlType.BIGINT: INT64,
    SqlType.DOUBLE: st.floats(allow_nan=False, allow_infinity=False),
    SqlType.TEXT: TEXT,
    SqlType.FLOAT: st.floats(allow_nan=False, allow_infinity=False, width=32),
    SqlType.DECIMAL: st.integers(1 - 10**36, 10**36 - 1).map("{}.25".format),
    SqlType.TIMESTAMP: INT64,
    SqlType.DATETIME: INT64,
    SqlType.DATE: st.integers(-719_162, 2_932_896),
    SqlType.TIME: st.integers(0, 86_399_999_999),
    SqlType.UUID: st.uuids().map(str),
    SqlType.JSON: TEXT,
    SqlType.BYTES: st.binary(),
}
COLUMNS = [
    Column(
        index + 1,
        f"c_{sql_type.name.lower()}",
        sql_type,
        primary_key=sql_type is SqlType.BIGINT,
        precision=38 if sql_type is SqlType.DECIMAL else 0,
        scale=2 if sql_type is SqlType.DECIMAL else 0,
    )
    for index, sql_type in enumerate(SqlType)
]
ROWS = st.lists(
    st.tuples(
        *(
            VALUES[column.type] if column.primary_key else st.none() | VALUES[column.type]
            for column in COLUMNS
        )
    ).map(list)
)


def versions_of(rows: list[Row]) -> list[Version]:
    key_at = list(SqlType).index(SqlType.BIGINT)
    return [Version(row[key_at], seq + 1, 1, 1, row) for seq, row in enumerate(rows)]


@given(ROWS)
def test_rows_survive_the_way_through_a_batch(rows: list[Row]) -> None:
    batch = record_batch(versions_of(rows), COLUMNS)
    assert values(batch, COLUMNS) == rows
    assert values(pa.Table.from_batches([batch]), COLUMNS) == rows


@given(st.data(), st.sampled_from(SqlType))
def test_values_of_every_type_survive(data: st.DataObject, sql_type: SqlType) -> None:
    found = data.draw(st.lists(st.none() | VALUES[sql_type]))
    column = COLUMNS[list(SqlType).index(sql_type)]
    converted = column_array(found, column)
    assert converted.type == column_type(column)
    assert cells(converted, sql_type) == found


@pytest.mark.parametrize(
    ("sql_type", "expected"),
    [
        (SqlType.BOOLEAN, pa.bool_()),
        (SqlType.SMALLINT, pa.int16()),
        (SqlType.INT, pa.int32()),
        (SqlType.BIGINT, pa.int64()),
        (SqlType.FLOAT, pa.float32()),
        (SqlType.DOUBLE, pa.float64()),
        (SqlType.TEXT, pa.string()),
        (SqlType.TIMESTAMP, pa.timestamp("us")),
        (SqlType.DATETIME, pa.timestamp("us", "UTC")),
        (SqlType.DATE, pa.date32()),
        (SqlType.TIME, pa.time64("us")),
        (SqlType.UUID, pa.string()),
        (SqlType.JSON, pa.string()),
        (SqlType.BYTES, pa.binary()),
    ],
)
def test_types(sql_type: SqlType, expected: pa.DataType) -> None:
    assert arrow_type(sql_type) == expected


def test_schema_names_the_columns_then_the_system_columns_with_their_wire_types() -> None:
    columns = [
        Column(1, "id", SqlType.UUID, primary_key=True),
        Column(4, "note", SqlType.JSON, physical="note__4"),
        Column(5, "at", SqlType.TIMESTAMP, nullable=False),
    ]
    schema = table_schema(columns, physical=False)
    assert schema.names == ["id", "note", "at", "_seq", "_deleted"]
    assert table_schema(columns, physical=True).names == ["id", "note__4", "at", "_seq", "_deleted"]
    assert [(f.metadata[b"upwell.type"], f.metadata[b"upwell.flags"]) for f in schema] == [
        (b"Uuid", b"nn,pk,uq"),
        (b"Json", b""),
        (b"Timestamp", b"nn"),
        (b"BigInt", b"nn"),
        (b"Boolean", b"nn"),
    ]
    assert [field.nullable for field in schema] == [True, True, True, False, False]


def test_a_tombstone_has_its_key_and_nulls() -> None:
    columns = [Column(1, "a", SqlType.INT), Column(2, "id", SqlType.TEXT, primary_key=True)]
    batch = record_batch([Version("k", 7, 2, 1, [1, "k"]), Version("l", 9, 3, 1, None)], columns)
    assert batch.to_pylist() == [
        {"a": 1, "id": "k", "_seq": 7, "_deleted": False},
        {"a": None, "id": "l", "_seq": 9, "_deleted": True},
    ]
    assert record_batch([], columns).num_rows == 0
