"""The key filter beside a segment: which keys it certainly hasn't, in about 10 bits a key.

Law: a filter never denies a key that it was built of; its bytes are the same however it was built. Under 1 %
of other keys pass. A key costs a BLAKE2b in Python, all else is done by Arrow, without the GIL. The file is
sealed with whose it is: that of another segment, which would deny keys that are there, is refused.

A Bloom filter of 7 probes, derived from two halves of a 128-bit BLAKE2b (Kirsch and Mitzenmacher, 2006).
The file:

    bytes 0–3 magic `UWKF` · 4 format version (2) · 5 number of probes · 6–7 zero
    8–15 number of bits, little-endian · 16–31 BLAKE2b-128 of what follows, its key the BLAKE2b-128 of the
    segment (`Segment.seal`) · then the bits, bit n in byte n // 8 at 1 << n % 8

A filter of version 1 doesn't say whose it is, and is made again.
"""

import struct
from collections.abc import Iterator, Sequence
from hashlib import blake2b

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
_HALVES = struct.Struct("<QQ")
_INTEGER = struct.Struct("<q")
_FILTER_MAGIC = b"UWKF"
_FILTER_VERSION = 2
_DIGEST_BYTES = 16


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
        return all(
            bits[bit >> 3] & 1 << (bit & 7) for bit in _probes(_digest(_key_bytes(key)), len(bits) * 8)
        )


class KeyDigests:
    """What a filter is made of while its keys still come: 16 bytes of each."""

    def __init__(self) -> None:
        self._digests = bytearray()

    def add(self, keys: Sequence[Key]) -> None:
        """Take note of some more keys of one segment."""
        kinds = set(map(type, keys))
        if kinds == {int}:
            data = map(_INTEGER.pack, keys)
        elif kinds == {str}:
            data = map(str.encode, keys)  # type: ignore[arg-type]
        else:
            data = map(_key_bytes, keys)
        self._digests += b"".join([blake2b(each, digest_size=_DIGEST_BYTES).digest() for each in data])

    def filter(self) -> KeyFilter:
        """Return the filter of all keys that came."""
        count = len(self._digests) // _DIGEST_BYTES
        bit_count = max(64, count * FILTER_BITS_PER_KEY + 7) // 8 * 8
        return KeyFilter(self._few(bit_count) if count < FEW_KEYS else self._many(count, bit_count))

    def _few(self, bit_count: int) -> bytes:
        bits = bytearray(bit_count // 8)
        for at in range(0, len(self._digests), _DIGEST_BYTES):
            for bit in _probes(self._digests[at : at + _DIGEST_BYTES], bit_count):
                bits[bit >> 3] |= 1 << (bit & 7)
        return bytes(bits)

    def _many(self, count: int, bit_count: int) -> bytes:
        halves = pa.Array.from_buffers(pa.uint64(), 2 * count, [None, pa.py_buffer(bytes(self._digests))])
        pairs = pa.FixedSizeListArray.from_arrays(halves, 2)
        bit = _modulo(pc.list_element(pairs, 0), bit_count)
        step = _modulo(pc.bit_wise_or(pc.list_element(pairs, 1), pa.scalar(1, pa.uint64())), bit_count)
        probes = []
        for _ in range(FILTER_PROBES):
            probes.append(bit.cast(pa.int64()))
            bit = _modulo(pc.add(bit, step), bit_count)
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


def _modulo(numbers: pa.Array, divisor: int) -> pa.Array:
    scalar = pa.scalar(divisor, pa.uint64())
    return pc.subtract(numbers, pc.multiply(pc.divide(numbers, scalar), scalar))


def _probes(digest: bytes | bytearray, bit_count: int) -> Iterator[int]:
    first, step = _HALVES.unpack(digest)
    step |= 1
    return ((first + probe * step) % bit_count for probe in range(FILTER_PROBES))


def _key_bytes(key: Key) -> bytes:
    match key:
        case str():
            return key.encode()
        case bytes():
            return key
        case float():
            return struct.pack("<d", key + 0.0)  # −0.0 equals 0.0
        case _:
            return _INTEGER.pack(key)


def _digest(data: bytes) -> bytes:
    return blake2b(data, digest_size=_DIGEST_BYTES).digest()


def _sealed(bits: bytes, seal: bytes) -> bytes:
    return blake2b(bits, digest_size=_DIGEST_BYTES, key=_digest(seal)).digest()
