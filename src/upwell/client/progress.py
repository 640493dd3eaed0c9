"""How far a live query has come: what to drop as seen, and where it is safe to resume.

Law: every change up to `cursor` has been delivered, and none is delivered twice. While a resume catches up,
rows come first (ascending by seq) and missed deletes after them (ascending too, from the same start), so the
cursor moves on only when a change passes the newest of those rows.
"""

from dataclasses import dataclass


@dataclass(slots=True)
class Progress:
    """Three marks in the server's order of changes; `cursor` None means that nothing was seen."""

    cursor: int | None = None
    resuming: bool = False
    _row_mark: int = -1
    _change_mark: int = -1

    @classmethod
    def after(cls, seq: int | None) -> "Progress":
        """Start after `seq`, or with the whole snapshot."""
        if seq is None:
            return cls()
        return cls(cursor=seq, resuming=True, _row_mark=seq, _change_mark=seq)

    def reconnected(self) -> None:
        """Note that the next rows come from a resume, if there is a cursor to resume from."""
        self.resuming = self.cursor is not None

    def take_row(self, seq: int) -> bool:
        """Whether a row of a batch is news; if so it counts as delivered."""
        if seq <= self._row_mark:
            return False
        self._row_mark = seq
        if not self.resuming:
            self.cursor = self._change_mark = seq
        return True

    def take_change(self, seq: int) -> bool:
        """Whether a change is news; if so it counts as delivered."""
        if seq <= self._change_mark:
            return False
        self._change_mark = seq
        if seq > self._row_mark:
            self.cursor = self._row_mark = seq
        return True
