"""Flow: the batches of a result, made in the thread that asks for them, until somebody asks to stop.

Law: a request to stop ends the engine's work where it pauses next, also inside of a batch. Short work is
read without the event loop that this takes; it costs some 0.3 ms. (Where the engine doesn't pause, in a
join that makes millions of rows of each batch, the thread goes on until that is done.)
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Protocol

import pyarrow as pa

from upwell.engine.reading import Reading
from upwell.engine.refusal import translated
from upwell.engine.stop import Stop, Stopped
from upwell.errors import QueryFailure

RESULT_BYTES_MAX = 64 * 1024 * 1024
"""What is larger is no answer in one piece, but a stream."""


class Batch(Protocol):
    """Rows as the engine has them."""

    def to_pyarrow(self) -> pa.RecordBatch: ...


class Stream(Protocol):
    """A running query of the engine."""

    def __iter__(self) -> Iterator[Batch]: ...

    def __aiter__(self) -> AsyncIterator[Batch]: ...


class Flow:
    """The rest of a result. Each batch may be asked for in another thread, which blocks."""

    def __init__(self, stream: Stream, reading: Reading | None = None) -> None:
        self._batches = aiter(stream)
        self._reading = reading
        self.names: Sequence[str] | None = None
        """The names of the columns, if they are others than the engine's."""

    def read(self, stop: Stop) -> pa.RecordBatch | None:
        """Return the next batch, None after the last; raise `Stopped` when that was asked for."""
        stop.check()
        loop = _loop()
        task = loop.create_task(self._next())
        with stop.calling(lambda: loop.call_soon_threadsafe(task.cancel)):
            try:
                batch = loop.run_until_complete(task)
            except asyncio.CancelledError:
                raise Stopped("stopped") from None
            except BaseException as error:
                raise self._meaning(error) from error
        rows = None if batch is None else batch.to_pyarrow()
        return rows if rows is None or self.names is None else rows.rename_columns(list(self.names))

    def _meaning(self, error: BaseException) -> BaseException:
        return translated(error) if self._reading is None else self._reading.meaning(error)

    async def _next(self) -> Batch | None:
        return await anext(self._batches, None)


class Given:
    """A result that is there by now."""

    def __init__(self, table: pa.Table) -> None:
        self._batches = iter(table.to_batches())

    def read(self, stop: Stop) -> pa.RecordBatch | None:
        return next(self._batches, None)


def collected(stream: Stream, stop: Stop, *, is_long: bool) -> list[pa.RecordBatch]:
    """Return all batches; raise `QueryFailure` above `RESULT_BYTES_MAX`."""
    batches: list[pa.RecordBatch] = []
    size_bytes = 0
    for batch in _flowing(Flow(stream), stop) if is_long else _read(stream, stop):
        batches.append(batch)
        size_bytes += batch.nbytes
        if size_bytes > RESULT_BYTES_MAX:
            raise QueryFailure(
                f"the result is larger than {RESULT_BYTES_MAX >> 20} MiB; narrow it with WHERE or LIMIT, or "
                "ask for a stream by the header Accept: application/vnd.apache.arrow.stream, "
                "application/x-ndjson or text/csv; an INSERT … SELECT inserts so much in parts"
            )
    return batches


def _flowing(flow: Flow, stop: Stop) -> Iterator[pa.RecordBatch]:
    while (batch := flow.read(stop)) is not None:
        yield batch


def _read(stream: Stream, stop: Stop) -> Iterator[pa.RecordBatch]:
    for batch in stream:
        stop.check()
        yield batch.to_pyarrow()


class _Loop:
    """The event loop of a thread that reads flows; it is closed when the thread ends."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()

    def __del__(self) -> None:
        self.loop.close()


_own = threading.local()


def _loop() -> asyncio.AbstractEventLoop:
    found: _Loop | None = getattr(_own, "found", None)
    if found is None:
        found = _own.found = _Loop()
    return found.loop
