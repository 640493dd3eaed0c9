"""The key filter beside a segment: which keys it certainly hasn't, in about 10 bits a key.

Law: a filter never denies a key that it was built of; its bytes are the same however it was built. Under 1 %
of other keys pass. An integer costs nothing in Python, other keys a CRC; all else is done by Arrow, without
the GIL. The file is sealed with whose it is: that of another segment, which would deny keys that are there,
is refused.

A Bloom filter of 7 probes, derived from two halves of 64 bits (Kirsch and Mitzenmacher, 2006). These are, of
an integer, itself; of other keys CRC-32 and Adler-32 of their bytes; mixed as SplitMix64 does (Steele, Lea
and Flood, 2014). Probe n of (high, low) is the bit (high + n * (low | 1)) mod 2^32 * number of bits / 2^32.
The file:

    bytes 0–3 magic `UWKF` · 4 format version (3) · 5 number of probes · 6–7 zero
    8–15 number of bits, little-endian · 16–31 BLAKE2b-128 of what follows, its key the BLAKE2b-128 of the
    segment (`Segment.seal`) · then the bits, bit n in byte n // 8 at 1 << n % 8

A filter of another version is made again of its segment.
"""

import struct
from collections.abc import Iterator, Sequence
from functools import lru_cache
from hashlib import blake2b
from zlib import adler32, crc32

import pyarrow as pa
import pyarrow.compute as pc

from upwell.types import Key

FILTER_BITS_PER_KEY = 10
FILTER_PROBES = 7
FEW_KEYS = 100
"""So few are quicker one by one than as Arrow arrays."""
WINDOW_BITS = 1 << 24
"""So many bits are made at once: each takes four bytes meanwhile."""

_FILTER_HEAD = struct.Struct("<4sBBHQ16s")
_INTEGER = struct.Struct("<q")
_FLOAT = struct.Struct("<d")
_FILTER_MAGIC = b"UWKF"
_FILTER_VERSION = 3
_SEAL_BYTES = 16
_BITS_32 = (1 << 32) - 1
_BITS_64 = (1 << 64) - 1
_MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
_MIX_END = 31


class KeyFilter:
    """The bits of a filter, to be asked."""

    def __init__(self, bits: bytes) -> None:
        assert bits, "a filter has at least one byte"
        self._bits = bits

    @classmethod
    def build(cls, keys: Sequence[Key]) -> "KeyFilter":
        """Return the filter of these keys."""
        digests = KeyDigests()
        digests.add(keys)
        return digests.filter()

    @classmethod
    def decode(cls, data: bytes, seal: bytes) -> "KeyFilter":
        """Return the filter of a file's content; raise `ValueError` if it is damaged or another segment's."""
        if len(data) <= _FILTER_HEAD.size:
            raise ValueError("too short for a key filter")
        magic, version, probes, reserved, bit_count, digest = _FILTER_HEAD.unpack_from(data)
        bits = data[_FILTER_HEAD.size :]
        if (magic, version, probes, reserved) != (_FILTER_MAGIC, _FILTER_VERSION, FILTER_PROBES, 0):
            raise ValueError("not a key filter of this version")
        if bit_count != len(bits) * 8 or digest != _sealed(bits, seal):
            raise ValueError("its checksum isn't that of this segment's filter")
        return cls(bits)

    def encode(self, seal: bytes) -> bytes:
        """Return the content of the file of the segment that `seal` names."""
        sealed = _sealed(self._bits, seal)
        head = (_FILTER_MAGIC, _FILTER_VERSION, FILTER_PROBES, 0, len(self._bits) * 8, sealed)
        return _FILTER_HEAD.pack(*head) + self._bits

    def may_contain(self, key: Key) -> bool:
        """Return False only if the key is certainly not in the segment."""
        bits = self._bits
        return all(bits[bit >> 3] & 1 << (bit & 7) for bit in _probes(_digest(key), len(bits) * 8))


