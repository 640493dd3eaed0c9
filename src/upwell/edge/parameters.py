"""Query parameters of the device endpoints.

Law: what is given must make sense; only what is not given has a default.
"""

from urllib.parse import parse_qs

from upwell.edge.http import Scope
from upwell.errors import InvalidInput

LIMIT_DEFAULT = 100
LIMIT_MAX = 1_000
DIGITS_MAX = 19
_SCHEMA_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789_")

Parameters = dict[str, list[str]]


def parameters(scope: Scope) -> Parameters:
    """Return the query's parameters, each with all its values."""
    return parse_qs(scope["query_string"].decode("latin-1"))


def number(asked: Parameters, name: str, *, default: int) -> int:
    """Return a whole number ≥ 0 of 63 bits."""
    found = find_number(asked, name)
    return default if found is None else found


def find_number(asked: Parameters, name: str) -> int | None:
    """Return a whole number ≥ 0 of 63 bits, None if it isn't given."""
    text = asked.get(name, [""])[0]
    if not text:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > DIGITS_MAX or int(text) >= 1 << 63:
        raise InvalidInput(f"query parameter {name} is a number ≥ 0, not '{text[:40]}'")
    return int(text)


def limit(asked: Parameters, default: int = LIMIT_DEFAULT, most: int = LIMIT_MAX) -> int:
    """Return how many things to answer with at most."""
    found = number(asked, "limit", default=default)
    if not 1 <= found <= most:
        raise InvalidInput(f"query parameter limit is 1..{most}, not {found}")
    return found


def schema(asked: Parameters) -> str | None:
    """Return the only schema that is asked for."""
    found = asked.get("schema", [""])[0]
    if found and not _SCHEMA_CHARACTERS.issuperset(found):
        raise InvalidInput("query parameter schema has only a–z, 0–9 and _")
    return found or None
