"""Expressions: a closed tree of frozen nodes over one row, and closures that evaluate it.

Law: a tree means what the same text means to the query engine, three-valued logic included; what can't
be promised to be equal never becomes a tree. Nodes hold no names: columns are indexes into the row.

System columns: `SEQ` (-1) is `_seq` and `DELETED` (-2) is `_deleted`. Who evaluates a tree that reads
them (`columns_read` tells) passes the row extended by `_deleted, _seq`, so that an index from the end
finds them; every other tree takes the plain row.
"""

import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace

import msgspec

from upwell.engine import json_value
from upwell.engine.operation import (
    ARITHMETIC,
    COMPARE,
    ArithmeticOp,
    CompareOp,
    concat,
    in_range,
    like,
    number,
)
from upwell.types import INTEGER_BITS, Column, Key, Row, Value, coerce

SEQ = -1
DELETED = -2


@dataclass(frozen=True, slots=True)
class Literal:
    value: Value


@dataclass(frozen=True, slots=True)
class Parameter:
    """The value at `index` (from 0) of the statement's values; `$1` has index 0."""

    index: int


@dataclass(frozen=True, slots=True)
class ColumnRef:
    index: int


@dataclass(frozen=True, slots=True)
class Compare:
    op: CompareOp
    left: "Node"
    right: "Node"


@dataclass(frozen=True, slots=True)
class And:
    items: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Or:
    items: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Not:
    item: "Node"


@dataclass(frozen=True, slots=True)
class IsNull:
    item: "Node"


@dataclass(frozen=True, slots=True)
class InList:
    item: "Node"
    options: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Like:
    """LIKE, or ILIKE if `fold`; a backslash in the pattern takes the next character literally."""

    item: "Node"
    pattern: "Node"
    fold: bool = False


@dataclass(frozen=True, slots=True)
class Arithmetic:
    op: ArithmeticOp
    left: "Node"
    right: "Node"


@dataclass(frozen=True, slots=True)
class Concat:
    left: "Node"
    right: "Node"


@dataclass(frozen=True, slots=True)
class Negate:
    item: "Node"


@dataclass(frozen=True, slots=True)
class Cast:
    """The item as `column` would hold it: text compared with a TIMESTAMP or a UUID."""

    item: "Node"
    column: Column


@dataclass(frozen=True, slots=True)
class Call:
    """A function of `GENERATORS` (no arguments), of `PURE`, a path's step of `PATH`, or CASE.

    CASE has a condition and a value by turns, and at last the value of ELSE.
    """

    function: str
    arguments: tuple["Node", ...] = ()


Node = (
    Literal
    | Parameter
    | ColumnRef
    | Compare
    | And
    | Or
    | Not
    | IsNull
    | InList
    | Like
    | Arithmetic
    | Concat
    | Negate
    | Cast
    | Call
)


class Context(msgspec.Struct, frozen=True):
    """What a statement knows of its session and moment; `now_us` is the same for the whole statement."""

    user: str
    role: str
    now_us: int
    next_id: Callable[[], int]
    next_uuid: Callable[[], str]
    next_ulid: Callable[[], str]


GENERATORS: dict[str, Callable[[Context], Value]] = {
    "NOW": lambda context: context.now_us,
    "SNOWFLAKE_ID": lambda context: context.next_id(),
    "UUID_V7": lambda context: context.next_uuid(),
    "ULID": lambda context: context.next_ulid(),
    "CURRENT_USER": lambda context: context.user,
    "CURRENT_ROLE": lambda context: context.role,
}
PURE = ("LOWER", "UPPER", "LENGTH", "ABS", "COALESCE")
PATH: dict[str, Callable[..., Value]] = {
    "JSON_STEP": json_value.step,
    "JSON_STEP_AT": json_value.step_at,
    "JSON_TEXT": json_value.text,
}
_UNARY: dict[str, Callable[[Value], Value]] = {
    "LOWER": lambda value: str(value).lower(),
    "UPPER": lambda value: str(value).upper(),
    "LENGTH": lambda value: len(str(value)),
    "ABS": lambda value: in_range(abs(number(value))),
}

Compiled = Callable[[Row, Sequence[Value], Context], Value]
Predicate = Callable[[Row, Sequence[Value], Context], bool]


