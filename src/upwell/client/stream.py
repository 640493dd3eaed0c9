"""Rows of a streamed result, without I/O: lines of JSON become rows, in whatever pieces they arrive.

Law: a row is given out when its line is whole; a stream that ends inside a line is an error.
"""

from collections.abc import Iterator
from typing import Any

import msgspec

from upwell.client.failures import ProtocolViolation
from upwell.client.values import Decode, decode_for, decode_row
from upwell.protocol.messages import FieldSchema

ARROW = "application/vnd.apache.arrow.stream"
NDJSON = "application/x-ndjson"
SCHEMA_HEADER = "x-upwell-schema"
_decode_line = msgspec.json.Decoder(dict[str, Any]).decode
_decode_schema = msgspec.json.Decoder(list[FieldSchema]).decode


class Lines:
    """Takes pieces of NDJSON; the header `schema` tells the columns' types, `raw` leaves cells alone."""

    def __init__(self, schema: str | None, *, raw: bool) -> None:
        self._rest = b""
        self._decoders: dict[str, Decode] = {}
        if schema is not None and not raw:
            columns = ((field.name, decode_for(field.data_type)) for field in _decode_schema(schema))
            self._decoders = {name: decode for name, decode in columns if decode is not None}

    def feed(self, piece: bytes) -> Iterator[dict[str, Any]]:
        """Yield the rows that are whole by now."""
        *lines, self._rest = (self._rest + piece).split(b"\n")
        for line in lines:
            yield self._row(line)

    def end(self) -> None:
        """Raise `ProtocolViolation` if the stream ended inside a row."""
        if self._rest:
            raise ProtocolViolation("the stream of rows ended inside a row")

    def _row(self, line: bytes) -> dict[str, Any]:
        try:
            return decode_row(_decode_line(line), self._decoders)
        except msgspec.DecodeError as error:
            raise ProtocolViolation(f"a line of the stream is not understood: {error}") from error


def read_arrow(body: bytes) -> Any:
    """Return a `pyarrow.Table`; pyarrow is asked for here only."""
    try:
        import pyarrow.ipc
    except ImportError as error:
        raise ImportError("results as Arrow need pyarrow: pip install pyarrow") from error
    return pyarrow.ipc.open_stream(body).read_all()
