"""Intervals in comparisons, `now() - at > INTERVAL '7 days'`, as the durations that moments are apart.

The query engine compares intervals by months, then by days, then by what is left: 30 days of time are less
than INTERVAL '1 day' to it.

Law: an interval that is compared as a whole is as long as it says; a month has 30 days there, a year 360, as
PostgreSQL compares them.
"""

import re
from collections.abc import Iterator

from upwell.sql.lex import string_value
from upwell.sql.query import Edit, Query

_MICROS = {
    **dict.fromkeys(("us", "microsecond", "microseconds"), 1),
    **dict.fromkeys(("ms", "millisecond", "milliseconds"), 1_000),
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), 1_000_000),
    **dict.fromkeys(("m", "min", "mins", "minute", "minutes"), 60_000_000),
    **dict.fromkeys(("h", "hr", "hrs", "hour", "hours"), 3_600_000_000),
    **dict.fromkeys(("d", "day", "days"), 86_400_000_000),
    **dict.fromkeys(("w", "week", "weeks"), 7 * 86_400_000_000),
    **dict.fromkeys(("mon", "mons", "month", "months"), 30 * 86_400_000_000),
    **dict.fromkeys(("y", "yr", "yrs", "year", "years"), 360 * 86_400_000_000),
}
_TYPE = "Duration(Microsecond)"
_PART = re.compile(r"\s*([+-]?\d+)\s*([a-z]+)")
_COMPARISONS = frozenset({"=", "<>", "!=", "<", "<=", ">", ">="})
_BEFORE = frozenset({"WHERE", "AND", "OR", "NOT", "ON", "HAVING", "WHEN", "SELECT", "(", ","})
_CALCULATIONS = frozenset({"+", "-", "*", "/", "::"})


def with_compared_intervals(query: Query) -> Query:
    """Return the query with the intervals that it compares as durations."""
    return query.edited(_edits(query))


def _edits(query: Query) -> Iterator[Edit]:
    for at, token in enumerate(query.tokens):
        if token.word != "INTERVAL" or query.at(at + 1).kind != "string":
            continue
        has_unit = query.at(at + 2).text.lower() in _MICROS
        unit = query.at(at + 2).text.lower() if has_unit else ""
        micros = _micros(f"{string_value(query.at(at + 1))} {unit}")
        if micros is not None and _is_compared(query, at, query.word(at + 2 + has_unit)):
            yield token.start, query.at(at + 1 + has_unit).end, f"arrow_cast({micros}, '{_TYPE}')"


def _is_compared(query: Query, at: int, behind: str) -> bool:
    before = query.word(at - 1)
    if behind in _CALCULATIONS:
        return False
    if before in _COMPARISONS or before == "BETWEEN":
        return True
    lower = at - (3 if query.word(at - 3) == "INTERVAL" else 4)
    is_upper = before == "AND" and query.words(lower - 1, lower + 1) == ("BETWEEN", "INTERVAL")
    return is_upper or (before in _BEFORE and behind in _COMPARISONS)


def _micros(text: str) -> int | None:
    """Return how long an interval is, None if it can't be told."""
    micros, done, lower = 0, 0, text.lower()
    while done < len(lower.rstrip()):
        part = _PART.match(lower, done)
        if part is None or part[2] not in _MICROS:
            return None
        micros += int(part[1]) * _MICROS[part[2]]
        done = part.end()
    return micros if done else None
