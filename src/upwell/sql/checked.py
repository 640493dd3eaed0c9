"""Checked integers: arithmetic that fails where its result doesn't fit into its type.

The query engine's sums, differences and products of integers wrap around without a word. So those that may
not fit are written in other words: of INT and SMALLINT with 64 bits, cast back, which fails; of BIGINT as
calls of functions that look. What surely fits (`n + 1` of an INT is a BIGINT) stays as it is.

Law: what is rewritten is whole, and has the type that it had: operands that are integer columns, literals, or
made of them; by names of which `scope` tells what they are. All other text stays as it is written.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

from upwell.engine.checked import ABS, ADD, MULTIPLY, NEGATE, SUBTRACT, TOTAL
from upwell.sql.lex import END, Token
from upwell.sql.query import Query
from upwell.sql.scope import Scopes, Tables

TEXTS_KEPT_MAX = 1_024
TEXT_KEPT_CHARS_MAX = 16_384
_Known = tuple[tuple[tuple[str, str], tuple[tuple[str, int], ...]], ...]
"""Tables with their columns, as they can be remembered by."""

_PRODUCT = frozenset({"*", "/", "%"})
_SUM = frozenset({"+", "-"})
# What would take the operand before it, or after it, away from an operator of ours.
_TIGHTER = frozenset({"[", ".", "(", "^", "->", "->>", "?", "AT", "COLLATE", "OVER", "FILTER", "::"})
_BEFORE = _PRODUCT | _SUM | {"^", ".", "::", "||", "->", "->>", "AS", "~", "&", "|", "#", "@"}
_CHECKED = {"+": ADD, "-": SUBTRACT, "*": MULTIPLY}
_CHOICES = frozenset({"COALESCE", "GREATEST", "LEAST", "NULLIF"})
_EXTREMES = frozenset({"MIN", "MAX"})
_LENGTHS = frozenset({"LENGTH", "CHAR_LENGTH", "CHARACTER_LENGTH", "OCTET_LENGTH", "STRPOS"})
_TYPES = {
    **dict.fromkeys(("SMALLINT", "INT2"), 16),
    **dict.fromkeys(("INT", "INTEGER", "INT4"), 32),
    **dict.fromkeys(("BIGINT", "INT8"), 64),
}
_NAMES = {16: "SMALLINT", 32: "INT", 64: "BIGINT"}
_ROWS_MOST = 1 << 40
_MOST = 1 << 63
# Of so many bits no sum of rows exceeds 64.
_SUMMED_MOST = 1 << 32
# Behind one of these a name is no alias, and a parenthesis no call's.
_BEFORE_NAMES = (
    frozenset({"SELECT", "DISTINCT", "ALL", "WHERE", "AND", "OR", "NOT", "BY", "ON", "HAVING", "FROM"})
    | frozenset({"WHEN", "THEN", "ELSE", "CASE", "IN", "LIKE", "ILIKE", "BETWEEN", "IS", "USING"})
    | frozenset({"LIMIT", "OFFSET", "VALUES", "FILTER", "OVER", "JOIN", "UNION", "EXCEPT", "INTERSECT"})
)
_ARITHMETIC = _SUM | {"*", "SUM", "ABS"}


def with_checked_integers(text: str, tables: Tables, namespace: str, *, is_stored: bool = False) -> str:
    """Return a query whose arithmetic of integer columns of these tables fails on overflow.

    `is_stored`: what doesn't fit into the type of its operands becomes a BIGINT, as the column may be one.
    """
    known = tuple((place, tuple(columns.items())) for place, columns in tables.items())
    if len(text) > TEXT_KEPT_CHARS_MAX:
        return _rewritten.__wrapped__(text, known, namespace, is_stored)
    return _rewritten(text, known, namespace, is_stored)


@lru_cache(TEXTS_KEPT_MAX)
def _rewritten(text: str, known: _Known, namespace: str, is_stored: bool) -> str:
    query = Query(text)
    if not any(token.word in _ARITHMETIC for token in query.tokens):
        return text
    tables = {place: dict(columns) for place, columns in known}
    return _Reader(query, tables, namespace, is_stored).rewritten(0, len(query.tokens))


def _ends_operand(token: Token) -> bool:
    return token.word in ("AS", ")", "]", "END") or (
        token.kind not in ("op", "end") and token.word not in _BEFORE_NAMES
    )


class _Found(NamedTuple):
    """An operand: its text, the index of the token behind it, its bits and the most that it can be."""

    text: str
    end: int
    bits: int
    most: int
    is_changed: bool = False


class _Reader:
    """Reads operands by recursive descent; None: there is something else than integers."""

    def __init__(self, query: Query, tables: Tables, namespace: str, is_stored: bool) -> None:
        self._query = query
        self._text, self._tokens, self._word, self._at = query.text, query.tokens, query.word, query.at
        self._is_stored = is_stored
        self._scopes = Scopes(query, tables, namespace, self._item)
        self._scopes.read()

    def _item(self, begin: int, end: int) -> int:
        """Return the bits of the item of a SELECT list, 0 if it is no integer."""
        found = self.sum(begin)
        return found.bits if found is not None and found.end == end else 0

    def rewritten(self, begin: int, end: int) -> str:
        """Return the text of some tokens with what has to be checked in other words."""
        if begin >= end:
            return ""
        parts: list[str] = []
        done, at = (self._tokens[begin].start if begin else 0), begin
        while at < end:
            found = self.sum(at) if at == begin else self._operand(at)
            if found is None or not found.is_changed or found.end > end:
                at += 1
                continue
            parts += (self._text[done : self._tokens[at].start], found.text)
            done, at = self._tokens[found.end - 1].end, found.end
        last = len(self._text) if end == len(self._tokens) else self._tokens[end - 1].end
        return "".join(parts) + self._text[done:last]

    def _operand(self, at: int) -> _Found | None:
        """Read the operand that begins at a token, if one may: as far as what is before it leaves it."""
        before, token = self._tokens[at - 1], self._tokens[at]
        if token.word == "-" and _ends_operand(before):
            return None  # a difference from something else
        if before.word in _SUM and _ends_operand(self._at(at - 2)):
            return self._product(at)
        if before.word in _PRODUCT or before.word == "||":
            return self._signed(at)  # a factor of something else
        is_call = token.word == "(" and before.is_name and before.word not in _BEFORE_NAMES
        return None if is_call or before.word in _BEFORE else self.sum(at)

    def sum(self, at: int) -> _Found | None:
        left = self._product(at)
        while left is not None and self._word(left.end) in _SUM:
            right = self._product(left.end + 1)
            if right is None or self._word(right.end) in _PRODUCT:
                break
            left = self._binary(left, self._word(left.end), right)
        return left

    def _product(self, at: int) -> _Found | None:
        left = self._signed(at)
        while left is not None and self._word(left.end) in _PRODUCT:
            right = self._signed(left.end + 1)
            if right is None:
                break
            left = self._binary(left, self._word(left.end), right)
        return left

    def _signed(self, at: int) -> _Found | None:
        if self._word(at) != "-":
            return self._primary(at)
        number = self._at(at + 1)
        if number.kind == "number" and number.text.isdigit() and int(number.text) == _MOST:
            return _Found(f"(-{number.text})", at + 2, 64, _MOST)
        inner = self._signed(at + 1)
        if inner is None:
            return None
        if number.kind == "number":
            return inner._replace(text=f"(-{inner.text})")
        return self._unary(inner, "(-{})", NEGATE)

    def _primary(self, at: int) -> _Found | None:
        token = self._at(at)
        found: _Found | None = None
        readers: dict[str, Callable[[int], _Found | None]] = {"(": self._group, "CASE": self._case}
        if token.kind == "number" and token.text.isdigit() and int(token.text) < _MOST:
            found = _Found(token.text, at + 1, 64, int(token.text))
        elif token.word in readers:
            found = readers[token.word](at)
        elif self._word(at + 1) == "(" and token.kind == "word":
            found = self._call(at)
        elif token.is_name:
            found = self._column(at)
        while found is not None and self._word(found.end) == "::" and self._word(found.end + 1) in _TYPES:
            name = self._word(found.end + 1)
            found = _cast(found._replace(end=found.end + 2), name, f"CAST({found.text} AS {name})")
        return None if found is None or self._word(found.end) in _TIGHTER else found

    def _group(self, at: int) -> _Found | None:
        bits = self._scopes.subquery_bits(at)
        if bits:
            end = self._behind(at)
            written = f"({self.rewritten(at + 1, end - 1)})"
            plain = self._query.between(at, end)
            is_changed = written != f"({self._query.between(at + 1, end - 1)})"
            return _Found(written if is_changed else plain, end, bits, 1 << (bits - 1), is_changed)
        inner_sum = self.sum(at + 1)
        if inner_sum is None or self._word(inner_sum.end) != ")":
            return None
        return inner_sum._replace(text=f"({inner_sum.text})", end=inner_sum.end + 1)

    def _call(self, at: int) -> _Found | None:
        name = self._word(at)
        if name == "CAST":
            inner = self.sum(at + 2)
            if inner is None or self._word(inner.end) != "AS" or self._word(inner.end + 2) != ")":
                return None
            kind = self._word(inner.end + 1)
            if kind not in _TYPES:
                return None
            return _cast(inner._replace(end=inner.end + 3), kind, f"CAST({inner.text} AS {kind})")
        if name == "COUNT" or name in _LENGTHS:
            return self._counted(at)
        if name == "SUM":
            return self._total(at)
        if name == "ABS":
            inner = self._group(at + 1)
            return None if inner is None else self._unary(inner, "ABS({})", ABS)
        if name == "ROUND":
            inner = self._group(at + 1)
            return None if inner is None else inner._replace(text=f"ROUND{inner.text}")
        return self._choice(at) if name in _CHOICES or name in _EXTREMES else None

    def _choice(self, at: int) -> _Found | None:
        """Read a call that gives one of its integers."""
        parts: list[_Found] = []
        following = at + 1
        while self._word(following) in ("(", ","):
            part = self.sum(following + 1)
            if part is None:
                return None
            parts.append(part)
            following = part.end
        if self._word(following) != ")":
            return None
        text = f"{self._word(at)}({', '.join(part.text for part in parts)})"
        found = _one_of(parts, text, following + 1)
        return self._with_window(found) if self._word(at) in _EXTREMES else found

    def _counted(self, at: int) -> _Found | None:
        end = self._behind(at + 1)
        bits, most = (64, _ROWS_MOST) if self._word(at) == "COUNT" else (32, (1 << 31) - 1)
        text, is_changed = self._inside(at, end, at + 2)
        found = _Found(text, end, bits, most, is_changed)
        return self._with_window(found) if bits == 64 else found

    def _total(self, at: int) -> _Found | None:
        is_distinct = self._word(at + 2) == "DISTINCT"
        inner = self.sum(at + 2 + is_distinct)
        if inner is None or self._word(inner.end) not in (")", "ORDER"):
            return None
        # The order of what is added makes no difference.
        whole = self._with_window(inner._replace(text="", end=self._behind(at + 1)))
        distinct = "DISTINCT " if is_distinct else ""
        call = f"SUM({distinct}{inner.text}){whole.text}"
        if inner.most <= _SUMMED_MOST:
            return _Found(call, whole.end, 64, min(inner.most * _ROWS_MOST, _MOST), whole.is_changed)
        if is_distinct:  # of doubles there are fewer
            exact = f"SUM(DISTINCT CAST({inner.text} AS DECIMAL(38, 0))){whole.text}"
            return _Found(f"CAST({exact} AS BIGINT)", whole.end, 64, _MOST, is_changed=True)
        # The engine takes sums of one argument in two types for the same.
        nearly = f"SUM(({inner.text}) * 1e0){whole.text}"
        return _Found(f"{TOTAL}({call}, {nearly})", whole.end, 64, _MOST, is_changed=True)

    def _with_window(self, found: _Found) -> _Found:
        """Return an aggregate with its FILTER and OVER."""
        end = found.end
        for word in ("FILTER", "OVER"):
            if self._word(end) == word and self._word(end + 1) == "(":
                begin, end = end, self._behind(end + 1)
                suffix, is_changed = self._inside(begin, end, begin + 2)
            elif self._word(end) == word == "OVER":
                begin, end = end, end + 2
                suffix, is_changed = f"OVER {self._at(begin + 1).text}", False
            else:
                continue
            is_changed = is_changed or found.is_changed
            found = found._replace(text=f"{found.text} {suffix}", end=end, is_changed=is_changed)
        return found

    def _inside(self, begin: int, end: int, inner: int) -> tuple[str, bool]:
        """Return what is written from `begin` until behind a parenthesis, that from `inner` on checked."""
        written = self._query.between(begin, end)
        if inner >= end - 1:
            return written, False
        offset, behind = self._at(begin).start, self._at(end - 2).end
        checked = self.rewritten(inner, end - 1)
        plain = self._text[self._at(inner).start : behind]
        head, tail = self._text[offset : self._at(inner).start], self._text[behind : self._at(end - 1).end]
        return (f"{head}{checked}{tail}", True) if checked != plain else (written, False)

    def _case(self, at: int) -> _Found | None:
        """Read a CASE whose values are all integers, or NULL."""
        parts, written, following = list[_Found](), ["CASE"], at + 1
        while self._word(following) != "END":
            begin = following
            while self._word(following) not in ("THEN", "ELSE", "END") and self._at(following) is not END:
                following = (
                    self._behind(following) if self._word(following) in ("(", "CASE") else following + 1
                )
            if self._word(following) not in ("THEN", "ELSE"):
                return None
            written += (*filter(None, [self.rewritten(begin, following)]), self._word(following))
            value = self._value(following + 1)
            if value is None:
                return None
            parts += [value] if value.bits else []
            written.append(value.text)
            following = value.end
        return _one_of(parts, " ".join((*written, "END")), following + 1) if parts else None

    def _value(self, at: int) -> _Found | None:
        if self._word(at) == "NULL" and self._word(at + 1) in ("WHEN", "ELSE", "END"):
            return _Found("NULL", at + 1, 0, 0)
        found = self.sum(at)
        return found if found is not None and self._word(found.end) in ("WHEN", "ELSE", "END") else None

    def _column(self, at: int) -> _Found | None:
        begin = at
        while self._word(at + 1) == "." and self._at(at + 2).is_name:
            at += 2
        bits = self._scopes.bits(begin, [token.name for token in self._tokens[begin : at + 1 : 2]])
        if not bits:
            return None
        return _Found(self._query.between(begin, at + 1), at + 1, bits, 1 << (bits - 1))

    def _binary(self, left: _Found, op: str, right: _Found) -> _Found:
        bits, is_changed = max(left.bits, right.bits), left.is_changed or right.is_changed
        most = left.most * right.most if op == "*" else left.most + right.most
        if op in ("/", "%"):  # the engine's own fail where they must
            most = left.most if op == "/" else min(left.most, right.most)
        wide = f"CAST({left.text} AS BIGINT) {op} CAST({right.text} AS BIGINT)"
        if most < 1 << (bits - 1) or op in ("/", "%"):
            plain = f"{left.text} {op} {right.text}"
            return _Found(f"({plain})" if is_changed else plain, right.end, bits, most, is_changed)
        if bits < 64 and self._is_stored:
            return _Found(f"({wide})", right.end, 64, most, is_changed=True)
        if bits < 64:
            return _Found(
                f"CAST({wide} AS {_NAMES[bits]})", right.end, bits, 1 << (bits - 1), is_changed=True
            )
        return _Found(f"{_CHECKED[op]}({left.text}, {right.text})", right.end, 64, _MOST, is_changed=True)

    def _unary(self, inner: _Found, form: str, checked: str) -> _Found:
        if inner.most < 1 << (inner.bits - 1):
            return inner._replace(text=form.format(inner.text))
        if inner.bits == 64:
            return inner._replace(text=f"{checked}({inner.text})", most=_MOST, is_changed=True)
        wide = form.format(f"CAST({inner.text} AS BIGINT)")
        if self._is_stored:
            return inner._replace(text=wide, bits=64, is_changed=True)
        return inner._replace(text=f"CAST({wide} AS {_NAMES[inner.bits]})", is_changed=True)

    def _behind(self, opening: int) -> int:
        """Return the index behind the parenthesis, or the CASE, that begins at `opening`."""
        depth = 0
        for at in range(opening, len(self._tokens)):
            word = self._word(at)
            depth += (word in ("(", "CASE")) - (word in (")", "END"))
            if depth == 0:
                return at + 1
        return len(self._tokens)


def _cast(inner: _Found, kind: str, text: str) -> _Found:
    bits = _TYPES[kind]
    return inner._replace(text=text, bits=bits, most=min(inner.most, 1 << (bits - 1)))


def _one_of(parts: Sequence[_Found], text: str, end: int) -> _Found:
    most = max(part.most for part in parts)
    return _Found(text, end, max(part.bits for part in parts), most, any(part.is_changed for part in parts))
