"""A key filter knows each of its keys and few others, and has the bits that its file format says."""

import hashlib
import struct
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upwell.storage import key_filter
from upwell.storage.key_filter import KeyDigests, KeyFilter
from upwell.types import Key

HEAD_BYTES = 32
SEAL = b"batch-7-0.parquet 3 1 3 user"
INT64 = st.integers(-(2**63), 2**63 - 1)
TEXT = st.text(st.characters(exclude_categories=["Cs"])) | st.integers(0, 9).map(
    lambda n: "x" * 5000 + str(n)
)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)


@given(st.one_of(*map(st.lists, (st.booleans(), INT64, FLOATS, TEXT, st.binary()))))
def test_a_filter_knows_every_key(keys: list[Key]) -> None:
    decoded = KeyFilter.decode(KeyFilter.build(keys).encode(SEAL), SEAL)
    assert all(decoded.may_contain(key) for key in keys)


def test_a_filter_is_small_and_rarely_wrong() -> None:
    key_filter = KeyFilter.build([f"key {n}" for n in range(5000)])
    assert len(key_filter.encode(SEAL)) == HEAD_BYTES + 5000 * 10 // 8
    assert all(key_filter.may_contain(f"key {n}") for n in range(5000))
    assert sum(key_filter.may_contain(f"other {n}") for n in range(5000)) < 100
    assert not KeyFilter.build([]).may_contain("a")
    zero: Any = KeyFilter.build([0.0])
    assert zero.may_contain(-0.0)


def test_the_filter_s_bytes_stay_what_they_are() -> None:
    bits = bytes.fromhex("05886c36323a340b")
    name = hashlib.blake2b(SEAL, digest_size=16).digest()
    sealed = hashlib.blake2b(bits, digest_size=16, key=name).digest()
    head = bytes.fromhex("55574b46030700004000000000000000")
    keys: list[Key] = [1, "a", b"b", 2.5, True]
    assert KeyFilter.build(keys).encode(SEAL) == head + sealed + bits
    assert bits == bits_of(keys)


@pytest.mark.parametrize("count", [1, 7, 99, 100, 101, 1000])
@pytest.mark.parametrize("window_bits", [256, 1 << 24])
def test_each_bit_is_where_the_format_says(
    monkeypatch: pytest.MonkeyPatch, count: int, window_bits: int
) -> None:
    monkeypatch.setattr(key_filter, "WINDOW_BITS", window_bits)
    for keys in (
        list(range(-5, count - 5)),
        [f"ключ {n}" for n in range(count)],
        [n + 0.5 for n in range(count)],
    ):
        digests = KeyDigests()
        for start in range(0, count, 40):
            digests.add(keys[start : start + 40])
        assert digests.filter().encode(SEAL)[HEAD_BYTES:] == bits_of(keys)


def bits_of(keys: list[Any]) -> bytes:
    """Set 7 bits for each key as the file format says, one by one."""
    size = max(64, (len(keys) * 10 + 7) // 8 * 8)
    bits = 0
    for key in keys:
        match key:
            case str():
                number = checksums(key.encode())
            case bytes():
                number = checksums(key)
            case float():
                number = checksums(struct.pack("<d", key))
            case _:
                number = int(key)
        high, low = divmod(mixed(number), 1 << 32)
        for probe in range(7):
            bits |= 1 << ((high + probe * (low | 1)) % (1 << 32) * size >> 32)
    return bits.to_bytes(size // 8, "little")


def checksums(data: bytes) -> int:
    return zlib.crc32(data) << 32 | zlib.adler32(data)


def mixed(number: int) -> int:
    """What SplitMix64 makes of a number."""
    number %= 1 << 64
    number = (number ^ (number >> 30)) * 0xBF58476D1CE4E5B9 % (1 << 64)
    number = (number ^ (number >> 27)) * 0x94D049BB133111EB % (1 << 64)
    return number ^ (number >> 31)


def test_the_mixer_is_splitmix64() -> None:
    """The first outputs of the published generator, seeded with 1234567."""
    golden = 0x9E3779B97F4A7C15
    assert [mixed(1234567 + n * golden) for n in (1, 2, 3)] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]


def test_a_damaged_filter_is_refused() -> None:
    data = KeyFilter.build([1, 2, 3]).encode(SEAL)
    for at in range(len(data)):
        with pytest.raises(ValueError, match=r"filter|checksum"):
            KeyFilter.decode(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :], SEAL)
        with pytest.raises(ValueError, match=r"filter|checksum"):
            KeyFilter.decode(data[:at], SEAL)


def test_another_segment_s_filter_is_refused() -> None:
    data = KeyFilter.build([1, 2, 3]).encode(SEAL)
    with pytest.raises(ValueError, match="this segment's"):
        KeyFilter.decode(data, SEAL.replace(b"-7-", b"-8-"))
