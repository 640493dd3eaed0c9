"""The key bytes sort as the values do, and no partition's keys begin another's."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upwell.storage import rocks_keys
from upwell.storage.hot import Kind
from upwell.types import SHARED, Key, Owner, TableId, user_owner

OWNERS = st.text(alphabet=st.sampled_from("\0\1\2ab:ÿ😀"), max_size=6).map(user_owner) | st.just(SHARED)
INT64 = st.integers(-(1 << 63), (1 << 63) - 1)


@pytest.mark.parametrize(
    "values",
    [
        pytest.param(st.booleans(), id="bool"),
        pytest.param(INT64, id="int"),
        pytest.param(st.floats(allow_nan=False, allow_infinity=False), id="float"),
        pytest.param(st.text(alphabet=st.characters(exclude_categories=["Cs"])), id="str"),
        pytest.param(st.binary(), id="bytes"),
    ],
)
@given(data=st.data())
def test_keys_compare_as_their_values(values: st.SearchStrategy[Key], data: st.DataObject) -> None:
    left, right = data.draw(values), data.draw(values)
    left_bytes, right_bytes = rocks_keys.key_bytes(left), rocks_keys.key_bytes(right)
    assert (left_bytes < right_bytes) == (left < right)  # type: ignore[operator]
    assert (left_bytes == right_bytes) == (left == right)


@given(left=OWNERS, right=OWNERS)
def test_owners_compare_as_text_and_none_begins_another(left: Owner, right: Owner) -> None:
    left_bytes, right_bytes = rocks_keys.owner_bytes(left), rocks_keys.owner_bytes(right)
    assert (left_bytes < right_bytes) == (left < right)
    assert left_bytes.startswith(right_bytes) == (left == right)


@given(owner=OWNERS, key=INT64 | st.text(alphabet="\0\1ab") | st.binary())
def test_a_row_key_gives_its_partition_back_and_lies_before_the_fence(owner: Owner, key: Key) -> None:
    table = TableId(7)
    partition = rocks_keys.row_partition(table, owner)
    row, fence = rocks_keys.row(table, owner, key), rocks_keys.row_fence(table, owner)
    assert rocks_keys.split_row(row) == (partition, owner, False)
    assert rocks_keys.split_row(fence) == (partition, owner, True)
    assert partition < row < fence


def test_each_kind_has_its_own_name_space() -> None:
    begins = [rocks_keys.record_kind(kind) for kind in Kind]
    assert not [(a, b) for a in begins for b in begins if a != b and a.startswith(b)]


def test_pointers_and_numbers_come_back() -> None:
    assert rocks_keys.pointer(rocks_keys.pointer_bytes(4_294_967_295, 1 << 62)) == (4_294_967_295, 1 << 62)
    assert rocks_keys.number(rocks_keys.number_bytes(258)) == 258
    assert rocks_keys.counter_of_key(rocks_keys.owner_log(user_owner("ann"), 12)) == 12
