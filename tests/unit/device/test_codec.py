"""Each column has one rule between file and wire, and it goes both ways."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upwell.device.codec import (
    Undecodable,
    key_from_wire,
    key_to_wire,
    payload_to_wire,
    row_from_wire,
    values_from_wire,
)
from upwell.device.schema import Column, TableShape

KEY = Column(name="Id", wire="id", is_blob=True, is_text=False)
DATA = Column(name="Data", wire="data", is_blob=True, is_text=False)
NUMBER = Column(name="n", wire="n", is_blob=False, is_text=False)
SHAPE = TableShape("T", "t", (KEY, DATA, NUMBER), KEY, (), has_other_unique=False)
HEX = "000102030405060708090a0b0c0d0e0f"
UUID = "00010203-0405-0607-0809-0a0b0c0d0e0f"


@given(data=st.none() | st.binary(), number=st.integers(-(2**63), 2**63 - 1))
def test_there_and_back(data: bytes | None, number: int) -> None:
    value = "null" if data is None else f'"{data.hex()}"'
    sent = payload_to_wire(SHAPE, f'{{"id":"{HEX}","data":{value},"n":{number}}}', {"later": [1]})
    row, extra = row_from_wire(SHAPE, HEX, sent)
    assert row == {"Id": bytes.fromhex(HEX), "Data": data, "n": number}
    assert extra == {"later": [1]}


@given(values=st.lists(st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.integers())))
def test_a_column_is_its_values(values: list[object]) -> None:
    payloads = [json.dumps({"n": value}) for value in values]
    assert list(values_from_wire(NUMBER, values)) == [
        row_from_wire(SHAPE, HEX, payload)[0]["n"] for payload in payloads
    ]
    assert list(values_from_wire(DATA, ["AAH/", None])) == [b"\x00\x01\xff", None]


def test_a_blob_key_is_a_dashed_uuid_on_the_wire() -> None:
    assert key_to_wire(SHAPE, HEX) == UUID
    assert key_from_wire(SHAPE, UUID) == HEX
    assert key_to_wire(SHAPE, "abcd") == key_from_wire(SHAPE, "ABCD") == "abcd"


@pytest.mark.parametrize("payload", ['{"data":"not base64!"}', '{"data":7}', "[]", "{"])
def test_what_a_column_cannot_hold_is_refused(payload: str) -> None:
    with pytest.raises(Undecodable):
        row_from_wire(SHAPE, HEX, payload)
