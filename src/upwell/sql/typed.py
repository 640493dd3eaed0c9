"""Typed trees: what the parts of an expression become together, by their types.

Law: a tree is made only where it certainly means what the query engine would compute; else `Foreign`.
"""

from dataclasses import dataclass
from math import isfinite

from upwell.engine.expression import (
    And,
    Call,
    Cast,
    Compare,
    Concat,
    IsNull,
    Literal,
    Node,
    Not,
    Or,
    Parameter,
    is_constant,
)
from upwell.engine.expression import Arithmetic as ArithmeticNode
from upwell.engine.operation import INT64_MAX, INT64_MIN, ArithmeticOp, CompareOp
from upwell.errors import InvalidValue
from upwell.types import Column, SqlType, Value, WrittenFloat, coerce

NUMBERS = frozenset({SqlType.SMALLINT, SqlType.INT, SqlType.BIGINT, SqlType.FLOAT, SqlType.DOUBLE})
MOMENTS = frozenset({SqlType.TIMESTAMP, SqlType.DATETIME})
TEXTS = frozenset({SqlType.TEXT, SqlType.JSON})
_PRINTED = TEXTS | NUMBERS - {SqlType.DOUBLE, SqlType.FLOAT}
_ADAPTING = frozenset({SqlType.UUID, SqlType.DATE, SqlType.TIME}) | MOMENTS | NUMBERS
KIND_OF: dict[type, SqlType | None] = {
    bool: SqlType.BOOLEAN,
    int: SqlType.BIGINT,
    float: SqlType.DOUBLE,
    WrittenFloat: SqlType.DOUBLE,
    str: SqlType.TEXT,
    bytes: SqlType.BYTES,
    type(None): None,
}


class Foreign(Exception):
    """The text is beyond this grammar."""


@dataclass(frozen=True, slots=True)
class Typed:
    """A tree and its type; None is the type of NULL. A column's tree has its `name`, for messages."""

    node: Node
    kind: SqlType | None
    name: str = "value"


CONSTANTS = {
    "TRUE": Typed(Literal(True), SqlType.BOOLEAN),
    "FALSE": Typed(Literal(False), SqlType.BOOLEAN),
    "NULL": Typed(Literal(None), None),
}


def typed_literal(value: Value) -> Typed:
    if isinstance(value, int) and not INT64_MIN <= value <= INT64_MAX:
        raise Foreign
    if isinstance(value, float) and not isfinite(value):
        raise Foreign
    return Typed(Literal(value), KIND_OF[type(value)])


def condition(typed: Typed) -> Node:
    if typed.kind not in (SqlType.BOOLEAN, None):
        raise Foreign
    return typed.node


def conditions(items: list[Typed]) -> tuple[Node, ...]:
    return tuple(condition(item) for item in items)


def numeric(typed: Typed) -> SqlType | None:
    if typed.kind is not None and typed.kind not in NUMBERS:
        raise Foreign
    return typed.kind


def calculate(op: ArithmeticOp, left: Typed, right: Typed) -> Typed:
    kinds = (numeric(left), numeric(right))
    if SqlType.FLOAT in kinds:
        raise Foreign  # of 32 bits, which Python doesn't compute with
    kind = None if None in kinds else SqlType.DOUBLE if SqlType.DOUBLE in kinds else SqlType.BIGINT
    return Typed(ArithmeticNode(op, left.node, right.node), kind)


def concat(left: Typed, right: Typed) -> Typed:
    if any(side.kind is not None and side.kind not in _PRINTED for side in (left, right)):
        raise Foreign
    if not {left.kind, right.kind} & TEXTS:
        raise Foreign
    return Typed(Concat(left.node, right.node), SqlType.TEXT)


def compare(op: CompareOp, left: Typed, right: Typed) -> Typed:
    return Typed(Compare(op, *meet(left, right)), SqlType.BOOLEAN)


def meet(left: Typed, right: Typed) -> tuple[Node, Node]:
    """Return both sides so that they compare: text that is constant becomes the other side's type."""
    a, b = left.kind, right.kind
    if SqlType.DECIMAL in (a, b):
        raise Foreign  # held as text
    if {a, b} == MOMENTS:
        return left.node, right.node
    if a is None or b is None or a == b or {a, b} <= NUMBERS or {a, b} <= TEXTS:
        return left.node, right.node
    if {a, b} == {SqlType.TEXT, SqlType.UUID} and not (is_constant(left.node) or is_constant(right.node)):
        return left.node, right.node
    if a in _ADAPTING and _adapts(right, a):
        return left.node, adapted(right.node, a, left.name)
    if b in _ADAPTING and _adapts(left, b):
        return adapted(left.node, b, right.name), right.node
    raise Foreign


def _adapts(constant: Typed, kind: SqlType) -> bool:
    if not isinstance(constant.node, (Literal, Parameter)):
        # CURRENT_USER() compared with a UUID column: text that is known when the statement runs.
        return kind is SqlType.UUID and constant.kind is SqlType.TEXT and isinstance(constant.node, Call)
    return constant.kind is SqlType.TEXT


def adapted(node: Node, kind: SqlType, name: str) -> Node:
    # Text compared with any integer column is read with the widest type: out of range is just unequal.
    wide = SqlType.BIGINT if kind in (SqlType.SMALLINT, SqlType.INT) else kind
    column = Column(0, name, wide)
    if isinstance(node, Literal):
        try:
            return Literal(coerce(node.value, column))
        except InvalidValue:
            pass  # it fails when it is evaluated, as a parameter would
    return Cast(node, column)


def step(left: Typed, key: Literal) -> Typed:
    """Return a step into a document: by the name of a member or the place of an element."""
    if left.kind not in TEXTS:
        raise Foreign
    function = "JSON_STEP" if isinstance(key.value, str) else "JSON_STEP_AT"
    return Typed(Call(function, (left.node, key)), SqlType.TEXT)


def is_distinct(left: Typed, right: Typed) -> Node:
    a, b = meet(left, right)
    both_null = And((IsNull(a), IsNull(b)))
    return Not(Or((both_null, Call("COALESCE", (Compare("=", a, b), Literal(False))))))


def case(choices: list[tuple[Node, Typed]], otherwise: Typed) -> Typed:
    """Return CASE over (condition, value) pairs; its values are of one type."""
    values = [*(value for _, value in choices), otherwise]
    kinds = {value.kind for value in values} - {None}
    if not choices or len(kinds) > 1:
        raise Foreign
    nodes = [node for condition, value in choices for node in (condition, value.node)]
    return Typed(Call("CASE", (*nodes, otherwise.node)), next(iter(kinds), None))


def pure_call(name: str, arguments: list[Typed]) -> Typed:
    kinds = {argument.kind for argument in arguments} - {None}
    nodes = tuple(argument.node for argument in arguments)
    if name == "COALESCE" and len(kinds) <= 1:
        return Typed(Call(name, nodes), next(iter(kinds), None))
    if len(nodes) != 1:
        raise Foreign
    if name == "ABS" and kinds <= NUMBERS:
        return Typed(Call(name, nodes), next(iter(kinds), None))
    if name in ("LOWER", "UPPER", "LENGTH") and kinds <= TEXTS:
        return Typed(Call(name, nodes), SqlType.BIGINT if name == "LENGTH" else SqlType.TEXT)
    raise Foreign