class KeyDigests:
    """What a filter is made of while its keys still come: 8 bytes of each."""

    def __init__(self) -> None:
        self._unmixed: list[pa.Array] = []

    def add(self, keys: Sequence[Key]) -> None:
        """Take note of some more keys of one segment."""
        self._unmixed.append(_unmixed_array(keys))

    def filter(self) -> KeyFilter:
        """Return the filter of all keys that came."""
        count = sum(map(len, self._unmixed))
        bit_count = max(64, count * FILTER_BITS_PER_KEY + 7) // 8 * 8
        # A probe is told by 32 bits.
        assert bit_count <= _BITS_32, "a segment has less than 400 million keys"
        return KeyFilter(self._few(bit_count) if count < FEW_KEYS else self._many(bit_count))

    def _few(self, bit_count: int) -> bytes:
        bits = bytearray(bit_count // 8)
        for unmixed in self._unmixed:
            for number in unmixed.to_pylist():
                for bit in _probes(_mixed(number), bit_count):
                    bits[bit >> 3] |= 1 << (bit & 7)
        return bytes(bits)

    def _many(self, bit_count: int) -> bytes:
        digests = _mixed_array(pa.concat_arrays(self._unmixed))
        place = pc.shift_right(digests, _uint64(32))
        step = pc.bit_wise_or(pc.bit_wise_and(digests, _uint64(_BITS_32)), _uint64(1))
        probes = []
        for _ in range(FILTER_PROBES):
            bit = pc.shift_right(pc.multiply(place, _uint64(bit_count)), _uint64(32))
            probes.append(bit.cast(pa.int64()))
            place = pc.bit_wise_and(pc.add(place, step), _uint64(_BITS_32))
        starts = range(0, bit_count, WINDOW_BITS)
        return b"".join(_set_bits(probes, start, min(start + WINDOW_BITS, bit_count)) for start in starts)


def _set_bits(probes: Sequence[pa.Array], start: int, stop: int) -> bytes:
    """Return the bits `start` to `stop`, set where a probe is."""
    near = [each.filter(pc.and_(pc.greater_equal(each, start), pc.less(each, stop))) for each in probes]
    indices = pc.subtract(pa.concat_arrays(near), start).cast(pa.int32())
    # Where an index occurs the permutation has a value, so what it knows of its NULLs are the bits.
    found = pc.inverse_permutation(indices, max_index=stop - start - 1, output_type=pa.int32())
    known = found.buffers()[0]
    length = (stop - start) // 8
    return b"\xff" * length if known is None else known.slice(0, length).to_pybytes()


def _probes(digest: int, bit_count: int) -> Iterator[int]:
    place, step = digest >> 32, digest & _BITS_32 | 1
    return ((place + probe * step & _BITS_32) * bit_count >> 32 for probe in range(FILTER_PROBES))


@lru_cache(maxsize=64, typed=True)
def _digest(key: Key) -> int:
    """Return the 64 bits of a key; one is asked for in all segments of its partition."""
    return _mixed(_unmixed(key))


def _unmixed(key: Key) -> int:
    if isinstance(key, int):
        return key & _BITS_64
    data = _key_bytes(key)
    return crc32(data) << 32 | adler32(data)


def _unmixed_array(keys: Sequence[Key]) -> pa.Array:
    kinds = set(map(type, keys))
    if kinds == {int}:
        return pa.array(keys, pa.int64()).view(pa.uint64())
    if kinds == {str}:
        return _checksums([*map(str.encode, keys)])  # type: ignore[arg-type]
    return pa.array([*map(_unmixed, keys)], pa.uint64())


def _checksums(data: Sequence[bytes]) -> pa.Array:
    high = pc.shift_left(pa.array([*map(crc32, data)], pa.uint64()), _uint64(32))
    return pc.bit_wise_or(high, pa.array([*map(adler32, data)], pa.uint64()))


def _mixed(number: int) -> int:
    for bits, factor in _MIX:
        number = (number ^ number >> bits) * factor & _BITS_64
    return number ^ number >> _MIX_END


def _mixed_array(numbers: pa.Array) -> pa.Array:
    for bits, factor in _MIX:
        # Overflowing, as numbers of 64 bits do.
        numbers = pc.multiply(_shifted_in(numbers, bits), _uint64(factor))
    return _shifted_in(numbers, _MIX_END)


def _shifted_in(numbers: pa.Array, bits: int) -> pa.Array:
    return pc.bit_wise_xor(numbers, pc.shift_right(numbers, _uint64(bits)))


def _uint64(number: int) -> pa.Scalar:
    return pa.scalar(number, pa.uint64())


def _key_bytes(key: Key) -> bytes:
    match key:
        case str():
            return key.encode()
        case bytes():
            return key
        case float():
            return _FLOAT.pack(key + 0.0)  # −0.0 equals 0.0
        case _:
            return _INTEGER.pack(key)


def _sealed(bits: bytes, seal: bytes) -> bytes:
    name = blake2b(seal, digest_size=_SEAL_BYTES).digest()
    return blake2b(bits, digest_size=_SEAL_BYTES, key=name).digest()
