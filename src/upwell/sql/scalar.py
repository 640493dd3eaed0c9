"""The grammar of expressions: tokens → a typed tree of `engine.expression`, or nothing.

Law: a tree is made only where it certainly means what the query engine would compute from the same
text; everything else gives None and stays text. Unknown columns are errors here already.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite

from upwell.engine.catalog import Table
from upwell.engine.expression import (
    DELETED,
    PURE,
    SEQ,
    And,
    Call,
    Cast,
    ColumnRef,
    Compare,
    Concat,
    InList,
    IsNull,
    Like,
    Literal,
    Negate,
    Node,
    Not,
    Or,
    Parameter,
    is_constant,
)
from upwell.engine.expression import Arithmetic as ArithmeticNode
from upwell.engine.operation import INT64_MAX, INT64_MIN, ArithmeticOp, CompareOp
from upwell.errors import InvalidOperation, InvalidSql, InvalidValue, QueryFailure
from upwell.sql.lex import Fragment, Token, Tokens, string_value
from upwell.types import Column, SqlType, Value, coerce

SYSTEM_COLUMNS = {"_seq": SEQ, "_deleted": DELETED}
CONTEXT_FUNCTIONS = {
    "NOW": ("NOW", SqlType.TIMESTAMP),
    "CURRENT_TIMESTAMP": ("NOW", SqlType.TIMESTAMP),
    "SNOWFLAKE_ID": ("SNOWFLAKE_ID", SqlType.BIGINT),
    "UUID_V7": ("UUID_V7", SqlType.TEXT),
    "ULID": ("ULID", SqlType.TEXT),
    "CURRENT_USER": ("CURRENT_USER", SqlType.TEXT),
    "CURRENT_USER_ID": ("CURRENT_USER", SqlType.TEXT),
    "CURRENT_ROLE": ("CURRENT_ROLE", SqlType.TEXT),
}
BARE_FUNCTIONS = frozenset({"CURRENT_TIMESTAMP", "CURRENT_USER", "CURRENT_ROLE"})
_NESTING_MAX = 32
_PARAMETER_DIGITS_MAX = 6
# Longer ones are doubles to the query engine.
_INTEGER_DIGITS_MAX = 20
_NUMBERS = frozenset({SqlType.SMALLINT, SqlType.INT, SqlType.BIGINT, SqlType.DOUBLE})
_TEXTS = frozenset({SqlType.TEXT, SqlType.JSON})
_PRINTED = _TEXTS | _NUMBERS - {SqlType.DOUBLE}
_ADAPTING = frozenset({SqlType.TIMESTAMP, SqlType.UUID}) | _NUMBERS
_KIND_OF: dict[type, SqlType | None] = {
    bool: SqlType.BOOLEAN,
    int: SqlType.BIGINT,
    float: SqlType.DOUBLE,
    str: SqlType.TEXT,
    bytes: SqlType.BYTES,
    type(None): None,
}
_COMPARE: dict[str, CompareOp] = {
    "=": "=", "!=": "!=", "<>": "!=", "<": "<", "<=": "<=", ">": ">", ">=": ">=",
}  # fmt: skip
_SUM: dict[str, ArithmeticOp] = {"+": "+", "-": "-"}
_PRODUCT: dict[str, ArithmeticOp] = {"*": "*", "/": "/", "%": "%"}
# A word that stands where an operand should is grammar that only the query engine knows.
_RESERVED = frozenset(
    {"SELECT", "FROM", "WHERE", "CASE", "WHEN", "THEN", "ELSE", "END", "EXISTS", "ARRAY", "ALL", "ANY"}
    | {"SOME", "DISTINCT", "AND", "OR", "NOT", "IN", "IS", "LIKE", "ILIKE", "BETWEEN", "AS", "ON", "DEFAULT"}
)


class _Foreign(Exception):
    """The text is beyond this grammar."""


@dataclass(slots=True)
class Scope:
    """What names and parameters mean: the columns of `table` (None: there are none) under `alias`.

    `parameter_types` are the Python types of the values of `$1…`; `used_types` becomes true when a
    tree depends on one of them.
    """

    table: Table | None
    alias: str | None = None
    parameter_types: Sequence[type] = ()
    used_types: bool = field(default=False)

    def column(self, parts: Sequence[str]) -> tuple[int, SqlType]:
        """Return index and type of a column; raise `QueryFailure` if there is none of that name."""
        name = parts[-1]
        if self.table is None:
            raise InvalidOperation(f"'{name}' names a column, and VALUES has none; quote text as '{name}'")
        if not self._qualifies(parts[:-1]):
            raise QueryFailure(f"'{'.'.join(parts)}' is not a column of {self.table.full_name}")
        if name in SYSTEM_COLUMNS:
            return SYSTEM_COLUMNS[name], SqlType.BIGINT if name == "_seq" else SqlType.BOOLEAN
        index = self.table.index_of.get(name)
        if index is None:
            raise QueryFailure(f"column '{name}' does not exist in {self.table.full_name}")
        return index, self.table.columns[index].type

    def _qualifies(self, parts: Sequence[str]) -> bool:
        assert self.table is not None, "asked only with a table"
        if not parts:
            return True
        if self.alias is not None:
            return tuple(parts) == (self.alias,)
        return tuple(parts) in ((self.table.name,), (self.table.namespace, self.table.name))

    def parameter(self, index: int) -> SqlType | None:
        if index >= len(self.parameter_types):
            raise _Foreign
        self.used_types = True
        return _KIND_OF[self.parameter_types[index]]


@dataclass(frozen=True, slots=True)
class Typed:
    """A tree and its type; None is the type of NULL. A column's tree has its `name`, for messages."""

    node: Node
    kind: SqlType | None
    name: str = "value"


