"""Inquiries: what a write asks about other rows than those that it names, while it is evaluated.

Law: the answers are those of the very state that the write is evaluated on, what it has staged included.
"""

from collections.abc import Sequence

import msgspec
import pyarrow as pa

from upwell.engine.stop import Stop
from upwell.engine.view import View
from upwell.engine.write import Write
from upwell.session.call import Call
from upwell.session.dml import Foreign
from upwell.session.read import Reader
from upwell.sql.statements import DirectRead
from upwell.types import Key, Value


class ThreadInquiry(msgspec.Struct, frozen=True):
    """Asks from a worker thread, where queries may run; `view` is what the write is evaluated on."""

    reader: Reader
    call: Call
    view: View
    write: Write
    stop: Stop

    def rows(
        self, text: str, values: Sequence[Value], given: pa.Table | None, *, is_stored: bool = True
    ) -> pa.Table:
        return self.reader.rows_of(
            self.call, self.view, self.write, self.stop, text, values, given, is_stored=is_stored
        )

    def find_keys(self, read: DirectRead, values: Sequence[Value]) -> list[Key] | None:
        return self.reader.find_keys(self.call, self.view, self.write, read, values, inline=False)


class InlineInquiry(msgspec.Struct, frozen=True):
    """Asks from the event loop: nothing that takes long. Without `view` no View has the state."""

    reader: Reader
    call: Call
    view: View | None
    write: Write

    def rows(
        self, text: str, values: Sequence[Value], given: pa.Table | None, *, is_stored: bool = True
    ) -> pa.Table:
        raise Foreign

    def find_keys(self, read: DirectRead, values: Sequence[Value]) -> list[Key] | None:
        if self.view is None:
            return None
        return self.reader.find_keys(self.call, self.view, self.write, read, values, inline=True)
