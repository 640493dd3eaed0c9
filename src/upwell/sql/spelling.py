"""Spellings: what is SQL everywhere and the query engine reads in other words only.

Law: the text means the same. `TIME '…'` has microseconds, as columns have; a character that LIKE names as its
ESCAPE stands where the engine takes a backslash; SELECT DISTINCT is ordered by the number of an expression in
its list; the column of a series in FROM has the name of the series. All other text stays as it is written.
"""

import re
from collections.abc import Iterator, Sequence

from upwell.engine.source import TABLE_FUNCTIONS
from upwell.sql.lex import END, Token, string_value, tokenize
from upwell.sql.truth import closing_of
from upwell.sql.twins import SelectItem, select_items

_ORDERED = re.compile(r"\bDISTINCT\b.*\bORDER\b", re.IGNORECASE | re.DOTALL)
_DIRECTIONS = frozenset({"ASC", "DESC", "NULLS"})
_SERIES = re.compile(r"\b(?:generate_series|range)\s*\(", re.IGNORECASE)
_CLAUSES = frozenset({"SELECT", "FROM", "JOIN", "WHERE", "ON", "GROUP", "HAVING", "ORDER", "LIMIT"})
_BEHIND_SOURCE = _CLAUSES | {"LEFT", "RIGHT", "FULL", "INNER", "CROSS", "NATURAL", "USING", "UNION", "EXCEPT"}
_BEHIND_SOURCE |= {"INTERSECT", "OFFSET", "FETCH", "WINDOW", "QUALIFY"}
_SET_OPERATIONS = frozenset({"UNION", "EXCEPT", "INTERSECT"})


def with_own_spellings(text: str) -> str:
    """Return the query with times, escapes and the order of distinct rows as the engine reads them."""
    text = _with_ordered_distinct(text) if _ORDERED.search(text) else text
    text = _with_named_series(text) if _SERIES.search(text) else text
    lower = text.lower()
    if "escape" not in lower and "time" not in lower:
        return text
    tokens = [*tokenize(text), END, END]
    for at in range(len(tokens) - 3, -1, -1):
        token, following = tokens[at], tokens[at + 1]
        if token.word == "TIME" and following.kind == "string" and tokens[at - 1].word not in (".", "AS"):
            written = f"arrow_cast({following.text}, 'Time64(µs)')"
            text = text[: token.start] + written + text[following.end :]
        elif token.word == "ESCAPE" and following.kind == "string" and at >= 2:
            pattern = _escaped(tokens, at)
            if pattern is not None:
                text = text[: tokens[at - 1].start] + pattern + text[following.end :]
    return text


def _escaped(tokens: Sequence[Token], escape: int) -> str | None:
    """Return the pattern in front of ESCAPE with backslashes for its character; None: the engine decides."""
    pattern, character = tokens[escape - 1], string_value(tokens[escape + 1])
    if pattern.kind != "string" or tokens[escape - 2].word not in ("LIKE", "ILIKE") or len(character) != 1:
        return None
    written: list[str] = []
    characters = iter(string_value(pattern))
    for each in characters:
        if each == character:
            following = next(characters, None)
            if following is None:
                return None
            written.append("\\" + following if following in "%_\\" else following)
        else:
            written.append("\\\\" if each == "\\" else each)
    return "'" + "".join(written).replace("'", "''") + "'"


def _with_ordered_distinct(text: str) -> str:
    """Return the query with expressions of a DISTINCT list by their numbers in its ORDER BY."""
    tokens = tokenize(text)
    edits: dict[tuple[int, int], int] = {}
    for at in range(len(tokens) - 1):
        words = [token.word for token in tokens[at : at + 3]]
        if words[:2] != ["SELECT", "DISTINCT"] or "ON" in words:
            continue
        items = select_items(tokens, at + 1)
        if any(item.is_all for item in items):
            continue
        for order in _order(tokens, at):
            said = [token.word or token.text for token in order]
            number = next((n for n, item in enumerate(items, 1) if _expression(item) == said), None)
            if number is not None and len(said) > 1:
                edits[order[0].start, order[-1].end] = number
    for (start, end), number in sorted(edits.items(), reverse=True):
        text = f"{text[:start]}{number}{text[end:]}"
    return text


def _expression(item: SelectItem) -> list[str]:
    """Return what an item says, without its name."""
    said = [token.word or token.text for token in item.tokens]
    if item.alias is None or len(said) == 1:
        return said
    return said[: -2 if said[-2] == "AS" else -1]


def _with_named_series(text: str) -> str:
    """Return the query with `generate_series(…) AS n` in a FROM as `generate_series(…) AS n(n)`."""
    tokens = [*tokenize(text), END, END]
    closings = closing_of(tokens)
    edits: list[tuple[int, str]] = []
    outer: list[str] = []
    clause = ""
    for at, token in enumerate(tokens):
        if token.word == "(":
            outer.append(clause)
        elif token.word == ")" and outer:
            clause = outer.pop()
        elif token.word in _CLAUSES:
            clause = token.word
        is_source = clause in ("FROM", "JOIN") and tokens[at - 1].word in ("FROM", "JOIN", ",")
        if is_source and token.text.lower() in TABLE_FUNCTIONS and at + 1 in closings:
            last = closings[at + 1]
            alias = last + 1 + (tokens[last + 1].word == "AS")
            is_named = tokens[alias].kind in ("word", "quoted") and tokens[alias].word not in _BEHIND_SOURCE
            if not is_named:
                edits.append((tokens[last].end, f" AS {token.text}({token.text})"))
            elif tokens[alias + 1].word != "(":
                edits.append((tokens[alias].end, f"({tokens[alias].text})"))
    for position, written in sorted(edits, reverse=True):
        text = text[:position] + written + text[position:]
    return text


def _order(tokens: Sequence[Token], select: int) -> Iterator[Sequence[Token]]:
    """Yield the expressions by which the query of a SELECT is ordered, without their directions."""
    depth = 0
    for at in range(select, len(tokens) - 1):
        word = tokens[at].word
        depth += (word == "(") - (word == ")")
        if depth < 0 or (depth == 0 and word in _SET_OPERATIONS):
            return
        if depth == 0 and word == "ORDER" and tokens[at + 1].word == "BY":
            for item in select_items(tokens, at + 2):
                words = [token.word for token in item.tokens]
                end = next((place for place, each in enumerate(words) if each in _DIRECTIONS), len(words))
                yield item.tokens[:end]
            return
