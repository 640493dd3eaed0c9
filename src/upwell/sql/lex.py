"""The lexer: SQL text as tokens that know where they stand in it.

Law: a token's `start` and `end` cut exactly its text out of the statement, and what is inside a string,
a quoted name or a comment is never a token of its own. The rules are PostgreSQL's (nested comments,
`E'…'`, `$tag$…$tag$`), which are the query engine's too.
"""

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from upwell.errors import InvalidSql

_TOKEN = re.compile(
    r"""
      (?P<space>\s+|--[^\n]*)
    | (?P<comment>/\*)
    | (?P<escaped>[eE]'[^'\\]*(?:(?:\\.|'')[^'\\]*)*')
    | (?P<bytes>[xX]'[0-9a-fA-F]*')
    | (?P<foreign>(?:[bBnNxX]|[uU]&)'[^']*(?:''[^']*)*')
    | (?P<string>'[^']*(?:''[^']*)*')
    | (?P<unclosed>(?:[bBeEnNxX]|[uU]&)?')
    | (?P<quoted>"[^"]*(?:""[^"]*)*"|`[^`]*`)
    | (?P<parameter>\$[0-9]+)
    | (?P<dollar>\$(?:[^\W\d]\w*)?\$)
    | (?P<number>(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)
    | (?P<word>[^\W\d][\w$]*)
    | (?P<op>->>|->|<=|>=|<>|!=|\|\||::|.)
    """,
    re.VERBOSE | re.DOTALL,
)
_COMMENT_EDGE = re.compile(r"/\*|\*/")
_ESCAPE = re.compile(
    r"\\(?:u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|x([0-9a-fA-F]{1,2})|([0-7]{1,3})|(.))|''", re.DOTALL
)
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}

T = TypeVar("T")


class Token(NamedTuple):
    """`word` is the upper-case text of a bare word or an operator, and empty for all else."""

    kind: str
    text: str
    word: str
    start: int
    end: int

    @property
    def is_name(self) -> bool:
        """Whether it may be a name; every bare word may."""
        return self.kind in ("word", "quoted")

    @property
    def name(self) -> str:
        """The name that it is, folded to lower case unless it is quoted; empty if it is none."""
        if self.kind == "quoted":
            return self.text[1:-1].replace('""', '"')
        return self.text.lower() if self.kind == "word" else ""


END = Token("end", "the end of the statement", "", -1, -1)


def place(sql: str, position: int) -> str:
    """Return where a position of a text is, in the words of the query engine's parser."""
    line_start = sql.rfind("\n", 0, position) + 1
    return f"Line: {sql.count(chr(10), 0, position) + 1}, Column: {position - line_start + 1}"


def tokenize(sql: str) -> list[Token]:
    """Return the tokens of `sql` without spaces and comments; raise `InvalidSql` if one has no end."""
    tokens: list[Token] = []
    position, length = 0, len(sql)
    while position < length:
        found = _TOKEN.match(sql, position)
        assert found is not None, "the last alternative matches everything"
        kind, text, end = found.lastgroup or "op", found.group(), found.end()
        if kind == "comment":
            end = _comment_end(sql, position)
        elif kind != "space":
            if kind == "dollar":
                end = _dollar_end(sql, text, position)
                text = sql[position:end]
            elif kind == "unclosed" or text in ('"', "`"):
                what = "string" if kind == "unclosed" else "name"
                raise InvalidSql(f"unterminated {what} at {place(sql, position)}")
            word = text.upper() if kind == "word" else text if kind == "op" else ""
            tokens.append(Token(kind, text, word, position, end))
        position = end
    return tokens


def _comment_end(sql: str, start: int) -> int:
    depth = 0
    for edge in _COMMENT_EDGE.finditer(sql, start):
        depth += 1 if edge.group() == "/*" else -1
        if depth == 0:
            return edge.end()
    raise InvalidSql(f"unterminated comment at {place(sql, start)}")


def _dollar_end(sql: str, tag: str, start: int) -> int:
    end = sql.find(tag, start + len(tag))
    if end < 0:
        raise InvalidSql(f"unterminated string at {place(sql, start)}")
    return end + len(tag)


def split(sql: str) -> list[str]:
    """Return the statements of `sql`, cut at `;` outside parentheses, without the comments around them."""
    statements: list[str] = []
    depth, first, last = 0, -1, -1
    for token in tokenize(sql):
        if token.word == ";" and depth <= 0:
            if first >= 0:
                statements.append(sql[first:last])
            first, depth = -1, 0
            continue
        depth += (token.word == "(") - (token.word == ")")
        first, last = token.start if first < 0 else first, token.end
    if first >= 0:
        statements.append(sql[first:last])
    return statements


