"""Bytes ⇄ frames and bodies of the SQL wire, as JSON.

Law: nothing is decoded that is larger than its bound, compressed or not; what can't be decoded raises one
of two errors and never anything else. Sequence ids are written as JSON integers and read as those or as
decimal strings.
"""

import zlib
from collections.abc import Sequence
from typing import TypeVar

import msgspec

from upwell.protocol.messages import ChangeType, ClientFrame, ServerFrame

frame_text_bytes_max = 1 << 20
"""Largest frame that a server reads."""
server_frame_bytes_max = 64 << 20
"""Largest frame that a client reads, before and after decompression."""

_GZIP_MAGIC = b"\x1f\x8b"
_GZIP_WINDOW_BITS = 31

_Body = TypeVar("_Body")
_encoder = msgspec.json.Encoder()
# Lax mode, because some clients can't hold 64-bit integers and write them as strings.
_client_decoder: msgspec.json.Decoder[ClientFrame] = msgspec.json.Decoder(ClientFrame, strict=False)
_server_decoder: msgspec.json.Decoder[ServerFrame] = msgspec.json.Decoder(ServerFrame, strict=False)


class FrameTooLarge(ValueError):
    """A frame exceeds its bound."""

    def __init__(self, bytes_max: int) -> None:
        super().__init__(f"Message too large (maximum {bytes_max} bytes)")
        self.bytes_max = bytes_max


class FrameMalformed(ValueError):
    """Bytes that are no message of this protocol; the text says where."""


def encode(message: msgspec.Struct) -> bytes:
    """Return a frame or body as JSON text in UTF-8."""
    return _encoder.encode(message)


def decode_client_frame(data: str | bytes, *, bytes_max: int = frame_text_bytes_max) -> ClientFrame:
    """Read what a client sent; raise `FrameTooLarge` or `FrameMalformed`."""
    raw = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
    if len(raw) > bytes_max:
        raise FrameTooLarge(bytes_max)
    try:
        return _client_decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
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
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
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


def change_tail(
    change_type: ChangeType,
    rows: Sequence[object] | None = None,
    old_values: Sequence[object] | None = None,
) -> bytes:
    """Return all of a change frame that its subscribers share; join it with `change_frame`.

    A row is a mapping of column to cell, or `msgspec.Raw` if its JSON exists already.
    """
    parts = [b',"change_type":"', change_type.encode(), b'"']
    if rows is not None:
        parts += b',"rows":', _encoder.encode(rows)
    if old_values is not None:
        parts += b',"old_values":', _encoder.encode(old_values)
    parts.append(b"}")
    return b"".join(parts)


def change_frame(subscription_id: str, tail: bytes) -> bytes:
    """Return the change frame of one subscription around the shared tail."""
    return b'{"type":"change","subscription_id":' + _encoder.encode(subscription_id) + tail
