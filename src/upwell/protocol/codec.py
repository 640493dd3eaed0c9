"""Bytes ⇄ frames and bodies of the SQL wire, as JSON, and frames of live queries as MessagePack too.

Law: nothing is decoded that is larger than its bound, compressed or not; what can't be decoded raises one
of two errors and never anything else. Sequence ids are written as integers and read as those or as decimal
strings. What subscribers of a change share is encoded once per serialization and compressed once, whatever
their ids are. A frame that begins with `{` is text; MessagePack maps and gzip begin with other bytes.
"""

import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from upwell.protocol.messages import ChangeType, ClientFrame, Protocol, Serialization, ServerFrame

frame_text_bytes_max = 1 << 20
"""Largest frame that a server reads."""
server_frame_bytes_max = 64 << 20
"""Largest frame that a client reads, before and after decompression."""

gzip_bytes_min = 512
"""Smallest frame that is compressed."""
packed_change_bytes_max = 1 << 20
"""Largest change that is compressed: the rest of one is encoded where others wait."""

PLAIN = Protocol("json", "none")

_GZIP_MAGIC = b"\x1f\x8b"
# Deflate, no flags, no time, system unknown (RFC 1952, section 2.3).
_GZIP_HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
_GZIP_WINDOW_BITS = 31
_RAW_WINDOW_BITS = -15
_GZIP_LEVEL = 1
# What gzip adds around a compressed tail: header, the head of the stored block, checksum and size.
_AROUND_BYTES = len(_GZIP_HEADER) + 5 + 8

_Body = TypeVar("_Body")
_WITHIN = ("`$.subscription`", "`$.subscription.")


class _Named(msgspec.Struct):
    id: str


class _Asked(msgspec.Struct):
    """What a subscription says at least: whose answer its refusal is."""

    subscription: _Named


_encoder = msgspec.json.Encoder()
_packer = msgspec.msgpack.Encoder()
# Lax mode, because some clients can't hold 64-bit integers and write them as strings.
_client_decoder: msgspec.json.Decoder[ClientFrame] = msgspec.json.Decoder(ClientFrame, strict=False)
_client_unpacker: msgspec.msgpack.Decoder[ClientFrame] = msgspec.msgpack.Decoder(ClientFrame, strict=False)
_asked_decoder = msgspec.json.Decoder(_Asked)
_asked_unpacker = msgspec.msgpack.Decoder(_Asked)
_server_decoder: msgspec.json.Decoder[ServerFrame] = msgspec.json.Decoder(ServerFrame, strict=False)


class FrameTooLarge(ValueError):
    """A frame exceeds its bound."""

    def __init__(self, bytes_max: int) -> None:
        super().__init__(f"Message too large (maximum {bytes_max} bytes)")
        self.bytes_max = bytes_max


class FrameMalformed(ValueError):
    """Bytes that are no message of this protocol; the text says where."""


@dataclass(frozen=True, slots=True)
class BadSubscription:
    """A subscription whose text or options can't be read, but its id can."""

    subscription_id: str
    reason: str


def encode(message: msgspec.Struct) -> bytes:
    """Return a frame or body as JSON text in UTF-8."""
    return _encoder.encode(message)


def encode_frame(frame: msgspec.Struct, protocol: Protocol) -> bytes:
    """Return a frame as it was negotiated; gzipped if it isn't short and becomes smaller by it."""
    data = _encoder.encode(frame) if protocol.serialization == "json" else _packer.encode(frame)
    if protocol.compression == "none" or len(data) < gzip_bytes_min:
        return data
    packed = _compressed(data, _GZIP_WINDOW_BITS)
    return packed if len(packed) < len(data) else data


def encode_row(row: object, serialization: Serialization) -> msgspec.Raw:
    """Return a row, to be put into a batch of this serialization as it is."""
    return msgspec.Raw(_encoder.encode(row) if serialization == "json" else _packer.encode(row))


def decode_client_frame(
    data: str | bytes, *, bytes_max: int = frame_text_bytes_max
) -> ClientFrame | BadSubscription:
    """Read what a client sent; raise `FrameTooLarge` or `FrameMalformed`."""
    raw = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
    if len(raw) > bytes_max:
        raise FrameTooLarge(bytes_max)
    try:
        return _client_decoder.decode(raw)
    except msgspec.ValidationError as error:
        return _bad_subscription(_asked_decoder, raw, error)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FrameMalformed(str(error)) from error


def unpack_client_frame(
    data: bytes, *, bytes_max: int = frame_text_bytes_max
) -> ClientFrame | BadSubscription:
    """Read what a client sent as MessagePack, gzipped or not; raise `FrameTooLarge` or `FrameMalformed`."""
    if len(data) > bytes_max:
        raise FrameTooLarge(bytes_max)
    if data.startswith(_GZIP_MAGIC):
        data = gunzip(data, bytes_max=bytes_max)
    try:
        return _client_unpacker.decode(data)
    except msgspec.ValidationError as error:
        return _bad_subscription(_asked_unpacker, data, error)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FrameMalformed(str(error)) from error


