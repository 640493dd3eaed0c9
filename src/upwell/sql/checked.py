"""Checked integers: arithmetic that fails where its result doesn't fit, for what is to be stored.

The query engine's sums, differences and products of integers wrap around without a word. So in a query whose
rows are stored they are done as DECIMAL and become a BIGINT again, which fails if it doesn't fit.

Law: what is rewritten is whole: operands that are integer columns, integer literals, or made of them; by
names that mean nothing else in what the query reads. All other text stays as it is written, and what chooses
rows too: a statement changes the rows that a SELECT with its WHERE shows.
"""

from collections.abc import Collection, Sequence

from upwell.engine.operation import INT64_MAX
from upwell.sql.lex import END, Token, tokenize

_WIDE = "CAST({} AS DECIMAL(38, 0))"
_PRODUCT = frozenset({"*", "/", "%"})
_SUM = frozenset({"+", "-"})
# What would take the operand before it, or after it, away from an operator of ours.
_TIGHTER = frozenset({"::", "[", ".", "(", "^", "->", "->>", "?", "AT", "COLLATE"})
_BEFORE = _PRODUCT | _SUM | {"^", ".", "::", "||", "->", "->>", "AS", "~", "&", "|", "#", "@"}
_INTEGER_FUNCTIONS = frozenset({"ABS", "COALESCE", "GREATEST", "LEAST"})
_INTEGER_TYPES = frozenset({"SMALLINT", "INT", "INTEGER", "BIGINT", "INT2", "INT4", "INT8"})
_DIGITS_MAX = 19
# Behind one of these a name is no alias.
_BEFORE_NAMES = (
    frozenset({"SELECT", "DISTINCT", "ALL", "WHERE", "AND", "OR", "NOT", "BY", "ON", "HAVING", "FROM"})
    | frozenset({"WHEN", "THEN", "ELSE", "CASE", "IN", "LIKE", "ILIKE", "BETWEEN", "IS", "USING"})
    | frozenset({"LIMIT", "OFFSET", "VALUES", "FILTER"})
)


def with_checked_integers(text: str, integers: Collection[str]) -> str:
    """Return a query whose arithmetic of these columns fails on overflow."""
    tokens = tokenize(text)
    if not any(token.word in _SUM or token.word == "*" or token.word == "SUM" for token in tokens):
        return text
    parts: list[str] = []
    done = at = 0
    reader = _Reader(tokens, frozenset(integers) - _aliases(tokens))
    conditions = _conditions(tokens)
    while at < len(tokens):
        is_begin = at not in conditions and (at == 0 or _may_begin(tokens[at - 1], tokens[at]))
        found = reader.sum(at) if is_begin else None
        if found is None or not found.is_checked:
            at += 1
            continue
        parts += (text[done : tokens[at].start], found.text)
        done, at = tokens[found.end - 1].end, found.end
    return "".join(parts) + text[done:]


def _conditions(tokens: Sequence[Token]) -> set[int]:
    """Return which tokens only choose rows: they mean what they mean in a SELECT."""
    found: set[int] = set()
    outer: list[bool] = []
    is_condition = False
    for at, token in enumerate(tokens):
        if token.word == "(":
            outer.append(is_condition)
        elif token.word == ")" and outer:
            is_condition = outer.pop()
        elif token.word in ("WHERE", "ON", "HAVING"):
            is_condition = True
        elif token.word in ("SELECT", "GROUP", "ORDER", "JOIN", "UNION", "EXCEPT", "INTERSECT", "WINDOW"):
            is_condition = bool(outer) and outer[-1]
        if is_condition:
            found.add(at)
    return found


def _may_begin(before: Token, token: Token) -> bool:
    is_call = token.word == "(" and before.kind in ("word", "quoted") and before.word not in _BEFORE_NAMES
    return before.word not in _BEFORE and not is_call


def _aliases(tokens: Sequence[Token]) -> set[str]:
    """Return the names that the query itself gives to something, and maybe others."""
    found: set[str] = set()
    for at in range(1, len(tokens)):
        before, token = tokens[at - 1], tokens[at]
        if token.kind in ("word", "quoted") and _ends_operand(before):
            found.add(_folded(token))
        if token.word == "(" and before.kind in ("word", "quoted") and at > 1:
            closing = next((end for end in range(at, len(tokens)) if tokens[end].word == ")"), at)
            is_list = tokens[at - 2].word in ("AS", ")") or [
                each.word for each in tokens[closing + 1 : closing + 3]
            ] == ["AS", "("]
            found.update(_folded(each) for each in tokens[at:closing] if is_list)
    return found


def _ends_operand(token: Token) -> bool:
    return token.word in ("AS", ")", "]", "END") or (
        token.kind not in ("op", "end") and token.word not in _BEFORE_NAMES
    )


