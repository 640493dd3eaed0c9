"""Receipts: what each change id of a device did, and the highest one that the server has seen.

Law: a receipt is committed with what it is about; beyond the highest id there is none.
"""

import msgspec

from upwell.decodable import decodable
from upwell.engine.names import change_name, source_name
from upwell.storage.hot import HotReader, Kind, RecordWrite


@decodable
class Receipt(msgspec.Struct, frozen=True, array_like=True):
    """What a change id did: digest of its content, the row, and the version that it made (0: none)."""

    digest: bytes
    table: int
    key: str
    version: int


@decodable
class _Source(msgspec.Struct, frozen=True, array_like=True):
    change_id_max: int


def find_receipt(reader: HotReader, user: str, source: str, change_id: int) -> Receipt | None:
    record = reader.find_record(Kind.RECEIPT, change_name(user, source, change_id))
    return msgspec.msgpack.decode(record, type=Receipt) if record else None


def receipt_record(user: str, source: str, change_id: int, receipt: Receipt | None) -> RecordWrite:
    """Return the record of a receipt; None takes it away."""
    value = None if receipt is None else msgspec.msgpack.encode(receipt)
    return RecordWrite(Kind.RECEIPT, change_name(user, source, change_id), value)


def change_id_max(reader: HotReader, user: str, source: str) -> int:
    """Return the highest change id that the server has seen of a device, 0 if none."""
    return decode_change_id_max(reader.find_record(Kind.SOURCE, source_name(user, source)))


def decode_change_id_max(record: bytes | None) -> int:
    return 0 if record is None else msgspec.msgpack.decode(record, type=_Source).change_id_max


def source_record(user: str, source: str, change_id: int) -> RecordWrite:
    """Return the record of the highest change id of a device."""
    return RecordWrite(Kind.SOURCE, source_name(user, source), msgspec.msgpack.encode(_Source(change_id)))
