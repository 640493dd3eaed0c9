"""The table function `all_owners('ns.table')`: a USER table's rows of all users, for analysts.

Law: it becomes a name of the system namespace that only a query which was written so can read: whoever
writes the name itself finds no table.
"""

from collections.abc import Sequence

from upwell.engine.catalog import SYSTEM_NAMESPACE
from upwell.errors import InvalidSql
from upwell.sql.lex import Token, string_value, tokenize

FUNCTION = "ALL_OWNERS"
PREFIX = "all_owners:"


def name_all_owners(text: str, namespace: str) -> tuple[str, frozenset[str]]:
    """Return a query's text with the function's calls as names, and these names; they begin with `PREFIX`."""
    if FUNCTION.lower() not in text.lower():
        return text, frozenset()
    tokens = tokenize(text)
    parts: list[str] = []
    names: set[str] = set()
    done = 0
    for at, token in enumerate(tokens):
        if token.word != FUNCTION or token.kind != "word" or tokens[at + 1 : at + 2] == []:
            continue
        if tokens[at + 1].word == "(":
            name = PREFIX + _table(tokens[at + 2 : at + 4], namespace)
            names.add(name)
            parts += [text[done : token.start], f'{SYSTEM_NAMESPACE}."{name}"']
            done = tokens[at + 3].end
    return "".join([*parts, text[done:]]), frozenset(names)


def _table(tokens: Sequence[Token], namespace: str) -> str:
    """Return the full name of the table that the parentheses hold."""
    if len(tokens) == 2 and tokens[0].kind in ("string", "escaped", "dollar") and tokens[1].word == ")":
        parts = string_value(tokens[0]).lower().split(".")
        if len(parts) <= 2 and all(part.isidentifier() for part in parts):
            return ".".join(parts if len(parts) == 2 else [namespace, *parts])
    raise InvalidSql("all_owners takes the name of a USER table in quotes: all_owners('namespace.table')")