def _fits(digits: str) -> bool:
    return digits.isdigit() and len(digits) <= _DIGITS_MAX and int(digits) <= INT64_MAX


def _folded(token: Token) -> str:
    return token.text[1:-1] if token.kind == "quoted" else token.text.lower()


class _Found:
    """An operand: its text, the index of the token behind it, and whether something in it is checked."""

    __slots__ = ("end", "is_checked", "text")

    def __init__(self, text: str, end: int, is_checked: bool = False) -> None:
        self.text = text
        self.end = end
        self.is_checked = is_checked


class _Reader:
    """Reads operands by recursive descent; None: there is something else than integers."""

    def __init__(self, tokens: Sequence[Token], integers: Collection[str]) -> None:
        self._tokens = tokens
        self._integers = integers

    def sum(self, at: int) -> _Found | None:
        left = self._product(at)
        while left is not None and self._word(left.end) in _SUM:
            right = self._product(left.end + 1)
            if right is None or self._word(right.end) in _PRODUCT:
                break
            left = self._checked(left, self._word(left.end), right)
        return None if left is None or self._word(left.end) in _PRODUCT else left

    def _product(self, at: int) -> _Found | None:
        left = self._signed(at)
        while left is not None and self._word(left.end) in _PRODUCT:
            right = self._signed(left.end + 1)
            if right is None:
                break
            left = self._checked(left, self._word(left.end), right)
        return left

    def _checked(self, left: _Found, operator: str, right: _Found) -> _Found:
        if operator in ("/", "%"):  # the engine's own fail where they must
            is_checked = left.is_checked or right.is_checked
            return _Found(f"({left.text} {operator} {right.text})", right.end, is_checked)
        wide = f"{_WIDE.format(left.text)} {operator} {_WIDE.format(right.text)}"
        return _Found(f"CAST({wide} AS BIGINT)", right.end, is_checked=True)

    def _signed(self, at: int) -> _Found | None:
        if self._word(at) != "-":
            return self._primary(at)
        inner = self._primary(at + 1)
        if inner is None:
            return None
        if self._at(at + 1).kind == "number":
            return _Found(f"(-{inner.text})", inner.end, inner.is_checked)
        return _Found(f"CAST(-{_WIDE.format(inner.text)} AS BIGINT)", inner.end, is_checked=True)

    def _primary(self, at: int) -> _Found | None:
        token = self._at(at)
        found: _Found | None = None
        if token.kind == "number" and _fits(token.text):
            found = _Found(token.text, at + 1)
        elif token.word == "(":
            found = self._group(at)
        elif token.word == "SUM" and self._word(at + 1) == "(":
            found = self._total(at)
        elif token.word == "CAST" or token.word in _INTEGER_FUNCTIONS:
            found = self._call(at)
        elif token.kind in ("word", "quoted"):
            found = self._column(at)
        return None if found is None or self._word(found.end) in _TIGHTER else found

    def _group(self, at: int) -> _Found | None:
        inner = self.sum(at + 1)
        if inner is None or self._word(inner.end) != ")":
            return None
        return _Found(f"({inner.text})", inner.end + 1, inner.is_checked)

    def _call(self, at: int) -> _Found | None:
        """Read a cast to an integer type, or a function that gives one of integers."""
        inner = self.sum(at + 2) if self._word(at + 1) == "(" else None
        written, is_checked = f"{self._word(at)}(", False
        while inner is not None:
            written, is_checked = written + inner.text, is_checked or inner.is_checked
            end = inner.end
            if self._word(at) == "CAST" and self._word(end) == "AS" and self._word(end + 1) in _INTEGER_TYPES:
                written, end = f"{written} AS {self._word(end + 1)}", end + 2
            elif self._word(at) == "CAST":
                return None
            if self._word(end) == ")":
                return _Found(f"{written})", end + 1, is_checked)
            inner = self.sum(end + 1) if self._word(end) == "," else None
            written += ", "
        return None

    def _total(self, at: int) -> _Found | None:
        inner = self.sum(at + 2)
        if inner is None or self._word(inner.end) != ")" or self._word(inner.end + 1) in ("OVER", "FILTER"):
            return None
        return _Found(f"CAST(SUM({_WIDE.format(inner.text)}) AS BIGINT)", inner.end + 1, is_checked=True)

    def _column(self, at: int) -> _Found | None:
        parts = [self._at(at)]
        while self._word(at + 1) == "." and self._at(at + 2).kind in ("word", "quoted"):
            at += 2
            parts.append(self._at(at))
        if _folded(parts[-1]) not in self._integers:
            return None
        return _Found(".".join(part.text for part in parts), at + 1)

    def _word(self, at: int) -> str:
        return self._at(at).word

    def _at(self, at: int) -> Token:
        return self._tokens[at] if at < len(self._tokens) else END