def parse_scalar(fragment: Fragment, scope: Scope) -> Node | None:
    """Return the tree of `fragment`, None if only the query engine can evaluate it.

    Raise `QueryFailure` for an unknown column.
    """
    typed = _typed(fragment, scope)
    return None if typed is None else typed.node


def parse_condition(fragment: Fragment, scope: Scope) -> Node | None:
    """Return the tree of a WHERE; None also if it isn't boolean."""
    typed = _typed(fragment, scope)
    return typed.node if typed is not None and typed.kind in (SqlType.BOOLEAN, None) else None


def _typed(fragment: Fragment, scope: Scope) -> Typed | None:
    if len(fragment.tokens) == 1 and fragment.tokens[0].kind == "parameter":
        return Typed(Parameter(parameter_index(fragment.tokens[0])), None)
    grammar = _Grammar(Tokens(fragment.text, fragment.tokens), scope)
    try:
        found = grammar.disjunction()
    except (_Foreign, InvalidSql):
        return None
    return found if grammar.tokens.at_end else None


def parameter_index(token: Token) -> int:
    """Return the index (from 0) of a `$n` token."""
    digits = token.text[1:]
    if digits.startswith("0") or len(digits) > _PARAMETER_DIGITS_MAX:
        raise InvalidSql(f"parameters are counted $1, $2, …, not ${digits[:60]}")
    return int(digits) - 1


def number_value(text: str) -> int | float:
    """Return an unsigned number literal as the query engine reads it; an integer may exceed 64 bits."""
    return int(text) if text.isdigit() and len(text) <= _INTEGER_DIGITS_MAX else float(text)


