"""The key bytes of `RocksStore`: one key space per leading byte, each in the domain's order.

    R table(4) owner 0 key      → Version       the newest version of a row
    R table(4) owner 0 FF       → nothing       the fence: ends the rows of each partition that ever was
    L table(4) seq(8)           → Change        the log; values are written here only
    O owner 0 counter(8)        → table(4) seq(8), a pointer into the log; users only
    S table(4)                  → bytes(8)      of the values in the table's log
    N owner                     → counter(8)    of the owner's newest change; users only
    C kind 0 name               → the record    (and `C kind 0 FF`, its fence)
    M name                      → format version, high water of the seqs, epoch

Law: bytes compare as the values do: owners and texts by code point, integers and floats by size.
The fences are there because an iterator which runs past the last row of a partition would otherwise
step over all that was dropped from the next one.
"""

import struct
from functools import lru_cache

from upwell.storage.hot import Kind
from upwell.types import Key, Owner, TableId

META_FORMAT = b"Mformat"
META_HIGH_WATER = b"Mhigh"
META_EPOCH = b"Mepoch"
FENCE = b"\xff"
FENCE_VALUE = b""
OWNERS_CACHED_MAX = 8192

_INT64_OFFSET = 1 << 63
_SIGN = 1 << 63
_ALL_BITS = (1 << 64) - 1
_TABLE = struct.Struct(">cI")
_POINTER = struct.Struct(">IQ")
_NUMBER = struct.Struct(">Q")
_FLOAT = struct.Struct(">d")
_TABLE_BYTES = _TABLE.size


def row_table(table: int) -> bytes:
    """Return what the rows of a table begin with."""
    return _TABLE.pack(b"R", table)


@lru_cache(maxsize=OWNERS_CACHED_MAX)
def row_partition(table: TableId, owner: Owner) -> bytes:
    """Return what the rows of a partition begin with."""
    return _TABLE.pack(b"R", table) + owner_bytes(owner)


def row(table: TableId, owner: Owner, key: Key) -> bytes:
    return row_partition(table, owner) + key_bytes(key)


def row_fence(table: TableId, owner: Owner) -> bytes:
    return row_partition(table, owner) + FENCE


def split_row(key: bytes) -> tuple[bytes, Owner, bool]:
    """Return a row key's partition and owner, and whether it is the partition's fence."""
    end = key.index(b"\0", _TABLE_BYTES) + 1
    return key[:end], _owner(key[_TABLE_BYTES : end - 1]), key[end:] == FENCE


def log(table: int, seq: int) -> bytes:
    return _TABLE.pack(b"L", table) + _NUMBER.pack(seq)


def log_table(table: int) -> bytes:
    """Return what the log of a table begins with."""
    return _TABLE.pack(b"L", table)


def log_size(table: int) -> bytes:
    return _TABLE.pack(b"S", table)


def owner_log(owner: Owner, counter: int) -> bytes:
    return b"O" + owner_bytes(owner) + _NUMBER.pack(counter)


def owner_log_begin(owner: Owner) -> bytes:
    """Return what an owner's log begins with."""
    return b"O" + owner_bytes(owner)


def counter_of_key(key: bytes) -> int:
    """Return the counter at the end of an owner log's key."""
    return number(key[-8:])


def counter(owner: Owner) -> bytes:
    return b"N" + owner_bytes(owner)


@lru_cache(maxsize=len(Kind))
def record_kind(kind: Kind) -> bytes:
    """Return what the records of a kind begin with."""
    return b"C" + kind.value.encode() + b"\0"


def record(kind: Kind, name: str) -> bytes:
    return record_kind(kind) + name.encode()


def pointer_bytes(table: int, seq: int) -> bytes:
    return _POINTER.pack(table, seq)


def pointer(value: bytes) -> tuple[int, int]:
    """Return the (table, seq) that an owner's log entry points to."""
    table, seq = _POINTER.unpack(value)
    return table, seq


def number_bytes(value: int) -> bytes:
    return _NUMBER.pack(value)


def number(value: bytes) -> int:
    return int.from_bytes(value, "big")


@lru_cache(maxsize=OWNERS_CACHED_MAX)
def owner_bytes(owner: Owner) -> bytes:
    """Return an owner with its end mark: no owner's bytes begin with another's."""
    return owner.encode().replace(b"\x01", b"\x01\x02").replace(b"\0", b"\x01\x01") + b"\0"


def _owner(escaped: bytes) -> Owner:
    return Owner(escaped.replace(b"\x01\x01", b"\0").replace(b"\x01\x02", b"\x01").decode())


def key_bytes(key: Key) -> bytes:
    """Return a primary key's bytes: a type byte (1 to 5), then bytes that sort as the values do."""
    if type(key) is int:  # what most keys are
        return b"\x02" + _NUMBER.pack(key + _INT64_OFFSET)
    match key:
        case bool():
            return b"\x01\x01" if key else b"\x01\x00"
        case int():
            return b"\x02" + _NUMBER.pack(key + _INT64_OFFSET)
        case float():
            return b"\x03" + _NUMBER.pack(_float_order(key))
        case str():
            return b"\x04" + key.encode()
        case bytes():
            return b"\x05" + key


def _float_order(value: float) -> int:
    bits = number(_FLOAT.pack(value + 0.0))  # -0.0 and 0.0 are one key
    return bits ^ _ALL_BITS if bits & _SIGN else bits | _SIGN
