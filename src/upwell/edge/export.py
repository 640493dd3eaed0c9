"""Results of any size as a stream: Arrow, NDJSON or CSV, as `Accept` asks for it.

Law: memory is bounded: the next piece is made when the client has taken the one before, and no query slot
is held while it reads. A failure before the first byte is an ordinary error; after it the connection is
cut, so that nobody takes a part for the whole.
"""

import asyncio
import csv
import io
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.csv

from upwell.edge.render import SLICE_ROWS, field_schemas, json_cells
from upwell.engine.flow import Flow, Given
from upwell.engine.result import refuse_not_finite, result_columns
from upwell.engine.stop import Stop
from upwell.errors import QueryFailure, UpwellError
from upwell.session.outcome import Streamed
from upwell.session.threads import QueryThreads, client

PIECE_BYTES = 256 * 1024
STALL_S_MAX = 60
"""A client that takes nothing for so long is cut off."""
SCHEMA_HEADER_BYTES_MAX = 16 * 1024
_JSON = frozenset({"application/json", "application/*", "*/*"})
_encoder = msgspec.json.Encoder()


class StreamCut(Exception):
    """A stream that has begun can't be ended: the connection has to be cut."""


Send = Callable[[dict[str, Any]], Any]


class Arrow:
    """The Arrow IPC stream."""

    media_type = "application/vnd.apache.arrow.stream"

    def __init__(self, schema: pa.Schema) -> None:
        self._sink = io.BytesIO()
        self._schema = pa.schema([field.with_type(_common(field.type)) for field in schema])
        self._writer = pa.ipc.new_stream(self._sink, self._schema)

    def encode(self, batch: pa.RecordBatch) -> bytes:
        self._writer.write_batch(batch.cast(self._schema))
        return self._taken()

    def end(self) -> bytes:
        self._writer.close()
        return self._taken()

    def _taken(self) -> bytes:
        data: bytes = self._sink.getvalue()
        self._sink.seek(0)
        self._sink.truncate()
        return data


class Ndjson:
    """A JSON object a row and line; cells as in a JSON answer."""

    media_type = "application/x-ndjson"

    def __init__(self, schema: pa.Schema) -> None:
        self._columns = result_columns(schema)
        self._names = [column.name for column in self._columns]
        twice = next((name for name in self._names if self._names.count(name) > 1), None)
        if twice is not None:
            raise QueryFailure(f"two columns of the result are named '{twice}'; name one of them with AS")

    def encode(self, batch: pa.RecordBatch) -> bytes:
        table = pa.Table.from_batches([batch])
        refuse_not_finite(table)
        if not self._names:
            return b"{}\n" * int(batch.num_rows)
        cells = [
            json_cells(column, array) for column, array in zip(self._columns, table.columns, strict=True)
        ]
        lines: bytes = _encoder.encode_lines(
            [dict(zip(self._names, row, strict=True)) for row in zip(*cells, strict=True)]
        )
        return lines

    def end(self) -> bytes:
        return b""


class Csv:
    """RFC 4180 with a head: NULL is nothing, an empty text is `""`, a moment ISO 8601, bytes hexadecimal."""

    media_type = "text/csv"

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema
        self._has_head = False
        self._options = pa.csv.WriteOptions(include_header=False)

    def encode(self, batch: pa.RecordBatch) -> bytes:
        sink = io.BytesIO()
        arrays = [_printed(array) for array in batch.columns]
        pa.csv.write_csv(pa.table(arrays, names=self._unique), sink, self._options)
        return self._head() + sink.getvalue()

    def end(self) -> bytes:
        return self._head()

    @property
    def _unique(self) -> list[str]:
        return [str(number) for number in range(len(self._schema))]

    def _head(self) -> bytes:
        if self._has_head:
            return b""
        self._has_head = True
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerow(self._schema.names)
        return text.getvalue().encode()


Format = type[Arrow] | type[Ndjson] | type[Csv]
_FORMATS: dict[str, Format] = {
    Arrow.media_type: Arrow,
    Ndjson.media_type: Ndjson,
    "application/ndjson": Ndjson,
    "application/jsonl": Ndjson,
    Csv.media_type: Csv,
}


