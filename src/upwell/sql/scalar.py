"""The grammar of expressions: tokens → a typed tree of `engine.expression`, or nothing.

Law: a tree is made only where it certainly means what the query engine would compute from the same
text; everything else gives None and stays text. Unknown columns are errors here already.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from upwell.engine.catalog import Table
from upwell.engine.expression import (
    DELETED,
    PURE,
    SEQ,
    And,
    Call,
    ColumnRef,
    InList,
    IsNull,
    Like,
    Literal,
    Negate,
    Node,
    Not,
    Or,
    Parameter,
)
from upwell.engine.operation import ArithmeticOp, CompareOp
from upwell.errors import InvalidOperation, InvalidSql, QueryFailure
from upwell.sql.lex import Fragment, Token, Tokens, string_value
from upwell.sql.typed import (
    CONSTANTS,
    KIND_OF,
    TEXTS,
    Foreign,
    Typed,
    adapted,
    calculate,
    case,
    compare,
    concat,
    condition,
    conditions,
    is_distinct,
    meet,
    numeric,
    pure_call,
    step,
    typed_literal,
)
from upwell.types import SqlType, WrittenFloat

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
_COMPARE: dict[str, CompareOp] = {
    "=": "=", "!=": "!=", "<>": "!=", "<": "<", "<=": "<=", ">": ">", ">=": ">=",
}  # fmt: skip
_SUM: dict[str, ArithmeticOp] = {"+": "+", "-": "-"}
_PRODUCT: dict[str, ArithmeticOp] = {"*": "*", "/": "/", "%": "%"}
# A word that stands where an operand should is grammar that only the query engine knows.
_RESERVED = frozenset(
    {
        "SELECT",
        "WITH",
        "FROM",
        "WHERE",
        "CASE",
        "WHEN",
        "THEN",
        "ELSE",
        "END",
        "EXISTS",
        "ARRAY",
        "ALL",
        "ANY",
    }
    | {"SOME", "DISTINCT", "AND", "OR", "NOT", "IN", "IS", "LIKE", "ILIKE", "BETWEEN", "AS", "ON", "DEFAULT"}
    | {"CURRENT_DATE", "CURRENT_TIME"}
)


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
        if not self.qualifies(parts[:-1]):
            raise QueryFailure(f"'{'.'.join(parts)}' is not a column of {self.table.full_name}")
        if name in SYSTEM_COLUMNS:
            return SYSTEM_COLUMNS[name], SqlType.BIGINT if name == "_seq" else SqlType.BOOLEAN
        index = self.table.index_of.get(name)
        if index is None:
            raise QueryFailure(f"column '{name}' does not exist in {self.table.full_name}")
        return index, self.table.columns[index].type

    def qualifies(self, parts: Sequence[str]) -> bool:
        """Tell whether the names in front of a column's, or of `*`, stand for the table."""
        assert self.table is not None, "asked only with a table"
        if not parts:
            return True
        if self.alias is not None:
            return tuple(parts) == (self.alias,)
        return tuple(parts) in ((self.table.name,), (self.table.namespace, self.table.name))

    def parameter(self, index: int) -> SqlType | None:
        if index >= len(self.parameter_types):
            raise Foreign
        self.used_types = True
        return KIND_OF[self.parameter_types[index]]


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
    except (Foreign, InvalidSql):
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
    return int(text) if text.isdigit() and len(text) <= _INTEGER_DIGITS_MAX else WrittenFloat(text)


def negative(number: int | float) -> int | float:
    """Return a number literal behind a minus sign."""
    return WrittenFloat("-" + number.text) if isinstance(number, WrittenFloat) else -number


