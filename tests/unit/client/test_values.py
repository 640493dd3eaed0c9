"""Cells become Python values by their column's type, and nothing is lost."""

from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from upwell.client.failures import ProtocolViolation
from upwell.client.transaction import many, one
from upwell.client.values import encode_argument, read_results
from upwell.protocol.messages import DataType, FieldSchema, SqlResponse, StatementResult


def _one(data_type: DataType, cell: Any) -> SqlResponse:
    schema = [FieldSchema("x", data_type, 0)]
    rows = StatementResult(schema=schema, rows=[[cell]], row_count=1, as_user="a")
    return SqlResponse("success", [rows], 1.0)


@pytest.mark.parametrize(
    ("data_type", "cell", "value"),
    [
        ("Boolean", True, True),
        ("SmallInt", 7, 7),
        ("BigInt", "-9223372036854775808", -(1 << 63)),
        ("Double", 2.25, 2.25),
        ({"Decimal": {"precision": 10, "scale": 2}}, "200.70", Decimal("200.70")),
        ("Text", "42", "42"),
        ("Timestamp", 1_699_000_000_000_001, datetime(2023, 11, 3, 8, 26, 40, 1, tzinfo=UTC)),
        ("Timestamp", -1, datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)),
        ("Timestamp", 1 << 62, 1 << 62),
        ("Date", 19675, date(2023, 11, 14)),
        ("Time", 3_600_000_001, time(1, 0, 0, 1)),
        ("Json", '{"a":1}', '{"a":1}'),
        ("Bytes", [1, 2, 255], b"\x01\x02\xff"),
        ("Uuid", "00000000-0000-0000-0000-000000000001", "00000000-0000-0000-0000-000000000001"),
        ({"Embedding": 2}, [0.5, 1.0], [0.5, 1.0]),
        ("BigInt", None, None),
    ],
)
def test_a_cell_becomes_its_value_and_stays_itself_when_raw(
    data_type: DataType, cell: Any, value: Any
) -> None:
    assert read_results(_one(data_type, cell)).rows == ((value,),)
    assert read_results(_one(data_type, cell), raw=True).rows == ((cell,),)


def test_a_cell_that_is_not_of_its_type_is_the_servers_fault() -> None:
    with pytest.raises(ProtocolViolation, match="'x1'"):
        read_results(_one("BigInt", "x1"))


def test_a_batch_gives_the_last_result_and_all_of_them() -> None:
    rows = _one("BigInt", "5").results[0]
    done = StatementResult(message="Inserted 2 row(s)", row_count=2, as_user="a")
    result = read_results(SqlResponse("success", [rows, done], 1.0))
    assert (result.message, result.row_count, result.dicts()) == ("Inserted 2 row(s)", 2, [])
    assert [list(part) for part in result.results] == [[(5,)], []]
    assert result.results[0].dicts() == [{"x": 5}]
    assert read_results(SqlResponse("success", [], 1.0)).results == ()


@pytest.mark.parametrize(
    ("value", "sent"),
    [
        (None, None),
        (True, True),
        (1 << 62, 1 << 62),
        ("x", "x"),
        (
            datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=timezone(timedelta(hours=1))),
            "2026-01-02T02:04:05.000006Z",
        ),
        (datetime(2026, 1, 2), "2026-01-02T00:00:00"),
        (date(2026, 1, 2), "2026-01-02"),
        (Decimal("1.10"), "1.10"),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (b"\x01\xff", "\\x01ff"),
    ],
)
def test_a_parameter_is_a_scalar_of_json(value: Any, sent: Any) -> None:
    assert encode_argument(value) == sent


@pytest.mark.parametrize("params", ["ab", b"ab", {"a": 1}, 5, None])
def test_parameters_are_a_list(params: Any) -> None:
    """A text isn't taken for its letters, nor a dict for its keys."""
    with pytest.raises(TypeError, match=r"list of the values of \$1"):
        one("SELECT $1", params, None, None)
    with pytest.raises(TypeError, match=r"list of the values of \$1"):
        many("INSERT INTO t VALUES ($1)", [params], None, None)


def test_a_list_is_no_parameter() -> None:
    with pytest.raises(TypeError, match="list"):
        encode_argument([1])  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_json_lacks_is_refused_and_does_not_become_null(value: float) -> None:
    with pytest.raises(ValueError, match="cannot be a parameter"):
        encode_argument(value)
