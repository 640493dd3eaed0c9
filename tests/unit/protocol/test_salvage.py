"""An upload is taken apart only where a payload can't be read, and then says the same."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from upwell.protocol import sync
from upwell.protocol.salvage import decode_upload_request

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
CHANGES = st.lists(
    st.fixed_dictionaries(
        {"source_change_id": st.integers(1, 9), "pk": st.text(), "server_version": st.just(0)}
        | {"table": st.text(), "op": st.text()},
        optional={"payload": VALUES, "payloads": VALUES, "hint": VALUES},
    ),
    max_size=4,
)
BROKEN = b'{"a":"\\ud800","payload":["}]",{}]}'


@given(changes=CHANGES, hint=VALUES, is_last=st.booleans())
def test_the_others_say_what_they_said(changes: list[dict[str, object]], hint: object, is_last: bool) -> None:
    bad = {
        "source_change_id": 0,
        "pk": "k",
        "server_version": 0,
        "table": "t",
        "op": "o",
        "payload": "BROKEN",
    }
    mixed = [*changes, bad] if is_last else [bad, *changes]
    body = json.dumps({"hint": hint, "changes": mixed, "changed": [hint]}).replace(
        '"BROKEN"', BROKEN.decode()
    )
    with pytest.raises(msgspec.DecodeError):
        sync.decode_upload_request(body.encode())
    found = decode_upload_request(body.encode()).changes or []
    wanted = sync.decode_upload_request(json.dumps({"changes": mixed}).encode()).changes or []
    refused = found.pop(-1 if is_last else 0)
    wanted.pop(-1 if is_last else 0)
    assert bytes(refused.payload) == BROKEN
    assert found == wanted


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b'{"changes":[{"payload":NaN}]}', b'{"changes":[{"payload":"x]}', b"[" * 99_999,
        b'{"changes":' + b'[{"payload":' * 9_999, b'{"payload":NaN}', b'{"changes":{"a":{"payload":NaN}}}',
    ],
)  # fmt: skip
def test_what_is_no_request_without_its_payloads_either(body: bytes) -> None:
    with pytest.raises((msgspec.DecodeError, RecursionError)):
        decode_upload_request(body)


def test_a_text_without_an_end_costs_one_pass() -> None:
    # Begun anew at each of its quotes this would take hours, with nobody else at work meanwhile.
    for end in (b"", b"\\"):
        with pytest.raises(msgspec.DecodeError):
            decode_upload_request(b'{"changes":[{"payload":"' + b'\\"' * 1_000_000 + end)
