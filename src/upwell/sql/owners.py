"""The table function `all_owners('ns.table')`: a USER table's rows of all users, for analysts.

Law: it becomes a name of the system namespace that only a query which was written so can read: whoever
writes the name itself finds no table.
"""

from collections.abc import Sequence

from upwell.engine.catalog import SYSTEM_NAMESPACE
from upwell.errors import InvalidSql
from upwell.sql.lex import Token, string_value
from upwell.sql.query import Edit, Query

FUNCTION = "ALL_OWNERS"
PREFIX = "all_owners:"


def name_all_owners(text: str, namespace: str) -> tuple[str, frozenset[str]]:
    """Return a query's text with the function's calls as names, and these names; they begin with `PREFIX`."""
    if FUNCTION.lower() not in text.lower():
        return text, frozenset()
    query = Query(text)
    edits: list[Edit] = []
    names: set[str] = set()
    for at, token in enumerate(query.tokens):
        if token.word == FUNCTION and query.word(at + 1) == "(":
            name = PREFIX + _table(query.tokens[at + 2 : at + 4], namespace)
            names.add(name)
            edits.append((token.start, query.at(at + 3).end, f'{SYSTEM_NAMESPACE}."{name}"'))
    return query.edited(edits).text, frozenset(names)


def _table(tokens: Sequence[Token], namespace: str) -> str:
    """Return the full name of the table that the parentheses hold."""
    if len(tokens) == 2 and tokens[0].kind in ("string", "escaped", "dollar") and tokens[1].word == ")":
        parts = string_value(tokens[0]).lower().split(".")
        if len(parts) <= 2 and all(part.isidentifier() for part in parts):
            return ".".join(parts if len(parts) == 2 else [namespace, *parts])
    raise InvalidSql("all_owners takes the name of a USER table in quotes: all_owners('namespace.table')")
