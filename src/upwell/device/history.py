"""The server's history, as the file knows it: its name, and the numbers of its tables.

Law: versions and cursors mean something in one history only. When it is another one, or a table was made
anew, what was acknowledged goes up again: nothing is deleted here because it was lost there.
"""

from upwell.device.capture import Capture, queue_unknown
from upwell.device.codec import decode_object, encode_json
from upwell.device.file import Reading, SyncFile


class History:
    """Notices that the server is no longer what it was."""

    def __init__(self, file: SyncFile, capture: Capture) -> None:
        self._file = file
        self._capture = capture

    def is_other(self, stream: str, asked: Reading) -> bool:
        """Whether an answer is of another history; if so, all that came from the old one is forgotten."""
        known = asked.stream
        if not stream or not known or stream == known:
            return False
        with self._file.transaction():
            if self._file.reading() != asked:
                return True
            self._file.forget_server()
            self._file.put("stream", stream)
        return True

    def note(self, stream: str, table_numbers: dict[str, int] | None) -> None:
        """Remember what an answer says, in the transaction that stores it and before its rows."""
        if stream:
            self._file.put("stream", stream)
        known = decode_object(self._file.find("table_numbers") or "{}")
        if not table_numbers or known == table_numbers:
            return
        for shape in self._capture.tables:
            if known.get(shape.wire) not in (None, table_numbers.get(shape.wire)):
                self._file.forget_table(shape.wire)
                queue_unknown(self._file.connection, shape)
        self._file.put("table_numbers", encode_json({**known, **table_numbers}).decode())

    def restart(self, asked: Reading) -> None:
        """The server can't go on from the cursor that it was asked with: begin with a hydration."""
        with self._file.transaction():
            if self._file.reading() == asked:
                self._file.restart_hydration()