def string_value(token: Token) -> str:
    """Return the text that a string token stands for."""
    match token.kind:
        case "escaped":
            return _ESCAPE.sub(_unescaped, token.text[2:-1])
        case "dollar":
            tag = token.text.index("$", 1) + 1
            return token.text[tag:-tag]
        case _:
            return token.text[1:-1].replace("''", "'")


def _unescaped(found: re.Match[str]) -> str:
    short, long, hexadecimal, octal, plain = found.groups()
    if plain is not None:
        return _ESCAPED.get(plain, plain)
    if octal is not None:
        return chr(int(octal, 8))
    code = short or long or hexadecimal
    if code and int(code, 16) > sys.maxunicode:
        raise InvalidSql(f"there is no character {found.group()}")
    return chr(int(code, 16)) if code else "'"


@dataclass(frozen=True, slots=True)
class Fragment:
    """A piece of a statement: its tokens and the text from the first to the last of them."""

    tokens: tuple[Token, ...]
    text: str


class Tokens:
    """A position in the tokens of one statement, and the steps of a recursive descent over them."""

    def __init__(self, sql: str, tokens: Sequence[Token] | None = None) -> None:
        self.sql = sql
        self._all = tokenize(sql) if tokens is None else tokens
        self.index = 0

    def peek(self, ahead: int = 0) -> Token:
        at = self.index + ahead
        return self._all[at] if at < len(self._all) else END

    def take(self) -> Token:
        token = self.peek()
        self.index += 1
        return token

    @property
    def at_end(self) -> bool:
        return self.index >= len(self._all)

    def sees(self, *words: str) -> bool:
        """Tell whether `words` come next, one after the other."""
        at = self.index
        for word in words:
            if at >= len(self._all) or self._all[at].word != word:
                return False
            at += 1
        return True

    def accept(self, *words: str) -> bool:
        """Step over `words` if they come next."""
        if self.sees(*words):
            self.index += len(words)
            return True
        return False

    def expect(self, *words: str) -> None:
        for word in words:
            if not self.accept(word):
                raise self.unexpected(word)

    def expect_end(self) -> None:
        self.accept(";")
        if not self.at_end:
            raise self.unexpected("the end of the statement")

    def unexpected(self, wanted: str) -> InvalidSql:
        token = self.peek()
        where = "" if token is END else f" at {place(self.sql, token.start)}"
        return InvalidSql(f"expected {wanted}, found {token.text[:60]}{where}")

    def name(self, what: str = "a name") -> str:
        """Take an identifier, folded to lower case."""
        token = self.peek()
        if token.kind == "word":
            self.index += 1
            return token.text.lower()
        if token.kind == "quoted":
            self.index += 1
            return token.text[1:-1].replace('""', '"').lower()
        raise self.unexpected(what)

    def qualified(self, what: str = "a table name") -> tuple[str | None, str]:
        """Take `[namespace.]name`."""
        first = self.name(what)
        return (first, self.name(what)) if self.accept(".") else (None, first)

    def string(self, what: str) -> str:
        """Take a string literal."""
        if self.peek().kind not in ("string", "escaped", "dollar"):
            raise self.unexpected(what)
        return string_value(self.take())

    def listed(self, item: Callable[[], T]) -> list[T]:
        """Take `(item, …)`; a comma before the closing parenthesis is forgiven."""
        self.expect("(")
        found = [item()]
        while self.accept(",") and not self.sees(")"):
            found.append(item())
        self.expect(")")
        return found

    def fragment(self, stops: frozenset[str]) -> Fragment:
        """Take tokens up to one of `stops` (or an unmatched parenthesis) outside parentheses."""
        start, depth = self.index, 0
        while not self.at_end:
            word = self.peek().word
            if depth == 0 and (word == ")" or word in stops) and not self._joins_distinct(word):
                break
            depth += (word in ("(", "[")) - (word in (")", "]"))
            self.index += 1
        if depth != 0:
            raise self.unexpected(")")
        return self.slice(start)

    def slice(self, start: int) -> Fragment:
        """Return what was taken since the token index `start`; raise if that is nothing."""
        tokens = tuple(self._all[start : self.index])
        if not tokens:
            raise self.unexpected("an expression")
        return Fragment(tokens, self.sql[tokens[0].start : tokens[-1].end])

    def _joins_distinct(self, word: str) -> bool:
        # The FROM of `a IS DISTINCT FROM b` opens no clause.
        return word == "FROM" and self.peek(-1).word == "DISTINCT"