def compile_scalar(node: Node) -> Compiled:
    """Return a closure that evaluates `node` for a row, the statement's values and a context.

    It raises `QueryFailure` for a division by zero, an overflow and types that don't meet.
    """
    match node:
        case Literal(value):
            return lambda row, values, context: value
        case Parameter(index):
            return lambda row, values, context: values[index]
        case ColumnRef(index):
            return lambda row, values, context: row[index]
        case Compare(op, left, right):
            return _strict(COMPARE[op], left, right)
        case And(items):
            return _junction(items, decisive=False)
        case Or(items):
            return _junction(items, decisive=True)
        case Not(item):
            return _unary(operator.not_, item)
        case IsNull(item):
            inner = compile_scalar(item)
            return lambda row, values, context: inner(row, values, context) is None
        case InList(item, options):
            return _membership(item, options)
        case Like(item, pattern, fold):
            return _strict(lambda text, form: like(str(text), str(form), fold=fold), item, pattern)
        case Arithmetic(op, left, right):
            return _strict(ARITHMETIC[op], left, right)
        case Concat(left, right):
            return _strict(concat, left, right)
        case Negate(item):
            return _unary(lambda value: in_range(-number(value)), item)
        case Cast(item, column):
            return _unary(lambda value: coerce(value, column), item)
        case Call(function, arguments):
            return _call(function, arguments)


def predicate(node: Node) -> Predicate:
    """Return a closure that tells whether `node` is true for a row; NULL is false."""
    compiled = compile_scalar(node)
    return lambda row, values, context: compiled(row, values, context) is True


def children(node: Node) -> tuple[Node, ...]:
    """Return the nodes right below `node`."""
    match node:
        case Literal() | Parameter() | ColumnRef():
            return ()
        case Compare(_, left, right) | Arithmetic(_, left, right) | Concat(left, right):
            return (left, right)
        case And(items) | Or(items) | Call(_, items):
            return items
        case Not(item) | IsNull(item) | Negate(item) | Cast(item, _):
            return (item,)
        case InList(item, options):
            return (item, *options)
        case Like(item, pattern, _):
            return (item, pattern)


def walk(node: Node) -> Iterator[Node]:
    """Yield `node` and everything below it."""
    yield node
    for child in children(node):
        yield from walk(child)


def columns_read(node: Node) -> frozenset[int]:
    """Return the indexes of the columns that `node` reads."""
    match node:
        case ColumnRef(index):
            return frozenset((index,))
        case InList(item, options) if _values(options) is not None:
            return columns_read(item)
        case _:
            return frozenset[int]().union(*map(columns_read, children(node)))


def is_constant(node: Node) -> bool:
    """Tell whether `node` reads no column."""
    return not columns_read(node)


def equalities(node: Node) -> list[tuple[int, Node]]:
    """Return the (column, constant) pairs that every row with a true `node` satisfies.

    Found are `column = constant` at the top and below top-level ANDs; a constant is a Literal, a
    Parameter, a Cast of one, or the session's CURRENT_USER or CURRENT_ROLE.
    """
    match node:
        case And(items):
            return [pair for item in items for pair in equalities(item)]
        case Compare("=", ColumnRef(index), other) if _is_fixed(other):
            return [(index, other)]
        case Compare("=", other, ColumnRef(index)) if _is_fixed(other):
            return [(index, other)]
        case _:
            return []


def freeze(node: Node, values: Sequence[Value], context: Context) -> Node:
    """Return `node` with parameters and the functions of `GENERATORS` replaced by their values now."""
    match node:
        case Parameter() | Call(_, ()):
            return Literal(compile_scalar(node)([], values, context))
        case Cast(item, column):
            inner = freeze(item, values, context)
            return Literal(coerce(inner.value, column)) if isinstance(inner, Literal) else Cast(inner, column)
        case _:
            return _rebuilt(node, lambda child: freeze(child, values, context))


def moved(node: Node, place: Callable[[int], int]) -> Node:
    """Return `node` with the columns where `place` says that they are now."""
    match node:
        case ColumnRef(index):
            return ColumnRef(place(index))
        case InList(item, options) if _values(options) is not None:
            return InList(moved(item, place), options)
        case _:
            return _rebuilt(node, lambda child: moved(child, place))