def _bad_subscription(
    decoder: msgspec.json.Decoder[_Asked] | msgspec.msgpack.Decoder[_Asked],
    data: bytes,
    error: msgspec.ValidationError,
) -> BadSubscription:
    """Return what is wrong within a subscription; raise `FrameMalformed` for other frames."""
    if any(place in str(error) for place in _WITHIN):
        with suppress(msgspec.DecodeError, UnicodeDecodeError):
            return BadSubscription(decoder.decode(data).subscription.id, str(error))
    raise FrameMalformed(str(error)) from error


def decode_server_frame(data: str | bytes, *, bytes_max: int = server_frame_bytes_max) -> ServerFrame:
    """Read what a server sent, JSON or gzipped JSON; raise `FrameTooLarge` or `FrameMalformed`."""
    raw = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
    if len(raw) > bytes_max:
        raise FrameTooLarge(bytes_max)
    if raw.startswith(_GZIP_MAGIC):
        raw = gunzip(raw, bytes_max=bytes_max)
    try:
        return _server_decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FrameMalformed(str(error)) from error


def decode_body(data: bytes, body: type[_Body]) -> _Body:
    """Read an HTTP body of the given type; raise `FrameMalformed`."""
    try:
        return msgspec.json.decode(data, type=body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FrameMalformed(str(error)) from error


def gunzip(data: bytes, *, bytes_max: int) -> bytes:
    """Return what `data` unpacks to, without ever holding more than `bytes_max` + 1 bytes of it."""
    stream = zlib.decompressobj(wbits=_GZIP_WINDOW_BITS)
    try:
        raw = stream.decompress(data, bytes_max + 1)
    except zlib.error as error:
        raise FrameMalformed(f"invalid gzip: {error}") from error
    if len(raw) > bytes_max:
        raise FrameTooLarge(bytes_max)
    if not stream.eof:
        raise FrameMalformed("invalid gzip: it ends too early")
    return raw


@dataclass(slots=True)
class Tail:
    """All of a change frame that its subscribers share: what comes before their head, and after it."""

    lead: bytes
    body: bytes
    _deflated: bytes | None = None

    def frame(self, head: bytes, *, gzip: bool = False) -> bytes:
        """Return the frame of the subscription whose `change_head` this is."""
        start = self.lead + head
        if gzip and gzip_bytes_min <= len(start) + len(self.body) <= packed_change_bytes_max:
            if self._deflated is None:
                self._deflated = _compressed(self.body, _RAW_WINDOW_BITS)
            if len(self._deflated) + _AROUND_BYTES < len(self.body):
                return _gzip_around(start, self.body, self._deflated)
        return start + self.body


def change_tail(
    change_type: ChangeType,
    rows: Sequence[object] | None = None,
    old_values: Sequence[object] | None = None,
    serialization: Serialization = "json",
) -> Tail:
    """Return what the subscribers of a change share.

    A row is a mapping of column to cell, or `msgspec.Raw` if it is encoded already.
    """
    if serialization == "msgpack":
        return _packed_tail(change_type, rows, old_values)
    parts = [b',"change_type":"', change_type.encode(), b'"']
    if rows is not None:
        parts += b',"rows":', _encoder.encode(rows)
    if old_values is not None:
        parts += b',"old_values":', _encoder.encode(old_values)
    parts.append(b"}")
    return Tail(b"", b"".join(parts))


def change_head(subscription_id: str, serialization: Serialization = "json") -> bytes:
    """Return the part of a subscription's change frames that is its own."""
    if serialization == "msgpack":
        parts = ("type", "change", "subscription_id", subscription_id)
        return b"".join(map(_packer.encode, parts))
    return b'{"type":"change","subscription_id":' + _encoder.encode(subscription_id)


def change_frame(subscription_id: str, tail: Tail) -> bytes:
    """Return the change frame of one subscription, as plain JSON."""
    return tail.frame(change_head(subscription_id))


def _packed_tail(
    change_type: ChangeType, rows: Sequence[object] | None, old_values: Sequence[object] | None
) -> Tail:
    shared = {"change_type": change_type, "rows": rows, "old_values": old_values}
    parts = [part for part in shared.items() if part[1] is not None]
    # A map of up to 15 pairs begins with 0x80 + their number; two pairs are the head's.
    lead = bytes((0x80 + 2 + len(parts),))
    return Tail(lead, b"".join(_packer.encode(each) for part in parts for each in part))


def _compressed(data: bytes, window_bits: int) -> bytes:
    stream = zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, window_bits)
    return stream.compress(data) + stream.flush()


def _gzip_around(start: bytes, body: bytes, deflated: bytes) -> bytes:
    """Return gzip of `start` + `body`: one member, `start` as a stored block before the ready `deflated`."""
    size = len(start).to_bytes(2, "little")
    complement = (len(start) ^ 0xFFFF).to_bytes(2, "little")
    checksum = zlib.crc32(body, zlib.crc32(start)).to_bytes(4, "little")
    total = (len(start) + len(body)).to_bytes(4, "little")
    return b"".join((_GZIP_HEADER, b"\x00", size, complement, start, deflated, checksum, total))
