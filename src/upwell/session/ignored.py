"""Ignored: what the query engine reads and then leaves out, as if it weren't there.

Law: a query that is answered means what it says. A clause that would be passed over (a lock, a sample, a walk
through a tree, how often a row is in both) is refused.
"""

import re
from itertools import pairwise

from upwell.errors import InvalidSql
from upwell.sql.lex import END, Token, place
from upwell.sql.query import Query

_HINT = re.compile(r"\b(?:for|tablesample|sample|connect|ordinality|except|intersect)\b", re.IGNORECASE)
_LOCKS = frozenset({"UPDATE", "SHARE"})
_NOT_SUPPORTED = {
    ("FOR", "JSON"): "FOR JSON",
    ("FOR", "XML"): "FOR XML",
    ("CONNECT", "BY"): "CONNECT BY (WITH RECURSIVE walks a tree)",
    ("EXCEPT", "ALL"): "EXCEPT ALL (EXCEPT gives each row once)",
    ("INTERSECT", "ALL"): "INTERSECT ALL (INTERSECT gives each row once)",
    ("WITH", "ORDINALITY"): "WITH ORDINALITY (row_number() OVER () counts rows)",
}


def refuse_ignored(text: str) -> None:
    """Raise `InvalidSql` if the query engine would run `text` without a clause of it."""
    if _HINT.search(text) is None:
        return
    for token, following in pairwise([*Query(text).tokens, END]):
        if token.word == "FOR" and following.word in _LOCKS:
            raise InvalidSql(
                f"FOR {following.word} at {place(text, token.start)} locks nothing here; leave it out: a "
                "transaction that changes a row which somebody else has changed meanwhile ends with Conflict"
            )
        if _samples(token, following):
            raise InvalidSql(f"{token.word} at {place(text, token.start)} is not supported")
        what = _NOT_SUPPORTED.get((token.word, following.word))
        if what is not None:
            raise InvalidSql(f"{what} at {place(text, token.start)} is not supported")


def _samples(token: Token, following: Token) -> bool:
    return token.word == "TABLESAMPLE" or (token.word == "SAMPLE" and following.kind == "number")