def find_key(value: Value, column: Column) -> Key | None:
    """Return the primary key that `key column = value` selects, None if no stored key can equal it.

    NULL equals nothing, nor does 1.5 or a number out of range an integer; text that can't be read as
    the column's type raises `InvalidValue`.
    """
    bits = INTEGER_BITS.get(column.type)
    if bits is not None and isinstance(value, (int, float)) and not isinstance(value, bool):
        limit = 1 << (bits - 1)
        if type(value) is int:  # what most keys are
            return value if -limit <= value < limit else None
        if not -limit <= value < limit or value != int(value):
            return None
    return coerce(value, column)


def _strict(combine: Callable[[Value, Value], Value], left: Node, right: Node) -> Compiled:
    """Evaluate both sides and combine them; NULL on either side gives NULL."""
    first, second = compile_scalar(left), compile_scalar(right)

    def run(row: Row, values: Sequence[Value], context: Context) -> Value:
        a = first(row, values, context)
        if a is None:
            return None
        b = second(row, values, context)
        return None if b is None else combine(a, b)

    return run


def _unary(combine: Callable[[Value], Value], item: Node) -> Compiled:
    inner = compile_scalar(item)

    def run(row: Row, values: Sequence[Value], context: Context) -> Value:
        value = inner(row, values, context)
        return None if value is None else combine(value)

    return run


def _junction(items: tuple[Node, ...], *, decisive: bool) -> Compiled:
    """AND (decided by False) or OR (decided by True); otherwise one NULL makes it NULL."""
    parts = [compile_scalar(item) for item in items]

    def run(row: Row, values: Sequence[Value], context: Context) -> Value:
        outcome: Value = not decisive
        for part in parts:
            value = part(row, values, context)
            if value is decisive:
                return decisive
            if value is None:
                outcome = None
        return outcome

    return run


def _values(options: tuple[Node, ...]) -> list[Value] | None:
    """Return the options of a list if all are literals: such a list may be long."""
    found = [option.value for option in options if type(option) is Literal]
    return found if len(found) == len(options) else None


def _membership(item: Node, options: tuple[Node, ...]) -> Compiled:
    inner, known = compile_scalar(item), _values(options)
    literals = frozenset(known or ())
    parts = [compile_scalar(option) for option in options] if known is None else []

    def run(row: Row, values: Sequence[Value], context: Context) -> Value:
        value = inner(row, values, context)
        if value is None:
            return None
        found = {part(row, values, context) for part in parts} if parts else literals
        return True if value in found else None if None in found else False

    return run


def _call(function: str, arguments: tuple[Node, ...]) -> Compiled:
    generate = GENERATORS.get(function)
    if generate is not None:
        return lambda row, values, context: generate(context)
    parts = [compile_scalar(argument) for argument in arguments]
    if function in PATH:
        step = PATH[function]
        return lambda row, values, context: json_value.find(
            step, tuple(part(row, values, context) for part in parts)
        )
    if function == "CASE":
        return _case(parts)
    if function != "COALESCE":
        return _unary(_UNARY[function], arguments[0])

    def first(row: Row, values: Sequence[Value], context: Context) -> Value:
        found = (part(row, values, context) for part in parts)
        return next((value for value in found if value is not None), None)

    return first


def _case(parts: Sequence[Compiled]) -> Compiled:
    choices = list(zip(parts[:-1:2], parts[1::2], strict=True))
    otherwise = parts[-1]

    def run(row: Row, values: Sequence[Value], context: Context) -> Value:
        for condition, value in choices:
            if condition(row, values, context) is True:
                return value(row, values, context)
        return otherwise(row, values, context)

    return run


def _is_fixed(node: Node) -> bool:
    match node:
        case Literal() | Parameter() | Call("CURRENT_USER" | "CURRENT_ROLE"):
            return True
        case Cast(item, _):
            return _is_fixed(item)
        case _:
            return False


def _rebuilt(node: Node, change: Callable[[Node], Node]) -> Node:
    changed: dict[str, object] = {}
    for field in fields(node):
        value = getattr(node, field.name)
        if isinstance(value, tuple):
            changed[field.name] = tuple(change(child) for child in value)
        elif isinstance(value, Node):
            changed[field.name] = change(value)
    return replace(node, **changed) if changed else node  # type: ignore[arg-type]