class _Grammar:
    """Precedence climbing by one method per level; each returns a `Typed` or raises `_Foreign`."""

    def __init__(self, tokens: Tokens, scope: Scope) -> None:
        self.tokens = tokens
        self.scope = scope
        self.depth = 0

    def disjunction(self) -> Typed:
        self._deepen()
        items = [self._conjunction()]
        while self.tokens.accept("OR"):
            items.append(self._conjunction())
        self.depth -= 1
        return items[0] if len(items) == 1 else Typed(Or(_conditions(items)), SqlType.BOOLEAN)

    def _conjunction(self) -> Typed:
        items = [self._negation()]
        while self.tokens.accept("AND"):
            items.append(self._negation())
        return items[0] if len(items) == 1 else Typed(And(_conditions(items)), SqlType.BOOLEAN)

    def _negation(self) -> Typed:
        if not self.tokens.accept("NOT"):
            return self._test()
        self._deepen()
        found = Typed(Not(_condition(self._negation())), SqlType.BOOLEAN)
        self.depth -= 1
        return found

    def _deepen(self) -> None:
        self.depth += 1
        if self.depth > _NESTING_MAX:
            raise _Foreign

    def _test(self) -> Typed:
        """Comparisons and the tests IS, IN, LIKE and BETWEEN; they don't chain here."""
        left = self._sum()
        token = self.tokens.peek()
        if token.word in _COMPARE:
            self.tokens.take()
            return _compare(_COMPARE[token.word], left, self._sum())
        if self.tokens.accept("IS"):
            return self._is(left)
        negated = self.tokens.accept("NOT")
        if self.tokens.accept("IN"):
            found = self._in(left)
        elif self.tokens.sees("LIKE") or self.tokens.sees("ILIKE"):
            found = self._like(left, fold=self.tokens.take().word == "ILIKE")
        elif self.tokens.accept("BETWEEN"):
            found = self._between(left)
        elif negated:
            raise _Foreign
        else:
            return left
        return Typed(Not(found.node), SqlType.BOOLEAN) if negated else found

    def _is(self, left: Typed) -> Typed:
        negated = self.tokens.accept("NOT")
        if self.tokens.accept("NULL"):
            node: Node = IsNull(left.node)
        elif self.tokens.accept("TRUE"):
            node = Call("COALESCE", (_condition(left), Literal(False)))
        elif self.tokens.accept("FALSE"):
            node = Call("COALESCE", (Not(_condition(left)), Literal(False)))
        else:
            raise _Foreign
        return Typed(Not(node) if negated else node, SqlType.BOOLEAN)

    def _in(self, left: Typed) -> Typed:
        pairs = [_meet(left, option) for option in self.tokens.listed(self._sum)]
        if any(item != pairs[0][0] for item, _ in pairs):
            raise _Foreign
        return Typed(InList(pairs[0][0], tuple(option for _, option in pairs)), SqlType.BOOLEAN)

    def _like(self, left: Typed, *, fold: bool) -> Typed:
        pattern = self._sum()
        if left.kind not in _TEXTS or pattern.kind not in (*_TEXTS, None):
            raise _Foreign
        return Typed(Like(left.node, pattern.node, fold), SqlType.BOOLEAN)

    def _between(self, left: Typed) -> Typed:
        low = self._sum()
        self.tokens.expect("AND")
        high = self._sum()
        return Typed(And((_compare(">=", left, low).node, _compare("<=", left, high).node)), SqlType.BOOLEAN)

    def _sum(self) -> Typed:
        left = self._product()
        for _ in range(_NESTING_MAX):
            word = self.tokens.peek().word
            if word in _SUM:
                self.tokens.take()
                left = _calculate(_SUM[word], left, self._product())
            elif self.tokens.accept("||"):
                left = _concat(left, self._product())
            else:
                return left
        raise _Foreign

    def _product(self) -> Typed:
        left = self._signed()
        for _ in range(_NESTING_MAX):
            word = self.tokens.peek().word
            if word not in _PRODUCT:
                return left
            self.tokens.take()
            left = _calculate(_PRODUCT[word], left, self._signed())
        raise _Foreign

    def _signed(self) -> Typed:
        if not self.tokens.accept("-"):
            return self._primary()
        if self.tokens.peek().kind == "number":
            return _literal(-number_value(self.tokens.take().text))
        inner = self._primary()
        return Typed(Negate(inner.node), _numeric(inner))

    def _primary(self) -> Typed:
        token = self.tokens.take()
        match token.kind:
            case "number":
                found = _literal(number_value(token.text))
            case "string" | "escaped" | "dollar":
                found = _literal(string_value(token))
            case "bytes" if len(token.text) % 2:
                found = _literal(bytes.fromhex(token.text[2:-1]))
            case "parameter":
                index = parameter_index(token)
                found = Typed(Parameter(index), self.scope.parameter(index))
            case "word" | "quoted":
                found = self._named(token)
            case "op" if token.word == "(":
                found = self._group()
            case _:
                raise _Foreign
        if self.tokens.peek().word in ("::", "[", "->", "->>", "."):
            raise _Foreign
        return found

    def _group(self) -> Typed:
        found = self.disjunction()
        self.tokens.expect(")")
        return found

    def _named(self, token: Token) -> Typed:
        constant = _CONSTANTS.get(token.word)
        if constant is not None:
            return constant
        if self.tokens.sees("(") or token.word in BARE_FUNCTIONS:
            return self._function(token.word)
        if token.word == "TIMESTAMP" and self.tokens.peek().kind in ("string", "parameter"):
            return self._moment()
        if token.word in _RESERVED or self.tokens.peek().kind in ("string", "escaped", "parameter"):
            raise _Foreign
        self.tokens.index -= 1
        parts = [self.tokens.name()]
        while self.tokens.accept("."):
            parts.append(self.tokens.name())
        index, kind = self.scope.column(parts)
        return Typed(ColumnRef(index), kind, parts[-1])

    def _moment(self) -> Typed:
        text = self._primary()
        if text.kind is not SqlType.TEXT:
            raise _Foreign
        return Typed(_adapted(text.node, SqlType.TIMESTAMP, "timestamp"), SqlType.TIMESTAMP)

    def _function(self, name: str) -> Typed:
        if name in CONTEXT_FUNCTIONS:
            if self.tokens.accept("(") and not self.tokens.accept(")"):
                raise _Foreign
            function, kind = CONTEXT_FUNCTIONS[name]
            return Typed(Call(function), kind)
        if name not in PURE:
            raise _Foreign
        return _pure(name, self.tokens.listed(self.disjunction))


