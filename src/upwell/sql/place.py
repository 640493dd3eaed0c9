"""Places: where in a statement the name stands that its error speaks of."""

import re

from upwell.errors import InvalidSql
from upwell.sql.lex import Token, place, tokenize

CHARS_MAX = 16_000
"""What is behind so many characters isn't looked for: others wait meanwhile."""
_ENDS = ("found: EOF", "found the end of the statement")
_UNKNOWN = re.compile(
    r"No field named (?:[\w\"]+\.)*\"?(?P<field>\w+)\"?"
    r"|[Cc]olumn '(?P<column>[^']+)' does not exist(?: in \w+(?:\.\w+)*)?"
    r"|Invalid function '(?P<function>[^']+)'|Table not found: (?:\w+\.)?(?P<table>\w+)"
)


def pointed(message: str, sql: str) -> str:
    """Return an error's message with the line and column of the name, or the end, that it is about."""
    if message.endswith(_ENDS):
        return f"{message} at {place(sql, len(sql.rstrip()))}"
    found = _UNKNOWN.search(message)
    if found is None:
        return message
    name = next(each for each in found.groups() if each is not None)
    token = _find(name.lower(), sql)
    if token is None:
        return message
    return f"{message[: found.end()]} at {place(sql, token.start)}{message[found.end() :]}"


def _find(name: str, sql: str) -> Token | None:
    try:
        tokens = tokenize(sql[:CHARS_MAX])
    except InvalidSql:
        return None
    if len(sql) > CHARS_MAX:
        tokens.pop()  # perhaps half of one
    for token in tokens:
        if token.kind in ("word", "quoted") and token.text.strip('"').lower() == name:
            return token
    return None
