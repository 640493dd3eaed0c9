"""SUBSCRIBE TO: the statement that tells how its live query is followed over the WebSocket.

Law: what it holds is the text and the options of the subscription that it speaks of, ready to be sent there.
"""

from dataclasses import dataclass

import msgspec

from upwell.errors import InvalidSql
from upwell.protocol.messages import SubscriptionOptions
from upwell.sql.lex import Token, Tokens, string_value


@dataclass(frozen=True, slots=True)
class SubscribeTo:
    """`options` None: no snapshot, changes only."""

    sql: str
    options: SubscriptionOptions | None


def read_subscribe(tokens: Tokens) -> SubscribeTo:
    """Read SUBSCRIBE TO namespace.table [WHERE …] | SELECT …, and [OPTIONS (name = value, …)]."""
    if not tokens.accept("SUBSCRIBE", "TO"):
        raise InvalidSql("expected SUBSCRIBE TO namespace.table, or SUBSCRIBE TO SELECT …")
    is_query = tokens.sees("SELECT")
    start = tokens.index
    if not is_query:
        tokens.qualified()
        if not (tokens.at_end or tokens.sees(";") or tokens.sees("WHERE") or tokens.sees("OPTIONS", "(")):
            raise tokens.unexpected("WHERE or OPTIONS (…)")
    _take_query(tokens)
    text = tokens.slice(start).text
    options = _options(tokens) if tokens.accept("OPTIONS") else None
    return SubscribeTo(text if is_query else f"SELECT * FROM {text}", options)


def _take_query(tokens: Tokens) -> None:
    """Step up to OPTIONS (…), or to the end."""
    depth = 0
    while not tokens.at_end and not (depth == 0 and (tokens.sees("OPTIONS", "(") or tokens.sees(";"))):
        word = tokens.take().word
        depth += (word == "(") - (word == ")")


def _options(tokens: Tokens) -> SubscriptionOptions:
    if tokens.accept("(", ")"):
        return SubscriptionOptions()
    found = dict(tokens.listed(lambda: _option(tokens)))
    unknown = found.keys() - {"batch_size", "last_rows", "from", "from_seq_id", "view"}
    if unknown:
        raise InvalidSql(f"unknown option '{min(unknown)[:60]}'; there are batch_size, last_rows, from, view")
    try:
        return msgspec.convert(found, SubscriptionOptions)
    except msgspec.ValidationError as error:
        raise InvalidSql(f"these OPTIONS can't be: {error}") from error


def _option(tokens: Tokens) -> tuple[str, int | bool]:
    name = tokens.name("an option")
    tokens.expect("=")
    return name, _value(name, tokens.take())


def _value(name: str, token: Token) -> int | bool:
    if token.word in ("TRUE", "FALSE"):
        return token.word == "TRUE"
    text = string_value(token) if token.kind == "string" else token.text if token.kind == "number" else ""
    if not text.isascii() or not text.isdecimal() or len(text) > 19:
        raise InvalidSql(f"option {name[:60]} needs a whole number")
    return int(text)