_CONSTANTS = {
    "TRUE": Typed(Literal(True), SqlType.BOOLEAN),
    "FALSE": Typed(Literal(False), SqlType.BOOLEAN),
    "NULL": Typed(Literal(None), None),
}


def _literal(value: Value) -> Typed:
    if isinstance(value, int) and not INT64_MIN <= value <= INT64_MAX:
        raise _Foreign
    if isinstance(value, float) and not isfinite(value):
        raise _Foreign
    return Typed(Literal(value), _KIND_OF[type(value)])


def _condition(typed: Typed) -> Node:
    if typed.kind not in (SqlType.BOOLEAN, None):
        raise _Foreign
    return typed.node


def _conditions(items: list[Typed]) -> tuple[Node, ...]:
    return tuple(_condition(item) for item in items)


def _numeric(typed: Typed) -> SqlType | None:
    if typed.kind is not None and typed.kind not in _NUMBERS:
        raise _Foreign
    return typed.kind


def _calculate(op: ArithmeticOp, left: Typed, right: Typed) -> Typed:
    kinds = (_numeric(left), _numeric(right))
    kind = None if None in kinds else SqlType.DOUBLE if SqlType.DOUBLE in kinds else SqlType.BIGINT
    return Typed(ArithmeticNode(op, left.node, right.node), kind)


def _concat(left: Typed, right: Typed) -> Typed:
    if any(side.kind is not None and side.kind not in _PRINTED for side in (left, right)):
        raise _Foreign
    if not {left.kind, right.kind} & _TEXTS:
        raise _Foreign
    return Typed(Concat(left.node, right.node), SqlType.TEXT)


def _compare(op: CompareOp, left: Typed, right: Typed) -> Typed:
    return Typed(Compare(op, *_meet(left, right)), SqlType.BOOLEAN)


def _meet(left: Typed, right: Typed) -> tuple[Node, Node]:
    """Return both sides so that they compare: text that is constant becomes the other side's type."""
    a, b = left.kind, right.kind
    if a is None or b is None or a == b or {a, b} <= _NUMBERS or {a, b} <= _TEXTS:
        return left.node, right.node
    if {a, b} == {SqlType.TEXT, SqlType.UUID} and not (is_constant(left.node) or is_constant(right.node)):
        return left.node, right.node
    if a in _ADAPTING and _adapts(right, a):
        return left.node, _adapted(right.node, a, left.name)
    if b in _ADAPTING and _adapts(left, b):
        return _adapted(left.node, b, right.name), right.node
    raise _Foreign


def _adapts(constant: Typed, kind: SqlType) -> bool:
    if not isinstance(constant.node, (Literal, Parameter)):
        # CURRENT_USER() compared with a UUID column: text that is known when the statement runs.
        return kind is SqlType.UUID and constant.kind is SqlType.TEXT and isinstance(constant.node, Call)
    return constant.kind is SqlType.TEXT


def _adapted(node: Node, kind: SqlType, name: str) -> Node:
    # Text compared with any integer column is read with the widest type: out of range is just unequal.
    wide = SqlType.BIGINT if kind in (SqlType.SMALLINT, SqlType.INT) else kind
    column = Column(0, name, wide)
    if isinstance(node, Literal):
        try:
            return Literal(coerce(node.value, column))
        except InvalidValue:
            pass  # it fails when it is evaluated, as a parameter would
    return Cast(node, column)


def _pure(name: str, arguments: list[Typed]) -> Typed:
    kinds = {argument.kind for argument in arguments} - {None}
    nodes = tuple(argument.node for argument in arguments)
    if name == "COALESCE" and len(kinds) <= 1:
        return Typed(Call(name, nodes), next(iter(kinds), None))
    if len(nodes) != 1:
        raise _Foreign
    if name == "ABS" and kinds <= _NUMBERS:
        return Typed(Call(name, nodes), next(iter(kinds), None))
    if name in ("LOWER", "UPPER", "LENGTH") and kinds <= _TEXTS:
        return Typed(Call(name, nodes), SqlType.BIGINT if name == "LENGTH" else SqlType.TEXT)
    raise _Foreign