class _Grammar:
    """Precedence climbing by one method per level; each returns a `Typed` or raises `Foreign`."""

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
        return items[0] if len(items) == 1 else Typed(Or(conditions(items)), SqlType.BOOLEAN)

    def _conjunction(self) -> Typed:
        items = [self._negation()]
        while self.tokens.accept("AND"):
            items.append(self._negation())
        return items[0] if len(items) == 1 else Typed(And(conditions(items)), SqlType.BOOLEAN)

    def _negation(self) -> Typed:
        if not self.tokens.accept("NOT"):
            return self._test()
        self._deepen()
        found = Typed(Not(condition(self._negation())), SqlType.BOOLEAN)
        self.depth -= 1
        return found

    def _deepen(self) -> None:
        self.depth += 1
        if self.depth > _NESTING_MAX:
            raise Foreign

    def _test(self) -> Typed:
        """Comparisons and the tests IS, IN, LIKE and BETWEEN; they don't chain here."""
        left = self._sum()
        token = self.tokens.peek()
        if token.word in _COMPARE:
            self.tokens.take()
            return compare(_COMPARE[token.word], left, self._sum())
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
            raise Foreign
        else:
            return left
        return Typed(Not(found.node), SqlType.BOOLEAN) if negated else found

    def _is(self, left: Typed) -> Typed:
        negated = self.tokens.accept("NOT")
        if self.tokens.accept("NULL"):
            node: Node = IsNull(left.node)
        elif self.tokens.accept("TRUE"):
            node = Call("COALESCE", (condition(left), Literal(False)))
        elif self.tokens.accept("FALSE"):
            node = Call("COALESCE", (Not(condition(left)), Literal(False)))
        elif self.tokens.accept("DISTINCT", "FROM"):
            node = is_distinct(left, self._sum())
        else:
            raise Foreign
        return Typed(Not(node) if negated else node, SqlType.BOOLEAN)

    def _in(self, left: Typed) -> Typed:
        pairs = [meet(left, option) for option in self.tokens.listed(self._sum)]
        if any(item != pairs[0][0] for item, _ in pairs):
            raise Foreign
        return Typed(InList(pairs[0][0], tuple(option for _, option in pairs)), SqlType.BOOLEAN)

    def _like(self, left: Typed, *, fold: bool) -> Typed:
        pattern = self._sum()
        if left.kind not in TEXTS or pattern.kind not in (*TEXTS, None):
            raise Foreign
        return Typed(Like(left.node, pattern.node, fold), SqlType.BOOLEAN)

    def _between(self, left: Typed) -> Typed:
        low = self._sum()
        self.tokens.expect("AND")
        high = self._sum()
        return Typed(And((compare(">=", left, low).node, compare("<=", left, high).node)), SqlType.BOOLEAN)

    def _sum(self) -> Typed:
        left = self._product()
        for _ in range(_NESTING_MAX):
            word = self.tokens.peek().word
            if word in _SUM:
                self.tokens.take()
                left = calculate(_SUM[word], left, self._product())
            elif self.tokens.accept("||"):
                left = concat(left, self._product())
            else:
                return left
        raise Foreign

    def _product(self) -> Typed:
        left = self._signed()
        for _ in range(_NESTING_MAX):
            word = self.tokens.peek().word
            if word not in _PRODUCT:
                return left
            self.tokens.take()
            left = calculate(_PRODUCT[word], left, self._signed())
        raise Foreign

    def _signed(self) -> Typed:
        if not self.tokens.accept("-"):
            return self._primary()
        if self.tokens.peek().kind == "number":
            return typed_literal(negative(number_value(self.tokens.take().text)))
        inner = self._primary()
        return Typed(Negate(inner.node), numeric(inner))

    def _primary(self) -> Typed:
        token = self.tokens.take()
        match token.kind:
            case "number":
                found = typed_literal(number_value(token.text))
            case "string" | "escaped" | "dollar":
                found = typed_literal(string_value(token))
            case "bytes" if len(token.text) % 2:
                found = typed_literal(bytes.fromhex(token.text[2:-1]))
            case "parameter":
                index = parameter_index(token)
                found = Typed(Parameter(index), self.scope.parameter(index))
            case "word" | "quoted":
                found = self._named(token)
            case "op" if token.word == "(":
                found = self._group()
            case _:
                raise Foreign
        while self.tokens.peek().word in ("->", "->>", "?"):
            found = self._step(found)
        if self.tokens.peek().word in ("::", "[", "."):
            raise Foreign
        return found

    def _step(self, left: Typed) -> Typed:
        operator, token = self.tokens.take().word, self.tokens.take()
        if token.kind == "string":
            found = step(left, Literal(string_value(token)))
        elif token.kind == "number" and isinstance(at := number_value(token.text), int) and operator != "?":
            found = step(left, Literal(at))
        else:
            raise Foreign
        if operator == "?":
            return Typed(Not(IsNull(found.node)), SqlType.BOOLEAN)
        return found if operator == "->" else Typed(Call("JSON_TEXT", (found.node,)), SqlType.TEXT)

    def _case(self) -> Typed:
        self._deepen()
        operand = None if self.tokens.sees("WHEN") else self.disjunction()
        choices = []
        while self.tokens.accept("WHEN"):
            found = self.disjunction()
            test = condition(found) if operand is None else compare("=", operand, found).node
            self.tokens.expect("THEN")
            choices.append((test, self.disjunction()))
        otherwise = self.disjunction() if self.tokens.accept("ELSE") else CONSTANTS["NULL"]
        self.tokens.expect("END")
        self.depth -= 1
        return case(choices, otherwise)

    def _group(self) -> Typed:
        found = self.disjunction()
        self.tokens.expect(")")
        return found

    def _named(self, token: Token) -> Typed:
        constant = CONSTANTS.get(token.word)
        if constant is not None:
            return constant
        if token.word == "CASE":
            return self._case()
        if self.tokens.sees("(") or token.word in BARE_FUNCTIONS:
            return self._function(token.word)
        if token.word == "TIMESTAMP" and self.tokens.peek().kind in ("string", "parameter"):
            return self._moment()
        if token.word in _RESERVED or self.tokens.peek().kind in ("string", "escaped", "parameter"):
            raise Foreign
        self.tokens.index -= 1
        parts = [self.tokens.name()]
        while self.tokens.accept("."):
            parts.append(self.tokens.name())
        index, kind = self.scope.column(parts)
        return Typed(ColumnRef(index), kind, parts[-1])

    def _moment(self) -> Typed:
        text = self._primary()
        if text.kind is not SqlType.TEXT:
            raise Foreign
        return Typed(adapted(text.node, SqlType.TIMESTAMP, "timestamp"), SqlType.TIMESTAMP)

    def _function(self, name: str) -> Typed:
        if name in CONTEXT_FUNCTIONS:
            if self.tokens.accept("(") and not self.tokens.accept(")"):
                raise Foreign
            function, kind = CONTEXT_FUNCTIONS[name]
            return Typed(Call(function), kind)
        if name not in PURE:
            raise Foreign
        return pure_call(name, self.tokens.listed(self.disjunction))
