"""Spellings: what is SQL everywhere and the query engine reads in other words only.

Law: the text means the same. `TIME '…'` has microseconds, as columns have; a character that LIKE names as its
ESCAPE stands where the engine takes a backslash. All other text stays as it is written.
"""

from collections.abc import Sequence

from upwell.sql.lex import END, Token, string_value, tokenize


def with_own_spellings(text: str) -> str:
    """Return the query with times and escapes as the engine reads them."""
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