@lru_cache(maxsize=256)
def find_format(accept: str | None) -> Format | None:
    """Return the format that an Accept header prefers, None for JSON (or what nobody offers)."""
    if not accept:
        return None
    wanted = sorted(map(_preference, accept.split(",")), key=lambda each: -each[0])
    for quality, name in wanted:
        if quality > 0 and name in _FORMATS:
            return _FORMATS[name]
        if quality > 0 and name in _JSON:
            return None
    return None


def _preference(item: str) -> tuple[float, str]:
    name, *parameters = (part.strip().lower() for part in item.split(";"))
    quality = next((each[2:] for each in parameters if each.startswith("q=")), "1")
    try:
        return float(quality), name
    except ValueError:
        return 0.0, name


async def send_stream(streamed: Streamed, form: Format, threads: QueryThreads, send: Send) -> None:
    """Send the rows; raise the query's error, which is ordinary as long as nothing was sent."""
    pieces = _Pieces(form(streamed.schema), streamed.flow)
    piece = await threads.run(pieces.next)
    await send({"type": "http.response.start", "status": 200, "headers": _headers(form, streamed.schema)})
    who = client.get()
    try:
        while piece is not None and not (who is not None and who.gone.done()):
            async with asyncio.timeout(STALL_S_MAX):
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            piece = await threads.run(pieces.next)
        if piece is None:
            await send({"type": "http.response.body", "body": b""})
    except TimeoutError as error:
        raise StreamCut(f"the client took nothing for {STALL_S_MAX} s") from error
    except UpwellError as error:
        raise StreamCut(str(error)) from error


def _headers(form: Format, schema: pa.Schema) -> list[tuple[bytes, bytes]]:
    headers = [(b"content-type", form.media_type.encode())]
    text = _encoder.encode(field_schemas(result_columns(schema))).decode()
    if form is Ndjson and text.isascii() and len(text) <= SCHEMA_HEADER_BYTES_MAX:
        headers.append((b"x-upwell-schema", text.encode()))
    return headers


class _Pieces:
    """A result in pieces of about PIECE_BYTES."""

    def __init__(self, form: Arrow | Ndjson | Csv, flow: Flow | Given) -> None:
        self._form = form
        self._flow = flow
        self._slices: Iterator[pa.RecordBatch] = iter(())
        self._is_over = False

    def next(self, stop: Stop) -> bytes | None:
        """Return the next piece, None after the last."""
        parts: list[bytes] = []
        size = 0
        while size < PIECE_BYTES and not self._is_over:
            for rows in self._slices:
                parts.append(self._form.encode(rows))
                size += len(parts[-1])
                if size >= PIECE_BYTES:
                    break
            else:
                batch = self._flow.read(stop)
                self._is_over = batch is None
                self._slices = iter(()) if batch is None else _sliced(batch)
                parts += [self._form.end()] if batch is None else []
        return b"".join(parts) if parts else None


def _sliced(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    return (batch.slice(start, SLICE_ROWS) for start in range(0, batch.num_rows, SLICE_ROWS))


def _common(kind: pa.DataType) -> pa.DataType:
    """Return a type that every reader of Arrow knows."""
    if pa.types.is_string_view(kind):
        return pa.string()
    return pa.binary() if pa.types.is_binary_view(kind) else kind


def _printed(array: pa.Array) -> pa.Array:
    kind = array.type
    if pa.types.is_timestamp(kind):
        return array.cast(pa.timestamp("us", "UTC"), safe=False)
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        return _texts([None if value is None else value.hex() for value in array.to_pylist()])
    if pa.types.is_nested(kind) or pa.types.is_interval(kind) or pa.types.is_duration(kind):
        return _texts([None if value is None else str(value) for value in array.to_pylist()])
    if pa.types.is_decimal(kind):
        # Arrow's own text of small numbers has an exponent: 0E-10.
        return _texts([None if value is None else format(value, "f") for value in array.to_pylist()])
    return array.cast(pa.string()) if pa.types.is_string_view(kind) else array


def _texts(values: Sequence[str | None]) -> pa.Array:
    return pa.array(values, pa.string())
