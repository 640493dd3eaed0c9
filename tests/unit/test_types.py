"""Promise: a column holds exactly what its type can hold; anything else is refused by name."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upwell.errors import InvalidValue
from upwell.types import (
    SHARED,
    Column,
    SqlType,
    Value,
    coerce,
    format_timestamp,
    owner_user,
    parse_timestamp,
    to_json,
    user_owner,
)

MAX = (1 << 63) - 1


def column(sql_type: SqlType) -> Column:
    return Column(1, "c", sql_type)


@pytest.mark.parametrize(
    ("sql_type", "given_value", "held"),
    [
        (SqlType.BOOLEAN, True, True),
        (SqlType.BOOLEAN, "f", False),
        (SqlType.BOOLEAN, 1, True),
        (SqlType.SMALLINT, -32768, -32768),
        (SqlType.INT, "42", 42),
        (SqlType.BIGINT, MAX, MAX),
        (SqlType.BIGINT, 3.0, 3),
        (SqlType.DOUBLE, 3, 3.0),
        (SqlType.DOUBLE, "1e3", 1000.0),
        (SqlType.TEXT, 5, "5"),
        (SqlType.TEXT, True, "true"),
        (SqlType.TIMESTAMP, 1_699_000_000_000_000, 1_699_000_000_000_000),
        (SqlType.TIMESTAMP, "1970-01-01T00:00:01Z", 1_000_000),
        (SqlType.TIMESTAMP, "1970-01-01 01:00:00.5+01:00", 500_000),
        (SqlType.UUID, "0190A3A4000070008000000000000001", "0190a3a4-0000-7000-8000-000000000001"),
        (SqlType.JSON, '{"a": 1}', '{"a": 1}'),
        (SqlType.BYTES, "\\xff00", b"\xff\x00"),
    ],
)
def test_a_value_is_held_in_the_form_of_its_type(sql_type: SqlType, given_value: Value, held: Value) -> None:
    found = coerce(given_value, column(sql_type))
    assert (found, type(found)) == (held, type(held))


@pytest.mark.parametrize("sql_type", list(SqlType))
def test_null_is_null_in_every_type(sql_type: SqlType) -> None:
    assert coerce(None, column(sql_type)) is None


@pytest.mark.parametrize(
    ("sql_type", "value"),
    [
        (SqlType.BOOLEAN, 2),
        (SqlType.SMALLINT, 32768),
        (SqlType.INT, 1 << 31),
        (SqlType.BIGINT, MAX + 1),
        (SqlType.INT, 1.5),
        (SqlType.INT, "x"),
        (SqlType.DOUBLE, float("nan")),
        (SqlType.DOUBLE, "inf"),
        (SqlType.TEXT, "\ud800"),
        (SqlType.TEXT, b"x"),
        (SqlType.TIMESTAMP, "yesterday"),
        (SqlType.TIMESTAMP, True),
        (SqlType.TIMESTAMP, 253_402_300_800_000_000),
        (SqlType.UUID, "not-a-uuid"),
        (SqlType.UUID, 5),
        (SqlType.JSON, "{"),
        (SqlType.BYTES, "xyz"),
    ],
)
def test_what_a_type_cannot_hold_is_refused_with_the_column_s_name(sql_type: SqlType, value: Value) -> None:
    with pytest.raises(InvalidValue, match=rf"column 'c' \({sql_type.name}\)"):
        coerce(value, column(sql_type))


def test_a_refusal_says_what_the_type_is() -> None:
    with pytest.raises(InvalidValue, match="cannot hold 1e\\+39: out of range for 32 bits"):
        coerce(1e39, Column(1, "c", SqlType.FLOAT))
    with pytest.raises(InvalidValue, match="cannot hold '2023-02-29': not a date in ISO 8601"):
        coerce("2023-02-29", Column(1, "c", SqlType.DATE))


@pytest.mark.parametrize("sql_type", [t for t in SqlType if t is not SqlType.TEXT])
def test_a_refusal_speaks_of_the_value_not_of_python(sql_type: SqlType) -> None:
    with pytest.raises(InvalidValue, match=r"cannot hold '\?!': (not |timestamps )") as refusal:
        coerce("?!", column(sql_type))
    assert not any(word in str(refusal.value) for word in ("literal", "int()", "float:", "hexadecimal UUID"))


@given(st.integers(min_value=-62_135_596_800_000_000, max_value=253_402_300_799_999_999))
def test_timestamps_survive_their_text(time_us: int) -> None:
    assert parse_timestamp(format_timestamp(time_us)) == time_us


def test_64_bit_integers_are_strings_in_json() -> None:
    assert to_json(MAX, SqlType.BIGINT) == "9223372036854775807"
    assert to_json(7, SqlType.INT) == 7
    assert to_json(b"\x01\xff", SqlType.BYTES) == [1, 255]


@given(st.text())
def test_an_owner_is_never_mistaken_for_another(user: str) -> None:
    assert owner_user(user_owner(user)) == user
    assert user_owner(user) != SHARED
    assert owner_user(SHARED) is None
