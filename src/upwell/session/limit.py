"""Row limits: how many rows a query's JSON answer has at most, for clients that expect to be cut.

Law: off by default, because a result that is cut without a word looks whole. Streams are never cut, nor is
what a write reads.
"""

from dataclasses import dataclass

from upwell.session.outcome import Answer
from upwell.sql.query import Query

_LIMITING = frozenset({"LIMIT", "FETCH"})


@dataclass(frozen=True, slots=True)
class RowLimits:
    """`unsaid` rows for a query without a LIMIT of its own, `said` for one that has some; 0: no limit."""

    unsaid: int = 0
    said: int = 0

    def cut(self, answer: Answer, text: str) -> Answer:
        """Return the answer to a query, cut to what it may have."""
        if not (self.unsaid or self.said):
            return answer
        says = any(token.word in _LIMITING for token in Query(text).tokens)
        rows = self.said if says else self.unsaid
        return Answer(answer.table.slice(0, rows), answer.columns) if rows else answer


NO_LIMITS = RowLimits()
